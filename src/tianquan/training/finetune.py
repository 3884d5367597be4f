"""Adapt a checkpoint to a user's records: check, train, measure before and after, save, report.

OUTPUT/run/           states to resume from, metrics.csv, loss.png, TensorBoard events
OUTPUT/adapter/       LoRA in peft's format            (methods lora and qlora)
OUTPUT/model/         a checkpoint of the official layout (method full)
OUTPUT/report.md      what was trained, the curves, accuracy before and after
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
from accelerate import PartialState

from tianquan.backends.torch import TorchOps
from tianquan.checkpoint import Checkpoint, find_folder, open_checkpoint
from tianquan.checkpoint.dense_folder import save_dense, source_format
from tianquan.checkpoint.loader import TensorFiles
from tianquan.errors import ParameterError
from tianquan.models.omni_model import OmniModel
from tianquan.quantization.recipes import find_recipe
from tianquan.training.adapters import LoraSettings, adapted_names, attach_lora, save_adapter
from tianquan.training.dataset import OnBadRecord, RecordDataset, RecordSteps
from tianquan.training.module_tree import ModuleTree, count_parameters
from tianquan.training.objective import AnswerObjective
from tianquan.training.plan import Schedule, TrainingPlan, TrainingPrecision
from tianquan.training.report import FinetuneReport, Score, write_report
from tianquan.training.rounded_weights import round_weights
from tianquan.training.trainer import Trainer

Method = Literal["lora", "qlora", "full"]
Part = Literal["language", "vision", "resampler", "audio", "audio_projection"]
OnProgress = Callable[[str, int, int], None]  # (what, done, all)

PARTS: dict[Part, tuple[str, ...]] = {  # how our names of their weights begin
    "language": ("language_model",),
    "vision": ("vision",),
    "resampler": ("resampler",),
    "audio": ("audio.conv1", "audio.conv2", "audio.position_embedding", "audio.layers", "audio.final_norm"),
    "audio_projection": ("audio.projection", "audio.begin_end"),
}
_EVALUATION_BATCH = 8


@dataclass(frozen=True, kw_only=True)
class FinetuneOptions:
    """What to train on and how; see `plan.TrainingPlan` and `adapters.LoraSettings` for the numbers.

    epochs: passes over the data; `max_steps` ends earlier.
    parts: what is trained; the others stay bit-identical.
    base_precision: what a qlora base is kept in, int4 or int8.
    quantization_aware: recipe whose rounding the forward pass sees, for method full; None sees the weights as they are.
    evaluation_data: records measured before and after, not trained on.
    warmup: share of the steps.
    """

    model: str
    data: Path
    output: Path
    evaluation_data: Path | None = None
    media_root: Path | None = None
    method: Method = "lora"
    parts: tuple[Part, ...] = ("language",)
    lora: LoraSettings = field(default_factory=LoraSettings)
    base_precision: str = "int4"
    quantization_aware: str | None = None
    epochs: float = 1.0
    max_steps: int | None = None
    batch_size: int = 4
    accumulation: int = 1
    learning_rate: float = 1e-4
    schedule: Schedule = "cosine"
    warmup: float = 0.03
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    precision: TrainingPrecision = "float32"
    gradient_checkpointing: bool = False
    max_tokens: int | None = None
    on_bad_record: OnBadRecord = "stop"
    seed: int = 0
    save_seconds: float = 300.0
    workers: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        if not self.parts:
            raise ParameterError(f"nothing to train; name parts among {', '.join(PARTS)}")
        if self.quantization_aware is not None and self.method != "full":
            raise ParameterError(
                f"quantization-aware training is for method full, the method is {self.method}: what an adapter adds"
                " is rounded only after it was merged"
            )
        for name, value, low, high in (
            ("epochs", self.epochs, 1e-6, 1e6),
            ("batch size", self.batch_size, 1, 4096),
            ("warmup", self.warmup, 0.0, 1.0),
            ("workers", self.workers, 0, 256),
        ):
            if not low <= value <= high:
                raise ParameterError(f"{name} is {value}; expected {low:g} to {high:g}")


class Finetuning:
    """One adaptation. The phases are methods; `run` goes through them."""

    def __init__(self, options: FinetuneOptions, on_progress: OnProgress) -> None:
        self.options = options
        self._on_progress = on_progress
        self.checkpoint = open_checkpoint(find_folder(options.model))
        if not isinstance(self.checkpoint.files, TensorFiles):
            raise ParameterError(f"{options.model}: is a low-bit folder; training starts from the original checkpoint")
        _check_output(options.output)
        self.dataset = self._open_dataset(options.data)
        self.evaluation = None if options.evaluation_data is None else self._open_dataset(options.evaluation_data)

    def run(self) -> FinetuneReport:
        """Train, save and report; resumes what was interrupted.

        Raises:
            TianquanError: the data, an option or a saved state cannot be used.
            KeyboardInterrupt: after the state was saved.
        """
        options = self.options
        if PartialState(cpu=options.device == "cpu").num_processes > 1:
            raise ParameterError("finetune trains in one process; start it without a launcher")
        plan = self._plan()
        objective, save = self._build(self.checkpoint)
        before = self._score_once(objective, "before")
        steps = RecordSteps(self.dataset, options.batch_size, options.accumulation, options.seed)
        trainer = Trainer(objective, steps, plan, options.output / "run", num_workers=options.workers)
        trainer.train()
        after = self._score_once(objective, "after")
        save()
        num_trained, num_all = count_parameters(objective)
        report = FinetuneReport(
            options={key: str(value) for key, value in asdict(options).items()},
            num_records=len(self.dataset),
            skipped=self.dataset.skipped,
            num_trained=num_trained,
            num_parameters=num_all,
            before=before,
            after=after,
        )
        write_report(report, options.output)
        return report

    def _open_dataset(self, path: Path) -> RecordDataset:
        options = self.options
        window = self.checkpoint.config.language.max_position_embeddings
        return RecordDataset.open(
            path,
            self.checkpoint.processor,
            media_root=options.media_root,
            max_tokens=min(options.max_tokens or window, window),
            on_bad_record=options.on_bad_record,
            on_progress=lambda done, all_: self._on_progress(f"reading {path.name}", done, all_),
        )

    def _plan(self) -> TrainingPlan:
        options = self.options
        per_epoch = len(self.dataset) / (options.batch_size * options.accumulation)
        num_steps = max(1, math.ceil(options.epochs * per_epoch))
        if options.max_steps is not None:
            num_steps = min(num_steps, options.max_steps)
        return TrainingPlan(
            num_steps=num_steps,
            accumulation=options.accumulation,
            learning_rate=options.learning_rate,
            schedule=options.schedule,
            warmup_steps=min(num_steps, round(options.warmup * num_steps)),
            weight_decay=options.weight_decay,
            max_grad_norm=options.max_grad_norm,
            precision=options.precision,
            seed=options.seed,
            save_seconds=options.save_seconds,
            fingerprint=self._fingerprint(),
        )

    def _fingerprint(self) -> str:
        """Return what must be the same for a run to be resumed, beside the plan's numbers."""
        ignored = {"output", "workers", "device", "save_seconds", "evaluation_data", "gradient_checkpointing"}
        content = {key: str(value) for key, value in asdict(self.options).items() if key not in ignored}
        text = json.dumps([content, self.dataset.digest], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def _build(self, checkpoint: Checkpoint) -> tuple[AnswerObjective, Callable[[], None]]:
        """Return the loss over the model's weights, and what saves the result."""
        options = self.options
        prefixes = [prefix for part in options.parts for prefix in PARTS[part]]
        recipe = find_recipe(options.base_precision if options.method == "qlora" else "float32")
        ops = TorchOps(options.device, recompute_layers=options.gradient_checkpointing)
        tree = ModuleTree(checkpoint.weights(recipe, ops, self._on_progress))
        model = OmniModel(checkpoint.config, tree, ops)
        model.load_vision()
        model.load_audio()
        if options.method == "full":
            tree.set_trainable(prefixes)
            if options.quantization_aware is not None:
                _round(tree, checkpoint, options.quantization_aware)

            def save() -> None:
                assert isinstance(checkpoint.files, TensorFiles)
                format = source_format(checkpoint.files)
                save_dense(checkpoint.folder, checkpoint.config, tree, format, options.output / "model")
        else:
            torch.manual_seed(options.seed)  # of the factors' first values
            config = attach_lora(tree, adapted_names(checkpoint.config, prefixes), options.lora)

            def save() -> None:
                save_adapter(tree, config, options.model, options.output / "adapter")

        return AnswerObjective(model, tree), save

    def _score_once(self, objective: AnswerObjective, when: Literal["before", "after"]) -> Score | None:
        """Measure the evaluation records; the score before training is kept for a resumed run."""
        if self.evaluation is None:
            return None
        path = self.options.output / f"score-{when}.json"
        if when == "before" and path.is_file():
            return Score.from_json(path.read_text(encoding="utf-8"))
        score = score_records(objective, self.evaluation, lambda n, m: self._on_progress(f"measuring {when}", n, m))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(score.to_json(), encoding="utf-8")
        return score


def score_records(objective: AnswerObjective, dataset: RecordDataset, on_progress: Callable[[int, int], None]) -> Score:
    """Return loss and accuracy of records. A record is right when greedy decoding would say all its answers.

    The likeliest token is taken after the true beginning of each answer: if all agree, greedy decoding says the same.
    """
    was_training = objective.training
    objective.eval()
    score = Score()
    with torch.no_grad():
        for start in range(0, len(dataset), _EVALUATION_BATCH):
            examples = [dataset[n] for n in range(start, min(start + _EVALUATION_BATCH, len(dataset)))]
            loss = objective(examples)
            score = score.plus(float(loss.total), loss.num_terms, loss.correct)
            on_progress(start + len(examples), len(dataset))
    objective.train(was_training)
    return score


def _round(tree: ModuleTree, checkpoint: Checkpoint, recipe: str) -> None:
    """Let the forward pass see rounded weights; refuse what would be seen as it is."""
    if checkpoint.config.language.tie_word_embeddings:
        raise ParameterError("quantization-aware training needs an output head of its own; here it is the embedding")
    if round_weights(tree, find_recipe(recipe)) == 0:
        raise ParameterError(f"quantization-aware training with {recipe}: it stores no matrix in low bits")


def _check_output(output: Path) -> None:
    """Refuse an output whose result is there already; a half-finished run is resumed."""
    for name in ("adapter", "model"):
        if (output / name).exists():
            raise ParameterError(f"{output / name}: exists already; this run is finished, name another output")


def with_defaults(options: FinetuneOptions) -> FinetuneOptions:
    """Return options with the learning rate of the method where it is the dataclass's own."""
    if options.method == "full" and options.learning_rate == FinetuneOptions.learning_rate:
        return replace(options, learning_rate=2e-5)
    return options
