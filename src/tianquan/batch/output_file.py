"""The output file: one whole line for each row, in order, so that its number of lines is how far the job is.

    {"id": "batch_req_...", "custom_id": "a", "response": {"status_code", "request_id", "body"}, "error": null}

An id is a digest of the job's options and of the row, so a file tells by itself whether it belongs to a job: there is
no state beside it. A kill can leave the beginning of a line, which the next run takes away. A lock, which the system
drops with the process, keeps a second run out.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from tianquan.batch.rows import Row
from tianquan.errors import TianquanError


def row_id(job: bytes, row: Row) -> str:
    """Return the id of a row's answer: the same for the same row at the same place of the same job.

    Args:
        job: digest of everything that answers depend on beside the row.
        row: of the input.
    """
    digest = hashlib.sha256(job + row.number.to_bytes(8, "little") + row.digest)
    return f"batch_req_{digest.hexdigest()[:32]}"


def line_start(id: str) -> bytes:
    """Return how the line of an answer begins."""
    return f'{{"id": "{id}",'.encode()


class OutputFile:
    """An output file, locked while the block runs.

    Raises:
        TianquanError: it cannot be written, is no regular file, or another run writes it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.num_rows = 0
        try:
            self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o666)
        except OSError as error:
            raise TianquanError(f"{path}: cannot be written ({error.strerror}); name another output") from error
        try:
            if not stat.S_ISREG(os.fstat(self._file).st_mode):
                raise TianquanError(f"{path}: is not a regular file; name another output")
            self._lock()
        except BaseException:
            os.close(self._file)
            raise

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TianquanError(f"{self.path}: another run is writing it; wait, or name another output") from None
        except OSError as error:
            raise TianquanError(
                f"{self.path}: cannot be locked ({error.strerror}); put the output on another file system"
            ) from error

    @property
    def size(self) -> int:
        """Bytes written."""
        return os.fstat(self._file).st_size

    def is_same_file(self, other: Path) -> bool:
        """Return whether a path leads to this file."""
        return os.path.samestat(os.fstat(self._file), other.stat())

    def finished(self, rows: Iterator[Row], job: bytes) -> Iterator[Row]:
        """Yield the rows that are answered already, then cut off the beginning of a line that a kill left.

        Args:
            rows: of the input, from its beginning.
            job: see `row_id`.

        Raises:
            TianquanError: the file holds anything but the first answers of this job; it is not touched then.
        """
        whole = 0
        with open(self.path, "rb") as file:
            for line in file:
                row = next(rows, None)
                if row is None:
                    raise self._foreign("more rows than the input")
                start = line_start(row_id(job, row))
                if not line.startswith(start) and not (start.startswith(line) and not line.endswith(b"\n")):
                    raise self._foreign(f"another row in place of the input's row {row.number + 1}")
                if not line.endswith(b"\n"):
                    break
                whole += len(line)
                self.num_rows += 1
                yield row
        if whole < self.size:
            os.ftruncate(self._file, whole)

    def _foreign(self, found: str) -> TianquanError:
        return TianquanError(
            f"{self.path}: has {found}; it is the output of another job, or of other options: name another output"
        )

    def write(self, line: bytes) -> None:
        """Add the line of the next row.

        Raises:
            TianquanError: the disk is full, or the like; what was written before stays.
        """
        rest = memoryview(line)
        try:
            while rest:
                rest = rest[os.write(self._file, rest) :]
        except OSError as error:
            raise TianquanError(
                f"{self.path}: cannot be written ({error.strerror}) after {self.num_rows} rows; "
                "make room and run the same command again, it goes on there"
            ) from error
        self.num_rows += 1

    def __enter__(self) -> OutputFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):
            if kind is not None and self.size == 0:  # a run that failed before its first row leaves nothing
                os.unlink(self.path)
        os.close(self._file)
