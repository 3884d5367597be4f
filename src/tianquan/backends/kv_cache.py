"""Storage of keys and values in blocks, and the description of which tokens of a call belong where.

Legend: L layers, N blocks, K kv heads, S tokens of a block, D head dim, B sequences.

A sequence owns a list of blocks (its block table); token t of it lives in block `table[t // S]`, slot
`t % S`. A conversation alone, many at once, and shared prefixes are then one and the same case.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Array = Any  # a backend's own array: numpy.ndarray (reference, native) or torch.Tensor (torch)

KVFormat = Literal["float32", "float16", "int8"]
KV_BLOCK_SIZE = 32  # tokens; 32 x 64 float16 values of one head are one 4 KiB page


@dataclass
class KVCache:
    """Keys and values of every layer, allocated once; memory is touched only as blocks are written."""

    keys: Array  # (L, N, K, S, D)
    values: Array  # (L, N, K, S, D)

    @property
    def num_blocks(self) -> int:
        """Blocks the cache holds."""
        return int(self.keys.shape[1])

    @property
    def block_size(self) -> int:
        """Tokens of one block."""
        return int(self.keys.shape[3])

    def arrays(self) -> tuple[Array, ...]:
        """Return every array of the cache; the first four axes of each are (L, N, K, S)."""
        return (self.keys, self.values)

    @property
    def num_bytes(self) -> int:
        """Memory of all blocks once they are written."""
        return sum(int(array.nbytes) for array in self.arrays())

    def copy_block(self, source: int, target: int, num_tokens: int) -> None:
        """Copy the first `num_tokens` tokens of a block to another block, in every layer."""
        for array in self.arrays():
            array[:, target, :, :num_tokens] = array[:, source, :, :num_tokens]


@dataclass(frozen=True)
class SequenceBatch:
    """Which rows of a packed call belong to which sequence, and where each sequence's past lies."""

    query_offsets: npt.NDArray[np.int32]  # (B + 1,) rows query_offsets[b] : query_offsets[b + 1] are of b
    num_cached: npt.NDArray[np.int32]  # (B,) tokens of the sequence already in the cache before this call
    block_tables: npt.NDArray[np.int32]  # (B, M) block numbers; entries beyond a sequence's need are unused

    def __post_init__(self) -> None:
        assert len(self.query_offsets) == len(self.num_cached) + 1 == len(self.block_tables) + 1

    @classmethod
    def alone(cls, num_new: int, num_cached: int, cache: KVCache) -> SequenceBatch:
        """Return the batch of one sequence that owns all blocks of its cache in order."""
        table = np.arange(cache.num_blocks, dtype=np.int32)[None]
        return cls(np.array([0, num_new], np.int32), np.array([num_cached], np.int32), table)

    @property
    def is_decode(self) -> bool:
        """True when every sequence adds exactly one token."""
        return bool(np.all(np.diff(self.query_offsets) == 1))

    def positions(self) -> npt.NDArray[np.int32]:
        """Position in its sequence of each row of the call, (T,)."""
        lengths = np.diff(self.query_offsets)
        starts = self.num_cached - self.query_offsets[:-1]
        return np.arange(self.query_offsets[-1], dtype=np.int32) + np.repeat(starts, lengths)
