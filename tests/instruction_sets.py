"""Kernels of one instruction set, where the machine has it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import pytest

from tianquan.errors import BackendError
from tianquan.kernels.library import library_path

Opened = TypeVar("Opened")


def open_or_skip(isa: str, open_it: Callable[[], Opened]) -> Opened:
    """Return what `open_it` opens with an instruction set; skip where this machine lacks it, which none does scalar."""
    library_path()  # a library that was not built is no reason to skip
    try:
        return open_it()
    except BackendError as error:
        if isa == "scalar":
            raise
        pytest.skip(str(error))
