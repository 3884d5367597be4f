"""`export`: the language model in the format of another engine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tianquan.cli import options
from tianquan.cli.progress import WorkProgress
from tianquan.errors import BackendError

if TYPE_CHECKING:
    from tianquan.export.gguf_file import GgufType


def export(
    model: options.ModelArgument,
    output: Annotated[Path, typer.Argument(help="File to write; it must not exist yet.")],
    format: Annotated[Literal["gguf"], typer.Option(help="gguf, for llama.cpp.")] = "gguf",
    type: Annotated[
        Literal["f16", "q8_0", "q4_0"], typer.Option(help="How gguf keeps matrices, as llama.cpp names it.")
    ] = "q8_0",
    revision: options.Revision = None,
) -> None:
    """Write the language model for llama.cpp: text only, see docs/export.md for what of pictures and sound."""
    from tianquan.checkpoint import find_folder, open_checkpoint

    try:
        from tianquan.export.gguf_file import save_gguf
    except ImportError as error:
        raise BackendError("export needs a package that is not installed: pip install 'tianquan[export]'") from error
    kind: GgufType = type
    with WorkProgress("writing") as progress:
        progress.begin(output.name, 1)
        save_gguf(
            open_checkpoint(find_folder(model, revision)),
            kind,
            output,
            lambda done, total: progress.advance_to(done / total),
        )
    print(f"{output}: {kind}, {output.stat().st_size / 1e6:,.1f} MB")
