"""From float32 weights to codes and scales: pure functions, each minimising the squared error of a group.

Legend: O out channels, I in channels, P panels of 8 out channels, G groups of in channels.

For a group with values x and importance h (one per in channel, all 1 without) the search tries a few
scales around the one that just reaches the largest value. For each it rounds x to codes q, then solves the
weighted least squares problem for the scale (and, when asymmetric, the offset m) those codes want:

    symmetric   s = sum(h x q) / sum(h q q)                          error removed: sum(h x q)^2 / sum(h q q)
    asymmetric  min over s, m of sum(h (x - s q - m)^2)              error removed: s sum(h x q) + m sum(h x)

The best scale is rounded to float16 and the codes are rounded once more against that stored value.
`kernels/csrc/quantize.cpp` is the same arithmetic in the same order and gives the same bits.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tianquan.kernels.library import KernelLibrary
from tianquan.kernels.structs import QuantizeArguments, pointer
from tianquan.quantization.format import INT8_MAX, PANEL, QuantFormat, QuantizedTensor, pack

Float32 = npt.NDArray[np.float32]

# Fractions of the outermost code that the largest value of a group is tried at. Eight bits gain nothing
# from clipping: on normal weights any factor but 1 raised the error.
SCALE_FACTORS = {
    4: np.array([0.8, 0.85, 0.9, 0.95, 1.0, 1.05, 1.1, 1.15, 1.2], np.float32),
    8: np.array([1.0], np.float32),
}


# Below it a float16 scale has less than four bits left.
_COARSE_SCALE = 2.0**-20
_MOST_LOST = 1e-2  # of a matrix's squares, to such scales: a tenth of its size


def quantize(
    weight: Float32,
    format: QuantFormat,
    importance: Float32 | None = None,
    library: KernelLibrary | None = None,
) -> QuantizedTensor:
    """Return `weight` (O, I) in `format` with the least squared error the search finds.

    Args:
        weight: finite float32 values.
        format: the format to store them in.
        importance: (I,) non-negative weight of each in channel's error, e.g. its mean squared activation.
        library: the native kernels, about 300 times faster; without them the definition below runs.

    Raises:
        ValueError: a value is not finite, or the values are too large or too small for float16 scales.
    """
    tensor = round_to_format(weight, format, importance, library)
    check_small_values(weight, tensor)
    return tensor


def round_to_format(
    weight: Float32,
    format: QuantFormat,
    importance: Float32 | None = None,
    library: KernelLibrary | None = None,
) -> QuantizedTensor:
    """Return what `quantize` does, however small the values: parts of a matrix, or one in training.

    Raises:
        ValueError: a value is not finite, or too large for a float16 scale.
    """
    if importance is None:
        importance = np.ones(weight.shape[1], np.float32)
    if library is not None:
        tensor = _quantize_native(weight, format, importance, library)
    else:
        tensor = _quantize_definition(weight, format, importance)
    with np.errstate(invalid="ignore", over="ignore"):
        is_finite = np.isfinite(weight.sum()) and np.isfinite(tensor.scales).all()
    if not is_finite:
        raise ValueError(f"weight {weight.shape} has values that are not finite or too large for {format}")
    return tensor


def check_small_values(weight: Float32, tensor: QuantizedTensor) -> None:
    """See that a matrix (O, I) did not vanish in scales that float16 has no bits for.

    Raises:
        ValueError: more than a tenth of its size did.
    """
    is_coarse = np.abs(tensor.scales) < _COARSE_SCALE  # (P, G, 8), with those of groups of zeros
    if not is_coarse.any():
        return
    rows = is_coarse.swapaxes(1, 2).reshape(-1, is_coarse.shape[1])[: len(weight)]  # (O, G)
    coarse = np.repeat(rows, tensor.format.group_size, axis=1)[:, : weight.shape[1]]
    size = float(np.square(weight, dtype=np.float64).sum())
    lost = float(np.square(weight - tensor.dequantize(), dtype=np.float64)[coarse].sum())
    if lost > _MOST_LOST * size:
        raise ValueError(
            f"weight {weight.shape} has values too small for {tensor.format}, which loses {(lost / size) ** 0.5:.0%}"
        )


def _quantize_native(
    weight: Float32, format: QuantFormat, importance: Float32, library: KernelLibrary
) -> QuantizedTensor:
    weight = np.ascontiguousarray(weight, np.float32)
    importance = np.ascontiguousarray(importance, np.float32)
    assert importance.shape == weight.shape[1:], (importance.shape, weight.shape)
    factors = SCALE_FACTORS[format.bits]
    num_rows, num_columns = weight.shape
    shapes = format.array_shapes((num_rows, num_columns))
    arrays = {name: np.empty(shape, dtype) for name, (shape, dtype) in shapes.items()}
    library.quantize(
        QuantizeArguments(
            weight=pointer(weight),
            importance=pointer(importance),
            out=num_rows,
            in_=num_columns,
            bits=format.bits,
            group_size=format.group_size,
            symmetric=format.symmetric,
            num_factors=len(factors),
            factors=pointer(factors),
            codes=pointer(arrays["codes"]),
            scales=pointer(arrays["scales"]),
            zero_points=pointer(arrays.get("zero_points")),
        )
    )
    return QuantizedTensor(format, (num_rows, num_columns), **arrays)


def _quantize_definition(weight: Float32, format: QuantFormat, importance: Float32) -> QuantizedTensor:
    num_rows, num_columns = weight.shape
    (num_panels, num_groups, _), _ = format.array_shapes((num_rows, num_columns))["scales"]
    padded = np.zeros((num_panels * PANEL, num_groups * format.group_size), np.float32)
    padded[:num_rows, :num_columns] = weight
    x = padded.reshape(num_panels, PANEL, num_groups, format.group_size)
    padded_importance = np.zeros(num_groups * format.group_size, np.float32)
    padded_importance[:num_columns] = importance
    h = padded_importance.reshape(num_groups, format.group_size)
    # overflow and 0 / 0 are told from the result: a scale that is not finite
    with np.errstate(all="ignore"):
        if format.symmetric:
            scale = _symmetric_scale(x, h, format.bits).astype(np.float16)
            zero_point = None
        else:
            scale32, zero32 = _asymmetric_scale(x, h)
            scale, zero_point = scale32.astype(np.float16), zero32.astype(np.float16)
        codes = _codes(x, scale, zero_point, format.bits)
    return QuantizedTensor(
        format,
        (num_rows, num_columns),
        pack(codes, format),
        np.ascontiguousarray(scale.transpose(0, 2, 1)),
        None if zero_point is None else np.ascontiguousarray(zero_point.transpose(0, 2, 1)),
    )


def code_range(bits: int) -> tuple[np.float32, np.float32]:
    """Return the smallest and the largest symmetric code."""
    return (np.float32(-8), np.float32(7)) if bits == 4 else (np.float32(-INT8_MAX), np.float32(INT8_MAX))


def _symmetric_scale(x: Float32, h: Float32, bits: int) -> Float32:
    """Return scales (P, 8, G) of groups x (P, 8, G, group_size)."""
    low, high = code_range(bits)
    largest, smallest = x.max(axis=-1), x.min(axis=-1)
    # the extreme value goes to the outermost negative code, which int4 has one more of
    extreme = np.where(largest >= -smallest, largest, smallest)
    best_scale = extreme / low
    best_gain = np.zeros_like(extreme)
    for factor in SCALE_FACTORS[bits]:
        inverse = (low * factor) / extreme
        sum_xq, sum_qq = np.zeros_like(extreme), np.zeros_like(extreme)
        for i in range(x.shape[-1]):  # in this order, so that the kernel's sums have the same bits
            q = np.clip(np.rint(x[..., i] * inverse), low, high)
            hq = h[:, i] * q
            sum_xq += hq * x[..., i]
            sum_qq += hq * q
        gain = (sum_xq * sum_xq) / sum_qq
        better = gain > best_gain
        best_gain = np.where(better, gain, best_gain)
        best_scale = np.where(better, sum_xq / sum_qq, best_scale)
    return best_scale


def _asymmetric_scale(x: Float32, h: Float32) -> tuple[Float32, Float32]:
    """Return scales and zero points (P, 8, G) of int4 groups x (P, 8, G, group_size)."""
    zero = np.float32(0)
    low, high = np.minimum(x.min(axis=-1), zero), np.maximum(x.max(axis=-1), zero)  # zero is always inside
    best_scale = (high - low) / np.float32(15)
    best_zero = -low / best_scale
    best_gain = np.full_like(low, -np.inf)
    start = best_zero
    for factor in SCALE_FACTORS[4]:
        inverse = (np.float32(15) * factor) / (high - low)
        sum_h, sum_q, sum_x, sum_xq, sum_qq = (np.zeros_like(low) for _ in range(5))
        for i in range(x.shape[-1]):
            q = np.clip(np.rint(x[..., i] * inverse + start), zero, np.float32(15))
            hq = h[:, i] * q
            sum_h += h[:, i]
            sum_q += hq
            sum_x += h[:, i] * x[..., i]
            sum_xq += hq * x[..., i]
            sum_qq += hq * q
        scale = (sum_h * sum_xq - sum_q * sum_x) / (sum_h * sum_qq - sum_q * sum_q)
        offset = (sum_x - scale * sum_q) / sum_h
        gain = scale * sum_xq + offset * sum_x
        candidate_zero = -offset / scale
        # False for NaN: all codes equal, or no importance. A zero point far outside 0..15 would lose its
        # fraction in float16.
        better = (gain > best_gain) & (np.abs(candidate_zero) <= 64)
        best_gain = np.where(better, gain, best_gain)
        best_scale = np.where(better, scale, best_scale)
        best_zero = np.where(better, candidate_zero, best_zero)
    return best_scale, np.where(best_scale == 0, zero, best_zero)


def _codes(
    x: Float32, scale: npt.NDArray[np.float16], zero_point: npt.NDArray[np.float16] | None, bits: int
) -> npt.NDArray[np.int8]:
    """Return the codes of x nearest to the stored scales; a group of zeros has scale 0 and codes 0."""
    inverse = np.where(scale == 0, np.float32(0), np.float32(1) / scale.astype(np.float32))[..., None]
    if zero_point is None:
        low, high = code_range(bits)
        return np.clip(np.rint(x * inverse), low, high).astype(np.int8)
    shifted = np.rint(x * inverse + zero_point.astype(np.float32)[..., None])
    return np.clip(shifted, np.float32(0), np.float32(15)).astype(np.int8)
