"""Running the command line in a process of its own, forked from one that has imported it: a fifth of the time."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

BACKEND = ["--backend", "reference", "--precision", "float32"]
TIMEOUT_SECONDS = 180

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(
    ["pydantic.type_adapter", "rich.progress", "tianquan.cli", "tianquan.loading", "tianquan.checkpoint.hub"]
)


def run(*arguments, stdin="", cwd=None):
    """Run `tianquan` as `python -m tianquan` does, in folder `cwd`, with the environment as it is now.

    Raises:
        subprocess.TimeoutExpired: it did not end within TIMEOUT_SECONDS.
    """
    command = [sys.executable, "-m", "tianquan", *map(str, arguments)]
    with tempfile.TemporaryDirectory() as folder:
        streams = [Path(folder) / name for name in ("stdin", "stdout", "stderr")]
        streams[0].write_text(stdin, encoding="utf-8")
        place = str(cwd or Path.cwd())
        process = _FORKS.Process(target=_be_the_command, args=(command[3:], place, dict(os.environ), streams))
        process.start()
        process.join(TIMEOUT_SECONDS)
        if process.is_alive():
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(command, TIMEOUT_SECONDS)
        output, errors = (path.read_text(encoding="utf-8") for path in streams[1:])
    return subprocess.CompletedProcess(command, process.exitcode, output, errors)


def _be_the_command(arguments, folder, environment, streams):
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for number, path in enumerate(streams):
        handle = os.open(path, os.O_CREAT | (os.O_WRONLY if number else os.O_RDONLY))
        os.dup2(handle, number)
        os.close(handle)
    sys.stdin = os.fdopen(0, closefd=False)  # a process of `multiprocessing` has none
    sys.argv = ["tianquan", *arguments]
    sys.path.insert(0, folder)
    try:
        runpy.run_module("tianquan", run_name="__main__", alter_sys=True)
    finally:
        atexit._run_exitfuncs()  # a forked process leaves without them


def assert_refused(result, *words):
    assert result.returncode == 2, result
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    for word in words:
        assert word in result.stderr
    return result.stderr
