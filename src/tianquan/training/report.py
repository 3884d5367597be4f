"""What an adaptation did, as Markdown: numbers, scores before and after by task, the curve."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tianquan.processing.labels import printable
from tianquan.training.log import read_metrics

_SKIPPED_SHOWN = 20
_MAX_SHOWN = 400  # characters of a cell


@dataclass(frozen=True)
class Score:
    """Loss and right answers over evaluation records."""

    loss_sum: float = 0.0
    num_terms: int = 0
    correct: dict[str, tuple[int, int]] = field(default_factory=dict)  # by task: right, all

    def plus(self, loss_sum: float, num_terms: int, correct: Mapping[str, tuple[int, int]]) -> Score:
        """Return the score with one more batch."""
        merged = dict(self.correct)
        for group, (right, all_) in correct.items():
            before = merged.get(group, (0, 0))
            merged[group] = (before[0] + right, before[1] + all_)
        return Score(self.loss_sum + loss_sum, self.num_terms + num_terms, merged)

    @property
    def loss(self) -> float:
        """Mean loss per token."""
        return self.loss_sum / max(1, self.num_terms)

    @property
    def accuracy(self) -> float:
        """Share of the records that are right."""
        right, all_ = (sum(counts[n] for counts in self.correct.values()) for n in (0, 1))
        return right / max(1, all_)


def write_score(path: Path, score: Score, measured: Sequence[str]) -> None:
    """Keep a score for a run that is resumed; `measured` names what it is of. The file appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps({"measured": list(measured), **asdict(score)}, indent=1), encoding="utf-8")
    partial.replace(path)


def read_score(path: Path, measured: Sequence[str]) -> Score | None:
    """Return the score that was kept of what `measured` names; None if there is none, or one of something else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        correct = {key: (right, all_) for key, (right, all_) in value["correct"].items()}
        return Score(value["loss_sum"], value["num_terms"], correct) if value["measured"] == list(measured) else None
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):  # none, or another program's file
        return None


@dataclass(frozen=True, kw_only=True)
class FinetuneReport:
    """All that is reported."""

    options: dict[str, str]
    num_records: int
    skipped: Sequence[str]
    num_trained: int
    num_parameters: int
    before: Score | None
    after: Score | None


def write_report(report: FinetuneReport, output: Path) -> Path:
    """Write OUTPUT/report.md."""
    rows = read_metrics(output / "run")
    lines = [
        "# Training report",
        "",
        f"- {report.num_records:,} records, {len(report.skipped)} skipped",
        f"- {report.num_trained:,} of {report.num_parameters:,} values trained",
    ]
    if rows:
        last = rows[-1]
        lines.append(f"- {last['step']} steps in {float(last['seconds']):,.0f} s, last loss {last['loss']} per token")
    if report.before is not None and report.after is not None:
        lines += ["", "## Held-out records", "", *_score_table(report.before, report.after)]
    if (output / "run" / "loss.png").is_file():
        lines += ["", "## Curve", "", "![loss and right answers over the steps](run/loss.png)"]
    lines += ["", "## Options", "", "| option | value |", "|---|---|"]
    lines += [f"| {key} | {_cell(value)} |" for key, value in sorted(report.options.items())]
    if report.skipped:
        lines += ["", "## Skipped records", "", *(f"- {reason}" for reason in report.skipped[:_SKIPPED_SHOWN])]
        if len(report.skipped) > _SKIPPED_SHOWN:
            lines.append(f"- and {len(report.skipped) - _SKIPPED_SHOWN} more")
    path = output / "report.md"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8", errors="backslashreplace")  # paths may be no text
    return path


def _cell(text: str) -> str:
    """Return foreign text as a cell of a table."""
    return printable(text, _MAX_SHOWN).replace("|", "\\|")


def _score_table(before: Score, after: Score) -> list[str]:
    lines = ["| task | records | right before | right after |", "|---|---:|---:|---:|"]
    for task, (right, all_) in sorted(after.correct.items()):
        earlier = before.correct.get(task, (0, 0))[0]
        name = _cell(task) if task else "(none)" if len(after.correct) > 1 else "all"
        lines.append(f"| {name} | {all_} | {100 * earlier / all_:.1f} % | {100 * right / all_:.1f} % |")
    if len(after.correct) > 1:
        total = sum(all_ for _, all_ in after.correct.values())
        lines.append(f"| **all** | {total} | {100 * before.accuracy:.1f} % | {100 * after.accuracy:.1f} % |")
    return [*lines, "", f"Loss per token: {before.loss:.4f} before, {after.loss:.4f} after."]
