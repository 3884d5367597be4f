"""What C++ cannot see of its arguments: shapes that belong together, and indices within their range."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tianquan.errors import BackendError

Float32 = npt.NDArray[np.float32]


def check(holds: bool, message: str) -> None:
    """Raise unless sizes and indices fit: C would read or write elsewhere, also under `python -O`."""
    if not holds:
        raise BackendError(f"{message}; this is a caller's mistake, please report it")


def check_offsets(name: str, offsets: npt.NDArray[np.int32], num_rows: int) -> None:
    """Raise unless offsets cut all rows into segments, in order."""
    ascending = len(offsets) > 0 and offsets[0] == 0 and bool(np.all(offsets[1:] >= offsets[:-1]))
    check(ascending and int(offsets[-1]) == num_rows, f"{name} offsets do not cut {num_rows} rows in order")


def check_parameter(parameter: Float32, x: Float32) -> None:
    """Raise unless a parameter is a dense float32 row like those of x."""
    dense = parameter.dtype == np.float32 and parameter.flags.c_contiguous
    check(dense and parameter.shape == x.shape[1:], f"a parameter {parameter.shape} of {parameter.dtype} for {x.shape}")


def check_heads(q: Float32, k: Float32) -> None:
    """Raise unless queries (T, H, D) can look at keys (T, K, D): H is a multiple of K."""
    fits = q.shape[2] == k.shape[2] and q.shape[1] % k.shape[1] == 0
    check(fits, f"heads of queries {q.shape[1:]} do not fit those of keys {k.shape[1:]}")
