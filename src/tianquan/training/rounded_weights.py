"""Quantization-aware training: the forward pass sees the weights a low-bit recipe will store.

Each matrix is rounded as `quantize` would round it (same scales, same codes); its gradient is handed to the float32
weight as if nothing had been rounded. What the optimizer moves is the float32 weight, and what it learns is to be
right with the rounded one. Activations stay as they are.
Source: Bengio et al. 2013 (straight-through estimator).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tianquan.kernels.library import KernelLibrary
from tianquan.quantization.format import QuantFormat
from tianquan.quantization.quantizers import round_to_format
from tianquan.quantization.recipes import Recipe
from tianquan.training.module_tree import ModuleTree


class Rounding:
    """Rounds a matrix (out, in) to the values of a format, gradients straight through; a frozen one only once."""

    def __init__(self, format: QuantFormat, library: KernelLibrary) -> None:
        self._format, self._library = format, library
        self._frozen: tuple[tuple[int, int], Tensor] | None = None  # a weight's place and version, and its values

    def __call__(self, weight: Tensor) -> Tensor:
        """Return the rounded matrix."""
        if not weight.requires_grad:
            now = (weight.data_ptr(), weight._version)
            if self._frozen is None or self._frozen[0] != now:
                self._frozen = (now, self.values(weight))
            return self._frozen[1]
        rounded: Tensor = _StraightThrough.apply(weight, self)
        return rounded

    def values(self, weight: Tensor) -> Tensor:
        """Return the rounded matrix without gradients."""
        stored = round_to_format(weight.detach().to("cpu", torch.float32).numpy(), self._format, library=self._library)
        return torch.from_numpy(stored.dequantize()).to(weight)


class RoundedLinear(nn.Linear):
    """A linear that multiplies by its rounded weight; the bias is not rounded."""

    def __init__(self, linear: nn.Linear, rounding: Rounding) -> None:
        """Take the place of `linear`, whose parameters it shares."""
        super().__init__(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self._rounding = rounding

    def forward(self, input: Tensor) -> Tensor:
        """See `nn.Linear.forward`."""
        return functional.linear(input, self._rounding(self.weight), self.bias)


class RoundedEmbedding(nn.Embedding):
    """An embedding that looks rows up in its rounded weight."""

    def __init__(self, embedding: nn.Embedding, rounding: Rounding) -> None:
        """Take the place of `embedding`, whose parameter it shares."""
        super().__init__(embedding.num_embeddings, embedding.embedding_dim, device="meta")
        self.weight = embedding.weight
        self._rounding = rounding

    def forward(self, input: Tensor) -> Tensor:
        """See `nn.Embedding.forward`."""
        return functional.embedding(input, self._rounding(self.weight))


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, rounding: Rounding) -> Tensor:
        return rounding.values(weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


def round_weights(tree: ModuleTree, recipe: Recipe, library: KernelLibrary | None = None) -> int:
    """Put rounding modules in the place of every matrix that the recipe stores in a low-bit format.

    Args:
        tree: of float32 weights; parameters and their names stay what they are.
        recipe: decides the format of each.
        library: the native kernels; None opens them.

    Returns:
        The number of matrices that are rounded.
    """
    modules: dict[str, nn.Module] = {}
    for path, module, rounding in _roundings(tree, recipe, library):
        if isinstance(module, nn.Embedding):
            modules[path] = RoundedEmbedding(module, rounding)
        else:
            modules[path] = RoundedLinear(module, rounding)
    tree.replace_modules(modules)
    return len(modules)


def settle_weights(tree: ModuleTree, recipe: Recipe, library: KernelLibrary | None = None) -> None:
    """Let every matrix that the recipe stores in a low-bit format hold its rounded values from now on.

    After training that saw these values the others behind them have done their work: the model was taught to be right
    with the rounded ones, which `quantize` finds again in what is saved.
    """
    with torch.no_grad():
        for _, module, rounding in _roundings(tree, recipe, library):
            module.weight.copy_(rounding.values(module.weight))


def _roundings(
    tree: ModuleTree, recipe: Recipe, library: KernelLibrary | None
) -> Iterator[tuple[str, nn.Linear | nn.Embedding, Rounding]]:
    """Yield the path, the module and the rounding of each matrix that the recipe stores in a low-bit format."""
    library = KernelLibrary() if library is None else library
    for name, path in tree.module_paths():
        format, module = recipe.format_of(name), tree.get_submodule(path)
        if isinstance(format, QuantFormat) and isinstance(module, nn.Linear | nn.Embedding):
            yield path, module, Rounding(format, library)
