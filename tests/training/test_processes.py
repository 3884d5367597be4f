"""Several processes that share a batch train as one does, and write one run."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np

from tianquan.training.log import read_metrics
from tianquan.training.state import saved_states

SCRIPT = Path(__file__).with_name("shared_run.py")


def _start(folder: Path, rank: int, world: int, port: int) -> subprocess.Popen[str]:
    environment = {
        **os.environ,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, str(SCRIPT), str(folder)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, cwd=SCRIPT.parent)


def _train(folder: Path, world: int) -> list[np.ndarray]:
    """Return the weights each process ends with."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [_start(folder, rank, world, port) for rank in range(world)]
    printed = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * world
    return [np.array([float(value) for value in text.strip().splitlines()[-1].split(",")]) for text in printed]


def test_two_processes_train_as_one_does(tmp_path):
    (alone,) = _train(tmp_path / "one", 1)
    first, second = _train(tmp_path / "two", 2)
    np.testing.assert_array_equal(first, second)
    np.testing.assert_allclose(first, alone, rtol=1e-5, atol=1e-7)
    rows_alone, rows = read_metrics(tmp_path / "one"), read_metrics(tmp_path / "two")
    assert [row["step"] for row in rows] == [row["step"] for row in rows_alone]
    np.testing.assert_allclose([float(r["loss"]) for r in rows], [float(r["loss"]) for r in rows_alone], rtol=1e-3)
    assert len(saved_states(tmp_path / "two")) == 1
