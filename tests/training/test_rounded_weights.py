"""Quantization-aware training sees what `quantize` stores and moves the weights behind it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tianquan.backends.torch import TorchOps
from tianquan.checkpoint import open_checkpoint
from tianquan.kernels.library import KernelLibrary
from tianquan.models.omni_model import OmniModel
from tianquan.quantization.format import INT4_G32, INT8_G64
from tianquan.quantization.quantizers import quantize
from tianquan.quantization.recipes import find_recipe
from tianquan.training.module_tree import ModuleTree, count_parameters
from tianquan.training.rounded_weights import RoundedLinear, Rounding, round_weights, settle_weights

LIBRARY = KernelLibrary(threads=1)


def load_tree(folder, rounded=None):
    checkpoint = open_checkpoint(folder)
    ops = TorchOps("cpu")
    tree = ModuleTree(checkpoint.weights(find_recipe("float32"), ops))
    model = OmniModel(checkpoint.config, tree, ops)
    model.load_vision()
    model.load_audio()
    num_rounded = round_weights(tree, find_recipe(rounded), LIBRARY) if rounded else 0
    return tree, num_rounded


@pytest.mark.parametrize("shape", [(8, 64), (5, 33), (1, 1), (70, 100)])
@pytest.mark.parametrize("format", [INT4_G32, INT8_G64])
def test_the_forward_pass_is_that_of_the_stored_weight(shape, format):
    linear = torch.nn.Linear(shape[1], shape[0])
    rounded = RoundedLinear(linear, Rounding(format, LIBRARY))
    x = torch.randn(3, shape[1])
    stored = torch.from_numpy(quantize(linear.weight.detach().numpy(), format).dequantize())
    torch.testing.assert_close(rounded(x), torch.nn.functional.linear(x, stored, linear.bias))


def test_gradients_pass_through_to_the_weight_behind():
    linear = torch.nn.Linear(64, 8)
    rounded = RoundedLinear(linear, Rounding(INT4_G32, LIBRARY))
    x = torch.randn(3, 64)
    rounded(x).square().sum().backward()
    output = torch.nn.functional.linear(x, rounded._rounding.values(linear.weight), linear.bias)
    torch.testing.assert_close(linear.weight.grad, (2 * output).T @ x)
    before = linear.weight.detach().clone()
    torch.optim.SGD(rounded.parameters(), lr=1e-3).step()
    assert not torch.equal(before, linear.weight)


def test_a_frozen_weight_is_rounded_again_only_when_it_changed():
    linear = torch.nn.Linear(64, 8).requires_grad_(False)
    rounding = Rounding(INT4_G32, LIBRARY)
    rounded = RoundedLinear(linear, rounding)
    x = torch.randn(3, 64)
    first = rounded(x)
    assert rounding(linear.weight) is rounding(linear.weight)
    linear.weight.mul_(2)
    torch.testing.assert_close(rounded(x) - linear.bias, 2 * (first - linear.bias))
    linear.requires_grad_(True)
    assert rounding(linear.weight) is not rounding(linear.weight)


def test_parameters_keep_their_names_and_values(checkpoint_folder):
    plain, _ = load_tree(checkpoint_folder)
    rounded, num_rounded = load_tree(checkpoint_folder, "int4")
    assert num_rounded == len(rounded.module_paths()) > 20
    assert count_parameters(plain) == count_parameters(rounded)
    for (name, weight), (other, same) in zip(plain.named_parameters(), rounded.named_parameters(), strict=True):
        assert name == other
        assert torch.equal(weight, same)
    name, path = rounded.module_paths()[-1]
    module = rounded.get_submodule(path)
    np.testing.assert_array_equal(rounded.matrix(name, *reversed(module.weight.shape)), module.weight.detach())


def test_only_what_the_recipe_rounds_is_replaced(checkpoint_folder):
    _, all_of_them = load_tree(checkpoint_folder, "int8")
    tree, none = load_tree(checkpoint_folder, "float16")
    assert (none, all_of_them) == (0, len(tree.module_paths()))


def test_a_weight_that_is_not_finite_is_an_error():
    linear = torch.nn.Linear(64, 8)
    with torch.no_grad():
        linear.weight[0, 0] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        RoundedLinear(linear, Rounding(INT4_G32, LIBRARY))(torch.zeros(1, 64))


def test_settled_weights_are_what_the_forward_pass_saw_and_what_quantize_finds_again(checkpoint_folder):
    recipe = find_recipe("int4")
    tree, _ = load_tree(checkpoint_folder, "int4")
    vectors = {name: tree.vector(name).copy() for name in ("vision.position_embedding", "resampler.query")}
    name, path = next(
        (n, p) for n, p in tree.module_paths() if recipe.format_of(n) == INT4_G32 and "embedding" not in n
    )
    module = tree.get_submodule(path)
    x = torch.randn(3, module.in_features)
    seen, before = module(x).detach(), module.weight.detach().clone()
    settle_weights(tree, recipe, LIBRARY)
    assert not torch.equal(module.weight, before)
    torch.testing.assert_close(torch.nn.functional.linear(x, module.weight, module.bias), seen)
    for name, path in tree.module_paths():
        settled = tree.get_submodule(path).weight.detach().numpy()
        stored = settled.astype(np.float16).astype(np.float32)  # as a checkpoint in 16 bits has it
        again = quantize(stored, recipe.format_of(name), library=LIBRARY).dequantize()
        assert np.abs(again - settled).max() <= 2e-3 * np.abs(settled).max(), name
    for name, vector in vectors.items():
        np.testing.assert_array_equal(tree.vector(name), vector)
