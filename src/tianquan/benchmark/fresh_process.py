"""A process of its own for what only a fresh one can measure: memory, and the time of a start."""

from __future__ import annotations

import subprocess
import sys

from tianquan.errors import TianquanError

# As `python -m` does, but without the current folder ('') in the path: a file of the user's is no module of ours.
_START = """
import importlib, sys
sys.path = [folder for folder in sys.path if folder]
importlib.import_module(sys.argv[1]).main()
"""


def run_fresh(module: str, *arguments: str) -> str:
    """Run `main` of a module in a new interpreter; return what it prints. Its arguments are in `sys.argv[2:]`.

    Raises:
        TianquanError: it ended by an error, such as too little memory.
    """
    result = subprocess.run([sys.executable, "-c", _START, module, *arguments], capture_output=True, text=True)
    if result.returncode != 0:
        lines = result.stderr.strip().splitlines() or [f"it ended with {result.returncode}; too little memory?"]
        raise TianquanError(f"the measuring process failed: {lines[-1]}")
    return result.stdout
