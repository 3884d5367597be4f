"""Weights of a checkpoint in a recipe's formats, rounded so that they err little on the activations of some records.

The records run through the model in int8, which is close to the original and half its size, and what enters each
matrix is added up: an (I, I) table for each group of matrices with the same input. As many as the memory given has
room for are made at a time; the records run once for each such pass. Then the weights of the pass are rounded by
`quantization.compensation`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tianquan.backends.native import NativeOps
from tianquan.backends.ops import StoredWeight
from tianquan.calibration.observation import ProductGroup, SecondMoments, WatchedWeights, product_groups, watching
from tianquan.checkpoint.loader import Checkpoint
from tianquan.checkpoint.weight_reader import StoredWeights
from tianquan.errors import CheckpointError, ParameterError
from tianquan.models.omni_model import OmniModel
from tianquan.quantization.compensation import error_updates, quantize_compensated
from tianquan.quantization.dense import DenseTensor
from tianquan.quantization.format import QuantFormat
from tianquan.quantization.recipes import Recipe, find_recipe

Run = Callable[[OmniModel, frozenset[str]], None]  # lets a model process all records, as far as components need it
OnStage = Callable[[str, int], None]  # (what begins, how many records or weights it is)
OnDone = Callable[[int], None]  # how many of them are done

RUNS_IN = "int8"


def plan_passes(groups: Sequence[ProductGroup], memory: int) -> list[list[ProductGroup]]:
    """Return groups split in parts, those of a part taking at most `memory` bytes to observe.

    Raises:
        ParameterError: one alone takes more.
    """
    largest = max(groups, key=lambda group: group.nbytes)
    if largest.nbytes > memory:
        raise ParameterError(
            f"calibration memory of {memory / 1e6:,.1f} MB has no room for what enters {largest.names[0]}; expected "
            f"{largest.nbytes / 1e6:,.1f} MB at least"
        )
    parts: list[list[ProductGroup]] = []
    room = 0
    for group in groups:
        if group.nbytes > room:
            parts.append([])
            room = memory
        parts[-1].append(group)
        room -= group.nbytes
    return parts


@dataclass(frozen=True)
class _Pass:
    number: int
    groups: tuple[ProductGroup, ...]

    @property
    def components(self) -> frozenset[str]:
        return frozenset(group.component for group in self.groups)

    @property
    def num_weights(self) -> int:
        return sum(len(group.names) for group in self.groups)


class CalibratedWeights(StoredWeights):
    """The weights of a checkpoint as `Checkpoint.weights` has them, low-bit ones fitted to records.

    Weights are to be asked for in the order of `needed_weights`, as those who save a folder do; asked for in another,
    the records run more often.

    Args:
        checkpoint: dense.
        recipe: the formats.
        ops: of the native backend.
        run: lets a model process the records.
        components: those the records use; weights of others are rounded to nearest.
        num_records: that `run` goes through.
        memory: bytes for what is observed in one pass.
        on_stage: called when records or weights begin.
        on_done: called with how many weights are done.

    Raises:
        ParameterError: the memory has no room for the largest matrix.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        recipe: Recipe,
        ops: NativeOps,
        run: Run,
        components: Collection[str],
        num_records: int,
        memory: int,
        on_stage: OnStage,
        on_done: OnDone,
    ) -> None:
        super().__init__(ops)
        self._checkpoint, self._native, self._recipe = checkpoint, ops, recipe
        self._run, self._num_records = run, num_records
        self._on_stage, self._on_done = on_stage, on_done
        self._rounded = checkpoint.weights(recipe, ops)
        self._exact = checkpoint.weights(find_recipe("float32"), ops)
        self._groups = {name: group for group in product_groups(checkpoint.config) for name in group.names}
        low_bit = [name for name in self._groups if isinstance(recipe.format_of(name), QuantFormat)]
        used = dict.fromkeys(self._groups[name] for name in low_bit if self._groups[name].component in components)
        parts = enumerate(plan_passes(list(used), memory), 1)
        self._passes = [_Pass(number, tuple(groups)) for number, groups in parts]
        self._pass: _Pass | None = None
        self._num_done = 0  # weights of the pass
        self._moments = SecondMoments()
        self._model: OmniModel | None = None
        self._updates: tuple[ProductGroup, npt.NDArray[np.float32]] | None = None  # of the last group
        self.rounded_to_nearest: list[str] = []  # low-bit weights that too few activations entered, or none

    def weight(self, name: str, in_features: int, out_features: int) -> StoredWeight:
        """See `WeightReader.weight`."""
        format, group = self._recipe.format_of(name), self._groups.get(name)
        if group is None or not isinstance(format, QuantFormat):  # not low-bit, or rows that are looked up
            return self._rounded.weight(name, in_features, out_features)
        if not self._is_seen(group):
            self.rounded_to_nearest.append(name)
            return self._rounded.weight(name, in_features, out_features)
        exact = self._exact.weight(name, in_features, out_features)
        assert isinstance(exact, DenseTensor), name
        try:
            if self._updates is None or self._updates[0] != group:
                self._updates = (group, error_updates(self._moments.sum(group)))
            return quantize_compensated(exact.to_float32(), format, self._updates[1], self._native.library)
        except ValueError as error:
            raise CheckpointError(f"{name}: {error}; use --recipe bfloat16 or float32") from error
        finally:
            self._num_done += 1
            self._on_done(self._num_done)

    def _is_seen(self, group: ProductGroup) -> bool:
        """Let the records run if they have to; return whether enough of them entered the group.

        With fewer rows than in channels some directions were never seen, and weights are made to fit noise.
        """
        wanted = next((one for one in self._passes if group in one.groups), None)
        if wanted is None:
            return False
        if wanted is not self._pass:
            self._observe(wanted)
        return self._moments.num_rows(group) >= group.in_features

    def _observe(self, wanted: _Pass) -> None:
        """Let the records run and keep what enters the weights of one pass."""
        self._moments.start(wanted.groups)
        self._pass, self._num_done, self._updates = wanted, 0, None
        if self._model is None:
            source = WatchedWeights(self._checkpoint.weights(find_recipe(RUNS_IN), self._native))
            self._model = OmniModel(self._checkpoint.config, source, watching(self._native, self._moments))
        which = f"pass {wanted.number} of {len(self._passes)}"
        self._on_stage(f"records, {which}", self._num_records)
        self._run(self._model, wanted.components)
        if wanted is self._passes[-1]:
            self._model = None  # rounding needs the memory
        self._on_stage(f"weights, {which}", wanted.num_weights)

    def vector(self, name: str) -> DenseTensor:
        """See `WeightReader.vector`."""
        return self._rounded.vector(name)

    def bias(self, name: str) -> DenseTensor:
        """See `WeightReader.bias`."""
        return self._rounded.bias(name)
