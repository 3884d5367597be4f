"""Watching a model's matrix products: what goes into each of them, added up while it answers.

The model runs on a backend as always; its weights and that backend's operations are handed on by two objects that
know which handle is which weight.

Legend: T rows, I in channels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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
from tianquan.backends.reference import ReferenceOps, windows
from tianquan.checkpoint.tensor_list import WeightRecorder
from tianquan.config import ModelConfig
from tianquan.models.omni_model import OmniModel
from tianquan.models.weights import WeightSource

Float32 = npt.NDArray[np.float32]

ROWS_AT_ONCE = 512  # multiplied together: adding to a table costs as much as some hundred rows
_TABLE_ROWS_AT_ONCE = 1024


@dataclass(frozen=True)
class ProductGroup:
    """Matrices (out, I) that read the same activations, such as query, key and value of a layer."""

    names: tuple[str, ...]
    in_features: int  # I

    @property
    def component(self) -> str:
        """The component it belongs to."""
        return self.names[0].partition(".")[0]

    @property
    def nbytes(self) -> int:
        """Bytes that observing it takes: the table, and rows that wait for it."""
        return 4 * self.in_features * (self.in_features + ROWS_AT_ONCE)


class _Table:
    """The sum of x^T x of one group, and the rows that are not in it yet."""

    def __init__(self, in_features: int) -> None:
        self.num_rows = 0
        self._sum = np.zeros((in_features, in_features), np.float32)
        self._waiting: list[Float32] = []

    def add(self, x: Float32) -> None:
        self._waiting.append(np.array(x, np.float32))  # the operation's result may be part of something larger
        self.num_rows += len(x)
        if sum(map(len, self._waiting)) >= ROWS_AT_ONCE:
            self.sum()

    def sum(self) -> Float32:
        """Return the sum (I, I) with all rows in it."""
        if self._waiting:
            x = np.concatenate(self._waiting)
            self._waiting.clear()
            for start in range(0, len(self._sum), _TABLE_ROWS_AT_ONCE):
                stop = start + _TABLE_ROWS_AT_ONCE
                self._sum[start:stop] += x[:, start:stop].T @ x
        return self._sum


class SecondMoments:
    """Sums of x^T x (I, I) over the activations x (T, I) of the groups asked for."""

    def __init__(self) -> None:
        self._tables: dict[tuple[str, ...], _Table] = {}

    def start(self, groups: Iterable[ProductGroup]) -> None:
        """Forget all sums and begin those of other groups."""
        self._tables.clear()
        self._tables.update((group.names, _Table(group.in_features)) for group in groups)

    def wants(self, names: tuple[str, ...]) -> bool:
        """Return whether a group was asked for."""
        return names in self._tables

    def add(self, names: tuple[str, ...], x: Float32) -> None:
        """Add the rows (T, I) that enter the products of a group."""
        if self.wants(names):
            self._tables[names].add(x)

    def num_rows(self, group: ProductGroup) -> int:
        """Return how many rows entered the products of a group."""
        return self._tables[group.names].num_rows

    def sum(self, group: ProductGroup) -> Float32:
        """Return the sum (I, I) of a group."""
        return self._tables[group.names].sum()


@dataclass(frozen=True)
class _Watched:
    """A handle of the backend, and the weights it stands for."""

    names: tuple[str, ...]
    handle: Any


class WatchedWeights:
    """A `WeightSource` that says of each handle which weights it stands for."""

    def __init__(self, source: WeightSource) -> None:
        self._source = source
        self.groups: list[ProductGroup] = []  # asked for so far

    def parameter(self, name: str, shape: tuple[int, ...]) -> Array:
        """See `WeightSource.parameter`."""
        return self._source.parameter(name, shape)

    def norm(self, name: str, size: int) -> tuple[Array, Array]:
        """See `WeightSource.norm`."""
        return self._source.norm(name, size)

    def linear(self, name: str, in_features: int, out_features: int, bias: bool = False) -> Linear:
        """See `WeightSource.linear`."""
        self.groups.append(ProductGroup((name,), in_features))
        return _Watched((name,), self._source.linear(name, in_features, out_features, bias))

    def linear_group(
        self, names: Sequence[str], in_features: int, out_features: Sequence[int], bias: Sequence[bool]
    ) -> LinearGroup:
        """See `WeightSource.linear_group`."""
        self.groups.append(ProductGroup(tuple(names), in_features))
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
        if self._moments.wants(linear.names):
            self._moments.add(linear.names, windows(self._ops.to_numpy(x), kernel, stride, offsets))
        return self._ops.conv1d(x, linear.handle, kernel, stride, activation, offsets)


def watching(ops: Ops, moments: SecondMoments) -> Ops:
    """Return operations that run on `ops` and add what enters the products of `WatchedWeights` to `moments`."""
    return cast(Ops, _WatchingOps(ops, moments))


def product_groups(config: ModelConfig) -> list[ProductGroup]:
    """Return all groups of a model of this configuration, in loading order."""
    watched = WatchedWeights(WeightRecorder())
    model = OmniModel(config, watched, ReferenceOps())
    model.load_vision()
    model.load_audio()
    return watched.groups
