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
from tianquan.errors import ParameterError

app = typer.Typer(help="Measure on synthetic weights of the official size, or a running server.")


@app.callback(invoke_without_command=True)
def bench(
    context: typer.Context,
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
    """Measure on synthetic weights of the official size; nothing is downloaded. `bench serve URL`: a running server."""
    if context.invoked_subcommand is not None:
        sources = {name: context.get_parameter_source(name) for name in context.params}
        given = [name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"]
        if given:
            raise ParameterError(f"{', '.join(given)}: of `bench` alone; `bench serve` has options of its own")
        return
    from rich.console import Console

    from tianquan.benchmark import baselines, report
    from tianquan.benchmark.measure import QUICK, Plan
    from tianquan.benchmark.run import run_benchmark
    from tianquan.quantization.recipes import find_recipe

    if plot and output is None:
        raise ParameterError("a plot needs --output: where to write it")
    if plot:
        report.require_matplotlib()
    if baseline not in (None, "transformers"):
        raise ParameterError(f"unknown baseline {baseline!r}; expected transformers")
    chosen = find_recipe(recipe)
    if baseline is not None:
        baselines.require_transformers()
    if output is not None:
        check_writable(_with_suffix(output, ".json"))
    console = Console(stderr=True, highlight=False)
    with console.status("") as status:
        result = run_benchmark(chosen, QUICK if quick else Plan(), threads, status.update)
        if baseline is not None:
            result["baseline"] = baselines.measure_transformers(result["threads"], quick, status.update)
    result["command"] = "tianquan " + shlex.join(sys.argv[1:])
    markdown = report.to_markdown(result)
    if output is not None:
        write_atomically(_with_suffix(output, ".json"), (json.dumps(result, indent=1) + "\n").encode())
        write_atomically(_with_suffix(output, ".md"), markdown.encode())
        if plot:
            report.plot(result, _with_suffix(output, ".png"))
    print(json.dumps(result) if json_output else markdown)


def _with_suffix(path: Path, suffix: str) -> Path:
    """Return a path with a suffix behind its name, whatever dots are in it.

    Raises:
        ParameterError: it has no name.
    """
    if not path.name or path.name == "..":
        raise ParameterError(
            f"{path}: is a folder; name the files in it without their suffix, such as {path / 'bench'}"
        )
    return path.with_name(path.name + suffix)


Pair = Annotated[tuple[int, int], typer.Option(help="Least and most, drawn evenly.")]


@app.command("serve")
def serve(
    url: Annotated[str, typer.Argument(help="Of the server: http://127.0.0.1:8000")],
    model: Annotated[str | None, typer.Option(help="Name; the first of /v1/models by default.")] = None,
    api_key_file: Annotated[Path | None, typer.Option(help="File whose first line is the key.")] = None,
    requests: Annotated[int, typer.Option(help="Most requests.")] = 100,
    seconds: Annotated[float | None, typer.Option(help="Send nothing later than this.")] = None,
    concurrency: Annotated[int, typer.Option(help="Most requests at the same time.")] = 8,
    rate: Annotated[float | None, typer.Option(help="Mean arrivals a second; else as places get free.")] = None,
    mix: Annotated[tuple[float, float, float], typer.Option(help="Weights of text, image, audio.")] = (1.0, 0.0, 0.0),
    prompt_words: Pair = (8, 200),
    answer_tokens: Pair = (8, 128),
    image_sides: Pair = (200, 1000),
    audio_seconds: Pair = (1, 15),
    ignore_eos: Annotated[bool, typer.Option(help="Ask for answers of exactly the drawn length.")] = True,
    ttft_limit_ms: Annotated[float, typer.Option(help="Of a good request.")] = 5000.0,
    tpot_limit_ms: Annotated[float, typer.Option(help="Of a good request.")] = 200.0,
    seed: Annotated[int, typer.Option(help="The same seed makes the same requests.")] = 0,
    json_output: Annotated[bool, typer.Option("--json", help="Print the report as JSON instead of a table.")] = False,
) -> None:
    """Put load on a running server with OpenAI's routes and report what its clients see."""
    from tianquan.benchmark.serve_load import LoadPlan, run_load, to_markdown

    key = None
    if api_key_file is not None:
        try:
            key = api_key_file.read_text(encoding="utf-8").split()[0]
        except (OSError, ValueError, IndexError) as error:
            raise ParameterError(f"{api_key_file}: no key can be read from it") from error
    plan = LoadPlan(
        url=url,
        model=model,
        key=key,
        num_requests=requests,
        seconds=seconds,
        concurrency=concurrency,
        rate=rate,
        mix=mix,
        prompt_words=prompt_words,
        answer_tokens=answer_tokens,
        image_sides=image_sides,
        audio_seconds=audio_seconds,
        ignore_eos=ignore_eos,
        ttft_limit_ms=ttft_limit_ms,
        tpot_limit_ms=tpot_limit_ms,
        seed=seed,
    )
    report = run_load(plan)
    print(json.dumps(report) if json_output else to_markdown(report))
