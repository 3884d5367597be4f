"""Sine and cosine codes of places, along a line and on a grid. Source: Vaswani et al. 2017."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def sincos_positions(num_positions: int, size: int) -> npt.NDArray[np.float32]:
    """Return (num_positions, size): sines, then cosines, of p * 10000^(-k / (size/2)), in float32."""
    half = size // 2
    frequencies = np.float32(1.0) / np.float32(10000.0) ** (np.arange(half, dtype=np.float32) / np.float32(half))
    angles = np.arange(num_positions, dtype=np.float32)[:, None] * frequencies
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


def grid_positions(rows: int, cols: int, size: int) -> npt.NDArray[np.float32]:
    """Return (rows * cols, size) position codes: the first half of the channels codes the column."""
    by_row, by_col = sincos_positions(rows, size // 2), sincos_positions(cols, size // 2)
    codes = np.empty((rows, cols, size), np.float32)
    codes[..., : size // 2] = by_col[None, :, :]
    codes[..., size // 2 :] = by_row[:, None, :]
    return codes.reshape(-1, size)
