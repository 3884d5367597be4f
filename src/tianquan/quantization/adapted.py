"""A matrix with the factors of a LoRA adapter beside it.

    x W^T + (x A^T) (scale B)^T

Added into low-bit weights the factors would be rounded with them: a change smaller than half a step of the codes would
be lost. Beside them they stay what they were trained as, whatever the matrix is stored in, and the matrix is shared.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tianquan.quantization.dense import DenseTensor
from tianquan.quantization.format import QuantizedTensor

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class AdaptedTensor:
    """A stored matrix and what an adapter adds to it."""

    base: DenseTensor | QuantizedTensor  # (out, in)
    down: Float32  # A, (rank, in)
    up: Float32  # scale * B, (out, rank)

    def __post_init__(self) -> None:
        out_features, in_features = self.base.shape
        rank = len(self.down)
        assert self.down.shape == (rank, in_features), (self.down.shape, self.base.shape)
        assert self.up.shape == (out_features, rank), (self.up.shape, self.base.shape)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape (out, in) of the matrix."""
        return self.base.shape

    @property
    def rank(self) -> int:
        """Rank of what is added."""
        return len(self.down)

    def to_float32(self) -> Float32:
        """Return the sum as one matrix (out, in)."""
        return to_float32(self.base) + self.up @ self.down


def to_float32(weight: DenseTensor | QuantizedTensor | AdaptedTensor) -> Float32:
    """Return the values a weight of any kind stands for."""
    return weight.dequantize() if isinstance(weight, QuantizedTensor) else weight.to_float32()
