"""Which sequences compute how many tokens in the next step. Pure Python: no weights, no arrays.

Each step all sequences that decode get one row (more when they bring a draft), and beside them prompts get one
chunk. The rules:

- Admission in order of arrival, when the blocks of the whole prompt are there beside what running prompts still
  need and one more for each running sequence. Nobody overtakes, so nobody starves.
- Prompts take turns: the one that had a chunk goes behind the others. A long prompt delays everyone else by one
  chunk at most, and chunks are short while others decode.
- A prompt skips what the prefix cache holds, looked up again before each chunk: two requests with the same
  prompt in flight compute it once between them.
- Out of blocks: the sequence that arrived last goes back to the queue, with its tokens; the one that arrived
  first always goes on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from tianquan.engine.prefix_cache import Node, PrefixCache, Unit
from tianquan.engine.sequence import Sequence
from tianquan.errors import ParameterError


@dataclass(frozen=True, kw_only=True)
class SchedulerLimits:
    """Bounds of one step.

    max_running: most sequences that hold blocks.
    prefill_chunk: most prompt tokens of a step when nobody decodes: full kernel speed, bounded activations.
    prefill_chunk_beside_decode: the same while others wait for tokens: their delay.
    """

    max_running: int = 16
    prefill_chunk: int = 512
    prefill_chunk_beside_decode: int = 128

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ParameterError(f"{name} must be an integer of at least 1, got {value!r:.60}")


@dataclass(frozen=True)
class BlockCopy:
    """The first `num_tokens` tokens of a cached block are needed in a private one."""

    source: int
    target: int
    num_tokens: int


@dataclass
class StepPlan:
    """The work of one step: the copies first, in order."""

    copies: list[BlockCopy] = field(default_factory=list)
    decodes: list[Sequence] = field(default_factory=list)  # each: its last token and its draft
    prefills: list[tuple[Sequence, int]] = field(default_factory=list)  # each: this many tokens of its prompt


class Scheduler:
    """Sequences that wait and run, over one pool of blocks."""

    def __init__(self, cache: PrefixCache, limits: SchedulerLimits) -> None:
        self.cache = cache
        self.limits = limits
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []  # in order of arrival
        self.num_preemptions = 0
        self._turns: deque[Sequence] = deque()  # running sequences with prompt left, whose turn is first

    @property
    def max_sequence_tokens(self) -> int:
        """Tokens of a sequence that has all blocks to itself."""
        return self.cache.num_blocks * self.cache.block_size

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence that fits the pool when alone."""
        assert sequence.max_tokens <= self.max_sequence_tokens
        assert 0 < sequence.num_prompt < sequence.max_tokens
        self.waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Take out a sequence that ended or was aborted, and free its blocks; what it computed stays known."""
        if sequence in self.waiting:
            self.waiting.remove(sequence)
        else:
            self.running.remove(sequence)
            self._release(sequence)

    def schedule(self, propose: Callable[[Sequence], list[int]] | None = None) -> StepPlan:
        """Return the work of the next step; blocks for all of it are assigned.

        `propose` gives a draft for a sequence that decodes: guesses of its next tokens, none for no guess.
        """
        plan = StepPlan()
        for sequence in list(self.running):
            if sequence not in self._turns and sequence in self.running:
                assert sequence.num_pending == 1, "a prompt without a turn is computed"
                sequence.draft = propose(sequence) if propose is not None else []
                self._plan_decode(sequence, plan)
        self._admit()
        self._plan_prefills(plan)
        return plan

    def defer(self, sequence: Sequence) -> None:
        """Take back a planned chunk of a prompt that was not computed; others have their turns first."""
        if sequence in self._turns:
            self._turns.remove(sequence)
        self._turns.append(sequence)

    def advance(self, sequence: Sequence, num_tokens: int) -> None:
        """Record that keys and values of `num_tokens` more tokens are computed."""
        if sequence.num_computed < sequence.num_prompt:
            sequence.num_prefilled += num_tokens
        sequence.num_computed += num_tokens
        assert sequence.num_computed <= len(sequence.token_ids)
        if sequence.num_computed >= sequence.num_prompt and sequence.num_cached is None:
            sequence.num_cached = max(0, sequence.num_prompt - sequence.num_prefilled)
            self.cache.statistics.queries += sequence.num_prompt
            self.cache.statistics.hits += sequence.num_cached
        size = self.cache.block_size
        while (len(sequence.path) + 1) * size <= sequence.num_computed:
            n = len(sequence.path)
            parent = self._end_of_path(sequence)
            node = self.cache.commit(parent, tuple(sequence.units[n * size : (n + 1) * size]), sequence.block_table[n])
            sequence.block_table[n] = node.block
            sequence.path.append(node)

    # Decode -----------------------------------------------------------------------------------------------
    def _plan_decode(self, sequence: Sequence, plan: StepPlan) -> None:
        while not self._grow(sequence, sequence.num_computed + 1):
            victim = self.running[-1]
            self._preempt(victim)
            if victim is sequence:
                return
        # a draft is worth no preemption: it is cut to the blocks that are there
        while sequence.draft and not self._grow(sequence, sequence.num_computed + 1 + len(sequence.draft)):
            sequence.draft.pop()
        plan.decodes.append(sequence)

    def _grow(self, sequence: Sequence, num_tokens: int) -> bool:
        """Give a sequence blocks for `num_tokens` tokens; False when there are none left."""
        while len(sequence.block_table) * self.cache.block_size < num_tokens:
            block = self.cache.allocate()
            if block is None:
                return False
            sequence.block_table.append(block)
        return True

    # Prompts ----------------------------------------------------------------------------------------------
    def _admit(self) -> None:
        while self.waiting and len(self.running) < self.limits.max_running:
            sequence = self.waiting[0]
            self._extend_path(sequence)
            needed = self._blocks_to_come(sequence)
            reserved = len(self.running) + sum(self._blocks_to_come(other) for other in self.running)
            if self.running and needed + reserved > self.cache.num_available:
                self._release(sequence)
                return
            self.waiting.popleft()
            self.running.append(sequence)
            self.running.sort(key=lambda other: other.id)
            self._turns.append(sequence)

    def _blocks_to_come(self, sequence: Sequence) -> int:
        size = self.cache.block_size
        return max(0, -(-len(sequence.token_ids) // size) - len(sequence.block_table))

    def _plan_prefills(self, plan: StepPlan) -> None:
        limits = self.limits
        budget = limits.prefill_chunk_beside_decode if plan.decodes else limits.prefill_chunk
        planned: set[tuple[int, tuple[Unit, ...]]] = set()  # where chunks begin, and their first blocks
        for sequence in list(self._turns):
            if budget <= 0:
                return
            if sequence not in self.running:
                continue  # preempted by one before it
            first = self._next_block(sequence)
            if first is not None and first in planned:
                continue  # another computes it in this step: it is there in the next
            num_tokens = self._plan_chunk(sequence, budget, plan)
            if num_tokens:
                if first is not None:
                    planned.add(first)
                plan.prefills.append((sequence, num_tokens))
                budget -= num_tokens
                self._turns.remove(sequence)
                if num_tokens < sequence.num_pending:
                    self._turns.append(sequence)

    def _next_block(self, sequence: Sequence) -> tuple[int, tuple[Unit, ...]] | None:
        """Return what a prompt's next whole block follows, and its units; None where none begins or is left."""
        if not self._is_at_block(sequence):
            return None
        self._extend_path(sequence)
        start, size = sequence.num_computed, self.cache.block_size
        if start + size >= len(sequence.units):
            return None
        return id(self._end_of_path(sequence)), tuple(sequence.units[start : start + size])

    def _plan_chunk(self, sequence: Sequence, budget: int, plan: StepPlan) -> int:
        """Return how many tokens of a prompt this step computes, with blocks assigned for them."""
        self._reuse(sequence, plan)
        start, size = sequence.num_computed, self.cache.block_size
        stop = min(start + budget, len(sequence.token_ids))
        if stop < len(sequence.token_ids) and stop // size * size > start:
            stop = stop // size * size  # whole blocks can be shared, and looked up before the next chunk
        while not self._grow(sequence, stop):
            has_others = bool(plan.decodes or plan.prefills)
            if len(sequence.block_table) * size > start:
                return len(sequence.block_table) * size - start  # as far as the blocks go
            victim = self.running[-1]
            if has_others or victim.id <= sequence.id:
                return 0  # those that work will end; their blocks come back
            self._preempt(victim)
        return stop - start

    def _reuse(self, sequence: Sequence, plan: StepPlan) -> None:
        """Skip what the prefix cache knows: whole blocks by sharing them, the beginning of one by copying it."""
        if not self._is_at_block(sequence):
            return
        self._extend_path(sequence)
        start, size = sequence.num_computed, self.cache.block_size
        # the last token is always computed: its logits are needed
        units = sequence.units[start : min(start + size, len(sequence.units) - 1)]
        found = self.cache.find_partial(self._end_of_path(sequence), units) if units else None
        if found is None:
            return
        node, num_tokens = found
        self.cache.acquire(node)  # while a block is looked for, which may push out others
        if self._grow(sequence, start + 1):
            plan.copies.append(BlockCopy(node.block, sequence.block_table[-1], num_tokens))
            sequence.num_computed += num_tokens
        self.cache.release([node])

    def _is_at_block(self, sequence: Sequence) -> bool:
        """True where what comes next may be shared: all blocks are whole and known to the cache."""
        return sequence.num_computed % self.cache.block_size == 0 and len(sequence.block_table) == len(sequence.path)

    def _extend_path(self, sequence: Sequence) -> None:
        size = self.cache.block_size
        while sequence.num_computed + size < len(sequence.units):
            start = sequence.num_computed
            node = self.cache.find(self._end_of_path(sequence), tuple(sequence.units[start : start + size]))
            if node is None:
                return
            self.cache.acquire(node)
            sequence.path.append(node)
            sequence.block_table.append(node.block)
            sequence.num_computed += size

    # Ends -------------------------------------------------------------------------------------------------
    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self._release(sequence)
        sequence.num_preemptions += 1
        self.num_preemptions += 1
        position = sum(other.id < sequence.id for other in self.waiting)
        self.waiting.insert(position, sequence)

    def _release(self, sequence: Sequence) -> None:
        """Give back all blocks. Full ones are nodes already; a partly full one becomes a node now."""
        if sequence in self._turns:
            self._turns.remove(sequence)
        size, n = self.cache.block_size, len(sequence.path)
        own = sequence.block_table[n:]
        units = tuple(sequence.units[n * size : sequence.num_computed])
        if own and units:
            self.cache.keep_partial(self._end_of_path(sequence), units, own.pop(0))
        for block in own:
            self.cache.free(block)
        self.cache.release(sequence.path)
        sequence.path, sequence.block_table, sequence.draft, sequence.num_computed = [], [], [], 0

    def _end_of_path(self, sequence: Sequence) -> Node:
        return sequence.path[-1] if sequence.path else self.cache.root(sequence.namespace)
