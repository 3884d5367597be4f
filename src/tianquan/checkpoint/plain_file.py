"""Files of a model folder as the outside world leaves them: missing, unreadable, or no plain file at all.

A named pipe would block for ever when opened and a device may never end, so what a path is comes first.
"""

from __future__ import annotations

import stat
from pathlib import Path

from tianquan.errors import CheckpointError


def is_present(path: Path) -> bool:
    """Return whether there is anything at `path`: a link that leads nowhere is, and cannot be read.

    Raises:
        CheckpointError: it cannot be told: the name is too long, or a folder above is closed to us.
    """
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: no file can have such a name
        return False
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    return True


def file_size(path: Path) -> int:
    """Return the bytes of a regular file.

    Raises:
        CheckpointError: it is missing, unreadable, or a folder, pipe or device.
    """
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        if path.is_symlink():
            raise CheckpointError(f"{path}: is a link to what is not there; download or copy it again") from error
        raise CheckpointError(f"{path}: not found; a model folder needs it") from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    if not stat.S_ISREG(status.st_mode):
        raise CheckpointError(f"{path}: is not a regular file; expected one, copy or download it again")
    return status.st_size


def read_text(path: Path, encoding: str = "utf-8") -> str:
    """Return the text of a regular file.

    Raises:
        CheckpointError: as `file_size`, or it is not UTF-8 text.
    """
    file_size(path)
    try:
        return path.read_text(encoding=encoding)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path}: is not UTF-8 text; download or copy it again") from error
