"""Running the command line in a process of its own."""

from __future__ import annotations

import subprocess
import sys

BACKEND = ["--backend", "reference", "--precision", "float32"]


def run(*arguments, stdin="", cwd=None):
    command = [sys.executable, "-m", "tianquan", *map(str, arguments)]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, cwd=cwd, timeout=180)


def assert_refused(result, *words):
    assert result.returncode == 2, result
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    for word in words:
        assert word in result.stderr
    return result.stderr
