from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instruction_sets import open_or_skip
from tianquan.kernels.library import ISAS, KernelLibrary
from tianquan.quantization.format import FORMATS, INT4_G32, QuantFormat, QuantizedTensor
from tianquan.quantization.quantizers import quantize, round_to_format

# Measured on normal weights, with a margin: the error a format is chosen for.
ERRORS = {"int4-g32": 0.083, "int4-g64": 0.0925, "int4-g32-asym": 0.0745, "int4-g64-asym": 0.086, "int8-g64": 0.012}


def same_bits(a: QuantizedTensor, b: QuantizedTensor) -> bool:
    left, right = a.to_arrays(), b.to_arrays()
    return all(np.array_equal(left[name].view(np.uint8), right[name].view(np.uint8)) for name in left)


def relative_error(tensor: QuantizedTensor, weight: np.ndarray, importance: np.ndarray | float = 1.0) -> float:
    difference = (tensor.dequantize() - weight) ** 2 * importance
    return float(np.sqrt(difference.sum() / (weight**2 * importance).sum()))


@pytest.mark.parametrize("format", FORMATS.values(), ids=str)
def test_error_on_normal_weights(format: QuantFormat) -> None:
    weight = np.random.default_rng(0).standard_normal((64, 640)).astype(np.float32) * 0.02
    assert relative_error(quantize(weight, format), weight) < ERRORS[format.name]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("format", FORMATS.values(), ids=str)
def test_the_kernel_gives_the_bits_of_the_definition(format: QuantFormat, isa: str) -> None:
    library = open_or_skip(isa, lambda: KernelLibrary(2, isa))
    rng = np.random.default_rng(0)
    for shape in ((8, 64), (20, 37), (3, 588), (33, 200)):
        weight = (rng.standard_normal(shape) ** 3 * 0.01).astype(np.float32)
        weight[0, :40] = 0
        weight[1] = 0.25
        importance = rng.random(shape[1], np.float32)
        importance[: shape[1] // 4] = 0
        for h in (None, importance):
            assert same_bits(quantize(weight, format, h), quantize(weight, format, h, library))


@settings(max_examples=60)
@given(st.sampled_from(list(FORMATS.values())), st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=70))
def test_any_values(format: QuantFormat, values: list[float]) -> None:
    weight = np.array([values], np.float32)
    definition, native = round_to_format(weight, format), round_to_format(weight, format, None, KernelLibrary(1))
    assert same_bits(definition, native)
    # no value is further off than the coarsest step of its group, whatever the group holds
    largest = np.abs(weight).max()
    assert np.abs(definition.dequantize() - weight).max() <= 0.2 * largest + 1e-6


def test_importance_moves_the_error() -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((64, 320)).astype(np.float32)
    importance = np.where(np.arange(320) % 4 == 0, 100, 1).astype(np.float32)
    plain, weighted = quantize(weight, INT4_G32), quantize(weight, INT4_G32, importance)
    assert relative_error(weighted, weight, importance) < 0.97 * relative_error(plain, weight, importance)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e7])
def test_values_that_cannot_be_stored_are_refused(bad: float) -> None:
    weight = np.ones((8, 64), np.float32)
    weight[3, 5] = bad
    for library in (None, KernelLibrary(1)):
        with pytest.raises(ValueError, match="not finite or too large"):
            quantize(weight, INT4_G32, None, library)


@pytest.mark.parametrize("format", FORMATS.values(), ids=str)
def test_values_that_vanish_in_a_scale_are_refused(format: QuantFormat) -> None:
    weight = np.random.default_rng(0).standard_normal((16, 128)).astype(np.float32)
    with pytest.raises(ValueError, match="too small"):
        quantize(weight * np.float32(1e-8), format)
    quantize(weight * np.float32(1e-4), format)
    quantize(np.zeros_like(weight), format)
    weight[:4, :64] *= np.float32(1e-8)  # a part that is nothing beside the rest
    quantize(weight, format)
