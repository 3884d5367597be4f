"""Watching a model's matrix products: what goes into each of them, added up while it answers.

The model runs on a backend as always; its weights and that backend's operations are handed on by two objects that
know which handle is which weight.

Legend: T rows, I in channels.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from tianquan.backends.ops import (
    Activation,
    Array,
    Embedding,
    FusedDecoder,
    Linear,
    LinearGroup,
    Offsets,
    Ops,
    Weight,
)
from tianquan.backends.reference import windows
from tianquan.models.weights import WeightSource

Float32 = npt.NDArray[np.float32]


class SecondMoments:
    """Sums of x^T x (I, I) over the activations x (T, I) of the weights asked for.

    Weights that read the same activations share one sum.
    """

    def __init__(self) -> None:
        self._wanted: frozenset[str] = frozenset()
        self._sums: dict[tuple[str, ...], Float32] = {}

    def start(self, names: Collection[str]) -> None:
        """Forget all sums and ask for those of other weights."""
        self._wanted = frozenset(names)
        self._sums.clear()

    def add(self, names: tuple[str, ...], x: Float32) -> None:
        """Add the rows (T, I) that enter the products of some weights."""
        if self._wanted.isdisjoint(names):
            return
        if names not in self._sums:
            self._sums[names] = np.zeros((x.shape[1], x.shape[1]), np.float32)
        self._sums[names] += x.T @ x

    def of(self, name: str) -> Float32 | None:
        """Return the sum (I, I) of a weight, None if nothing went through it."""
        return next((moments for names, moments in self._sums.items() if name in names), None)


@dataclass(frozen=True)
class _Watched:
    """A handle of the backend, and the weights it stands for."""

    names: tuple[str, ...]
    handle: Any


class WatchedWeights:
    """A `WeightSource` that says of each handle which weights it stands for."""

    def __init__(self, source: WeightSource) -> None:
        self._source = source

    def parameter(self, name: str, shape: tuple[int, ...]) -> Array:
        """See `WeightSource.parameter`."""
        return self._source.parameter(name, shape)

    def norm(self, name: str, size: int) -> tuple[Array, Array]:
        """See `WeightSource.norm`."""
        return self._source.norm(name, size)

    def linear(self, name: str, in_features: int, out_features: int, bias: bool = False) -> Linear:
        """See `WeightSource.linear`."""
        return _Watched((name,), self._source.linear(name, in_features, out_features, bias))

    def linear_group(
        self, names: Sequence[str], in_features: int, out_features: Sequence[int], bias: Sequence[bool]
    ) -> LinearGroup:
        """See `WeightSource.linear_group`."""
        return _Watched(tuple(names), self._source.linear_group(names, in_features, out_features, bias))

    def embedding(self, name: str, num_rows: int, size: int) -> Embedding:
        """See `WeightSource.embedding`."""
        return self._source.embedding(name, num_rows, size)


class _WatchingOps:
    """Hands operations on to a backend; matrix products are seen on the way."""

    def __init__(self, ops: Ops, moments: SecondMoments) -> None:
        self._ops = ops
        self._moments = moments

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ops, name)

    def make_fused_decoder(self, *_: object) -> FusedDecoder | None:
        return None  # its products are inside

    def constant_weight(self, linear: Linear) -> Weight | None:
        return None  # the model is to be run as it is written

    def linear(self, x: Array, linear: _Watched, **options: Any) -> Array:
        self._moments.add(linear.names, self._ops.to_numpy(x))
        return self._ops.linear(x, linear.handle, **options)

    def linear_group(self, x: Array, group: _Watched) -> tuple[Array, ...]:
        self._moments.add(group.names, self._ops.to_numpy(x))
        return self._ops.linear_group(x, group.handle)

    def conv1d(
        self, x: Array, linear: _Watched, kernel: int, stride: int, activation: Activation | None, offsets: Offsets
    ) -> Array:
        self._moments.add(linear.names, windows(self._ops.to_numpy(x), kernel, stride, offsets))
        return self._ops.conv1d(x, linear.handle, kernel, stride, activation, offsets)


def watching(ops: Ops, moments: SecondMoments) -> Ops:
    """Return operations that run on `ops` and add what enters the products of `WatchedWeights` to `moments`."""
    return cast(Ops, _WatchingOps(ops, moments))
