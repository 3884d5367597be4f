"""Writing results: files that are whole or absent, text that every terminal can show."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

from tianquan.errors import TianquanError

_MAX_LINE = 500  # characters of an error message; a checkpoint's template can raise one of any length


def check_writable(path: Path) -> Path:
    """Return where a result file will go, links resolved, before the work that makes it.

    Raises:
        TianquanError: the folder is missing or not writable, or something other than a file is there.
    """
    try:
        target = path.resolve()
        if target.exists() and not stat.S_ISREG(target.stat().st_mode):
            raise TianquanError(f"{path}: is not a regular file; name another output")
        if not target.parent.is_dir():
            raise TianquanError(f"{path.parent}: no such folder for the output")
        if not os.access(target.parent, os.W_OK):
            raise TianquanError(f"{path.parent}: the folder is not writable")
    except (OSError, RuntimeError, ValueError) as error:
        raise TianquanError(f"{one_line(str(path))}: cannot be used as an output file") from error
    return target


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that it is there whole or not at all; a link is followed, an old file's mode is kept.

    Raises:
        TianquanError: it cannot be written.
    """
    target = check_writable(path)
    try:
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name[:40]}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            os.chmod(temporary, target.stat().st_mode if target.exists() else 0o666 & ~_umask())
            os.replace(temporary, target)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        raise TianquanError(f"{path}: cannot be written ({error.strerror})") from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def one_line(text: str) -> str:
    """Return text as one line of printable characters, cut where it is very long."""
    line = " ".join(text.split())
    line = "".join(character if character.isprintable() else "\ufffd" for character in line)
    return line if len(line) <= _MAX_LINE else line[:_MAX_LINE] + " ..."


def terminal_safe(text: str) -> str:
    """Return model output without control characters that move cursors or change colours."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)
