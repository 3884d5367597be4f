"""The tree of modules and the model are the same weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tianquan.backends.kv_cache import SequenceBatch
from tianquan.backends.torch import TorchOps
from tianquan.checkpoint import open_checkpoint
from tianquan.checkpoint.tensor_list import required_tensors
from tianquan.llm import LLM
from tianquan.models.omni_model import OmniModel
from tianquan.quantization.recipes import find_recipe
from tianquan.request import MediaPolicy
from tianquan.training.module_tree import ModuleTree, count_parameters
from tolerances import CONFORMANCE, relative_rmse

MESSAGES = [{"role": "user", "content": {"text": "x", "image": "tiny_100x60.png", "audio": "speech_1s_16k.wav"}}]


@pytest.fixture
def loaded(checkpoint_folder):
    checkpoint = open_checkpoint(checkpoint_folder)
    ops = TorchOps("cpu")
    recipe = find_recipe("float32")
    tree = ModuleTree(checkpoint.weights(recipe, ops))
    model = OmniModel(checkpoint.config, tree, ops)
    model.load_vision()
    model.load_audio()
    return LLM(checkpoint, model, recipe), tree


def test_the_tree_has_the_official_names(loaded, checkpoint_folder):
    llm, tree = loaded
    names = {name for name, _ in tree.named_parameters()}
    expected = set(required_tensors(llm.checkpoint.config))
    packed = {"vision.resampler.attn.in_proj_weight", "vision.resampler.attn.in_proj_bias"}
    parts = {f"vision.resampler.attn.in_proj_{p}.{k}" for p in ("query", "key", "value") for k in ("weight", "bias")}
    assert names == expected - packed - {"vision.resampler.proj"} | parts | {"vision.resampler.proj.weight"}
    assert count_parameters(tree) == (0, 3296936)


def test_the_model_runs_on_the_tree(loaded, reference_llm, media_root):
    llm, tree = loaded
    expected = reference_llm.trace(MESSAGES, media_root=media_root).logits
    assert relative_rmse(llm.trace(MESSAGES, media_root=media_root).logits, expected) < CONFORMANCE
    before = tree.get_submodule("llm.model.layers.0.self_attn.q_proj")
    replacement = torch.nn.Linear(before.in_features, before.out_features, bias=False)
    tree.get_submodule("llm.model.layers.0.self_attn").add_module("q_proj", replacement)
    tree.reattach()
    assert relative_rmse(llm.trace(MESSAGES, media_root=media_root).logits, expected) > 0.01


def test_gradients_reach_what_is_trainable_and_nothing_else(loaded, media_root):
    llm, tree = loaded
    trained = tree.set_trainable(["resampler", "audio.projection", "language_model.layers.1.mlp"])
    assert trained == count_parameters(tree)[0] > 0
    prompt = llm.checkpoint.processor(MESSAGES, MediaPolicy(), media_root)
    model = llm.model
    hidden = model.embed(prompt, model.encode_images(prompt.images), model.encode_audios(prompt.audios))
    cache = model.language_model.make_kv_cache(len(hidden))
    model.forward(hidden, cache, SequenceBatch.alone(len(hidden), 0, cache), all_rows=True).square().mean().backward()
    with_gradient = {name for name, p in tree.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    trainable = {name for name, p in tree.named_parameters() if p.requires_grad}
    # The key's bias moves no attention weight: softmax cancels it.
    assert trainable - with_gradient <= {"vision.resampler.attn.in_proj_key.bias"}
    assert with_gradient <= trainable
    assert np.isfinite([float(p.grad.abs().max()) for _, p in tree.named_parameters() if p.grad is not None]).all()
