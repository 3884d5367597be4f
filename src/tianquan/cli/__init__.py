"""The command line. Results go to stdout, progress and messages to stderr; a user's error ends with code 2."""

from __future__ import annotations

import io
import logging
import os
import re
import signal
import sys
from typing import Annotated

import typer

from tianquan import __version__
from tianquan.cli import batch, bench, chat, data, evaluate, export, finetune, generate, info, quantize, serve, verify
from tianquan.cli.output import one_line
from tianquan.errors import TianquanError

app = typer.Typer(
    help="Run, serve and adapt Megrez-3B-Omni (text, images, audio) on the machine you have.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["--help", "-h"]},
)
app.command("chat")(chat.chat)
app.command("generate")(generate.generate)
app.command("trace")(generate.trace)
app.command("transcribe")(generate.transcribe)
app.command("quantize")(quantize.quantize)
app.command("export")(export.export)
app.command("finetune")(finetune.finetune)
app.command("merge")(finetune.merge)
app.add_typer(bench.app, name="bench")
app.command("info")(info.info)
app.command("serve")(serve.serve)
app.command("batch")(batch.batch)
app.command("evaluate")(evaluate.evaluate)
app.command("verify")(verify.verify)
app.add_typer(data.app, name="data")


def _show_version(is_asked: bool) -> None:
    if is_asked:
        print(f"tianquan {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and leave.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Run, serve and adapt Megrez-3B-Omni (text, images, audio) on the machine you have."""


_NO_MEMORY = "can't allocate memory|out of memory"  # how PyTorch says it, on a CPU and on a GPU


def main() -> None:
    """Run the command line."""
    _open_standard_streams()
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
    for name in ("httpx", "huggingface_hub"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for signum in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, _leave)
    try:
        app()
    except TianquanError as error:
        print(f"tianquan: {one_line(str(error))}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # the reader of stdout went away, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        print(f"tianquan: {one_line(error.strerror or str(error))}: the output cannot be written", file=sys.stderr)
        sys.exit(2)
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not re.search(_NO_MEMORY, str(error)):
            raise
        print(f"tianquan: too little memory for this ({one_line(str(error)) or 'out of memory'})", file=sys.stderr)
        sys.exit(2)


def _open_standard_streams() -> None:
    """Stand in for streams the caller closed, and never fail on a character the terminal's encoding lacks."""
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is None:
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
            setattr(sys, name, os.fdopen(number, mode, closefd=False))
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _leave(signum: int, frame: object) -> None:
    """Turn a termination signal into an exit, so that what is unfinished is cleaned up."""
    sys.exit(128 + signum)
