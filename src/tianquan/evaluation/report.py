"""An evaluation as JSON, as Markdown and as tables on a terminal.

The JSON form has these keys; a share is 0 to 1, sizes are bytes, a value that was not measured is null or absent:

    tianquan, date, machine, model, adapter, backend, data, records, max_tokens, reference, notes, complete
    results[]                                      one for each precision, in the order asked for
      precision, kv_format, bytes_per_weight, weight_bytes, resident_bytes
      score                                        {records, right, accuracy, interval_95, cer, wer}
      tasks.TASK, languages.LANGUAGE               the same; TASK has languages.LANGUAGE of its own
      divergence.{all, text, image, audio, image+audio}
                                                   {tokens, kl, top1_agreement, perplexity, reference_perplexity,
                                                   perplexity_ratio}
      sensitivity.TOWER.{all, ...}                 the same with only that tower in this precision
      answers[]                                    {source, task, language, turns[{expected, got, right}]}
"""

from __future__ import annotations

import datetime
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from tianquan import __version__
from tianquan.benchmark.run import machine_name
from tianquan.evaluation.answers import Score, scores_by
from tianquan.evaluation.divergence import by_modality
from tianquan.evaluation.run import Evaluation, PrecisionResult
from tianquan.processing.labels import printable

_NO_NAME = "(none)"
_FILE_WIDTH = 200  # characters
_MAX_SHOWN = 400  # characters of a cell or a line


def to_dict(evaluation: Evaluation, data: Sequence[str]) -> dict[str, Any]:
    """Return the documented JSON form of what is finished; `data` names the files."""
    plan = evaluation.plan
    return {
        "tianquan": __version__,
        "date": datetime.date.today().isoformat(),
        "machine": machine_name(),
        "model": plan.model,
        "adapter": None if plan.adapter is None else str(plan.adapter),
        "backend": plan.backend,
        "data": list(data),
        "records": plan.num_records,
        "max_tokens": plan.max_tokens,
        "reference": "@".join(plan.reference) if plan.reference else None,
        "complete": evaluation.is_complete,
        "notes": list(evaluation.notes),
        "results": [_result_to_dict(result) for result in evaluation.results],
    }


def _result_to_dict(result: PrecisionResult) -> dict[str, Any]:
    def scores(records: Any, key: str) -> dict[str, Any]:
        groups = scores_by(records, lambda record: str(getattr(record, key)) or _NO_NAME)
        return {name: score.to_dict() for name, score in groups.items()}

    tasks = scores(result.records, "task")
    for name, task in tasks.items():
        task["languages"] = scores([r for r in result.records if (r.task or _NO_NAME) == name], "language")
    return {
        "precision": result.recipe,
        "kv_format": result.kv_format,
        "bytes_per_weight": result.bytes_per_weight,
        "weight_bytes": result.weight_bytes,
        "resident_bytes": result.resident_bytes,
        "score": Score.of(result.records).to_dict(),
        "tasks": tasks,
        "languages": scores(result.records, "language"),
        "divergence": {name: total.to_dict() for name, total in by_modality(result.divergences).items()},
        "sensitivity": {
            tower: {name: total.to_dict() for name, total in by_modality(found).items()}
            for tower, found in result.sensitivity.items()
        },
        "answers": [record.to_dict() for record in result.records],
    }


@dataclass(frozen=True)
class ReportTable:
    """One table of a report, as text."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def tables(report: dict[str, Any]) -> list[ReportTable]:
    """Return the tables of a report that have rows; each cell is one line of printable characters."""
    results = report["results"]
    all_tables = [_overview(results), *_groups(results), _divergence(results), _sensitivity(results)]
    return [
        replace(table, rows=tuple(tuple(map(_shown, row)) for row in table.rows)) for table in all_tables if table.rows
    ]


def _overview(results: Sequence[dict[str, Any]]) -> ReportTable:
    columns = ("precision", "bytes/weight", "weights", "memory", "right (95 %)", "CER", "WER", "KL")
    return ReportTable("Quality beside size", columns, tuple(_overview_row(result) for result in results))


def _overview_row(result: dict[str, Any]) -> tuple[str, ...]:
    score, divergence = result["score"], result["divergence"].get("all")
    return (
        result["precision"],
        f"{result['bytes_per_weight']:.2f}",
        _megabytes(result["weight_bytes"]),
        _megabytes(result["resident_bytes"]),
        _share(score),
        _percent(score["cer"]),
        _percent(score["wer"]),
        "" if divergence is None else _nats(divergence["kl"]),
    )


def _groups(results: Sequence[dict[str, Any]]) -> list[ReportTable]:
    """Return scores by task and by language; a task in several languages has a row for each too."""
    found = []
    for key in ("tasks", "languages"):
        paths: set[tuple[str, ...]] = set()
        for result in results:
            for name, group in result[key].items():
                parts = group.get("languages", {})
                paths |= {(name,), *((name, part) for part in parts if len(parts) > 1)}
        if paths <= {(_NO_NAME,)}:
            continue
        rows = [
            (
                " ".join(path),
                str(max(_score_at(result[key], path).get("records", 0) for result in results)),
                *(_group_cell(result[key], path) for result in results),
            )
            for path in sorted(paths)
        ]
        precisions = (f"{result['precision']}: right (95 %), CER, WER" for result in results)
        columns = (key.removesuffix("s"), "records", *precisions)
        found.append(ReportTable(f"Right by {columns[0]}", columns, tuple(rows)))
    return found


def _score_at(groups: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    score = groups.get(path[0], {})
    return score if len(path) == 1 else score.get("languages", {}).get(path[1], {})


def _group_cell(groups: dict[str, Any], path: tuple[str, ...]) -> str:
    score = _score_at(groups, path)
    if not score:
        return ""
    return f"{_share(score)}, {_percent(score['cer'])}, {_percent(score['wer'])}"


def _shown(text: str) -> str:
    return printable(text, _MAX_SHOWN)  # names of tasks and files are foreign text


def _share(score: dict[str, Any]) -> str:
    low, high = score["interval_95"]
    return f"{score['accuracy']:.1%} ({100 * low:.0f}-{100 * high:.0f})"


def _divergence(results: Sequence[dict[str, Any]]) -> ReportTable:
    rows = [
        (result["precision"], name, str(total["tokens"]), *_divergence_cells(total))
        for result in results
        for name, total in result["divergence"].items()
    ]
    return ReportTable("Against the reference", ("precision", "prompts", "tokens", "KL", "top-1", "ppl x"), tuple(rows))


def _sensitivity(results: Sequence[dict[str, Any]]) -> ReportTable:
    rows = [
        (result["precision"], tower.replace("_", " "), str(total["all"]["tokens"]), *_divergence_cells(total["all"]))
        for result in results
        for tower, total in result["sensitivity"].items()
        if total
    ]
    columns = ("precision", "only in", "tokens", "KL", "top-1", "ppl x")
    return ReportTable("One tower at a time, the others as in the reference", columns, tuple(rows))


def _divergence_cells(total: dict[str, Any]) -> tuple[str, str, str]:
    return _nats(total["kl"]), f"{total['top1_agreement']:.2%}", _ratio(total["perplexity_ratio"])


def _ratio(value: float | None) -> str:
    return "too large" if value is None else f"{value:.4f}"


def _nats(kl: float) -> str:
    return f"{kl:.1e}" if 0 < abs(kl) < 1e-4 else f"{kl:.5f}"


def _megabytes(num_bytes: int | None) -> str:
    return "" if num_bytes is None else f"{num_bytes / 1e6:,.1f} MB"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def heading(report: dict[str, Any]) -> str:
    """Return one line that says what was evaluated."""
    parts = [report["model"], f"{report['records']} records", f"backend {report['backend']}", report["date"]]
    if report["adapter"]:
        parts.append(f"adapter {report['adapter']}")
    if report["reference"]:
        parts.append(f"reference {report['reference']}")
    return _shown(", ".join(parts)) + ("" if report["complete"] else "; INTERRUPTED, what was finished:")


def to_json(found: dict[str, Any]) -> str:
    """Return what `to_dict` gave as JSON."""
    return json.dumps(found, ensure_ascii=False, indent=1) + "\n"


def to_markdown(report: dict[str, Any]) -> str:
    """Return the report as Markdown."""
    blocks = [heading(report)]
    for table in tables(report):
        rule = "|" + "---|" * len(table.columns)
        rows = [
            "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in (table.columns, *table.rows)
        ]
        blocks.append("\n".join([f"**{table.title}**", "", rows[0], rule, *rows[1:]]))
    blocks += map(_shown, report["notes"])
    return "\n\n".join(blocks) + "\n"


def print_tables(report: dict[str, Any]) -> None:
    """Print the report on stdout."""
    from rich.console import Console
    from rich.table import Table

    # A file or a pipe has no width to fit into.
    console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else _FILE_WIDTH)
    console.print(heading(report))
    for table in tables(report):
        shown = Table(title=table.title, title_justify="left")
        for n, column in enumerate(table.columns):
            shown.add_column(column, justify="left" if n == 0 else "right", overflow="fold")
        for row in table.rows:
            shown.add_row(*row)
        console.print(shown)
    for note in report["notes"]:
        console.print(_shown(note))
