"""A batch job: where it stands, the rows that are left, and answering them in this process.

    input --rows--> [ in flight: parsed, prepared, in the engine ] --window, in order--> output

Rows are answered side by side and written in order, so a long answer holds back the finished rows behind it: at most
a window of them. Nothing else of the files is in memory but a digest of each custom_id.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import stat
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import BinaryIO

from tianquan.batch.answerer import AnsweredRow, RowAnswerer
from tianquan.batch.output_file import OutputFile
from tianquan.batch.rows import Row, SeenIds, custom_id_of, read_rows
from tianquan.errors import TianquanError
from tianquan.llm import LLM
from tianquan.serving.config import ServeConfig

_WINDOW = 16  # times the rows in flight: how far finished rows may run ahead of the first unfinished one
_MAX_BODIES = 4  # rows of the largest size in flight together

Load = Callable[[ServeConfig], LLM]
OnProgress = Callable[[int], None]  # bytes of the input whose rows are in the output


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """What a job was told.

    input, output: files.
    config: the model, its precision, and the limits on rows and media; `max_num_seqs` answers are computed side by
        side.
    load: loads the model that a configuration names.
    seed: see `RowAnswerer`.
    """

    input: Path
    output: Path
    config: ServeConfig
    load: Load
    seed: int = 0

    @property
    def digest(self) -> bytes:
        """Of what answers depend on beside the input, as the user gave it."""
        config, root = self.config, self.config.media_root
        given = [
            *(config.model_name, config.revision, config.precision, config.backend, config.kv_format),
            *(config.max_model_len, config.max_tokens, self.seed),
            *(config.max_slices, config.max_image_tokens, config.long_audio),
            *(config.max_media_bytes, config.max_body_bytes),
            None if root is None or root == self.input.parent else os.path.abspath(root),
            *config.adapters,
        ]
        return hashlib.sha256(json.dumps(given).encode()).digest()

    @property
    def num_in_flight(self) -> int:
        """Rows worked on at a time: some are prepared while others are in the engine."""
        return 2 * self.config.max_num_seqs

    @property
    def max_row_bytes(self) -> int:
        """Of one row."""
        return self.config.max_body_bytes


@dataclass
class Tally:
    """What a run did, for its last line."""

    num_before: int = 0  # rows that an earlier run had answered
    num_answers: int = 0
    num_errors: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    began: float = field(default_factory=time.monotonic)

    def add(self, row: AnsweredRow) -> None:
        """Count a row."""
        self.num_errors += row.is_error
        self.num_answers += not row.is_error
        self.prompt_tokens += row.prompt_tokens
        self.completion_tokens += row.completion_tokens

    def line(self) -> str:
        """Return it in words."""
        seconds = max(time.monotonic() - self.began, 1e-9)
        before = f", {self.num_before} rows were there before" if self.num_before else ""
        return (
            f"{self.num_answers} answers, {self.num_errors} errors in {seconds:.1f} s{before}: "
            f"{(self.num_answers + self.num_errors) / seconds:.2f} rows/s, "
            f"{self.prompt_tokens / seconds:.0f} prompt and {self.completion_tokens / seconds:.0f} answer tokens/s"
        )


@dataclass(frozen=True)
class RowToDo:
    """A row, and whether its custom_id was used before."""

    row: Row
    is_repeated: bool


class BatchFiles:
    """The two files of a job, opened, and its state found out from them.

    Raises:
        TianquanError: a file cannot be used, or the output belongs to another job.
    """

    def __init__(self, plan: BatchPlan, stack: contextlib.ExitStack) -> None:
        self._plan = plan
        self._input: BinaryIO = stack.enter_context(_open_input(plan.input))
        self._output = stack.enter_context(OutputFile(plan.output))
        if self._output.is_same_file(plan.input):
            raise TianquanError(f"{plan.output}: is the input too; name another output")
        self._seen = SeenIds()
        self._last: Row | None = None
        for row in self._output.finished(read_rows(self._input, plan.max_row_bytes), plan.digest):
            self._note(row)
            self._last = row

    @property
    def num_done(self) -> int:
        """Rows in the output."""
        return self._output.num_rows

    @property
    def done_bytes(self) -> int:
        """Bytes of the input up to the last row that is in the output, when the job was opened."""
        return self._last.end if self._last is not None else 0

    @property
    def done_lines(self) -> int:
        """Lines of the input up to the last row that is in the output, when the job was opened."""
        return self._last.line if self._last is not None else 0

    def _note(self, row: Row) -> bool:
        custom_id = custom_id_of(row)
        return custom_id is not None and self._seen.is_repeated(custom_id)

    def rows_to_do(self) -> Iterator[RowToDo]:
        """Yield the rows that are not in the output."""
        self._input.seek(self.done_bytes)
        for row in read_rows(self._input, self._plan.max_row_bytes, number=self.num_done, line=self.done_lines):
            yield RowToDo(row, self._note(row))

    def write(self, answered: AnsweredRow) -> None:
        """Add the next row to the output.

        Raises:
            TianquanError: see `OutputFile.write`.
        """
        assert answered.number == self.num_done, "a row is lost or doubled"
        self._output.write(answered.line)


def _open_input(path: Path) -> BinaryIO:
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # before it is opened, which blocks on a pipe
            raise TianquanError(f"{path}: is not a regular file; a job that can be resumed needs one")
        return open(path, "rb")
    except OSError as error:
        raise TianquanError(f"{path}: cannot be read ({error.strerror})") from error


def run_batch(plan: BatchPlan, on_progress: OnProgress = lambda _: None) -> Tally:
    """Answer the rows that have no answer yet, in this process.

    Raises:
        TianquanError: a file cannot be used, or the model cannot be loaded. Rows never raise.
    """
    with contextlib.ExitStack() as stack:
        files = BatchFiles(plan, stack)
        tally = Tally(num_before=files.num_done)
        on_progress(files.done_bytes)
        rows = files.rows_to_do()
        first = next(rows, None)
        if first is None:  # no model is needed to find that out
            return tally
        answerer = RowAnswerer(plan.load(plan.config), plan.config, plan.digest, plan.seed)
        stack.callback(answerer.close)
        tally.began = time.monotonic()
        asyncio.run(_answer_all(chain([first], rows), files, answerer, plan, tally, on_progress))
        return tally


async def _answer_all(
    rows: Iterator[RowToDo],
    files: BatchFiles,
    answerer: RowAnswerer,
    plan: BatchPlan,
    tally: Tally,
    on_progress: OnProgress,
) -> None:
    async with contextlib.aclosing(answer_in_order(answerer, rows, plan.num_in_flight, plan.max_row_bytes)) as answers:
        async for answered in answers:
            files.write(answered)
            tally.add(answered)
            on_progress(answered.end)


async def answer_in_order(
    answerer: RowAnswerer, rows: Iterator[RowToDo], num_in_flight: int, max_row_bytes: int
) -> AsyncGenerator[AnsweredRow, None]:
    """Yield answers in the order of the rows, which are read as there is room for them.

    Args:
        answerer: of the rows.
        rows: to answer.
        num_in_flight: most rows worked on at a time.
        max_row_bytes: of one row; a few of this size may be in flight together.
    """
    window: deque[asyncio.Task[AnsweredRow]] = deque()
    sizes: dict[asyncio.Task[AnsweredRow], int] = {}  # of the rows worked on
    is_all = False
    try:
        while True:
            while (
                not is_all
                and len(sizes) < num_in_flight
                and len(window) < _WINDOW * num_in_flight
                and sum(sizes.values()) < _MAX_BODIES * max_row_bytes
            ):
                to_do = next(rows, None)
                if to_do is None:
                    is_all = True
                    break
                task = asyncio.create_task(answerer.answer(to_do.row, to_do.is_repeated))
                sizes[task] = min(to_do.row.size, max_row_bytes)
                window.append(task)
            if not window:
                return
            if not window[0].done():
                await asyncio.wait(sizes, return_when=asyncio.FIRST_COMPLETED)
            for task in [task for task in sizes if task.done()]:
                del sizes[task]
            while window and window[0].done():
                yield window.popleft().result()
    finally:
        for task in window:
            task.cancel()
        await asyncio.gather(*window, return_exceptions=True)
