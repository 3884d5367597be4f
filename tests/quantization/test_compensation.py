"""Rounding that makes up for itself: smaller errors of products, and a folder format like any other."""

from __future__ import annotations

import numpy as np
import pytest

from tianquan.kernels.library import KernelLibrary
from tianquan.quantization.compensation import quantize_compensated
from tianquan.quantization.format import FORMATS, INT4_G32, INT4_G32_ASYM, QuantizedTensor
from tianquan.quantization.quantizers import quantize


def drawn(num_rows, num_columns, seed=0):
    """Return a weight and activations some of whose channels go together."""
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(num_columns, num_columns)) * rng.exponential(size=num_columns)
    x = (rng.normal(size=(500, num_columns)) @ mixed).astype(np.float32)
    return rng.normal(size=(num_rows, num_columns)).astype(np.float32), x


def product_error(tensor, weight, x):
    return np.linalg.norm(x @ (tensor.dequantize() - weight).T) / np.linalg.norm(x @ weight.T)


@pytest.mark.parametrize("shape", [(64, 128), (8, 64), (13, 100), (1, 5), (30, 33)])
@pytest.mark.parametrize("format", FORMATS.values(), ids=str)
def test_products_err_less_than_with_the_nearest_codes(format, shape):
    weight, x = drawn(*shape)
    fitted = quantize_compensated(weight, format, x.T @ x)
    nearest = quantize(weight, format)
    assert (fitted.format, fitted.shape) == (format, shape)
    error, other = product_error(fitted, weight, x), product_error(nearest, weight, x)
    assert error < (0.9 if shape[1] >= 32 else 1.3) * other, (error, other)


@pytest.mark.parametrize("format", FORMATS.values(), ids=str)
def test_the_kernels_search_gives_the_same_bits(format):
    weight, x = drawn(20, 72)
    defined = quantize_compensated(weight, format, x.T @ x)
    native = quantize_compensated(weight, format, x.T @ x, KernelLibrary(1))
    for name, array in defined.to_arrays().items():
        np.testing.assert_array_equal(array, native.to_arrays()[name])


@pytest.mark.parametrize("format", FORMATS.values(), ids=str)
def test_channels_that_do_not_go_together_are_rounded_to_nearest(format):
    """Nothing can make up for anything: the result is that of the search by itself."""
    weight, _ = drawn(16, 128)
    fitted = quantize_compensated(weight, format, np.eye(128, dtype=np.float32))
    nearest = quantize(weight, format)
    for name, array in nearest.to_arrays().items():
        np.testing.assert_array_equal(array, fitted.to_arrays()[name])


def test_the_size_of_the_sum_does_not_matter():
    weight, x = drawn(16, 64)
    one, other = (quantize_compensated(weight, INT4_G32, moments) for moments in (x.T @ x, 1024 * (x.T @ x)))
    np.testing.assert_array_equal(one.codes, other.codes)


def test_channels_that_nothing_ever_enters():
    weight, x = drawn(16, 96)
    x[:, 20:50] = 0
    assert product_error(quantize_compensated(weight, INT4_G32_ASYM, x.T @ x), weight, x) < 0.08
    unused = quantize_compensated(weight, INT4_G32, np.zeros((96, 96), np.float32))
    np.testing.assert_array_equal(unused.codes, quantize(weight, INT4_G32).codes)


def test_it_is_stored_and_cut_like_any_other():
    weight, x = drawn(24, 64)
    fitted = quantize_compensated(weight, INT4_G32_ASYM, x.T @ x)
    again = QuantizedTensor.from_arrays(fitted.format, fitted.shape, fitted.to_arrays())
    np.testing.assert_array_equal(again.rows(8, 24).dequantize(), fitted.dequantize()[8:24])


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
def test_values_no_scale_can_hold_are_refused(value):
    weight, x = drawn(16, 64)
    weight[3, 40] = value
    with np.errstate(all="ignore"), pytest.raises(ValueError, match="not finite or too large"):
        quantize_compensated(weight, INT4_G32, x.T @ x)
