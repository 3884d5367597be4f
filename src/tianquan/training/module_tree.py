"""The model as a tree of PyTorch modules under the official checkpoint's names.

The model definition holds handles; adapters, optimizers and checkpoints want named modules and parameters. The tree
has both: each weight is registered under its official name as it is loaded, and after adapters have put modules of
their own into the tree, `reattach` makes the handles see them.

The three parts of the resampler's packed projection are modules of their own here (`in_proj_query`, ...); writing a
checkpoint packs them again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from tianquan.backends.torch import LowBitWeight, ModuleHandle
from tianquan.checkpoint.names import module_path, stored_name
from tianquan.models.weights import WeightSource


class ModuleTree(nn.Module):
    """All weights of a model that is loaded through this weight source; see the module's docstring."""

    def __init__(self, reader: WeightSource) -> None:
        super().__init__()
        self._reader = reader
        self._handles: dict[str, ModuleHandle] = {}  # tree path -> handle
        self._paths: dict[str, list[str]] = {}  # our name -> tree paths of its parameters or its module

    # The weight source --------------------------------------------------------------------------------------
    def parameter(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """See `WeightSource.parameter`."""
        return self._register(name, stored_name(name).weight, self._reader.parameter(name, shape))

    def norm(self, name: str, size: int) -> tuple[Tensor, Tensor]:
        """See `WeightSource.norm`."""
        stored = stored_name(name)
        assert stored.bias is not None, name
        weight, bias = self._reader.norm(name, size)
        return self._register(name, stored.weight, weight), self._register(name, stored.bias, bias)

    def linear(self, name: str, in_features: int, out_features: int, bias: bool = False) -> ModuleHandle:
        """See `WeightSource.linear`."""
        return self._attach(name, self._reader.linear(name, in_features, out_features, bias))

    def linear_group(
        self, names: Sequence[str], in_features: int, out_features: Sequence[int], bias: Sequence[bool]
    ) -> tuple[ModuleHandle, ...]:
        """See `WeightSource.linear_group`."""
        handles = self._reader.linear_group(names, in_features, out_features, bias)
        return tuple(self._attach(name, handle) for name, handle in zip(names, handles, strict=True))

    def embedding(self, name: str, num_rows: int, size: int) -> ModuleHandle:
        """See `WeightSource.embedding`."""
        return self._attach(name, self._reader.embedding(name, num_rows, size))

    # The tree -----------------------------------------------------------------------------------------------
    def module_paths(self) -> list[tuple[str, str]]:
        """Return (our name, path in the tree) of every matrix that is a module."""
        return [(name, path) for name, paths in self._paths.items() for path in paths if path in self._handles]

    def replace_modules(self, modules: Mapping[str, nn.Module]) -> None:
        """Put modules in the place of those at the paths."""
        for path, module in modules.items():
            parent, _, leaf = path.rpartition(".")
            self._parent(parent).add_module(leaf, module)
        self.reattach()

    def reattach(self) -> None:
        """Point every handle at the module that is in the tree now."""
        for path, handle in self._handles.items():
            handle.module = self.get_submodule(path)

    # The weights as arrays, for writing a checkpoint: `checkpoint.dense_folder.DenseWeights` -------------------
    def matrix(self, name: str, in_features: int, out_features: int) -> npt.NDArray[np.float32]:
        """See `DenseWeights.matrix`."""
        matrix = _to_numpy(self.get_submodule(module_path(name)).weight)
        assert matrix.shape == (out_features, in_features), (name, matrix.shape)
        return matrix

    def vector(self, name: str) -> npt.NDArray[np.float32]:
        """See `DenseWeights.vector`."""
        return _to_numpy(self.get_parameter(self._paths[name][0]))

    def bias(self, name: str) -> npt.NDArray[np.float32]:
        """See `DenseWeights.bias`."""
        paths = self._paths[name]
        if paths[0] in self._handles:
            return _to_numpy(self.get_submodule(paths[0]).bias)
        return _to_numpy(self.get_parameter(paths[1]))  # of a norm: weight, bias

    # What is trained ------------------------------------------------------------------------------------------
    def set_trainable(self, prefixes: Sequence[str]) -> int:
        """Let exactly the weights whose (our) names begin with a prefix require gradients.

        Low-bit weights cannot be trained and stay as they are.

        Returns:
            The number of values that are trained.
        """
        for parameter in self.parameters():
            parameter.requires_grad_(False)
        num_trained = 0
        for name, paths in self._paths.items():
            if not any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes):
                continue
            for path in paths:
                for parameter in self._parameters_at(path):
                    parameter.requires_grad_(True)
                    num_trained += parameter.numel()
        return num_trained

    def _parameters_at(self, path: str) -> list[nn.Parameter]:
        if path in self._handles:
            return list(self.get_submodule(path).parameters())
        return [self.get_parameter(path)]

    def _register(self, name: str, path: str, value: Tensor) -> nn.Parameter:
        parent, _, leaf = path.rpartition(".")
        parameter = nn.Parameter(value, requires_grad=False)
        self._parent(parent).register_parameter(leaf, parameter)
        self._paths.setdefault(name, []).append(path)
        return parameter

    def _attach(self, name: str, handle: ModuleHandle) -> ModuleHandle:
        path = module_path(name)
        if path in self._handles:  # a head tied to the embedding: one parameter, two modules
            tied = self._handles[path].module
            if isinstance(handle.module, nn.Linear):
                handle.module.weight = tied.weight
            else:  # low bits
                handle.module = tied
            return handle
        parent, _, leaf = path.rpartition(".")
        self._parent(parent).add_module(leaf, handle.module)
        self._handles[path] = handle
        self._paths.setdefault(name, []).append(path)
        return handle

    def _parent(self, path: str) -> nn.Module:
        module: nn.Module = self
        for part in path.split(".") if path else []:
            child = module._modules.get(part)
            if child is None:
                child = nn.Module()
                module.add_module(part, child)
            module = child
        return module


def _to_numpy(values: Any) -> npt.NDArray[np.float32]:
    return values.detach().to("cpu", torch.float32).numpy()


def count_parameters(module: nn.Module) -> tuple[int, int]:
    """Return (values that are trained, values in all) of a tree; those in low bits are no parameters, but count."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in module.parameters()]
    low_bit = sum(part.num_values for part in module.modules() if isinstance(part, LowBitWeight))
    return sum(size for size, trained in sizes if trained), sum(size for size, _ in sizes) + low_bit
