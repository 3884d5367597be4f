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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from accelerate import PartialState

from tianquan.backends.torch import TorchOps
from tianquan.checkpoint import Checkpoint, find_folder, open_checkpoint
from tianquan.checkpoint.dense_folder import save_dense, source_format
from tianquan.checkpoint.loader import TensorFiles
from tianquan.checkpoint.low_bit import checksum
from tianquan.errors import ParameterError
from tianquan.models.omni_model import OmniModel
from tianquan.quantization.recipes import find_recipe
from tianquan.training.adapters import LoraSettings, adapted_names, attach_lora, save_adapter
from tianquan.training.dataset import Medium, OnBadRecord, RecordDataset, RecordSteps
from tianquan.training.module_tree import ModuleTree, count_parameters
from tianquan.training.objective import AnswerObjective
from tianquan.training.plan import Schedule, TrainingPlan, TrainingPrecision
from tianquan.training.report import FinetuneReport, Score, read_score, write_report, write_score
from tianquan.training.rounded_weights import round_weights
from tianquan.training.state import check_plan, only_run, saved_states
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
MEDIUM_OF_PART: dict[Part, Medium] = {
    "vision": "image",
    "resampler": "image",
    "audio": "audio",
    "audio_projection": "audio",
}
LEARNING_RATES: dict[Method, float] = {"lora": 1e-4, "qlora": 1e-4, "full": 2e-5}
_EVALUATION_BATCH = 8
_COMPARED = (  # options, beside the plan's numbers, that a run is resumed with
    "method",
    "parts",
    "base_precision",
    "quantization_aware",
    "epochs",
    "batch_size",
    "max_tokens",
    "on_bad_record",
)


@dataclass(frozen=True, kw_only=True)
class FinetuneOptions:
    """What to train on and how; see `plan.TrainingPlan` and `adapters.LoraSettings` for the numbers.

    epochs: passes over the data; `max_steps` ends earlier.
    parts: what is trained; the others stay bit-identical.
    lora: None takes the defaults; for methods lora and qlora.
    base_precision: what a qlora base is kept in, int8 or (by default) int4.
    quantization_aware: recipe whose rounding the forward pass sees, for method full; None sees the weights as they are.
    evaluation_data: records measured before and after, not trained on.
    learning_rate: None is 1e-4, with method full 2e-5.
    warmup: share of the steps.

    Raises:
        ParameterError: a number out of range, or an option of another method.
    """

    model: str
    data: Path
    output: Path
    evaluation_data: Path | None = None
    media_root: Path | None = None
    method: Method = "lora"
    parts: tuple[Part, ...] = ("language",)
    lora: LoraSettings | None = None
    base_precision: str | None = None
    quantization_aware: str | None = None
    epochs: float = 1.0
    max_steps: int | None = None
    batch_size: int = 4
    accumulation: int = 1
    learning_rate: float | None = None
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
        if self.lora is not None and self.method == "full":
            raise ParameterError("rank, alpha and dropout are for methods lora and qlora, the method is full")
        if self.base_precision is not None and self.method != "qlora":
            raise ParameterError(f"base precision is for method qlora, the method is {self.method}")
        for name, value, low, high in (
            ("epochs", self.epochs, 1e-6, 1e6),
            ("batch size", self.batch_size, 1, 4096),
            ("accumulation", self.accumulation, 1, 10**6),
            ("max tokens", 1 if self.max_tokens is None else self.max_tokens, 1, 10**9),
            ("max steps", 1 if self.max_steps is None else self.max_steps, 1, 10**9),
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
        self._plan(1, {})  # before all records are read: an option that cannot be
        TorchOps(options.device)
        for recipe in (options.base_precision, options.quantization_aware):
            if recipe is not None:
                find_recipe(recipe)
        self._identity = _identity(self.checkpoint.folder)
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
        self._check_media()
        steps = RecordSteps(self.dataset, options.batch_size, options.accumulation, options.seed)
        plan = self._plan(self._num_steps(steps.per_epoch), self._fingerprint())
        if states := saved_states(options.output / "run"):
            check_plan(states[-1], plan)
        objective, save = self._build(self.checkpoint)
        before = self._score_before(objective)
        trainer = Trainer(objective, steps, plan, options.output / "run", num_workers=options.workers)
        trainer.train()
        after = self._score(objective, "after")
        num_trained, num_all = count_parameters(objective)
        report = FinetuneReport(
            options={key: str(value) for key, value in asdict(options).items()},
            num_records=len(self.dataset),
            skipped=[*self.dataset.skipped, *([] if self.evaluation is None else self.evaluation.skipped)],
            num_trained=num_trained,
            num_parameters=num_all,
            before=before,
            after=after,
        )
        write_report(report, options.output)
        save()  # the last thing: what has it is finished
        return report

    def _check_media(self) -> None:
        """Refuse to train what no record uses."""
        for part, medium in MEDIUM_OF_PART.items():
            if part in self.options.parts and medium not in self.dataset.media:
                raise ParameterError(f"{self.options.data}: no record has {medium} to train {part} on; leave it out")

    def _open_dataset(self, path: Path) -> RecordDataset:
        options = self.options
        window = self.checkpoint.config.language.max_position_embeddings
        return RecordDataset.open(
            path,
            self.checkpoint.processor,
            media_root=options.media_root,
            max_tokens=window if options.max_tokens is None else min(options.max_tokens, window),
            on_bad_record=options.on_bad_record,
            on_progress=lambda done, all_: self._on_progress(f"reading {path.name}", done, all_),
        )

    def _num_steps(self, per_epoch: float) -> int:
        num_steps, most = max(1, math.ceil(self.options.epochs * per_epoch)), self.options.max_steps
        return num_steps if most is None else min(num_steps, most)

    def _plan(self, num_steps: int, fingerprint: dict[str, str]) -> TrainingPlan:
        options = self.options
        return TrainingPlan(
            num_steps=num_steps,
            accumulation=options.accumulation,
            learning_rate=LEARNING_RATES[options.method] if options.learning_rate is None else options.learning_rate,
            schedule=options.schedule,
            warmup_steps=min(num_steps, round(options.warmup * num_steps)),
            weight_decay=options.weight_decay,
            max_grad_norm=options.max_grad_norm,
            precision=options.precision,
            seed=options.seed,
            save_seconds=options.save_seconds,
            fingerprint=fingerprint,
        )

    def _fingerprint(self) -> dict[str, str]:
        """Return what must be the same for a run to be resumed, beside the plan's numbers; wherever it lies."""
        options, lora = self.options, self.options.lora or LoraSettings()
        compared = {
            **{key: str(getattr(options, key)) for key in _COMPARED},
            **({} if options.method == "full" else {key: str(value) for key, value in asdict(lora).items()}),
        }
        records, model = self.dataset.digest, hashlib.sha256("\n".join(self._identity).encode()).hexdigest()
        return {**compared, "records and their media": records[:16], "model": model[:16]}

    def _build(self, checkpoint: Checkpoint) -> tuple[AnswerObjective, Callable[[], None]]:
        """Return the loss over the model's weights, and what saves the result."""
        options = self.options
        prefixes = [prefix for part in options.parts for prefix in PARTS[part]]
        recipe = find_recipe((options.base_precision or "int4") if options.method == "qlora" else "float32")
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
                # Rounded to 16 bits first, a matrix would have other low-bit scales than it was trained with.
                format = "float32" if options.quantization_aware else source_format(checkpoint.files)
                save_dense(checkpoint.folder, checkpoint.config, tree, format, options.output / "model")
        else:
            torch.manual_seed(options.seed)  # of the factors' first values
            config = attach_lora(tree, adapted_names(checkpoint.config, prefixes), options.lora or LoraSettings())

            def save() -> None:
                save_adapter(tree, config, options.model, options.output / "adapter")

        return AnswerObjective(model, tree), save

    def _score_before(self, objective: AnswerObjective) -> Score | None:
        """Measure what training starts from; a resumed run has it from before, if it was of the same."""
        if self.evaluation is None:
            return None
        path = self.options.output / "run" / "score-before.json"
        measured = [json.dumps(self._fingerprint(), sort_keys=True), self.evaluation.digest]
        score = read_score(path, measured)
        if score is None:
            score = self._score(objective, "before")
            assert score is not None
            write_score(path, score, measured)
        return score

    def _score(self, objective: AnswerObjective, when: Literal["before", "after"]) -> Score | None:
        """Measure the evaluation records, if there are any."""
        if self.evaluation is None:
            return None
        return score_records(objective, self.evaluation, lambda n, m: self._on_progress(f"measuring {when}", n, m))


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


def _identity(folder: Path) -> list[str]:
    """Return what tells a checkpoint from another of its name: its weights, sizes, tokenizer and template."""
    files = sorted(path for path in folder.iterdir() if path.suffix in (".json", ".jinja", ".safetensors"))
    return [f"{path.name} {checksum(path)}" for path in files]


def _round(tree: ModuleTree, checkpoint: Checkpoint, recipe: str) -> None:
    """Let the forward pass see rounded weights; refuse what would be seen as it is."""
    if checkpoint.config.language.tie_word_embeddings:
        raise ParameterError("quantization-aware training needs an output head of its own; here it is the embedding")
    if round_weights(tree, find_recipe(recipe)) == 0:
        raise ParameterError(f"quantization-aware training with {recipe}: it stores no matrix in low bits")


def _check_output(output: Path) -> None:
    """Refuse an output that cannot be written, is in use or is finished; a half-finished run is resumed."""
    for name in ("adapter", "model"):
        if (output / name).exists():
            raise ParameterError(f"{output / name}: exists already; this run is finished, name another output")
    with only_run(output / "run"):
        pass
