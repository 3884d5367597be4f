"""Several processes that share a batch train as one does, and write one run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from tianquan.training.log import read_metrics
from tianquan.training.state import saved_states

SCRIPT = Path(__file__).with_name("shared_run.py")


def _train(folder: Path, processes: int) -> list[np.ndarray]:
    """Return the weights each process ends with. torchrun finds the port itself and keeps the store they meet at."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    subprocess.run(
        [*torchrun, str(SCRIPT), str(folder)],
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        cwd=SCRIPT.parent,
        check=True,
        timeout=300,
    )
    return [np.load(folder / f"weights-{rank}.npy") for rank in range(processes)]


def test_two_processes_train_as_one_does(tmp_path):
    (alone,) = _train(tmp_path / "one", 1)
    first, second = _train(tmp_path / "two", 2)
    np.testing.assert_array_equal(first, second)
    np.testing.assert_allclose(first, alone, rtol=1e-5, atol=1e-7)
    rows_alone, rows = read_metrics(tmp_path / "one"), read_metrics(tmp_path / "two")
    assert [row["step"] for row in rows] == [row["step"] for row in rows_alone]
    np.testing.assert_allclose([float(r["loss"]) for r in rows], [float(r["loss"]) for r in rows_alone], rtol=1e-3)
    assert len(saved_states(tmp_path / "two")) == 1
