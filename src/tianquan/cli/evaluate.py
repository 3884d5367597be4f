"""`evaluate`: how often a model is right, and how far each precision is from a reference."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer

from tianquan.cli import options
from tianquan.cli.option_groups import Pictures
from tianquan.cli.output import check_writable, one_line, write_atomically
from tianquan.cli.progress import WorkProgress
from tianquan.errors import ParameterError

Precisions = Annotated[
    list[str] | None,
    typer.Option("--precision", help="float32, bfloat16, float16, int8, int4, ...; repeat it for several rows."),
]

KVFormats = Annotated[
    list[str] | None,  # typer takes no list of literals; the plan checks it
    typer.Option("--kv-format", help="How keys and values are kept: float32, float16, int8; repeat it for rows."),
]


def evaluate(
    model: options.ModelArgument,
    data: Annotated[list[Path], typer.Option(help="Records with true answers (jsonl); may be repeated.")],
    media_root: Annotated[
        Path | None, typer.Option(help="Folder that relative media paths start from; each file's own by default.")
    ] = None,
    precision: Precisions = None,
    kv_format: KVFormats = None,
    adapter: options.AdapterFolder = None,
    reference: Annotated[
        str | None, typer.Option(help="MODEL@precision to compare each token's distribution with.")
    ] = None,
    sensitivity: Annotated[bool, typer.Option(help="With --reference, also measure one tower at a time.")] = True,
    limit: Annotated[int | None, typer.Option(help="Only the first N records of each file.", min=1)] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the report and all answers.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Also write the tables.")] = None,
    max_tokens: Annotated[int, typer.Option(help="Most tokens of one answer.", min=1)] = 256,
    backend: options.BackendOption = "native",
    device: options.Device = "cpu",
    threads: options.Threads = None,
    revision: options.Revision = None,
    max_slices: options.MaxSlices = None,
    max_image_tokens: options.MaxImageTokens = None,
) -> None:
    """Answer records greedily; print accuracy, error rates, sizes, and the distance from a reference."""
    from tianquan.evaluation import report
    from tianquan.evaluation.run import Evaluation, EvaluationPlan, RecordSet, parse_reference
    from tianquan.training.records import read_records

    _check_outputs([path for path in (json_file, markdown) if path is not None], data)
    precisions: list[str | None] = [*precision] if precision else [None]
    plan = EvaluationPlan(
        model=model,
        precisions=tuple(dict.fromkeys(precisions)),
        kv_formats=tuple(dict.fromkeys(kv_format or ())),
        record_sets=tuple(
            RecordSet(tuple(read_records(path, limit)), path.parent if media_root is None else media_root)
            for path in data
        ),
        reference=None if reference is None else parse_reference(reference),
        adapter=adapter,
        sensitivity=sensitivity,
        max_tokens=max_tokens,
        policy=Pictures(max_slices=max_slices, max_image_tokens=max_image_tokens).policy(),
        backend=backend,
        device=device,
        threads=threads,
        revision=revision,
    )
    stopped: BaseException | None = None
    with WorkProgress("evaluating") as progress:
        evaluation = Evaluation(plan, progress.begin, progress.advance_to)
        try:
            evaluation.run()
        except BaseException as error:  # whatever ends it, a signal too: hours of answers are shown
            stopped = error
    if any(result.records for result in evaluation.results):
        try:
            _show(report.to_dict(evaluation, [str(path) for path in data]), json_file, markdown)
        except Exception as error:
            if stopped is None:
                raise
            print(f"tianquan: {one_line(str(error))}", file=sys.stderr)
    if isinstance(stopped, KeyboardInterrupt):
        raise typer.Exit(130)
    if stopped is not None:
        raise stopped


def _show(found: dict[str, Any], json_file: Path | None, markdown: Path | None) -> None:
    """Write the files and print the tables: each is tried, whatever becomes of the others; a terminal may be gone."""
    from tianquan.evaluation import report

    with ExitStack() as outputs:  # the last one first
        outputs.callback(report.print_tables, found)
        for path, text in ((markdown, report.to_markdown(found)), (json_file, report.to_json(found))):
            if path is not None:
                outputs.callback(write_atomically, path, text.encode(errors="backslashreplace"))  # paths may be no text


def _check_outputs(outputs: Sequence[Path], data: Sequence[Path]) -> None:
    """Refuse outputs that cannot be written, or would be written over each other or over the records."""
    taken = {path.resolve(): f"{path} holds the records" for path in data}
    for path in outputs:
        target = check_writable(path)
        if target in taken:
            raise ParameterError(f"{path}: {taken[target]}; name another output")
        taken[target] = f"{path} is another output already"
