"""`data check`: what is in a records file, and every record of it that cannot be used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tianquan.cli import options
from tianquan.cli.output import terminal_safe
from tianquan.cli.progress import WorkProgress

if TYPE_CHECKING:
    from tianquan.training.data_check import Prospect

_BAR_WIDTH = 40  # characters of the longest bar of the histogram

app = typer.Typer(help="Records for training and evaluation.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def data() -> None:
    """Look after records for training and evaluation."""


@app.command("check")
def check(
    file: Annotated[Path, typer.Argument(help="Records, one JSON object a line: the vendor's or OpenAI's form.")],
    model: Annotated[str | None, typer.Option(help="The model they are for: also check lengths and template.")] = None,
    media_root: Annotated[
        Path | None, typer.Option(help="Folder that relative media paths start from; the file's own by default.")
    ] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    revision: options.Revision = None,
) -> None:
    """Check every record to the end, name each bad one by file and line, and count what is there."""
    from tianquan.training.data_check import DataCheck

    checking = DataCheck(_prospect(model, revision), media_root or file.parent)
    size = file.stat().st_size if file.is_file() else None
    stopped: BaseException | None = None
    with WorkProgress("checking", size) as progress:
        try:
            for position in checking.run(file):
                progress.advance_to(position)
        except (KeyboardInterrupt, SystemExit) as error:  # Ctrl-C, or another signal that ends it
            stopped = error
    report = checking.report.to_dict() | {"complete": stopped is None}
    if json_output:
        print(json.dumps(report, ensure_ascii=False))
    else:
        for problem in checking.report.problems:
            print(terminal_safe(str(problem)))
        show_statistics(report, has_model=model is not None)
    if isinstance(stopped, KeyboardInterrupt):
        raise typer.Exit(130)
    if stopped is not None:
        raise stopped
    if not report["ok"]:
        raise typer.Exit(1)


def _prospect(model: str | None, revision: str | None) -> Prospect | None:
    from tianquan.checkpoint import find_folder, open_checkpoint
    from tianquan.training.data_check import Prospect

    if model is None:
        return None
    checkpoint = open_checkpoint(find_folder(model, revision))
    return Prospect(checkpoint.processor, checkpoint.config.language.max_position_embeddings)


def show_statistics(report: dict[str, Any], *, has_model: bool) -> None:
    """Print the statistics of a report as tables."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, markup=False)
    table = Table(show_header=False)
    table.add_column()
    table.add_column(justify="right")
    counts = ("records", "bad_records", "turns", "images", "videos", "video_frames", "audios", "audio_seconds")
    for key in (*counts, "longest_audio_seconds"):
        table.add_row(key.replace("_", " "), f"{report[key]:,}")
    if (tokens := report["tokens"]) is not None:
        table.add_row("tokens", f"{tokens['total']:,}")
        table.add_row("tokens of a record", f"{tokens['min']} to {tokens['max']}, median {tokens['median']}")
    if not report["complete"]:
        console.print("interrupted; so far:")
    console.print(table)
    for title in ("tasks", "languages"):
        if set(report[title]) - {""}:
            groups = Table("", "records", title=title, title_justify="left")
            for name, count in report[title].items():
                groups.add_row(terminal_safe(name) or "(none)", f"{count:,}")
            console.print(groups)
    if tokens is None:
        if not has_model:
            console.print("lengths in tokens: name the model with --model")
        return
    most = max(bin["records"] for bin in tokens["histogram"])
    for bin in tokens["histogram"]:
        bar = "█" * round(_BAR_WIDTH * bin["records"] / most)
        console.print(f"{bin['from']:>7}-{bin['to'] - 1:<7} {bin['records']:>8,} {bar}")
