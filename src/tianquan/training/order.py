"""The order in which records are trained on: shuffled, those of a like length together, the same for the same seed.

A micro-batch of like lengths wastes little padding in attention, and its time is predictable. Nothing here depends on
what was trained before: step s of a run can be told without the steps before it, so a resumed run sees the same data.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Batch = npt.NDArray[np.int64]  # record numbers

_WINDOW = 32  # micro-batches that are sorted together: enough for like lengths, few enough to stay shuffled


class RecordOrder:
    """Which records each micro-batch holds.

    Args:
        lengths: tokens of each record.
        batch_size: records of a micro-batch; one of each epoch has what is left, so that a record is seen once in it.
        seed: of the shuffling; every epoch has its own.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        assert lengths
        assert batch_size >= 1
        self._lengths = np.asarray(lengths)
        self._batch_size = batch_size
        self._seed = seed
        self.batches_per_epoch = -(-len(lengths) // batch_size)
        self._last_epoch: tuple[int, list[Batch]] | None = None

    def micro_batch(self, number: int) -> list[int]:
        """Return the record numbers of a micro-batch, counted over all epochs."""
        epoch, n = divmod(number, self.batches_per_epoch)
        if self._last_epoch is None or self._last_epoch[0] != epoch:
            self._last_epoch = epoch, self._epoch(epoch)
        return [int(i) for i in self._last_epoch[1][n]]

    def _epoch(self, epoch: int) -> list[Batch]:
        rng = np.random.default_rng([self._seed, epoch])
        shuffled = rng.permutation(len(self._lengths))
        window = _WINDOW * self._batch_size
        pieces = [shuffled[start : start + window] for start in range(0, len(shuffled), window)]
        by_length = np.concatenate([piece[np.argsort(self._lengths[piece], kind="stable")] for piece in pieces])
        size = self._batch_size
        batches = [by_length[start : start + size] for start in range(0, len(by_length), size)]
        return [batches[n] for n in rng.permutation(len(batches))]
