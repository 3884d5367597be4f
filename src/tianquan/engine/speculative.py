"""Prompt-lookup speculation: guess that what followed the last few tokens before will follow them again.

Answers that copy their input (documents, tables, code, text read from a picture that was quoted before) repeat
runs of tokens. The last tokens are looked up in what came before; the tokens behind the latest match are the
draft. The engine verifies a draft with the decode step itself: each place is chosen by the request's own rules
and draw, and the draft holds as long as it guessed what was chosen. So the answer is the same, token by token,
greedy or sampled: for a draft that is certain, accepting with probability p(draft) and else drawing from the
rest is drawing from p. Source: Saxena 2023 (prompt lookup); Leviathan et al. 2023 (speculative decoding).

A wrong draft costs rows of a decode step. Its length follows what was accepted lately, down to none; then a
draft is tried again after a pause that doubles.
"""

from __future__ import annotations

_NGRAM = 3  # tokens that must match: shorter ones match by chance
_MAX_DRAFT = 8  # rows beside the first; measured, see benchmarks/results
_START_DRAFT = 1  # a first guess that fails costs one row; one that holds doubles the next
_START_PAUSE = 8  # tokens without a draft after a miss
_MAX_PAUSE = 256


class DraftSource:
    """Proposes drafts for one sequence.

    Args:
        token_ids: the prompt; the sequence may grow between calls, never change.
    """

    def __init__(self, token_ids: list[int]) -> None:
        self._last: dict[tuple[int, ...], int] = {}  # where each n-gram ended last, the final one left out
        self._num_indexed = _NGRAM - 1
        self._length = _START_DRAFT
        self._pause = _START_PAUSE
        self._wait = 0
        self._index(token_ids)

    def _index(self, token_ids: list[int]) -> None:
        """Index n-grams up to, not including, the one that ends the sequence."""
        for end in range(self._num_indexed + 1, len(token_ids)):
            self._last[tuple(token_ids[end - _NGRAM : end])] = end
        self._num_indexed = max(self._num_indexed, len(token_ids) - 1)

    def propose(self, token_ids: list[int], max_len: int) -> list[int]:
        """Return a guess of the next tokens, at most `max_len`; empty when nothing matches or guessing does not pay."""
        self._index(token_ids)
        if self._wait > 0:
            self._wait -= 1
            return []
        if max_len <= 0:
            return []
        start = self._last.get(tuple(token_ids[-_NGRAM:]))
        if start is None:
            return []
        return token_ids[start : start + min(self._length, max_len)]

    def record(self, num_drafted: int, num_accepted: int) -> None:
        """Learn how a draft fared: longer after all of it held, shorter after a miss, a pause after none held."""
        if num_drafted == 0:
            return
        if num_accepted >= num_drafted:
            self._length, self._pause = min(2 * self._length, _MAX_DRAFT), _START_PAUSE
        elif num_accepted == 0:
            self._wait, self._pause = self._pause, min(2 * self._pause, _MAX_PAUSE)
            self._length = max(1, self._length // 2)
        else:
            self._length, self._pause = max(1, num_accepted), _START_PAUSE
