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
from tianquan.quantization.format import FORMATS
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


def test_gradients_reach_the_input_through_low_bit_weights(ops):
    stored = ReferenceOps().quantize(np.eye(64, dtype=np.float32), FORMATS["int4-g32"])
    x = torch.ones(2, 64, requires_grad=True)
    ops.linear(x, ops.make_linear(stored, None)).sum().backward()
    assert torch.count_nonzero(x.grad) == x.numel()


def test_a_device_that_is_not_there(checkpoint_folder):
    with pytest.raises(BackendError, match="cuda:99"):
        tianquan.load(checkpoint_folder, backend="torch", device="cuda:99")
