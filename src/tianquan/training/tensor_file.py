"""Tensors of PyTorch to a safetensors file, a full disk being an OSError as anywhere else."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a file.

    Args:
        tensors: by name, each contiguous.
        path: of the file.
        metadata: of its header.

    Raises:
        OSError: it cannot be written; the library has an error of its own for that.
    """
    try:
        save_file(dict(tensors), path, metadata=metadata)
    except SafetensorError as error:
        raise OSError(errno.EIO, str(error), str(path)) from error
