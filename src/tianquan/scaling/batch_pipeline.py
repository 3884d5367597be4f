"""A batch job as a Ray Data pipeline: pieces of the input go to workers, answers come back in order.

    driver: input -> pieces (where they begin, how many rows) -> [ workers: read, answer ] -> in order -> output

Workers are actors that load the model once. Ray sends them as many pieces as they can have in flight and stops when
answers are not taken; a piece whose worker is lost is sent to another. The driver alone writes, and it takes each row
number once, so the output is as a run without Ray leaves it, and either can go on with the other's.

Input and media are read by the workers, under the paths the driver was given: on several machines they must be on
storage that all of them see.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import islice

import pyarrow as pa
import ray.data
import ray.exceptions

from tianquan.batch.answerer import AnsweredRow, RowAnswerer
from tianquan.batch.job import BatchFiles, BatchPlan, OnProgress, RowToDo, Tally, answer_in_order
from tianquan.batch.rows import read_rows
from tianquan.errors import TianquanError
from tianquan.scaling.cluster import Share, check_model, connected, plan_share, with_whole_paths

_PIECE_ROWS = 16  # at first: few enough that all workers end at about the same time
_MAX_PIECES = 4096  # Ray plans all of them at the start; up to twice as many are left
_PIECES_AT_ONCE = 2  # of one worker: while the last rows of one are answered, the next has begun
MAX_LOSSES = 5  # of workers with the same piece: Ray would try for ever, also what kills every worker

_COLUMNS = pa.schema(
    [
        ("number", pa.int64()),
        ("end", pa.int64()),
        ("line", pa.large_binary()),
        ("is_error", pa.bool_()),
        ("prompt_tokens", pa.int64()),
        ("completion_tokens", pa.int64()),
    ]
)


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Some rows that follow one another.

    start, line, number: where in the file the first begins, how many lines and rows come before it.
    num_rows: of the piece.
    repeated: numbers of rows whose custom_id was used before.
    """

    start: int
    line: int
    number: int
    num_rows: int
    repeated: tuple[int, ...]

    def joined(self, later: Piece) -> Piece:
        """Return this piece and the one after it as one."""
        return replace(self, num_rows=self.num_rows + later.num_rows, repeated=self.repeated + later.repeated)


def run_ray_batch(
    plan: BatchPlan, address: str, num_workers: int | None, on_progress: OnProgress = lambda _: None
) -> Tally:
    """Answer the rows that have no answer yet on a Ray cluster.

    Args:
        plan: of the job; its paths are made whole for the workers.
        address: see `connected`.
        num_workers: see `plan_share`, also for threads, which the plan's configuration has.
        on_progress: called with the bytes of the input that are done.

    Raises:
        TianquanError: as `run_batch`; or no cluster, one that is too small, workers that cannot load or read.
    """
    plan = replace(plan, input=plan.input.resolve(), config=with_whole_paths(plan.config))
    with contextlib.ExitStack() as stack:
        files = BatchFiles(plan, stack)
        tally = Tally(num_before=files.num_done)
        on_progress(files.done_bytes)
        pieces = plan_pieces(files)
        if not pieces:  # no cluster is needed to find that out
            return tally
        check_model(plan.config)
        stack.enter_context(connected(address))
        share = plan_share(num_workers, plan.config.threads)
        plan = replace(plan, config=replace(plan.config, threads=share.num_threads))
        tally.began = time.monotonic()
        for answered in _answers(plan, pieces, share):
            files.write(answered)
            tally.add(answered)
            on_progress(answered.end)
        return tally


def plan_pieces(files: BatchFiles) -> list[Piece]:
    """Return the pieces of the rows that are left; the input is read once. All are as large, but for the last."""
    pieces: list[Piece] = []
    num_rows = _PIECE_ROWS
    rows = files.rows_to_do()
    start, line = files.done_bytes, files.done_lines
    while some := list(islice(rows, num_rows)):
        repeated = tuple(to_do.row.number for to_do in some if to_do.is_repeated)
        pieces.append(Piece(start=start, line=line, number=some[0].row.number, num_rows=len(some), repeated=repeated))
        start, line = some[-1].row.end, some[-1].row.line
        if len(pieces) == 2 * _MAX_PIECES:
            pieces = [first.joined(second) for first, second in zip(pieces[::2], pieces[1::2], strict=True)]
            num_rows *= 2
    return pieces


def _answers(plan: BatchPlan, pieces: list[Piece], share: Share) -> Iterator[AnsweredRow]:
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    items = ray.data.from_items([asdict(piece) for piece in pieces], override_num_blocks=len(pieces))
    answered = items.map_batches(
        RowWorker,
        fn_constructor_kwargs={"plan": plan},
        compute=ray.data.ActorPoolStrategy(
            size=share.num_workers,
            max_tasks_in_flight_per_actor=2 * _PIECES_AT_ONCE,
            max_concurrent_calls_per_actor=_PIECES_AT_ONCE,
            enable_true_multi_threading=True,
        ),
        batch_format="pyarrow",
        batch_size=None,
        num_cpus=share.num_threads,
        max_task_retries=MAX_LOSSES,
    )
    try:
        for table in answered.iter_batches(batch_format="pyarrow", batch_size=None, prefetch_batches=1):
            for row in table.to_pylist():
                yield AnsweredRow(**row)
    except ray.exceptions.RayActorError as error:
        raise TianquanError(
            f"rows lost their worker more than {MAX_LOSSES} times ({_cause(error)}); does its machine have the memory "
            "for the model and its rows? The same command goes on behind the rows that are written"
        ) from error
    except ray.exceptions.RayError as error:
        raise TianquanError(f"the workers failed: {_cause(error)}") from error


def _cause(error: BaseException) -> str:
    """Return the last line of what a worker said: Ray puts its stack in front of it."""
    return str(error).strip().splitlines()[-1]


class RowWorker:
    """An actor that answers pieces of the input, several at the same time.

    Args:
        plan: of the job.

    Raises:
        TianquanError: the model cannot be loaded.
    """

    def __init__(self, plan: BatchPlan) -> None:
        self._plan = plan
        self._answerer = RowAnswerer(plan.load(plan.config), plan.config, plan.digest, plan.seed)
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="tianquan-rows", daemon=True).start()

    def __call__(self, items: pa.Table) -> pa.Table:
        """Return the answers to the rows of some pieces."""
        rows: list[AnsweredRow] = []
        for item in items.to_pylist():
            piece = Piece(**item)
            answers = asyncio.run_coroutine_threadsafe(self._answer(piece), self._loop).result()
            if len(answers) != piece.num_rows:
                raise TianquanError(f"{self._plan.input}: has not the rows it had when the job began")
            rows += answers
        return pa.Table.from_pylist([asdict(row) for row in rows], schema=_COLUMNS)

    async def _answer(self, piece: Piece) -> list[AnsweredRow]:
        repeated = frozenset(piece.repeated)
        with open(self._plan.input, "rb") as file:
            file.seek(piece.start)
            limit = self._plan.max_row_bytes
            rows = islice(read_rows(file, limit, number=piece.number, line=piece.line), piece.num_rows)
            to_do = (RowToDo(row, row.number in repeated) for row in rows)
            return [row async for row in answer_in_order(self._answerer, to_do, self._plan.num_in_flight, limit)]
