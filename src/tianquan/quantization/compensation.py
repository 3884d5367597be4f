"""Rounding that makes up for itself: each column's error is taken back by the columns that are not rounded yet.

Rounding to nearest makes every weight right by itself. What matters is the product with the activations x that
really come: the error of one out channel w over them is

    sum over x of ((w - q) x)^2 = (w - q) H (w - q)^T,    H = sum of x^T x  (I, I)

Columns are rounded one after the other. The best change of those that are left, given the error e of column j, is
e U[j, j:] / U[j, j], where U is the upper triangle with inverse(H) = U^T U, and what column j adds to the error is
e^2 / U[j, j]^2. Scales are searched for each group when its turn comes, on the columns as they have been changed
by then, with 1 / U[j, j]^2 as the importance of column j.
Source: Frantar et al. 2022 (GPTQ), there with scales that just reach the largest value.

Legend: O out channels, I in channels, P panels of 8 out channels, G groups of in channels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tianquan.kernels.library import KernelLibrary
from tianquan.quantization.format import PANEL, QuantFormat, QuantizedTensor, pack, unpack
from tianquan.quantization.quantizers import check_small_values, code_range, round_to_format

Float32 = npt.NDArray[np.float32]

DAMPING = 0.01  # of the mean of H's diagonal, added to it: columns that few records move stay where they are
_ROWS_AT_ONCE = 4096  # rows are independent of each other; a multiple of PANEL
_SMALL_TRIANGLE = 128


def quantize_compensated(
    weight: Float32, format: QuantFormat, updates: Float32, library: KernelLibrary | None = None
) -> QuantizedTensor:
    """Return `weight` (O, I) in `format` with little error of its products with the activations that were seen.

    Args:
        weight: finite float32 values.
        format: the format to store them in.
        updates: (I, I), what `error_updates` gave for these activations.
        library: the native kernels, which search the scales of a group faster; the result has the same bits.

    Raises:
        ValueError: a value is not finite, or the values are too large or too small for float16 scales.
    """
    assert updates.shape == (weight.shape[1], weight.shape[1]), (updates.shape, weight.shape)
    starts = range(0, len(weight), _ROWS_AT_ONCE)
    tensor = QuantizedTensor.concatenate(
        [_round_rows(weight[start : start + _ROWS_AT_ONCE], format, updates, library) for start in starts]
    )
    check_small_values(weight, tensor)
    return tensor


def error_updates(second_moments: Float32) -> Float32:
    """Return U (I, I), upper triangular, with U^T U the inverse of the damped moments: how errors are made up for.

    Args:
        second_moments: (I, I), sum of x^T x over the activations; any positive factor of it gives the same.

    Raises:
        ValueError: a value is not finite.
    """
    if not np.isfinite(second_moments.sum()):
        raise ValueError("the activations are not finite")
    moments = np.array(second_moments[::-1, ::-1], np.float64)
    mean = np.trace(moments) / len(moments)
    moments[np.diag_indices_from(moments)] += DAMPING * mean if mean > 0 else 1.0
    # With both orders reversed, the lower triangle of Cholesky is the upper triangle R with moments = R R^T.
    triangle = np.linalg.cholesky(moments)[::-1, ::-1]
    del moments
    _invert_upper(triangle)
    return np.ascontiguousarray(triangle, np.float32)


def _invert_upper(triangle: npt.NDArray[np.floating[Any]]) -> None:
    """Invert an upper triangular matrix in place: its halves, then the corner -A^-1 B C^-1."""
    half = len(triangle) // 2
    if len(triangle) <= _SMALL_TRIANGLE:
        triangle[...] = np.triu(np.linalg.inv(triangle))
        return
    upper, corner, lower = triangle[:half, :half], triangle[:half, half:], triangle[half:, half:]
    _invert_upper(upper)
    _invert_upper(lower)
    corner[...] = -(upper @ corner) @ lower


def _round_rows(
    weight: Float32, format: QuantFormat, updates: Float32, library: KernelLibrary | None
) -> QuantizedTensor:
    num_rows, num_columns = weight.shape
    left = np.array(weight, np.float32)  # columns that are not rounded yet, with what they have to make up for
    groups = []
    for start in range(0, num_columns, format.group_size):
        stop = min(start + format.group_size, num_columns)
        importance = (1 / np.diagonal(updates)[start:stop] ** 2).astype(np.float32)
        importance /= importance.mean()
        scaled = round_to_format(np.ascontiguousarray(left[:, start:stop]), format, importance, library)
        groups.append(_round_group(left, start, stop, scaled, updates))
    codes = np.concatenate([unpack(group.codes, format) for group in groups], axis=2)  # (P, 8, G, group_size)
    scales = np.concatenate([group.scales for group in groups], axis=1)
    zero_points = None
    if not format.symmetric:
        zero_points = np.concatenate([group.zero_points for group in groups if group.zero_points is not None], axis=1)
    return QuantizedTensor(format, (num_rows, num_columns), pack(codes, format), scales, zero_points)


def _round_group(left: Float32, start: int, stop: int, scaled: QuantizedTensor, updates: Float32) -> QuantizedTensor:
    """Round columns start:stop to the scales found for them; let the columns after them make up for it, in `left`.

    Returns:
        The group (O, stop - start), its codes those of the changed columns.
    """
    format, num_rows = scaled.format, len(left)
    scale = _of_rows(scaled.scales, num_rows)
    zero_point = np.zeros_like(scale) if scaled.zero_points is None else _of_rows(scaled.zero_points, num_rows)
    low, high = code_range(format.bits) if format.symmetric else (np.float32(0), np.float32(15))
    inverse = np.divide(1, scale, out=np.zeros_like(scale), where=scale != 0)
    codes = np.zeros((len(scaled.codes) * PANEL, format.group_size), np.int8)
    errors = np.empty((num_rows, stop - start), np.float32)
    for n, column in enumerate(range(start, stop)):
        code = np.clip(np.rint(left[:, column] * inverse + zero_point), low, high)
        codes[:num_rows, n] = code
        error = (left[:, column] - (code - zero_point) * scale) / updates[column, column]
        left[:, column:stop] -= np.outer(error, updates[column, column:stop])
        errors[:, n] = error
    left[:, stop:] -= errors @ updates[start:stop, stop:]
    if not format.symmetric:  # what pads a group must stand for zero, as `quantize` has it
        padding = unpack(scaled.codes, format).reshape(len(codes), -1)
        codes[num_rows:], codes[:, stop - start :] = padding[num_rows:], padding[:, stop - start :]
    packed = pack(codes.reshape(-1, PANEL, 1, format.group_size), format)
    return QuantizedTensor(format, (num_rows, stop - start), packed, scaled.scales, scaled.zero_points)


def _of_rows(panels: npt.NDArray[np.float16], num_rows: int) -> Float32:
    """Return the scales (O,) of a single group from (P, 1, 8)."""
    return panels.astype(np.float32).reshape(-1)[:num_rows]
