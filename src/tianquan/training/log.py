"""What a training run leaves to look at: a progress bar, metrics.csv, TensorBoard events, a plot of the loss."""

from __future__ import annotations

import csv
import sys
import time
from pathlib import Path
from typing import Any

_COLUMNS = ("step", "loss", "accuracy", "learning_rate", "gradient_norm", "tokens_per_second", "seconds", "skipped")
_LINE_SECONDS = 30.0  # between lines on stderr where there is no terminal to draw a bar on


class TrainingLog:
    """Metrics of a run, a row per `interval` steps, and one where a state was saved between.

    Args:
        run: the run's folder.
        num_steps: of the whole run.
        first_step: where this sitting begins; rows of later steps, left by a killed one, are dropped.
        interval: steps that a row sums up.
    """

    def __init__(self, run: Path, num_steps: int, first_step: int, interval: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        run.mkdir(parents=True, exist_ok=True)
        self._run, self._interval, self._num_steps = run, interval, num_steps
        self._rows = [row for row in read_metrics(run) if int(row["step"]) <= first_step]
        self._earlier_seconds = float(self._rows[-1]["seconds"]) if self._rows else 0.0
        self._started = self._interval_started = self._line_at = time.monotonic()
        self._sums: dict[str, float] = {}
        self._groups: dict[str, tuple[int, int]] = {}
        self._last = (first_step, 0.0)  # step and rate
        self._write_csv()
        self._board = _open_board(run, first_step)
        self._progress = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.description}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not sys.stderr.isatty(),
        )
        self._task = self._progress.add_task("", total=num_steps, completed=first_step)
        self._progress.start()

    def add(
        self,
        step: int,
        *,
        loss: float,
        num_terms: int,
        num_tokens: int,
        learning_rate: float,
        gradient_norm: float,
        skipped: bool,
        correct: dict[str, tuple[int, int]],
    ) -> None:
        """Count a finished step; `step` is the number of steps done, `loss` the sum over its terms."""
        values = {"loss": loss, "terms": num_terms, "tokens": num_tokens, "norm": gradient_norm, "skipped": skipped}
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._sums["steps"] = self._sums.get("steps", 0.0) + 1
        for group, (right, all_) in correct.items():
            before = self._groups.get(group, (0, 0))
            self._groups[group] = (before[0] + right, before[1] + all_)
        self._progress.update(self._task, completed=step)
        self._last = (step, learning_rate)
        if step % self._interval == 0 or step == self._num_steps:
            self.finish_row()

    def close(self) -> None:
        """Draw the plot and end the display."""
        self._progress.stop()
        if self._board is not None:
            self._board.close()
        plot_loss(self._run)

    def finish_row(self) -> None:
        """Write the row of the steps since the one before, if there were any."""
        if not self._sums:
            return
        (step, learning_rate), now = self._last, time.monotonic()
        sums, elapsed = self._sums, max(now - self._interval_started, 1e-9)
        right, answers = (sum(counts[n] for counts in self._groups.values()) for n in (0, 1))
        row: dict[str, Any] = {
            "step": step,
            "loss": round(sums["loss"] / max(1.0, sums["terms"]), 5),
            "accuracy": round(right / answers, 4) if answers else "",
            "learning_rate": float(f"{learning_rate:.4g}"),
            "gradient_norm": round(sums["norm"] / sums["steps"], 4),
            "tokens_per_second": round(sums["tokens"] / elapsed, 1),
            "seconds": round(self._earlier_seconds + now - self._started, 1),
            "skipped": int(sums["skipped"]),
        }
        groups = {f"accuracy/{name}": round(n / m, 4) for name, (n, m) in sorted(self._groups.items()) if name and m}
        self._rows.append({**{key: str(value) for key, value in row.items()}, **{k: str(v) for k, v in groups.items()}})
        self._write_csv()
        if self._board is not None:
            for key, value in {**row, **groups}.items():
                if key not in ("step", "seconds") and value != "":
                    self._board.add_scalar(key, value, step)
        self._show(step, row, now)
        self._sums, self._groups, self._interval_started = {}, {}, now

    def _show(self, step: int, row: dict[str, Any], now: float) -> None:
        text = f"loss {row['loss']:.4f}, {row['tokens_per_second']:.0f} tokens/s"
        if row["accuracy"] != "":
            text += f", {100 * row['accuracy']:.1f} % right"
        self._progress.update(self._task, description=text)
        if self._progress.disable and (now - self._line_at > _LINE_SECONDS or step == self._num_steps):
            print(f"step {step}/{self._num_steps}: {text}", file=sys.stderr, flush=True)
            self._line_at = now

    def _write_csv(self) -> None:
        columns = list(_COLUMNS) + sorted({key for row in self._rows for key in row} - set(_COLUMNS))
        temporary = self._run / ".metrics.csv.partial"
        with temporary.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, columns, restval="")
            writer.writeheader()
            writer.writerows(self._rows)
        temporary.replace(self._run / "metrics.csv")


def read_metrics(run: Path) -> list[dict[str, str]]:
    """Return the rows of a run's metrics.csv, none if it has not begun."""
    path = run / "metrics.csv"
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return [{key: value for key, value in row.items() if value} for row in csv.DictReader(file)]


def plot_loss(run: Path) -> Path | None:
    """Draw loss and accuracy over the steps as RUN/loss.png; None without rows or without matplotlib."""
    rows = read_metrics(run)
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return None
    if not rows:
        return None
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    steps = [int(row["step"]) for row in rows]
    axes.plot(steps, [float(row["loss"]) for row in rows], color="tab:blue", label="loss")
    axes.set(xlabel="step", ylabel="loss per token", ylim=(0, None))
    axes.grid(alpha=0.3)
    answered = [(int(row["step"]), 100 * float(row["accuracy"])) for row in rows if "accuracy" in row]
    if answered:
        right = axes.twinx()
        right.plot(*zip(*answered, strict=True), color="tab:orange", label="right answers")
        right.set(ylabel="right answers, %", ylim=(0, 102))
    figure.legend(loc="outside upper center", ncols=2)
    figure.savefig(run / "loss.png", dpi=120)
    return run / "loss.png"


def _open_board(run: Path, first_step: int) -> Any:
    """Return a TensorBoard writer, None where TensorBoard is not installed. Events of later steps count no more."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(run / "tensorboard", purge_step=first_step + 1)
