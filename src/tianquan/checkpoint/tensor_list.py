"""Which tensors a model needs, found by building it without reading: the models themselves are the list."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tianquan.backends.reference import ReferenceOps
from tianquan.checkpoint.names import is_ignored, stored_name, stored_shape
from tianquan.checkpoint.safetensors_file import StoredTensor
from tianquan.config import ModelConfig
from tianquan.errors import CheckpointError
from tianquan.models.omni_model import OmniModel
from tianquan.quantization.format import QuantFormat
from tianquan.quantization.recipes import Format, Recipe

_NAMES_SHOWN = 3  # of a list in an error message

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class NeededWeight:
    """One of our weights: a matrix (out, in), or a vector or table that stays in float32."""

    name: str
    shape: tuple[int, ...]
    is_matrix: bool
    bias_size: int  # 0 without a bias

    @property
    def component(self) -> str:
        """The component it belongs to."""
        return self.name.partition(".")[0]

    @property
    def num_parameters(self) -> int:
        """Number of values, bias included."""
        return math.prod(self.shape) + self.bias_size

    def stored_shapes(self) -> Shapes:
        """Return name -> shape of the tensors of the file it is read from."""
        stored = stored_name(self.name)
        shape = stored_shape(stored.layout, self.shape[1], self.shape[0]) if self.is_matrix else self.shape
        shapes = {stored.weight: shape}
        if self.bias_size:
            assert stored.bias is not None, self.name
            shapes[stored.bias] = shape[:1]
        return shapes

    def format(self, recipe: Recipe) -> Format:
        """Return the format a recipe stores it in."""
        return recipe.format_of(self.name) if self.is_matrix else "float32"

    def nbytes(self, recipe: Recipe) -> int:
        """Return the bytes it takes in memory under a recipe, bias included."""
        format = self.format(recipe)
        if isinstance(format, QuantFormat):
            arrays = format.array_shapes((self.shape[0], self.shape[1])).values()
            size = sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in arrays)
        else:
            size = math.prod(self.shape) * (4 if format == "float32" else 2)
        return size + 4 * self.bias_size


class WeightRecorder:
    """A weight source that hands out nothing and writes down what was asked for."""

    def __init__(self) -> None:
        self.weights: list[NeededWeight] = []

    def parameter(self, name: str, shape: tuple[int, ...]) -> None:
        """See `WeightSource.parameter`."""
        self.weights.append(NeededWeight(name, shape, is_matrix=False, bias_size=0))

    def norm(self, name: str, size: int) -> tuple[None, None]:
        """See `WeightSource.norm`."""
        self.weights.append(NeededWeight(name, (size,), is_matrix=False, bias_size=size))
        return None, None

    def linear(self, name: str, in_features: int, out_features: int, bias: bool = False) -> None:
        """See `WeightSource.linear`."""
        bias_size = out_features if bias else 0
        self.weights.append(NeededWeight(name, (out_features, in_features), is_matrix=True, bias_size=bias_size))

    def linear_group(
        self, names: Sequence[str], in_features: int, out_features: Sequence[int], bias: Sequence[bool]
    ) -> None:
        """See `WeightSource.linear_group`."""
        for name, size, has_bias in zip(names, out_features, bias, strict=True):
            self.linear(name, in_features, size, has_bias)

    def embedding(self, name: str, num_rows: int, size: int) -> None:
        """See `WeightSource.embedding`."""
        self.weights.append(NeededWeight(name, (num_rows, size), is_matrix=True, bias_size=0))


def needed_weights(config: ModelConfig) -> list[NeededWeight]:
    """Return every weight a model of this configuration asks for, in loading order, each once."""
    recorder = WeightRecorder()
    model = OmniModel(config, recorder, ReferenceOps())
    model.load_vision()
    model.load_audio()
    return list({weight.name: weight for weight in reversed(recorder.weights)}.values())[::-1]


def required_tensors(config: ModelConfig) -> Shapes:
    """Return name -> shape of every tensor of the official layout that a model of this configuration needs."""
    shapes: Shapes = {}
    for weight in needed_weights(config):
        shapes.update(weight.stored_shapes())
    return shapes


def check_tensors(label: str, stored: Mapping[str, StoredTensor], required: Shapes) -> None:
    """Raise unless the files hold exactly the required tensors, each in its shape.

    Raises:
        CheckpointError: a tensor is missing, unexpected, or of another shape.
    """
    missing = sorted(set(required) - set(stored))
    if missing:
        raise CheckpointError(
            f"{label}: {_names(missing)} missing; the checkpoint is incomplete or its config.json is another model's"
        )
    unexpected = sorted(name for name in set(stored) - set(required) if not is_ignored(name))
    if unexpected:
        raise CheckpointError(f"{label}: {_names(unexpected)} unexpected; the config.json is another model's")
    for name, shape in required.items():
        if stored[name].shape != shape:
            raise CheckpointError(
                f"{label}: tensor {name!r} has shape {list(stored[name].shape)}, config.json asks for {list(shape)}"
            )
        if stored[name].dtype not in ("F32", "F16", "BF16"):
            raise CheckpointError(f"{label}: tensor {name!r} is {stored[name].dtype}; expected F32, F16 or BF16")


def _names(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:_NAMES_SHOWN])
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return f"{'tensor' if len(names) == 1 else 'tensors'} {shown}{more}"
