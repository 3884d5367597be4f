"""Where an output is written before it takes its name: hidden beside it, as `.NAME.partial-RANDOM`, and locked.

A process that is killed leaves it behind, unlocked; the next save under the same NAME removes it. Process ids would not
do: those of one container mean nothing in another that shares the disk.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_RANDOM_BYTES = 4  # of a hidden name, in hexadecimal


@contextmanager
def partial_output(output: Path, *, is_folder: bool) -> Iterator[Path]:
    """Give a new hidden folder or file to write; what is still there under its name at the end is removed.

    Raises:
        OSError: it cannot be made.
    """
    path, descriptor = _make_locked(output, is_folder)
    try:
        yield path
    finally:
        _remove(path)
        os.close(descriptor)


def remove_stale(output: Path) -> None:
    """Remove what killed processes left of writing `output`; where nothing can be locked, nothing is removed.

    Raises:
        OSError: the folder cannot be looked at.
    """
    pattern = re.compile(re.escape(_prefix(output)) + f"[0-9a-f]{{{2 * _RANDOM_BYTES}}}")  # and nothing of the user's
    for path in output.parent.iterdir():
        if pattern.fullmatch(path.name) is None or path.is_symlink() or not (path.is_dir() or path.is_file()):
            continue
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except OSError:
            continue  # not ours, or gone by now
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(path)
        except OSError:
            pass  # being written, or on a disk without locks
        finally:
            os.close(descriptor)


def _prefix(output: Path) -> str:
    return f".{output.name}.partial-"


def _make_locked(output: Path, is_folder: bool) -> tuple[Path, int]:
    """Return a new path and the descriptor that holds its lock."""
    while True:
        path = output.with_name(f"{_prefix(output)}{secrets.token_hex(_RANDOM_BYTES)}")
        if is_folder:
            path.mkdir()
            descriptor = os.open(path, os.O_RDONLY)
        else:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError:
            return path, descriptor  # a disk without locks, where nobody removes it either
        if path.exists():  # nobody took it for stale before it was locked
            return path, descriptor
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
