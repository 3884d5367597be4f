"""A low-bit folder whose weights were fitted to records."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tianquan.backends.native import NativeOps
from tianquan.calibration.calibrated_weights import CalibratedWeights
from tianquan.checkpoint import Checkpoint
from tianquan.checkpoint.loader import TensorFiles
from tianquan.checkpoint.low_bit import save_low_bit
from tianquan.checkpoint.new_folder import check_new_folder
from tianquan.errors import CheckpointError, ParameterError
from tianquan.evaluation.divergence import answer_logits
from tianquan.evaluation.run import RecordSet
from tianquan.models.omni_model import OmniModel
from tianquan.quantization.format import QuantFormat
from tianquan.quantization.recipes import Recipe
from tianquan.request import MediaPolicy
from tianquan.training.examples import Example, build_example

OnStage = Callable[[str, int], None]  # (what begins, how much it is)
OnDone = Callable[[int], None]  # how much of it is done

DEFAULT_MEMORY = 2 << 30  # bytes


@dataclass(kw_only=True)
class Calibration:
    """What to calibrate with, and how.

    record_sets: conversations with answers, of the kind the model is to be used for; some hundred are enough.
    policy: how their media are prepared.
    threads: of the native backend.
    memory: bytes for what is observed at a time; with less the records run more often.
    on_stage, on_done: progress.
    """

    record_sets: Sequence[RecordSet]
    policy: MediaPolicy = field(default_factory=MediaPolicy)
    threads: int | None = None
    memory: int = DEFAULT_MEMORY
    on_stage: OnStage = lambda what, total: None
    on_done: OnDone = lambda done: None

    def save(self, checkpoint: Checkpoint, recipe: Recipe, output: Path) -> list[str]:
        """Write a low-bit folder as `Checkpoint.save_low_bit` does, its weights rounded for the records.

        Args:
            checkpoint: dense.
            recipe: the formats; some are low-bit.
            output: a folder that does not exist yet, or is empty.

        Returns:
            Names of low-bit matrices that were rounded to nearest, because less went through them than they have in
            channels: those of a tower whose medium does not occur, or all if the records are too few.

        Raises:
            CheckpointError: the checkpoint is a low-bit folder, or the output cannot be written.
            ParameterError: the recipe has no low-bit weight, there is no record, or the memory is too small.
            RecordError: a record cannot be used; all are looked at before anything is computed.
        """
        if not isinstance(checkpoint.files, TensorFiles):
            raise CheckpointError(
                f"{checkpoint.folder}: is a low-bit folder already; calibration starts from the original"
            )
        if not any(isinstance(format, QuantFormat) for _, format in recipe.rules):
            raise ParameterError(
                f"recipe {recipe.name} rounds nothing that records could be of use for; expected int4, int4-asym, "
                "int4-small or int8"
            )
        check_new_folder(output)  # before all records are looked at
        components = self._components(checkpoint)
        weights = CalibratedWeights(
            checkpoint,
            recipe,
            NativeOps(self.threads),
            lambda model, wanted: self._run(checkpoint, model, wanted),
            components,
            self._num_records,
            self.memory,
            self.on_stage,
            self.on_done,
        )
        nearest = weights.rounded_to_nearest
        notes = {"records": self._num_records, "rounded_to_nearest": nearest}
        save_low_bit(checkpoint.folder, checkpoint.config, weights, recipe, output, notes)
        return nearest

    def _examples(self, checkpoint: Checkpoint) -> Iterator[Example]:
        window = checkpoint.config.language.max_position_embeddings
        for one in self.record_sets:
            for record in one.records:
                yield build_example(checkpoint.processor, record, self.policy, one.media_root, window)

    @property
    def _num_records(self) -> int:
        return sum(len(one.records) for one in self.record_sets)

    def _components(self, checkpoint: Checkpoint) -> set[str]:
        """Look at all records; return the components they use."""
        if not self._num_records:
            raise ParameterError("calibration needs records, the files given have none")
        self.on_stage("records, checked", self._num_records)
        components = {"language_model"}
        for n, example in enumerate(self._examples(checkpoint), 1):
            components.update(("vision", "resampler") if example.prompt.images else ())
            components.update(("audio",) if example.prompt.audios else ())
            self.on_done(n)
        return components

    def _run(self, checkpoint: Checkpoint, model: OmniModel, components: frozenset[str]) -> None:
        """Let a model process the records as far as the components need it."""
        for n, example in enumerate(self._examples(checkpoint), 1):
            prompt = example.prompt
            if "language_model" in components:
                answer_logits(model, example)
            else:
                if prompt.images and not components.isdisjoint(("vision", "resampler")):
                    model.encode_images(prompt.images)
                if prompt.audios and "audio" in components:
                    model.encode_audios(prompt.audios)
            self.on_done(n)
