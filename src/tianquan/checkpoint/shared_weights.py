"""One model's weights, and the same model's with adapters, side by side: what an adapter leaves alone is held once.

    base           reads each weight when it is first asked for, and remembers it
    base + adapter reads the matrices that the adapter changes, takes everything else from the base

A matrix with an adapter added is another matrix: the low-bit kernels take no low-rank part beside one.
"""

from __future__ import annotations

import threading

from tianquan.backends.ops import Array, Ops, Weight
from tianquan.checkpoint.adapter import Adapter
from tianquan.checkpoint.weight_reader import WeightReader
from tianquan.quantization.dense import DenseTensor


class SharedWeights(WeightReader):
    """Gives what another reader gives, and the same objects when asked again. Safe on several threads."""

    def __init__(self, reader: WeightReader, ops: Ops) -> None:
        super().__init__(ops)
        self._reader = reader
        self._lock = threading.RLock()  # towers are loaded on first use, which may be on two threads
        self._matrices: dict[str, Weight] = {}
        self._parameters: dict[str, Array] = {}
        self._norms: dict[str, tuple[Array, Array]] = {}

    def weight(self, name: str, in_features: int, out_features: int) -> Weight:
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
    """The shared weights but for the matrices of an adapter.

    Args:
        shared: of the base.
        own: reads the checkpoint with the adapter added.
        adapter: says which matrices it changes.
        ops: of the backend.
    """

    def __init__(self, shared: SharedWeights, own: WeightReader, adapter: Adapter, ops: Ops) -> None:
        super().__init__(ops)
        self._shared = shared
        self._own = own
        self._adapter = adapter

    def weight(self, name: str, in_features: int, out_features: int) -> Weight:
        """See `WeightReader.weight`."""
        source = self._own if name in self._adapter.factors else self._shared
        return source.weight(name, in_features, out_features)

    def vector(self, name: str) -> DenseTensor:
        """See `WeightReader.vector`. An adapter changes matrices only."""
        return self._shared.vector(name)

    def bias(self, name: str) -> DenseTensor:
        """See `WeightReader.bias`."""
        return self._shared.bias(name)

    def parameter(self, name: str, shape: tuple[int, ...]) -> Array:
        """See `WeightSource.parameter`."""
        return self._shared.parameter(name, shape)

    def norm(self, name: str, size: int) -> tuple[Array, Array]:
        """See `WeightSource.norm`."""
        return self._shared.norm(name, size)
