"""A bar on stderr for work of known length."""

from __future__ import annotations

import sys
from types import TracebackType


class WorkProgress:
    """A progress bar on stderr while the block runs; nothing when stderr is no terminal.

    Args:
        verb: what is being done.
        total: of what `advance_to` counts; None while it is not known.
    """

    def __init__(self, verb: str, total: float | None = None) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
            redirect_stdout=False,  # results go to stdout, which may be a file
            disable=not sys.stderr.isatty(),
        )
        self._verb = verb
        self._task = self._progress.add_task(verb, total=total)

    def begin(self, what: str, total: float) -> None:
        """Start over with another piece of work."""
        self._progress.reset(self._task, description=f"{self._verb} {what}", total=total, start=True)

    def advance_to(self, done: float) -> None:
        """Show that `done` of the total is done."""
        self._progress.update(self._task, completed=done)

    def show(self, line: str) -> None:
        """Print a line of the result; the bar makes way for it."""
        self._progress.stop()
        print(line, flush=True)
        self._progress.start()

    def __enter__(self) -> WorkProgress:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()
