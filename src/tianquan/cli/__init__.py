"""The command line. Results go to stdout, progress and messages to stderr; a user's error ends with code 2."""

from __future__ import annotations

import logging
import sys

import typer

from tianquan.cli import bench, chat, generate, info, quantize
from tianquan.errors import TianquanError

app = typer.Typer(
    help="Run, serve and adapt Megrez-3B-Omni (text, images, audio) on the machine you have.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("chat")(chat.chat)
app.command("generate")(generate.generate)
app.command("trace")(generate.trace)
app.command("transcribe")(generate.transcribe)
app.command("quantize")(quantize.quantize)
app.command("bench")(bench.bench)
app.command("info")(info.info)


def main() -> None:
    """Run the command line."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
    for name in ("httpx", "huggingface_hub"):
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        app()
    except TianquanError as error:
        print(f"tianquan: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # the reader of stdout went away, as `| head` does
        sys.stderr.close()
        sys.exit(1)
