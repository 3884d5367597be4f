"""`quantize`: write a low-bit folder that starts in a moment and runs alone."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tianquan.cli import options
from tianquan.cli.progress import WorkProgress

if TYPE_CHECKING:
    from tianquan.checkpoint import Checkpoint
    from tianquan.quantization.recipes import Recipe


def quantize(
    model: options.ModelArgument,
    output: Annotated[Path, typer.Argument(help="Folder to write; it must not exist yet.")],
    recipe: Annotated[str, typer.Option(help="int4, int4-asym, int4-small, int8, or a dense format.")] = "int4",
    calibrate: Annotated[
        list[Path] | None,
        typer.Option(help="Records (jsonl) like those the model will answer: rounded so that they change least."),
    ] = None,
    media_root: options.MediaRoot = None,
    limit: Annotated[int | None, typer.Option(help="Only the first N records of each file.", min=1)] = None,
    calibration_memory: Annotated[
        str | None, typer.Option(help="Memory for what --calibrate observes at a time, as 2G (the default).")
    ] = None,
    threads: options.Threads = None,
    revision: options.Revision = None,
) -> None:
    """Quantize a checkpoint once, and save it with all it needs."""
    from tianquan.backends import make_ops
    from tianquan.checkpoint import find_folder, open_checkpoint
    from tianquan.errors import ParameterError
    from tianquan.quantization.recipes import find_recipe

    chosen = find_recipe(recipe)
    given = [("--media-root", media_root), ("--limit", limit), ("--calibration-memory", calibration_memory)]
    alone = [name for name, value in given if value is not None]
    if alone and not calibrate:
        raise ParameterError(f"{', '.join(alone)}: for the records of --calibrate, which was not given")
    checkpoint = open_checkpoint(find_folder(model, revision))
    before = sum(checkpoint.files.component_bytes().values())
    if calibrate:
        _calibrate(checkpoint, chosen, output, calibrate, media_root, limit, calibration_memory, threads)
    else:
        progress = options.LoadProgress("quantizing")
        try:
            checkpoint.save_low_bit(chosen, output, make_ops("native", threads=threads), progress)
        finally:
            progress.stop()
    after = sum(path.stat().st_size for path in output.glob("*.safetensors"))
    print(f"{output}: {chosen.name}, {after / 1e6:,.1f} MB of weights from {before / 1e6:,.1f} MB")


def _calibrate(
    checkpoint: Checkpoint,
    recipe: Recipe,
    output: Path,
    files: Sequence[Path],
    media_root: Path | None,
    limit: int | None,
    memory: str | None,
    threads: int | None,
) -> None:
    """Write the folder with weights fitted to records, and say which none of them used."""
    from tianquan.calibration.save import DEFAULT_MEMORY, Calibration
    from tianquan.engine.parameter_checks import parse_bytes
    from tianquan.evaluation.run import RecordSet
    from tianquan.training.records import read_records

    sets = [RecordSet(tuple(read_records(path, limit)), media_root or path.parent) for path in files]
    num_bytes = parse_bytes(memory, "--calibration-memory")
    with WorkProgress("calibrating:") as progress:
        calibration = Calibration(
            record_sets=sets,
            threads=threads,
            memory=DEFAULT_MEMORY if num_bytes is None else num_bytes,
            on_stage=progress.begin,
            on_done=progress.advance_to,
        )
        nearest = calibration.save(checkpoint, recipe, output)
    if nearest:
        components = ", ".join(dict.fromkeys(name.partition(".")[0] for name in nearest))
        print(
            f"rounded to nearest, too little of the records went through them: {len(nearest)} matrices of {components}",
            file=sys.stderr,
        )
