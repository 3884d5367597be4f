"""Rounding that makes up for itself: smaller errors of products, and a folder format like any other."""

from __future__ import annotations

import numpy as np
import pytest

from tianquan.kernels.library import KernelLibrary
from tianquan.quantization import compensation
from tianquan.quantization.compensation import error_updates, quantize_compensated
from tianquan.quantization.format import FORMATS, INT4_G32, INT4_G32_ASYM, QuantizedTensor
from tianquan.quantization.quantizers import quantize


def drawn(num_rows, num_columns, seed=0):
    """Return a weight and activations some of whose channels go together."""
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(num_columns, num_columns)) * rng.exponential(size=num_columns)
    x = (rng.normal(size=(500, num_columns)) @ mixed).astype(np.float32)
    return rng.normal(size=(num_rows, num_columns)).astype(np.float32), x


def fitted_to(x, weight, format, library=None):
    return quantize_compensated(weight, format, error_updates(x.T @ x), library)


def product_error(tensor, weight, x):
    return np.linalg.norm(x @ (tensor.dequantize() - weight).T) / np.linalg.norm(x @ weight.T)


@pytest.mark.parametrize("shape", [(64, 128), (8, 64), (13, 100), (1, 5), (30, 33)])
@pytest.mark.parametrize("format", FORMATS.values(), ids=str)
def test_products_err_less_than_with_the_nearest_codes(format, shape):
    weight, x = drawn(*shape)
    fitted = fitted_to(x, weight, format)
    nearest = quantize(weight, format)
    assert (fitted.format, fitted.shape) == (format, shape)
    error, other = product_error(fitted, weight, x), product_error(nearest, weight, x)
    assert error < (0.9 if shape[1] >= 32 else 1.3) * other, (error, other)


@pytest.mark.parametrize("format", FORMATS.values(), ids=str)
def test_the_kernels_search_gives_the_same_bits(format):
    weight, x = drawn(20, 72)
    defined = fitted_to(x, weight, format)
    native = fitted_to(x, weight, format, KernelLibrary(1))
    for name, array in defined.to_arrays().items():
        np.testing.assert_array_equal(array, native.to_arrays()[name])


@pytest.mark.parametrize("shape", [(16, 128), (13, 100), (3, 5)])
@pytest.mark.parametrize("format", FORMATS.values(), ids=str)
def test_channels_that_do_not_go_together_are_rounded_to_nearest(format, shape):
    """Nothing can make up for anything: the result is that of the search by itself, to the last byte of padding."""
    weight, _ = drawn(*shape)
    fitted = quantize_compensated(weight, format, error_updates(np.eye(shape[1], dtype=np.float32)))
    nearest = quantize(weight, format)
    for name, array in nearest.to_arrays().items():
        np.testing.assert_array_equal(array, fitted.to_arrays()[name])


def test_the_size_of_the_sum_does_not_matter():
    weight, x = drawn(16, 64)
    one, other = (fitted_to(scale * x, weight, INT4_G32) for scale in (1, 32))
    np.testing.assert_array_equal(one.codes, other.codes)


def test_channels_that_nothing_ever_enters():
    weight, x = drawn(16, 96)
    x[:, 20:50] = 0
    assert product_error(fitted_to(x, weight, INT4_G32_ASYM), weight, x) < 0.08
    unused = fitted_to(0 * x, weight, INT4_G32)
    np.testing.assert_array_equal(unused.codes, quantize(weight, INT4_G32).codes)


def test_it_is_stored_and_cut_like_any_other():
    weight, x = drawn(24, 64)
    fitted = fitted_to(x, weight, INT4_G32_ASYM)
    again = QuantizedTensor.from_arrays(fitted.format, fitted.shape, fitted.to_arrays())
    np.testing.assert_array_equal(again.rows(8, 24).dequantize(), fitted.dequantize()[8:24])


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
def test_values_no_scale_can_hold_are_refused(value):
    weight, x = drawn(16, 64)
    weight[3, 40] = value
    with np.errstate(all="ignore"), pytest.raises(ValueError, match="not finite or too large"):
        fitted_to(x, weight, INT4_G32)


def test_activations_that_are_not_finite_are_refused():
    _, x = drawn(16, 20)
    x[3, 4] = np.nan
    with pytest.raises(ValueError, match="activations are not finite"):
        error_updates(x.T @ x)


@pytest.mark.parametrize("size", [1, 7, 128, 129, 300])
def test_updates_are_a_triangle_whose_square_is_the_inverse(size):
    _, x = drawn(8, size)
    moments = (x.T @ x).astype(np.float64)
    damped = moments + compensation.DAMPING * np.trace(moments) / size * np.eye(size)
    updates = error_updates(x.T @ x).astype(np.float64)
    assert not np.tril(updates, -1).any()
    np.testing.assert_allclose(updates.T @ updates @ damped, np.eye(size), atol=2e-4)


def test_columns_that_matter_decide_the_scale():
    """The largest value of each group is in a channel that is hardly ever used: the scale is that of the others."""
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(64, 32)).astype(np.float32)
    weight[:, 0] = 1.25 * np.abs(weight).max(axis=1)
    used = np.ones(32, np.float32)
    used[0] = 1e-2
    x = np.diag(used)
    fitted, nearest = fitted_to(x, weight, INT4_G32), quantize(weight, INT4_G32)
    assert product_error(fitted, weight, x) < 0.95 * product_error(nearest, weight, x)


def test_rows_are_rounded_by_themselves(monkeypatch):
    weight, x = drawn(40, 64)
    whole = fitted_to(x, weight, INT4_G32_ASYM)
    monkeypatch.setattr(compensation, "_ROWS_AT_ONCE", 16)
    parts = fitted_to(x, weight, INT4_G32_ASYM)
    for name, array in whole.to_arrays().items():
        np.testing.assert_array_equal(array, parts.to_arrays()[name])
