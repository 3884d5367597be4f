"""Weights of a checkpoint in a recipe's formats, rounded so that they err little on the activations of some records.

The records run through the model in int8, which is close to the original and half its size, and what enters each
matrix is added up: an (I, I) table for each, 200 MB for the largest of the official size. As many as the memory
given has room for are made at a time; the records run once for each such pass. Then the weights are rounded by
`quantization.compensation`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tianquan.backends.native import NativeOps
from tianquan.backends.ops import Weight
from tianquan.calibration.observation import SecondMoments, WatchedWeights, watching
from tianquan.checkpoint.loader import Checkpoint
from tianquan.checkpoint.tensor_list import NeededWeight, needed_weights
from tianquan.checkpoint.weight_reader import WeightReader
from tianquan.errors import CheckpointError
from tianquan.models.omni_model import OmniModel
from tianquan.quantization.compensation import quantize_compensated
from tianquan.quantization.dense import DenseTensor
from tianquan.quantization.format import QuantFormat
from tianquan.quantization.recipes import Recipe, find_recipe

Run = Callable[[OmniModel], None]  # lets the model process all records
OnPass = Callable[[int, int], None]  # (which pass begins, how many there are), from 1
OnWeight = Callable[[int, int], None]  # (weights written so far, of how many)

RUNS_IN = "int8"
EMBEDDING = "language_model.embedding"


def plan_passes(weights: Sequence[NeededWeight], recipe: Recipe, memory: int) -> list[list[str]]:
    """Return the names of the weights to be rounded, split so that the tables of one part fit in `memory` bytes.

    A table that is larger by itself is a part of its own.
    """
    parts: list[list[str]] = []
    room = 0
    for weight in weights:
        if not weight.is_matrix or not isinstance(weight.format(recipe), QuantFormat):
            continue
        size = 4 * weight.shape[1] ** 2
        if size > room:
            parts.append([])
            room = memory
        parts[-1].append(weight.name)
        room -= size
    return parts


class CalibratedWeights(WeightReader):
    """The weights of a checkpoint as `Checkpoint.weights` has them, low-bit ones fitted to records.

    Weights are to be asked for in the order of `needed_weights`, as those who save a folder do; asked for in another,
    the records run more often.

    Args:
        checkpoint: dense.
        recipe: the formats.
        ops: of the native backend.
        run: lets a model process the records.
        memory: bytes for tables of activations.
        on_pass, on_weight: progress.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        recipe: Recipe,
        ops: NativeOps,
        run: Run,
        memory: int,
        on_pass: OnPass,
        on_weight: OnWeight,
    ) -> None:
        super().__init__(ops)
        self._checkpoint = checkpoint
        self._native = ops
        self._run = run
        self._on_pass, self._on_weight = on_pass, on_weight
        self._recipe = recipe
        self._rounded = checkpoint.weights(recipe, ops)
        self._exact = checkpoint.weights(find_recipe("float32"), ops)
        self.num_weights = sum(weight.is_matrix for weight in needed_weights(checkpoint.config))
        self._num_done = 0
        self._passes = plan_passes(needed_weights(checkpoint.config), recipe, memory)
        self._pass = -1
        self._moments = SecondMoments()
        self._model: OmniModel | None = None
        self.unseen: list[str] = []  # low-bit weights that no record used: rounded to nearest

    def weight(self, name: str, in_features: int, out_features: int) -> Weight:
        """See `WeightReader.weight`."""
        format = self._recipe.format_of(name)
        try:
            if isinstance(format, QuantFormat):
                return self._fitted(name, in_features, out_features, format)
            return self._rounded.weight(name, in_features, out_features)
        finally:
            self._num_done += 1
            self._on_weight(self._num_done, self.num_weights)

    def _fitted(self, name: str, in_features: int, out_features: int, format: QuantFormat) -> Weight:
        wanted = next(n for n, names in enumerate(self._passes) if name in names)
        if wanted != self._pass:
            self._observe(wanted)
        moments = self._moments.of(name)
        if moments is None:
            if name != EMBEDDING:  # rows of it are looked up, not multiplied
                self.unseen.append(name)
            return self._rounded.weight(name, in_features, out_features)
        exact = self._exact.weight(name, in_features, out_features)
        assert isinstance(exact, DenseTensor), name
        try:
            return quantize_compensated(exact.to_float32(), format, moments, self._native.library)
        except ValueError as error:
            raise CheckpointError(f"{name}: {error}; use --recipe bfloat16 or float32") from error

    def _observe(self, wanted: int) -> None:
        """Let the records run and keep what enters the weights of one pass."""
        self._on_pass(wanted + 1, len(self._passes))
        self._moments.start(self._passes[wanted])
        self._pass = wanted
        if self._model is None:
            source = WatchedWeights(self._checkpoint.weights(find_recipe(RUNS_IN), self._native))
            self._model = OmniModel(self._checkpoint.config, source, watching(self._native, self._moments))
        self._run(self._model)

    def vector(self, name: str) -> DenseTensor:
        """See `WeightReader.vector`."""
        return self._rounded.vector(name)

    def bias(self, name: str) -> DenseTensor:
        """See `WeightReader.bias`."""
        return self._rounded.bias(name)
