"""One evaluation from records to a report: each precision answers, and is compared with the reference.

Models are loaded one after the other, the reference first; the report grows with every record, so that what is
finished can be shown whenever the run stops.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar, cast, get_args

from tianquan.backends import Backend, make_ops
from tianquan.backends.kv_cache import KVFormat
from tianquan.checkpoint import Checkpoint, find_folder, open_checkpoint
from tianquan.checkpoint.adapter import Adapter
from tianquan.checkpoint.loader import TensorFiles
from tianquan.checkpoint.shared_weights import AdaptedWeights
from tianquan.checkpoint.tensor_list import needed_weights
from tianquan.errors import ParameterError
from tianquan.evaluation.answers import RecordResult, answer_records
from tianquan.evaluation.divergence import RecordDivergence, ReferenceLogits
from tianquan.evaluation.memory import measure_memory
from tianquan.evaluation.sensitivity import one_tower_recipe, towers_of
from tianquan.llm import LLM
from tianquan.models.omni_model import OmniModel
from tianquan.quantization.recipes import Recipe, find_recipe
from tianquan.request import MediaPolicy
from tianquan.training.examples import Example, build_example
from tianquan.training.records import Record

OnStage = Callable[[str, int], None]  # (what begins, how many records it takes)
OnDone = Callable[[int], None]  # how many of them are done
Item = TypeVar("Item")


@dataclass(frozen=True)
class RecordSet:
    """Records with true answers, and the folder that their relative media paths start from."""

    records: tuple[Record, ...]
    media_root: Path | None


@dataclass(frozen=True, kw_only=True)
class EvaluationPlan:
    """What to evaluate.

    model: folder or hub id.
    precisions: one row of the report each; None is the model's own.
    kv_formats: a row for each precision and each of these; none: keys and values as each precision has them. With
        some, the reference keeps float32 ones.
    record_sets: what to answer.
    reference: (model, precision) to compare with, or None.
    adapter: folder of a LoRA adapter for `model`; the reference goes without.
    sensitivity: with a reference, also measure one tower at a time.
    max_tokens: of an answer.
    """

    model: str
    precisions: tuple[str | None, ...]
    record_sets: tuple[RecordSet, ...]
    kv_formats: tuple[str, ...] = ()
    reference: tuple[str, str] | None = None
    adapter: Path | None = None
    sensitivity: bool = True
    max_tokens: int = 256
    policy: MediaPolicy = field(default_factory=MediaPolicy)
    backend: Backend = "native"
    device: str = "cpu"
    threads: int | None = None
    revision: str | None = None

    @property
    def num_records(self) -> int:
        """Records of all sets."""
        return sum(len(one.records) for one in self.record_sets)

    @property
    def media_kinds(self) -> tuple[str, ...]:
        """Which of image and audio occur; a video is images, and audio where its sound track is heard."""
        turns = [turn for one in self.record_sets for record in one.records for turn in record.turns]
        has_video = any(turn.videos for turn in turns)
        present = (
            ("image", has_video or any(turn.images for turn in turns)),
            ("audio", (has_video and self.policy.video.with_sound) or any(turn.audios for turn in turns)),
        )
        return tuple(kind for kind, is_present in present if is_present)


@dataclass(frozen=True)
class _Row:
    """A precision as it was asked for, and the recipe it became."""

    precision: str | None
    recipe: Recipe


@dataclass
class PrecisionResult:
    """What is known of one precision so far."""

    recipe: str
    kv_format: KVFormat
    weight_bytes: int
    num_weights: int
    resident_bytes: int | None = None
    records: list[RecordResult] = field(default_factory=list)
    divergences: list[RecordDivergence] = field(default_factory=list)
    sensitivity: dict[str, list[RecordDivergence]] = field(default_factory=dict)  # by tower

    @property
    def bytes_per_weight(self) -> float:
        """Of storage in memory, scales and biases included."""
        return self.weight_bytes / self.num_weights


@dataclass
class Evaluation:
    """A run of a plan. `results` holds what is finished, also after an interruption."""

    plan: EvaluationPlan
    on_stage: OnStage
    on_done: OnDone
    results: list[PrecisionResult] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # what was not measured, and why
    is_complete: bool = False

    def run(self) -> None:
        """Carry out the plan.

        Raises:
            RecordError: a record cannot be used.
            CheckpointError, ParameterError, BackendError: a model cannot be loaded as asked.
        """
        plan = self.plan
        for kv_format in plan.kv_formats:
            if plan.backend != "native" or kv_format not in get_args(KVFormat):
                raise ParameterError(
                    f"kv_format {kv_format!r} on backend {plan.backend!r}: expected one of "
                    f"{', '.join(get_args(KVFormat))}, on the native backend"
                )
        checkpoint = open_checkpoint(find_folder(plan.model, plan.revision))
        rows = [row for precision in plan.precisions for row in self._rows(checkpoint.recipe(precision), precision)]
        if plan.reference is None:
            for row in rows:
                self._answer(checkpoint, row)
        else:
            with ReferenceLogits() as logits:
                self._compare_all(checkpoint, rows, logits)
        self.is_complete = True

    def _rows(self, recipe: Recipe, precision: str | None) -> list[_Row]:
        """Return what one precision is measured with."""
        formats = self.plan.kv_formats
        if not formats:
            return [_Row(precision, recipe)]
        return [
            _Row(precision, replace(recipe, name=f"{recipe.name}, kv {one}", kv_format=cast(KVFormat, one)))
            for one in formats
        ]

    def _compare_all(self, checkpoint: Checkpoint, rows: list[_Row], logits: ReferenceLogits) -> None:
        assert self.plan.reference is not None
        name, precision = self.plan.reference
        # A revision belongs to the model; the reference names its own after another @.
        revision = self.plan.revision if name == self.plan.model else None
        reference = open_checkpoint(find_folder(name, revision))
        others = reference.recipe(precision)
        if self.plan.kv_formats:  # what these cost is seen beside keys and values that were not rounded
            others = replace(others, kv_format="float32")
        sensitivity = self.plan.sensitivity and isinstance(reference.files, TensorFiles)
        if sensitivity != self.plan.sensitivity:
            self.notes.append(f"one tower at a time: not measured, {name} is a low-bit folder, whose formats are fixed")
        self._follow(
            f"reference {others.name}", logits.record(self._model(reference, others), self._examples(reference))
        )
        for row in rows:
            recipe = row.recipe
            result, model = self._answer(checkpoint, row)
            compared = logits.compare(model, self._examples(checkpoint))
            self._follow(f"{recipe.name} beside {others.name}", compared, result.divergences)
            del model  # before the next is loaded
            for tower in towers_of(self.plan.media_kinds) if sensitivity else ():
                mixed = one_tower_recipe(needed_weights(reference.config), tower, recipe, others)
                found = result.sensitivity.setdefault(tower, [])
                compared = logits.compare(self._model(reference, mixed), self._examples(reference))
                self._follow(f"{tower.replace('_', ' ')} in {recipe.name}", compared, found)

    def _answer(self, checkpoint: Checkpoint, row: _Row) -> tuple[PrecisionResult, OmniModel]:
        """Let one precision answer all records; return its result and the model."""
        plan, recipe = self.plan, row.recipe
        weights = needed_weights(checkpoint.config)
        result = PrecisionResult(
            recipe.name,
            recipe.kv_format,
            sum(w.nbytes(recipe) for w in weights),
            sum(w.num_parameters for w in weights),
        )
        self.results.append(result)
        self.on_stage(f"{recipe.name}, memory", 1)
        result.resident_bytes = measure_memory(
            checkpoint.folder,
            row.precision,
            plan.backend,
            plan.threads,
            plan.media_kinds,
            plan.adapter,
            recipe.kv_format if plan.kv_formats else None,
            plan.device,
        )
        adapter = None if plan.adapter is None else Adapter.open(plan.adapter, checkpoint.config)
        model = self._model(checkpoint, recipe, adapter)
        llm = LLM(checkpoint, model, recipe)
        self._follow(f"{recipe.name}, answers", self._answers(llm), result.records)
        return result, model

    def _answers(self, llm: LLM) -> Iterator[RecordResult]:
        plan = self.plan
        for one in plan.record_sets:
            yield from answer_records(llm, one.records, plan.policy, one.media_root, plan.max_tokens)

    def _examples(self, checkpoint: Checkpoint) -> Iterator[Example]:
        plan, window = self.plan, checkpoint.config.language.max_position_embeddings
        for one in plan.record_sets:
            for record in one.records:
                yield build_example(checkpoint.processor, record, plan.policy, one.media_root, window)

    def _model(self, checkpoint: Checkpoint, recipe: Recipe, adapter: Adapter | None = None) -> OmniModel:
        ops = make_ops(self.plan.backend, self.plan.device, self.plan.threads, recipe.kv_format)
        weights = checkpoint.weights(recipe, ops)
        return OmniModel(checkpoint.config, weights if adapter is None else AdaptedWeights(weights, adapter, ops), ops)

    def _follow(self, stage: str, items: Iterable[Item], into: list[Item] | None = None) -> None:
        """Take items to their end, reporting progress and keeping each as it comes."""
        self.on_stage(stage, self.plan.num_records)
        for n, item in enumerate(items, start=1):
            if into is not None:
                into.append(item)
            self.on_done(n)


def parse_reference(text: str) -> tuple[str, str]:
    """Return the model and the precision of `MODEL@precision`.

    Raises:
        ParameterError: there is no such precision.
    """
    model, at, precision = text.rpartition("@")
    if not at or not model:
        raise ParameterError(f"the reference is {text!r}; expected MODEL@precision, such as {text or 'FOLDER'}@float32")
    find_recipe(precision)
    return model, precision
