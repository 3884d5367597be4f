"""The scheduler and the block pool alone: no weights, no arrays, a dictionary in place of keys and values.

The dictionary holds, for each slot of each block, which beginning of which prompt was written there. Whatever a
step reads must be exactly the beginning its sequence has: a block shared wrongly, reused early or copied short
shows at once.
"""

from __future__ import annotations

import random
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tianquan.engine.prefix_cache import PrefixCache
from tianquan.engine.scheduler import Scheduler, SchedulerLimits
from tianquan.engine.sequence import Sequence

BLOCK = 4


class Simulation:
    """Runs plans as the engine would, and checks every invariant after each step."""

    def __init__(self, num_blocks, limits):
        self.cache = PrefixCache(num_blocks, BLOCK)
        self.scheduler = Scheduler(self.cache, limits)
        self.limits = limits
        self.slots = {}
        self.next_id = 0
        self.live = {}
        self.num_answered = 0

    def add(self, units, num_answer, namespace=(None, "")):
        limit = self.scheduler.max_sequence_tokens
        units = units[: limit - 1]
        sequence = Sequence(
            id=self.next_id,
            units=list(units),
            token_ids=[0] * len(units),
            num_prompt=len(units),
            max_tokens=min(len(units) + num_answer, limit),
            namespace=namespace,
        )
        self.next_id += 1
        self.live[sequence.id] = sequence
        self.scheduler.add(sequence)
        return sequence

    def abort(self, id):
        self.scheduler.remove(self.live.pop(id))

    def truth(self, sequence, position):
        return hash((sequence.namespace, tuple(sequence.units[: position + 1])))

    def slot(self, sequence, position):
        return sequence.block_table[position // BLOCK], position % BLOCK

    def write(self, sequence, first, num_tokens):
        for position in range(first, first + num_tokens):
            self.slots[self.slot(sequence, position)] = self.truth(sequence, position)

    def check_past(self, sequence):
        for position in range(sequence.num_computed):
            assert self.slots[self.slot(sequence, position)] == self.truth(sequence, position)

    def step(self, rng, draft_rate=0.0):
        def propose(sequence):
            room = sequence.max_tokens - len(sequence.token_ids) - 1
            return [1] * min(rng.randrange(4), room) if rng.random() < draft_rate else []

        plan = self.scheduler.schedule(propose)
        for copy in plan.copies:
            for slot in range(copy.num_tokens):
                self.slots[copy.target, slot] = self.slots[copy.source, slot]
        limits = self.limits
        budget = limits.prefill_chunk_beside_decode if plan.decodes else limits.prefill_chunk
        assert sum(num_tokens for _, num_tokens in plan.prefills) <= budget
        assert len(self.scheduler.running) <= limits.max_running
        chosen = {}
        for sequence in plan.decodes:
            self.check_past(sequence)
            num_new = 1 + rng.randrange(len(sequence.draft) + 1)
            self.write(sequence, sequence.num_computed, 1)
            for n in range(len(sequence.draft)):  # rejected guesses leave garbage behind
                self.slots[self.slot(sequence, sequence.num_computed + 1 + n)] = None
            chosen[sequence.id] = num_new
        for sequence, num_tokens in plan.prefills:
            self.check_past(sequence)
            assert 0 < num_tokens <= sequence.num_pending
            if rng.random() < 0.1:  # its picture is not encoded yet
                self.scheduler.defer(sequence)
                continue
            self.write(sequence, sequence.num_computed, num_tokens)
            if num_tokens == sequence.num_pending:
                self.answer(sequence, rng, 1, num_tokens - 1)
            else:
                self.scheduler.advance(sequence, num_tokens)
        for sequence in plan.decodes:
            self.answer(sequence, rng, chosen[sequence.id], 0)
        self.check_blocks()
        return plan

    def answer(self, sequence, rng, num_new, num_before):
        first = len(sequence.token_ids)
        for _ in range(num_new):
            sequence.append(rng.randrange(3))
        self.write(sequence, first, num_new - 1)  # of accepted guesses
        self.scheduler.advance(sequence, num_before + num_new)
        self.num_answered += num_new
        assert len(sequence.token_ids) <= sequence.max_tokens
        if len(sequence.token_ids) == sequence.max_tokens or rng.random() < 0.02:
            del self.live[sequence.id]
            self.scheduler.remove(sequence)

    def check_blocks(self):
        """Each block is free, in the tree, or private to one sequence."""
        free = list(self.cache._free)
        nodes, stack = [], list(self.cache._roots.values())
        while stack:
            node = stack.pop()
            children = [child for same in node.children.values() for child in same.values()]
            assert all(child.num_references <= node.num_references or node.namespace for child in children)
            nodes += children
            stack += children
        private = [b for s in self.scheduler.running for b in s.block_table[len(s.path) :]]
        everything = free + [node.block for node in nodes] + private
        assert sorted(everything) == list(range(self.cache.num_blocks))
        holders = [id(node) for s in self.scheduler.running for node in s.path]
        assert all(node.num_references == holders.count(id(node)) for node in nodes)
        assert self.cache.num_cached == sum(node.num_references == 0 for node in nodes)
        for sequence in self.scheduler.waiting:
            assert not sequence.block_table
            assert not sequence.path
        assert {s.id for s in [*self.scheduler.running, *self.scheduler.waiting]} == set(self.live)

    def drain(self, rng, max_steps):
        for _ in range(max_steps):
            if not self.live:
                break
            self.step(rng)
        assert not self.live, "every request ends"
        assert self.cache.num_available == self.cache.num_blocks


def random_units(rng):
    """Prompts that share beginnings of any length, with placeholders of two pictures among the tokens."""
    document = random.Random(rng.randrange(4))  # four documents, cut anywhere, and a question behind
    units = [document.randrange(2) for _ in range(rng.randrange(1, 50))]
    units += [rng.randrange(2) for _ in range(rng.randrange(10))]
    if rng.random() < 0.4:
        digest = rng.choice([b"cat", b"dog"])
        start = rng.randrange(8)
        units[start:start] = [(digest, 0, row) for row in range(6)]
    return units


def run(seed, num_steps, num_blocks, limits):
    rng = random.Random(seed)
    simulation = Simulation(num_blocks, limits)
    for _ in range(num_steps):
        if len(simulation.live) < 12 and rng.random() < 0.3:
            namespace = (rng.choice([None, "style"]), rng.choice(["", "tenant"]))
            simulation.add(random_units(rng), rng.randrange(1, 30), namespace)
        if simulation.live and rng.random() < 0.05:
            simulation.abort(rng.choice(list(simulation.live)))
        simulation.step(rng, draft_rate=0.3)
    simulation.drain(rng, 3000)
    return simulation


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**32),
    num_blocks=st.integers(2, 40),
    max_running=st.integers(1, 8),
    chunk=st.integers(1, 40),
    chunk_beside=st.integers(1, 40),
)
def test_any_mixture_keeps_every_invariant(seed, num_blocks, max_running, chunk, chunk_beside):
    limits = SchedulerLimits(
        max_running=max_running, prefill_chunk=chunk, prefill_chunk_beside_decode=min(chunk, chunk_beside)
    )
    run(seed, 60, num_blocks, limits)


def test_ten_thousand_steps():
    """Long enough for the pool to turn over many times; preemption, reuse and eviction all happen."""
    limits = SchedulerLimits(max_running=6, prefill_chunk=24, prefill_chunk_beside_decode=8)
    simulation = run(1, 10_000, 30, limits)
    assert simulation.scheduler.num_preemptions > 100
    assert simulation.cache.statistics.hits > 2_000
    assert simulation.cache.statistics.evicted_blocks > 1000
    assert len(simulation.cache._leaves) < 8 * 30


def test_needs_no_arrays_or_weights():
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from tianquan.engine import scheduler\n"
        "print(sorted(m for m in sys.modules if m.startswith('tianquan.')))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for part in ("backends", "models", "kernels", "checkpoint"):
        assert part not in result.stdout


def simple(num_blocks=64, **limits):
    return Simulation(num_blocks, SchedulerLimits(**{"prefill_chunk": 16, "prefill_chunk_beside_decode": 8, **limits}))


def test_a_long_prompt_delays_others_by_one_chunk():
    simulation, rng = simple(), random.Random(0)
    talker = simulation.add([1, 2], 100)
    simulation.step(rng)
    simulation.add([7] * 120, 5)
    late = None
    for n in range(12):
        if n == 3:
            late = simulation.add([9] * 3, 5)
        before = talker.num_answer
        plan = simulation.scheduler.schedule()
        assert talker in plan.decodes, "each step gives the one that decodes a token"
        assert sum(count for _, count in plan.prefills) <= 8
        for sequence, count in plan.prefills:
            simulation.write(sequence, sequence.num_computed, count)
            if count == sequence.num_pending:
                sequence.append(1)
            simulation.scheduler.advance(sequence, count)
        for sequence in plan.decodes:
            simulation.write(sequence, sequence.num_computed, 1)
            sequence.append(1)
            simulation.scheduler.advance(sequence, 1)
        assert talker.num_answer == before + 1
    assert late.num_answer > 5, "a short prompt does not wait for the long one before it"


def test_two_pictures_with_equal_ids_share_nothing_behind_the_difference():
    simulation, rng = simple(), random.Random(0)
    prompts = [[5, 5, 5, 5, *[(digest, 0, row) for row in range(6)], 6, 6, 6] for digest in (b"cat", b"dog", b"cat")]
    cached = []
    for units in prompts:
        sequence = simulation.add(units, 2)
        while sequence.id in simulation.live:
            simulation.step(rng)
        cached.append(sequence.num_cached)
    assert cached == [0, 4, 12]  # the last prompt token is always computed


@pytest.mark.parametrize("namespace", [("style", ""), (None, "tenant")])
def test_adapters_and_salts_share_nothing(namespace):
    simulation, rng = simple(), random.Random(0)
    for space, expected in (((None, ""), 0), (namespace, 0), (namespace, 8)):
        sequence = simulation.add([1] * 9, 1, space)
        simulation.drain(rng, 50)
        assert sequence.num_cached == expected


def test_equal_prompts_in_flight_are_computed_once_between_them():
    simulation, rng = simple(), random.Random(3)
    sequences = [simulation.add([*range(64)], 3) for _ in range(3)]
    simulation.drain(rng, 200)
    assert sum(sequence.num_prefilled for sequence in sequences) <= 64 + 3 * 16


def test_the_end_of_a_conversation_is_reused_in_the_middle_of_a_block():
    simulation, rng = simple(), random.Random(0)
    first = simulation.add([1, 2, 3, 4, 5, 6], 1)
    simulation.drain(rng, 20)
    second = simulation.add([*first.units[:6], 9, 9], 1)
    simulation.drain(rng, 20)
    assert second.num_cached == 6


def test_salts_leave_nothing_behind():
    simulation, rng = simple(num_blocks=4), random.Random(0)
    for n in range(50):
        simulation.add([n] * 5, 2, (None, f"tenant {n}"))
        simulation.drain(rng, 50)
    assert len(simulation.cache._roots) <= 4


def test_what_begins_alike_is_computed_once():
    simulation = Simulation(64, SchedulerLimits(max_running=8, prefill_chunk=512, prefill_chunk_beside_decode=512))
    prompts = [simulation.add(list(range(30)), 2) for _ in range(4)]
    other = simulation.add(list(range(100, 130)), 2, (None, "salt"))
    first = simulation.scheduler.schedule()
    assert [sequence for sequence, _ in first.prefills] == [prompts[0], other]
