"""`quantize`: write a low-bit folder that starts in a moment and runs alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tianquan.cli import options


def quantize(
    model: options.ModelArgument,
    output: Annotated[Path, typer.Argument(help="Folder to write; it must not exist yet.")],
    recipe: Annotated[str, typer.Option(help="int4, int4-asym, int4-small, int8, or a dense format.")] = "int4",
    threads: options.Threads = None,
    revision: options.Revision = None,
) -> None:
    """Quantize a checkpoint once, and save it with all it needs."""
    from tianquan.backends import make_ops
    from tianquan.checkpoint import find_folder, open_checkpoint
    from tianquan.quantization.recipes import find_recipe

    chosen = find_recipe(recipe)
    checkpoint = open_checkpoint(find_folder(model, revision))
    before = sum(checkpoint.files.component_bytes().values())
    progress = options.LoadProgress("quantizing")
    try:
        checkpoint.save_low_bit(chosen, output, make_ops("native", threads=threads), progress)
    finally:
        progress.stop()
    after = sum(path.stat().st_size for path in output.glob("*.safetensors"))
    print(f"{output}: {chosen.name}, {after / 1e6:,.1f} MB of weights from {before / 1e6:,.1f} MB")
