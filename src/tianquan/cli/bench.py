"""`bench`: the speed and memory of the model on this machine."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from tianquan.cli import options
from tianquan.cli.output import check_writable, write_atomically


def bench(
    recipe: Annotated[str, typer.Option(help="Recipe of the synthetic weights.")] = "int4",
    quick: Annotated[bool, typer.Option("--quick", help="Fewer sizes, one run each; under two minutes.")] = False,
    json_output: Annotated[bool, typer.Option("--json", help="Print the report as JSON instead of a table.")] = False,
    output: Annotated[Path | None, typer.Option(help="Also write OUTPUT.json and OUTPUT.md.")] = None,
    plot: Annotated[bool, typer.Option("--plot", help="With --output: also OUTPUT.png (needs matplotlib).")] = False,
    baseline: Annotated[
        str | None, typer.Option(help="transformers: also run the original path (needs torch).")
    ] = None,
    threads: options.Threads = None,
) -> None:
    """Measure on synthetic weights of the official size; nothing is downloaded."""
    from rich.console import Console

    from tianquan.benchmark import baselines, report
    from tianquan.benchmark.measure import QUICK, Plan
    from tianquan.benchmark.run import run_benchmark
    from tianquan.errors import ParameterError
    from tianquan.quantization.recipes import find_recipe

    if baseline not in (None, "transformers"):
        raise ParameterError(f"unknown baseline {baseline!r}; expected transformers")
    chosen = find_recipe(recipe)
    if output is not None:
        check_writable(output.with_suffix(".json"))
    console = Console(stderr=True, highlight=False)
    with console.status("") as status:
        result = run_benchmark(chosen, QUICK if quick else Plan(), threads, status.update)
        if baseline is not None:
            result["baseline"] = baselines.measure_transformers(result["threads"], quick, status.update)
    result["command"] = "tianquan " + shlex.join(sys.argv[1:])
    markdown = report.to_markdown(result)
    if output is not None:
        write_atomically(output.with_suffix(".json"), (json.dumps(result, indent=1) + "\n").encode())
        write_atomically(output.with_suffix(".md"), markdown.encode())
        if plot:
            report.plot(result, output.with_suffix(".png"))
    print(json.dumps(result) if json_output else markdown)
