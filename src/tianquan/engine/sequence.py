"""One request while it runs: its tokens, how far its keys and values are computed, and its blocks."""

from __future__ import annotations

from dataclasses import dataclass, field

from tianquan.engine.prefix_cache import Namespace, Node, Unit


@dataclass(eq=False)
class Sequence:
    """Token ids so far and the blocks that hold their keys and values.

    The blocks of `path` are shared nodes of the prefix cache and full; the blocks of `block_table` behind them
    are this sequence's own. `num_computed` tokens have keys and values; while it decodes, only its last has not.
    """

    id: int  # ascending: also the order of arrival
    units: list[Unit]  # of the prompt, then the answer's token ids
    token_ids: list[int]
    num_prompt: int
    max_tokens: int  # of the whole sequence, prompt and answer
    namespace: Namespace = (None, "")
    num_computed: int = 0
    path: list[Node] = field(default_factory=list)
    block_table: list[int] = field(default_factory=list)
    draft: list[int] = field(default_factory=list)  # guesses of the next tokens, to be verified in one step
    num_prefilled: int = 0  # prompt tokens computed so far, again after a preemption
    num_cached: int | None = None  # prompt tokens the prefix cache had; known once the prompt is computed
    num_preemptions: int = 0

    @property
    def num_answer(self) -> int:
        """Tokens of the answer so far."""
        return len(self.token_ids) - self.num_prompt

    @property
    def num_pending(self) -> int:
        """Tokens whose keys and values are not computed."""
        return len(self.token_ids) - self.num_computed

    def append(self, token_id: int) -> None:
        """Add a token of the answer."""
        self.token_ids.append(token_id)
        self.units.append(token_id)
