"""The torch backend against the reference: the same model definition, with gradients. Runs where torch is installed."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

import tianquan
from tianquan.backends.reference import ReferenceOps
from tianquan.errors import BackendError
from tianquan.llm import GREEDY
from tianquan.quantization.adapted import AdaptedTensor
from tianquan.quantization.dense import DenseTensor
from tianquan.quantization.format import FORMATS
from tianquan.quantization.quantizers import quantize
from tolerances import CONFORMANCE, relative_rmse

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def ops():
    from tianquan.backends.torch import TorchOps

    return TorchOps("cpu")


@pytest.fixture(scope="module")
def torch_llm(checkpoint_folder):
    return tianquan.load(checkpoint_folder, precision="float32", backend="torch")


@pytest.mark.parametrize("name", ["text_zh_system", "image_panorama", "audio_two_lengths", "multi_turn"])
def test_conformance(torch_llm, reference_llm, conformance, name):
    case = json.loads((conformance / "cases" / f"{name}.json").read_text())
    media_root = conformance / "media"
    got = torch_llm.trace(case["messages"], media_root=media_root).to_arrays()
    for key, expected in reference_llm.trace(case["messages"], media_root=media_root).to_arrays().items():
        assert relative_rmse(got[key], expected) < CONFORMANCE, key
    sampling = replace(GREEDY, max_tokens=12, ignore_eos=True)
    answer = torch_llm.chat(case["messages"], sampling=sampling, media_root=media_root)
    assert answer.token_ids == case["greedy_token_ids"]


@pytest.mark.parametrize("format", FORMATS.values(), ids=str)
@pytest.mark.parametrize("shape", [(8, 64), (13, 100), (72, 160)])
def test_low_bit_weights_expand_to_their_definition(ops, format, shape):
    weight = np.random.default_rng(0).normal(0, 1, shape).astype(np.float32)
    stored = ReferenceOps().quantize(weight, format)
    np.testing.assert_array_equal(ops.make_linear(stored, None).module.dequantize().numpy(), stored.dequantize())


@pytest.mark.parametrize("format", [None, FORMATS["int4-g32"]])
def test_an_adapter_beside_a_matrix(ops, format):
    rng = np.random.default_rng(0)
    values, down, up, x = (rng.normal(size=shape).astype(np.float32) for shape in ((20, 64), (3, 64), (20, 3), (5, 64)))
    base = DenseTensor(values, "float32") if format is None else quantize(values, format)
    weight = AdaptedTensor(base, down, up)
    reference = ReferenceOps()
    expected = reference.linear(x, reference.make_linear(weight, None), "gelu")
    found = ops.linear(torch.from_numpy(x), ops.make_linear(weight, None), "gelu")
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-4)


def test_gradients_reach_the_input_through_low_bit_weights(ops):
    stored = ReferenceOps().quantize(np.eye(64, dtype=np.float32), FORMATS["int4-g32"])
    x = torch.ones(2, 64, requires_grad=True)
    ops.linear(x, ops.make_linear(stored, None)).sum().backward()
    assert torch.count_nonzero(x.grad) == x.numel()


def test_a_device_that_is_not_there(checkpoint_folder):
    with pytest.raises(BackendError, match="cuda:99"):
        tianquan.load(checkpoint_folder, backend="torch", device="cuda:99")
