"""`finetune` and `merge`: adapt a checkpoint to records of one's own."""

from __future__ import annotations

import importlib.util
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from tianquan.cli import options
from tianquan.cli.progress import WorkProgress
from tianquan.errors import BackendError, ParameterError

if TYPE_CHECKING:
    from tianquan.training.adapters import LoraSettings
    from tianquan.training.finetune import Part
    from tianquan.training.report import FinetuneReport

Choice = TypeVar("Choice", bound=str)

TrainedParts = Annotated[
    list[str] | None,
    typer.Option(help="language, vision, resampler, audio, audio_projection; may be repeated."),
]
RoundedAs = Annotated[
    str | None,
    typer.Option(help="With method full: train with the weights as this recipe (int4, ...) rounds them."),
]
_NEEDED = ("torch", "accelerate", "peft", "matplotlib")


def finetune(
    model: options.ModelArgument,
    data: Annotated[Path, typer.Option(help="Records, one a line: vendor's records.jsonl or OpenAI messages.")],
    output: Annotated[Path, typer.Option(help="Folder of the run; an interrupted run in it goes on.")],
    evaluation_data: Annotated[Path | None, typer.Option(help="Records to measure before and after.")] = None,
    media_root: Annotated[Path | None, typer.Option(help="Folder of relative media paths; the records' own.")] = None,
    method: Annotated[str, typer.Option(help="lora, qlora (low-bit base) or full.")] = "lora",
    train: TrainedParts = None,
    rank: Annotated[int | None, typer.Option(help="Rank of LoRA's factors, 16 by default.")] = None,
    alpha: Annotated[float | None, typer.Option(help="LoRA scales its update by alpha / rank; 32 by default.")] = None,
    dropout: Annotated[float | None, typer.Option(help="On the input of LoRA's factors; none by default.")] = None,
    base_precision: Annotated[str | None, typer.Option(help="Of a qlora base: int8 or, by default, int4.")] = None,
    quantization_aware: RoundedAs = None,
    epochs: Annotated[float, typer.Option(help="Passes over the records.")] = 1.0,
    max_steps: Annotated[int | None, typer.Option(help="End after this many steps.")] = None,
    batch_size: Annotated[int, typer.Option(help="Records computed together.")] = 4,
    accumulation: Annotated[int, typer.Option(help="Batches of one step.")] = 1,
    learning_rate: Annotated[float | None, typer.Option(help="1e-4 by default, 2e-5 with method full.")] = None,
    schedule: Annotated[str, typer.Option(help="cosine, linear or constant, after the warm-up.")] = "cosine",
    warmup: Annotated[float, typer.Option(help="Share of the steps.")] = 0.03,
    weight_decay: Annotated[float, typer.Option(help="Of AdamW, on matrices.")] = 0.0,
    max_grad_norm: Annotated[float, typer.Option(help="Larger gradients are scaled down.")] = 1.0,
    precision: Annotated[str, typer.Option(help="float32, bfloat16 or float16 arithmetic.")] = "float32",
    gradient_checkpointing: Annotated[bool, typer.Option(help="Less memory, a third more time.")] = False,
    max_tokens: Annotated[int | None, typer.Option(help="Longest record; the context window.")] = None,
    on_bad_record: Annotated[str, typer.Option(help="stop or skip.")] = "stop",
    seed: Annotated[int, typer.Option(help="Of order, dropout and first values.")] = 0,
    save_minutes: Annotated[float, typer.Option(help="How often the state is saved.")] = 5.0,
    workers: Annotated[int, typer.Option(help="Processes that prepare records.")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
) -> None:
    """Adapt a checkpoint: LoRA, LoRA over low-bit weights, or all weights. Run again, it goes on where it stopped."""
    _require_training()
    from tianquan.training.finetune import FinetuneOptions, Finetuning

    chosen = FinetuneOptions(
        model=model,
        data=data,
        output=output,
        evaluation_data=evaluation_data,
        media_root=media_root,
        method=_one_of("method", method, ("lora", "qlora", "full")),
        parts=_parts(train),
        lora=_lora(rank, alpha, dropout),
        base_precision=None if base_precision is None else _one_of("base precision", base_precision, ("int4", "int8")),
        quantization_aware=quantization_aware,
        epochs=epochs,
        max_steps=max_steps,
        batch_size=batch_size,
        accumulation=accumulation,
        learning_rate=learning_rate,
        schedule=_one_of("schedule", schedule, ("cosine", "linear", "constant")),
        warmup=warmup,
        weight_decay=weight_decay,
        max_grad_norm=max_grad_norm,
        precision=_one_of("precision", precision, ("float32", "bfloat16", "float16")),
        gradient_checkpointing=gradient_checkpointing,
        max_tokens=max_tokens,
        on_bad_record=_one_of("on-bad-record", on_bad_record, ("stop", "skip")),
        seed=seed,
        save_seconds=60 * save_minutes,
        workers=workers,
        device=device,
    )
    with _Phases() as phases:
        _print_result(output, Finetuning(chosen, phases.show).run())


def merge(
    model: options.ModelArgument,
    adapter: Annotated[Path, typer.Argument(help="A LoRA adapter in peft's format.")],
    output: Annotated[Path, typer.Argument(help="Folder to write; it must not exist yet.")],
    format: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16; the checkpoint's own by default.")
    ] = None,
    revision: options.Revision = None,
) -> None:
    """Add an adapter to a checkpoint's weights and write a checkpoint of the official layout."""
    from tianquan.backends.reference import ReferenceOps
    from tianquan.checkpoint import find_folder, open_checkpoint
    from tianquan.checkpoint.adapter import Adapter
    from tianquan.checkpoint.dense_folder import ReadWeights, save_dense, source_format
    from tianquan.checkpoint.loader import TensorFiles
    from tianquan.checkpoint.shared_weights import AdaptedWeights
    from tianquan.quantization.dense import DenseFormat
    from tianquan.quantization.recipes import find_recipe

    formats: tuple[DenseFormat, ...] = ("float32", "bfloat16", "float16")
    named = None if format is None else _one_of("format", format, formats)
    checkpoint = open_checkpoint(find_folder(model, revision))
    if not isinstance(checkpoint.files, TensorFiles):
        raise ParameterError(f"{model}: is a low-bit folder; merging starts from the original checkpoint")
    chosen = named or source_format(checkpoint.files)
    opened = Adapter.open(adapter, checkpoint.config)
    progress = options.LoadProgress("merging")
    try:
        ops = ReferenceOps()
        reader = AdaptedWeights(checkpoint.weights(find_recipe("float32"), ops, progress), opened, ops)
        save_dense(checkpoint.folder, checkpoint.config, ReadWeights(reader), chosen, output)
    finally:
        progress.stop()
    print(f"{output}: {len(opened.factors)} matrices changed, {chosen}")


def _print_result(output: Path, report: FinetuneReport) -> None:
    print(f"{output}: {report.num_records} records, {report.num_trained:,} values trained, report in report.md")
    if report.before is not None and report.after is not None:
        print(f"right answers: {100 * report.before.accuracy:.1f} % before, {100 * report.after.accuracy:.1f} % after")


class _Phases:
    """A bar for each phase before and after training, one at a time; training draws its own."""

    def __init__(self) -> None:
        self._bars = ExitStack()
        self._phase = ""
        self._bar: WorkProgress | None = None

    def __enter__(self) -> _Phases:
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.close()

    def show(self, phase: str, done: int, total: int) -> None:
        """Show that `done` of `total` parts of a phase are done."""
        if self._bar is None or phase != self._phase:
            self._bars.close()
            self._phase = phase
            self._bar = self._bars.enter_context(WorkProgress(phase.replace("_", " "), total))
        self._bar.advance_to(done)
        if done == total:
            self._bars.close()
            self._bar = None


def _require_training() -> None:
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise BackendError(f"training needs {', '.join(missing)}; install the extra: pip install 'tianquan[train]'")


def _one_of(name: str, value: str, allowed: tuple[Choice, ...]) -> Choice:

    for choice in allowed:
        if choice == value:
            return choice
    raise ParameterError(f"{name} is {value!r}; expected {', '.join(allowed[:-1])} or {allowed[-1]}")


def _lora(rank: int | None, alpha: float | None, dropout: float | None) -> LoraSettings | None:
    """Return the settings, or None if none was given."""
    from tianquan.training.adapters import LoraSettings

    if rank is None and alpha is None and dropout is None:
        return None
    return LoraSettings(
        rank=LoraSettings.rank if rank is None else rank,
        alpha=LoraSettings.alpha if alpha is None else alpha,
        dropout=LoraSettings.dropout if dropout is None else dropout,
    )


def _parts(train: list[str] | None) -> tuple[Part, ...]:
    from tianquan.training.finetune import PARTS

    return tuple(_one_of("train", part, tuple(PARTS)) for part in train or ["language"])
