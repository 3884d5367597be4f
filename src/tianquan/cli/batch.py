"""`batch`: a file of requests becomes a file of answers, in order; run again, it goes on where it was stopped."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tianquan.cli import options
from tianquan.cli.progress import WorkProgress
from tianquan.cli.serve import load_model
from tianquan.errors import BackendError, ParameterError

if TYPE_CHECKING:
    from tianquan.batch.job import BatchPlan, OnProgress, Tally


def batch(
    input: Annotated[Path, typer.Argument(help="Requests, one a line, in OpenAI's batch format.")],
    output: Annotated[Path, typer.Argument(help="File for the answers; one that is there is gone on with.")],
    model: Annotated[str | None, typer.Option(help="Folder or hub id; the embedded model by default.")] = None,
    ray: Annotated[
        str | None, typer.Option(help="Address of a Ray cluster, or local: workers answer the rows.")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="With --ray; one a machine by default.", min=1)] = None,
    media_root: Annotated[
        Path | None, typer.Option(help="Folder that media paths start from; the input's own by default.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of rows without a seed, with the row's number.", min=0)] = 0,
    max_num_seqs: Annotated[int | None, typer.Option(help="Answers computed side by side; 16 by default.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Of rows that do not say; 1024 by default.")] = None,
    max_model_len: Annotated[int | None, typer.Option(help="Most tokens of a prompt and its answer.")] = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option(help="NAME=FOLDER of a LoRA adapter, for rows of the model NAME; may be repeated."),
    ] = None,
    max_row_bytes: Annotated[str | None, typer.Option(help="Of one row, as 64M, the default.")] = None,
    max_media_bytes: Annotated[str | None, typer.Option(help="Of one media file, as 32M, the default.")] = None,
    kv_cache_bytes: options.KVCacheBytes = None,
    max_memory: options.MaxMemory = None,
    kv_format: options.KVFormatOption = None,
    max_slices: options.MaxSlices = None,
    max_image_tokens: options.MaxImageTokens = None,
    long_audio: options.LongAudioOption = "error",
    precision: options.Precision = None,
    backend: options.BackendOption = "native",
    device: options.Device = "cpu",
    threads: options.Threads = None,
    revision: options.Revision = None,
) -> None:
    """Answer the rows of a file, many at a time. One that cannot be answered gets an error in its place."""
    from tianquan.serving.config import make_config

    flags = {
        **{name: value for name, value in locals().items() if name in _CONFIG_FIELDS},
        "media_root": input.parent if media_root is None else media_root,
        "max_body_bytes": max_row_bytes,
    }
    config = make_config(flags)
    try:
        from tianquan.batch.job import BatchPlan, run_batch
    except ImportError as error:
        raise BackendError("batch needs packages that are not installed: pip install 'tianquan[serve]'") from error
    if workers is not None and ray is None:
        raise ParameterError("--workers needs --ray; one process answers the rows without it")
    plan = BatchPlan(input=input, output=output, config=config, load=load_model, seed=seed)
    size = input.stat().st_size if input.is_file() else None
    try:
        with WorkProgress("answering", size) as progress:
            if ray is None:
                tally = run_batch(plan, progress.advance_to)
            else:
                tally = _run_on_ray(plan, ray, workers, progress.advance_to)
    except KeyboardInterrupt:
        print("tianquan: stopped; the same command goes on from here", file=sys.stderr)
        raise typer.Exit(130) from None
    print(tally.line())


def _run_on_ray(plan: BatchPlan, address: str, workers: int | None, on_progress: OnProgress) -> Tally:
    try:
        from tianquan.scaling.batch_pipeline import run_ray_batch
    except ImportError as error:
        raise BackendError("--ray needs packages that are not installed: pip install 'tianquan[ray]'") from error
    return run_ray_batch(plan, address, workers, on_progress)


_CONFIG_FIELDS = frozenset(
    (
        *("model", "max_num_seqs", "max_tokens", "max_model_len", "adapter", "max_media_bytes", "kv_cache_bytes"),
        *("max_memory", "kv_format", "max_slices", "max_image_tokens", "long_audio", "precision", "backend"),
        *("device", "threads", "revision"),
    )
)
