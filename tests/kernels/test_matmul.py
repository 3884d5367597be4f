from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from kernels.kernel_tolerances import FLOAT32, INT8_ACTIVATIONS, relative_error, unaligned
from tianquan.backends.native import NativeOps
from tianquan.backends.reference import ReferenceOps, gelu
from tianquan.quantization.adapted import AdaptedTensor
from tianquan.quantization.dense import DENSE_FORMATS, DenseTensor
from tianquan.quantization.format import FORMATS, QuantizedTensor
from tianquan.quantization.quantizers import quantize

WEIGHTS = [*FORMATS, *DENSE_FORMATS]
SHAPES = [(20, 37), (72, 160), (3, 588), (50, 72), (25, 600)]  # (out, in): ragged panels and groups


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


@cache
def make_weight(name: str, out: int, in_: int) -> DenseTensor | QuantizedTensor:
    values = normal(out * in_, out, in_)
    return quantize(values, FORMATS[name]) if name in FORMATS else DenseTensor(values, "float32").cast(name)


def quantize_rows(x: np.ndarray, group: int, steps: int) -> np.ndarray:
    """Round activations as the kernels do: `steps` steps of the largest magnitude of each group."""
    result = np.zeros_like(x)
    for start in range(0, x.shape[1], group):
        part = x[:, start : start + group]
        peak = np.abs(part).max(axis=1, keepdims=True)
        result[:, start : start + group] = np.rint(part * (np.float32(steps) / peak)) * (peak / np.float32(steps))
    return result


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_linear_matches_the_definition(
    native: NativeOps, reference: ReferenceOps, name: str, shape: tuple[int, int]
) -> None:
    out, in_ = shape
    weight, bias = make_weight(name, out, in_), DenseTensor(normal(1, out), "float32")
    linear, expected_linear = native.make_linear(weight, bias), reference.make_linear(weight, bias)
    for rows in (*range(1, 18), 40):
        x, residual = normal(rows, rows, in_), normal(rows + 100, rows, out)
        # what the kernel computes exactly, up to the order of sums: the product of the rounded activations
        rounded = x
        if name in FORMATS:
            rounded = quantize_rows(x, *((32, 127) if FORMATS[name].bits == 4 else (64, 63)))
            assert relative_error(rounded, x) < INT8_ACTIVATIONS
        got = native.linear(unaligned(x), linear, "gelu", residual)
        expected = reference.linear(rounded, expected_linear, "gelu", residual)
        assert relative_error(got, expected) < FLOAT32, rows


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_gives_no_number(native: NativeOps, name: str, wrong: float) -> None:
    """Rounded to nothing, the activations of a damaged model would look like an answer."""
    linear = native.make_linear(make_weight(name, 72, 160), None)
    for rows in (1, 3, 40):
        for column in (0, 77, 159):
            x = normal(rows, rows, 160)
            expected = native.linear(x, linear)
            x[-1, column] = wrong
            got = native.linear(x, linear)
            assert not np.isfinite(got[-1]).any()
            np.testing.assert_array_equal(got[:-1], expected[:-1])


@pytest.mark.parametrize("activation", [None, "gelu", "gelu_tanh"])
def test_epilogue(native: NativeOps, reference: ReferenceOps, activation: str | None) -> None:
    weight = make_weight("float32", 20, 37)
    x = normal(0, 5, 37) * 3
    got = native.linear(x, native.make_linear(weight, None), activation)
    assert relative_error(got, reference.linear(x, reference.make_linear(weight, None), activation)) < FLOAT32


def test_group_of_mixed_formats(native: NativeOps, reference: ReferenceOps) -> None:
    names = ["int4-g32", "int8-g64", "float16", "int4-g64-asym"]
    weights = [make_weight(name, out, 72) for name, out in zip(names, (24, 20, 7, 33), strict=True)]
    biases = [None, DenseTensor(normal(5, 20), "float32"), None, None]
    group, expected_group = native.make_linear_group(weights, biases), reference.make_linear_group(weights, biases)
    for rows in (1, 13, 200):
        x = normal(rows, rows, 72)
        results = native.linear_group(x, group)
        for got, expected in zip(results, reference.linear_group(x, expected_group), strict=True):
            assert relative_error(got, expected) < INT8_ACTIVATIONS
        # a member of a group is a view with a longer stride, and may be an input again
        again = native.linear(results[1], native.make_linear(make_weight("float32", 9, 20), None))
        assert np.array_equal(
            again, native.linear(results[1].copy(), native.make_linear(make_weight("float32", 9, 20), None))
        )


@pytest.mark.parametrize("name", FORMATS)
def test_a_row_is_the_same_alone_and_in_a_batch(native: NativeOps, name: str) -> None:
    linear = native.make_linear(make_weight(name, 72, 160), None)
    x = normal(3, 211, 160)
    batch = native.linear(x, linear)
    for row in (0, 1, 100, 210):
        assert np.array_equal(native.linear(x[row : row + 1], linear)[0], batch[row])
    assert np.array_equal(native.linear(x[:7], linear), batch[:7])


def test_row_slices_and_transposed_weights(native: NativeOps, reference: ReferenceOps) -> None:
    whole = make_weight("int4-g32", 72, 160)
    assert isinstance(whole, QuantizedTensor)
    x = normal(0, 3, 160)
    parts = [native.linear(x, native.make_linear(whole.rows(a, b), None)) for a, b in ((0, 16), (16, 72))]
    assert np.array_equal(np.concatenate(parts, axis=1), native.linear(x, native.make_linear(whole, None)))
    transposed = DenseTensor(normal(1, 160, 24).T, "float32")
    got = native.linear(x, native.make_linear(transposed, None))
    assert relative_error(got, reference.linear(x, reference.make_linear(transposed, None))) < FLOAT32


@pytest.mark.parametrize("name", WEIGHTS)
def test_embedding(native: NativeOps, reference: ReferenceOps, name: str) -> None:
    table = make_weight(name, 50, 72)
    rows = np.array([0, 49, 7, 7, 8, 31, 3])
    got = native.embedding(rows, native.make_embedding(table))
    assert np.array_equal(got, reference.embedding(rows, reference.make_embedding(table)))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("frames", [1, 2, 3, 11])
def test_conv1d(native: NativeOps, reference: ReferenceOps, frames: int, stride: int) -> None:
    x, weight = normal(1, frames, 24), make_weight("float32", 25, 72)
    offsets = np.array([0, len(x) // 3, len(x)] if len(x) > 2 else [0, len(x)], np.int32)
    got = native.conv1d(x, native.make_linear(weight, None), 3, stride, "gelu", offsets)
    expected = reference.conv1d(x, reference.make_linear(weight, None), 3, stride, "gelu", offsets)
    assert relative_error(got, expected) < FLOAT32


def adapted(name: str, out: int, in_: int, rank: int) -> AdaptedTensor:
    down, up = normal(rank, rank, in_) / np.float32(in_**0.5), normal(out, out, rank)
    return AdaptedTensor(make_weight(name, out, in_), down, up)


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("rank", [1, 8, 13])
def test_an_adapter_beside_a_matrix(native: NativeOps, reference: ReferenceOps, name: str, rank: int) -> None:
    """The matrix gives what it gives alone, and the factors are exact whatever it is stored in."""
    for out, in_ in SHAPES:
        weight = adapted(name, out, in_, rank)
        bias = DenseTensor(normal(1, out), "float32")
        alone, beside = native.make_linear(weight.base, bias), native.make_linear(weight, bias)
        for rows in (*range(1, 7), 13, 40):
            x, residual = normal(rows, rows, in_), normal(rows + 100, rows, out)
            added = (x @ weight.down.T) @ weight.up.T
            got = native.linear(unaligned(x), beside, residual=residual)
            assert relative_error(got, native.linear(x, alone, residual=residual) + added) < FLOAT32, (out, in_, rows)
            got = native.linear(x, beside, "gelu", residual)
            assert relative_error(got, gelu(native.linear(x, alone) + added) + residual) < FLOAT32, (out, in_, rows)


def test_adapters_in_a_group(native: NativeOps, reference: ReferenceOps) -> None:
    weights = [adapted("int4-g32", 24, 72, 3), make_weight("int8-g64", 20, 72), adapted("float16", 7, 72, 11)]
    group = native.make_linear_group(weights, [None] * 3)
    for rows in (1, 13, 200):
        x = normal(rows, rows, 72)
        for got, weight in zip(native.linear_group(x, group), weights, strict=True):
            assert np.array_equal(got, native.linear(x, native.make_linear(weight, None)))


def test_an_adapted_row_is_the_same_alone_and_in_a_batch(native: NativeOps) -> None:
    linear = native.make_linear(adapted("int4-g32", 72, 160, 13), None)
    x = normal(3, 211, 160)
    batch = native.linear(x, linear)
    for row in (0, 1, 100, 210):
        assert np.array_equal(native.linear(x[row : row + 1], linear)[0], batch[row])
    assert np.array_equal(native.linear(x[:7], linear), batch[:7])


def test_an_adapted_convolution(native: NativeOps, reference: ReferenceOps) -> None:
    x, weight = normal(1, 11, 24), adapted("float32", 25, 72, 5)
    offsets = np.array([0, 3, 11], np.int32)
    got = native.conv1d(x, native.make_linear(weight, None), 3, 2, "gelu", offsets)
    expected = reference.conv1d(x, reference.make_linear(weight, None), 3, 2, "gelu", offsets)
    assert relative_error(got, expected) < FLOAT32


def test_no_rows(native: NativeOps) -> None:
    linear = native.make_linear(make_weight("int4-g32", 20, 37), None)
    assert native.linear(np.empty((0, 37), np.float32), linear).shape == (0, 20)
