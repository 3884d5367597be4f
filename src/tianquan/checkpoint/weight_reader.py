"""What the two kinds of folders have in common: stored tensors in, handles of a backend out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

from tianquan.backends.ops import Array, Embedding, Linear, LinearGroup, Ops, StoredWeight, Weight
from tianquan.quantization.dense import DenseTensor

OnProgress = Callable[[str, int, int], None]  # (component, bytes of it read so far, bytes it has)


class WeightReader(ABC):
    """A weight source that reads files; see `models.weights.WeightSource` for the public methods."""

    def __init__(self, ops: Ops) -> None:
        self._ops = ops

    @abstractmethod
    def weight(self, name: str, in_features: int, out_features: int) -> Weight:
        """Return a matrix (out, in) in the format it runs in."""

    @abstractmethod
    def embedding(self, name: str, num_rows: int, size: int) -> Embedding:
        """See `WeightSource.embedding`."""

    @abstractmethod
    def vector(self, name: str) -> DenseTensor:
        """Return a parameter that stays dense."""

    @abstractmethod
    def bias(self, name: str) -> DenseTensor:
        """Return the bias that belongs to a matrix or a norm."""

    def parameter(self, name: str, shape: tuple[int, ...]) -> Array:
        """See `WeightSource.parameter`. The shape was checked when the folder was opened."""
        return self._ops.make_parameter(self.vector(name))

    def norm(self, name: str, size: int) -> tuple[Array, Array]:
        """See `WeightSource.norm`."""
        return self._ops.make_parameter(self.vector(name)), self._ops.make_parameter(self.bias(name))

    def linear(self, name: str, in_features: int, out_features: int, bias: bool = False) -> Linear:
        """See `WeightSource.linear`."""
        weight = self.weight(name, in_features, out_features)
        return self._ops.make_linear(weight, self.bias(name) if bias else None)

    def linear_group(
        self, names: Sequence[str], in_features: int, out_features: Sequence[int], bias: Sequence[bool]
    ) -> LinearGroup:
        """See `WeightSource.linear_group`."""
        weights = [self.weight(name, in_features, size) for name, size in zip(names, out_features, strict=True)]
        biases = [self.bias(name) if has_bias else None for name, has_bias in zip(names, bias, strict=True)]
        return self._ops.make_linear_group(weights, biases)


class StoredWeights(WeightReader):
    """A reader of weights that are stored: no adapter is beside them."""

    @abstractmethod
    def weight(self, name: str, in_features: int, out_features: int) -> StoredWeight:
        """See `WeightReader.weight`."""

    def embedding(self, name: str, num_rows: int, size: int) -> Embedding:
        """See `WeightSource.embedding`."""
        return self._ops.make_embedding(self.weight(name, size, num_rows))
