"""Tolerances of the kernels against the definitions, each with its reason."""

from __future__ import annotations

import numpy as np

# The same float32 sums in another order.
FLOAT32 = 2e-6
# Activations of a low-bit product are rounded to 127 steps per 32 channels (int4 weights, 0.5 % of a normal row)
# or 63 steps per 64 channels (int8 weights, 1.1 %).
INT8_ACTIVATIONS = 1.6e-2
# float16 keeps 11 bits: 2^-12 of each key and value.
KV_FLOAT16 = 1e-3
# int8 keys and values per token and head: 0.6 % each.
KV_INT8 = 2e-2


def relative_error(got: np.ndarray, expected: np.ndarray) -> float:
    """Norm of the difference over the norm of the expected values."""
    assert got.shape == expected.shape
    difference = np.linalg.norm(got.astype(np.float64) - expected)
    return float(difference / max(np.linalg.norm(expected.astype(np.float64)), 1e-30))


def unaligned(array: np.ndarray) -> np.ndarray:
    """Return a copy whose first byte lies at an odd multiple of four bytes."""
    buffer = np.empty(array.size + 9, array.dtype)
    start = 1 + (-buffer.ctypes.data // 4) % 8
    result = buffer[start : start + array.size].reshape(array.shape)
    result[...] = array
    assert result.ctypes.data % 32 == 4
    return result
