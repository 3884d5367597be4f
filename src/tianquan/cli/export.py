"""`export`: the model in the formats of other engines."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import typer

from tianquan.cli import options
from tianquan.cli.progress import WorkProgress
from tianquan.errors import BackendError, ParameterError

Format = Literal["gguf", "compressed-tensors"]
OnProgress = Callable[[int, int], None]
Type = Literal["f16", "q8_0", "q4_0"]


def export(
    model: options.ModelArgument,
    output: Annotated[Path, typer.Argument(help="File (gguf) or folder to write; it must not exist yet.")],
    format: Annotated[Format, typer.Option(help="gguf for llama.cpp, compressed-tensors for vLLM.")] = "gguf",
    type: Annotated[
        Type | None, typer.Option(help="How gguf keeps matrices, as llama.cpp names it; q8_0 by default.")
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="Of compressed-tensors: int4 (the default), int4-small or int8.")
    ] = None,
    threads: options.Threads = None,
    revision: options.Revision = None,
) -> None:
    """Write the language model for llama.cpp, or the model with a low-bit language model for vLLM."""
    if (recipe if format == "gguf" else type) is not None:
        raise ParameterError("--type belongs to --format gguf, --recipe to --format compressed-tensors")
    if format == "gguf" and threads is not None:
        raise ParameterError("--threads belongs to --format compressed-tensors; gguf is written by one")
    with WorkProgress("writing") as progress:
        progress.begin(output.name, 1)

        def show(done: int, total: int) -> None:
            progress.advance_to(done / total)

        if format == "gguf":
            _export_gguf(model, output, type or "q8_0", revision, show)
        else:
            _export_compressed(model, output, recipe or "int4", threads, revision, show)
    paths = [output] if output.is_file() else list(output.glob("*.safetensors"))
    size = sum(path.stat().st_size for path in paths)
    print(f"{output}: {format}, {(type or 'q8_0') if format == 'gguf' else recipe or 'int4'}, {size / 1e6:,.1f} MB")


def _export_gguf(model: str, output: Path, type: Type, revision: str | None, show: OnProgress) -> None:
    from tianquan.checkpoint import find_folder, open_checkpoint

    try:
        from tianquan.export.gguf_file import save_gguf
    except ImportError as error:
        raise BackendError("export needs a package that is not installed: pip install 'tianquan[export]'") from error
    save_gguf(open_checkpoint(find_folder(model, revision)), type, output, show)


def _export_compressed(
    model: str, output: Path, recipe: str, threads: int | None, revision: str | None, show: OnProgress
) -> None:
    from tianquan.backends import make_ops
    from tianquan.checkpoint import find_folder, open_checkpoint
    from tianquan.export.compressed_tensors import save_compressed_tensors
    from tianquan.quantization.recipes import find_recipe

    checkpoint = open_checkpoint(find_folder(model, revision))
    save_compressed_tensors(checkpoint, find_recipe(recipe), output, make_ops("native", threads=threads), show)
