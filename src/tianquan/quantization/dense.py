"""Weights stored as plain numbers: float32, float16 or bfloat16.

numpy has no bfloat16, so its bits are kept as uint16: a bfloat16 is the upper half of a float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

DenseFormat = Literal["float32", "float16", "bfloat16"]
DENSE_FORMATS: tuple[DenseFormat, ...] = get_args(DenseFormat)

_STORAGE_DTYPE: dict[DenseFormat, type[np.generic]] = {
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": np.uint16,
}
_SMALLEST_PRECISE = 2.0**-14  # of float16; below it all steps are 6e-8
_MOST_LOST = 1e-2  # of a matrix's largest value, to those steps


@dataclass(frozen=True)
class DenseTensor:
    """An array of any shape in one dense format. `data` may be a read-only mapping of a file."""

    data: npt.NDArray[Any]  # float32, float16, or uint16 holding the bits of bfloat16
    format: DenseFormat

    def __post_init__(self) -> None:
        assert self.data.dtype == _STORAGE_DTYPE[self.format], (self.data.dtype, self.format)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape in elements."""
        return self.data.shape

    @property
    def nbytes(self) -> int:
        """Bytes of storage."""
        return self.data.nbytes

    def to_float32(self) -> npt.NDArray[np.float32]:
        """Return the values as float32; exact for every dense format. No copy where none is needed."""
        if self.format == "bfloat16":
            return (self.data.astype(np.uint32) << 16).view(np.float32)
        return np.asarray(self.data, dtype=np.float32)

    def cast(self, format: DenseFormat) -> DenseTensor:
        """Return the tensor in another dense format, rounded to nearest even.

        Raises:
            OverflowError: a finite value is beyond the range of float16, or a matrix's values are too small for it.
        """
        if format == self.format:
            return self
        values = self.to_float32()
        if format == "float32":
            return DenseTensor(values, "float32")
        if format == "float16":
            with np.errstate(over="ignore"):
                half = values.astype(np.float16)
            if not np.array_equal(np.isfinite(half), np.isfinite(values)):
                raise OverflowError(f"largest magnitude {np.abs(values).max():.3g} is beyond float16 (65504)")
            if values.ndim > 1:
                _check_small_values(values, half)
            return DenseTensor(half, "float16")
        return DenseTensor(round_to_bfloat16(values), "bfloat16")


def _check_small_values(values: npt.NDArray[np.float32], half: npt.NDArray[np.float16]) -> None:
    """Raise where a matrix's values vanish below the smallest of float16; so small a bias matters to nothing."""
    largest = np.abs(values).max(initial=0)
    if largest < _SMALLEST_PRECISE and np.abs(half.astype(np.float32) - values).max(initial=0) > _MOST_LOST * largest:
        raise OverflowError(f"values too small for float16 (largest magnitude {largest:.3g}, steps of 6e-8)")


def round_to_bfloat16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """Return the bits of the nearest bfloat16 (ties to even); NaN stays NaN."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = ((bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    is_nan = np.isnan(values)
    if is_nan.any():
        rounded[is_nan] = 0x7FC0
    return rounded
