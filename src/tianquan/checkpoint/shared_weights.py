"""One model's weights, and the same model's with adapters beside them: every stored weight is held once."""

from __future__ import annotations

import threading

from tianquan.backends.ops import Array, Embedding, Ops, StoredWeight, Weight
from tianquan.checkpoint.adapter import Adapter
from tianquan.checkpoint.weight_reader import StoredWeights, WeightReader
from tianquan.quantization.dense import DenseTensor


class SharedWeights(StoredWeights):
    """Gives what another reader gives, and the same objects when asked again. Safe on several threads."""

    def __init__(self, reader: StoredWeights, ops: Ops) -> None:
        super().__init__(ops)
        self._reader = reader
        self._lock = threading.RLock()  # towers are loaded on first use, which may be on two threads
        self._matrices: dict[str, StoredWeight] = {}
        self._parameters: dict[str, Array] = {}
        self._norms: dict[str, tuple[Array, Array]] = {}

    def weight(self, name: str, in_features: int, out_features: int) -> StoredWeight:
        """See `WeightReader.weight`."""
        with self._lock:
            if name not in self._matrices:
                self._matrices[name] = self._reader.weight(name, in_features, out_features)
            return self._matrices[name]

    def vector(self, name: str) -> DenseTensor:
        """See `WeightReader.vector`."""
        return self._reader.vector(name)

    def bias(self, name: str) -> DenseTensor:
        """See `WeightReader.bias`."""
        return self._reader.bias(name)

    def parameter(self, name: str, shape: tuple[int, ...]) -> Array:
        """See `WeightSource.parameter`."""
        with self._lock:
            if name not in self._parameters:
                self._parameters[name] = super().parameter(name, shape)
            return self._parameters[name]

    def norm(self, name: str, size: int) -> tuple[Array, Array]:
        """See `WeightSource.norm`."""
        with self._lock:
            if name not in self._norms:
                self._norms[name] = super().norm(name, size)
            return self._norms[name]


class AdaptedWeights(WeightReader):
    """What another reader gives, with the factors of an adapter beside the matrices that it changes."""

    def __init__(self, reader: StoredWeights, adapter: Adapter, ops: Ops) -> None:
        super().__init__(ops)
        self._reader = reader
        self._adapter = adapter

    def weight(self, name: str, in_features: int, out_features: int) -> Weight:
        """See `WeightReader.weight`."""
        return self._adapter.added_to(name, self._reader.weight(name, in_features, out_features))

    def vector(self, name: str) -> DenseTensor:
        """See `WeightReader.vector`. An adapter changes matrices only."""
        return self._reader.vector(name)

    def bias(self, name: str) -> DenseTensor:
        """See `WeightReader.bias`."""
        return self._reader.bias(name)

    def parameter(self, name: str, shape: tuple[int, ...]) -> Array:
        """See `WeightSource.parameter`."""
        return self._reader.parameter(name, shape)

    def norm(self, name: str, size: int) -> tuple[Array, Array]:
        """See `WeightSource.norm`."""
        return self._reader.norm(name, size)

    def embedding(self, name: str, num_rows: int, size: int) -> Embedding:
        """See `WeightSource.embedding`."""
        return self._reader.embedding(name, num_rows, size)
