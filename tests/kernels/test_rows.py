from __future__ import annotations

import math

import numpy as np
import pytest

from kernels.kernel_tolerances import FLOAT32, relative_error, unaligned
from tianquan.backends.native import NativeOps
from tianquan.backends.reference import ReferenceOps

CHANNELS = [1, 7, 8, 37, 72, 160]


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape, dtype=np.float32)


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("rows", [1, 3, 17])
def test_norms(native: NativeOps, reference: ReferenceOps, rows: int, channels: int) -> None:
    x = unaligned(normal(rows, channels) * 3 + 1)
    weight, bias = normal(channels), normal(channels + 1)[1:]
    assert relative_error(native.rms_norm(x, weight, 1e-5), reference.rms_norm(x, weight, 1e-5)) < FLOAT32
    got, expected = (ops.layer_norm(x, weight, bias, 1e-5) for ops in (native, reference))
    assert relative_error(got, expected) < FLOAT32


def test_norms_read_views(native: NativeOps) -> None:
    wide = normal(9, 100)
    view, weight = wide[:, 20:57], normal(37)
    assert np.array_equal(native.rms_norm(view, weight, 1e-6), native.rms_norm(view.copy(), weight, 1e-6))
    assert np.array_equal(
        native.layer_norm(view, weight, weight, 1e-6), native.layer_norm(view.copy(), weight, weight, 1e-6)
    )
    assert np.array_equal(native.swiglu(view, wide[:, :37]), native.swiglu(view.copy(), wide[:, :37].copy()))


def test_columns_are_refused(native: NativeOps) -> None:
    with pytest.raises(AssertionError, match="rows must be dense"):
        native.rms_norm(normal(8, 16).T, normal(8), 1e-6)


@pytest.mark.parametrize("channels", CHANNELS)
def test_swiglu(native: NativeOps, reference: ReferenceOps, channels: int) -> None:
    gate, up = normal(5, channels) * 30, normal(5, channels)  # beyond the range of e^x in float32
    assert relative_error(native.swiglu(gate, up), reference.swiglu(gate, up)) < FLOAT32


@pytest.mark.parametrize(("heads", "head_dim"), [(1, 2), (3, 10), (5, 64), (2, 128)])
def test_rope(native: NativeOps, reference: ReferenceOps, heads: int, head_dim: int) -> None:
    x = normal(13, heads + 2, head_dim)[:, 1 : heads + 1]  # heads of a wider projection
    positions = np.array([0, 1, 2, 4095, 17, 5, 5, 100, 1000, 31, 32, 33, 4000], np.int32)
    assert relative_error(native.rope(x, positions, 5e6), reference.rope(x, positions, 5e6)) < FLOAT32


def test_gelu_in_the_tails(native: NativeOps) -> None:
    from tianquan.quantization.dense import DenseTensor

    x = np.linspace(-12, 12, 4001, dtype=np.float32)[:, None]
    identity = native.make_linear(DenseTensor(np.ones((1, 1), np.float32), "float32"), None)
    exact = np.array([0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in x[:, 0].astype(float)])
    inner = [math.sqrt(2 / math.pi) * (v + 0.044715 * v**3) for v in x[:, 0].astype(float)]
    tanh = np.array([0.5 * v * (1 + math.tanh(u)) for v, u in zip(x[:, 0].astype(float), inner, strict=True)])
    assert np.abs(native.linear(x, identity, "gelu")[:, 0] - exact).max() < 2e-6
    assert np.abs(native.linear(x, identity, "gelu_tanh")[:, 0] - tanh).max() < 2e-6
