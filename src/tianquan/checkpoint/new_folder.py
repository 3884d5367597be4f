"""A folder that appears whole or not at all: written under a hidden name beside its place, then renamed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tianquan.checkpoint.partial_output import partial_output, remove_stale
from tianquan.errors import CheckpointError


def check_new_folder(output: Path) -> Path:
    """Return the absolute path of a folder that may be made: it does not exist, or is empty.

    Raises:
        CheckpointError: it is in use, no folder of its own (`.`, `/`, a link), or cannot be looked at.
    """
    try:
        if output.is_symlink():
            raise CheckpointError(f"{output}: is a symbolic link; name the folder itself")
        resolved = output.resolve()
        if resolved.is_mount() or resolved in (Path.cwd(), *Path.cwd().parents):
            raise CheckpointError(f"{output}: is the current folder, one above it or a whole disk; name a new folder")
        if resolved.exists() and (not resolved.is_dir() or any(resolved.iterdir())):
            raise CheckpointError(f"{output}: exists already; name a new folder")
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: links in a circle
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise CheckpointError(f"{output}: cannot be written ({reason}); name another folder") from error
    return resolved


@contextmanager
def new_folder(output: Path, size: int) -> Iterator[Path]:
    """Give a folder to write in, and rename it to `output` at the end; after an error nothing is left.

    Args:
        output: what `check_new_folder` returned.
        size: bytes that will be written.

    Raises:
        CheckpointError: it cannot be written, or the disk is too small.
    """
    made: list[Path] = []
    try:
        _make_parents(output.parent, made)
        remove_stale(output)
        free = shutil.disk_usage(output.parent).free
        if free < size:
            raise CheckpointError(
                f"{output.parent}: {format_bytes(free)} free, {format_bytes(size)} needed; free space or name "
                "another disk"
            )
        with partial_output(output, is_folder=True) as temporary:
            yield temporary
            temporary.replace(output)
        made.clear()
    except OSError as error:
        raise CheckpointError(
            f"{output}: cannot be written ({error.strerror or error}); name another folder"
        ) from error
    finally:
        _remove_empty(made)


def format_bytes(count: int) -> str:
    """Return a count of bytes in the unit that shows it."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"


def _make_parents(folder: Path, made: list[Path]) -> None:
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir(exist_ok=True)
        made.append(path)


def _remove_empty(folders: list[Path]) -> None:
    for path in reversed(folders):
        try:
            path.rmdir()
        except OSError:
            return  # somebody uses it by now
