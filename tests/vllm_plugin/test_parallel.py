"""Two processes that share the model: the same tokens as one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vllm_plugin.conftest import ENGINE, SETTINGS

SCRIPT = Path(__file__).with_name("engine_process.py")
CASES = Path(__file__).parents[1] / "conformance" / "cases"


@pytest.mark.parametrize(
    "options",
    [
        {"tensor_parallel_size": 2},
        {"tensor_parallel_size": 2, "mm_encoder_tp_mode": "data"},
    ],
    ids=["tensor", "tensor, encoders by slice"],
)
def test_same_tokens(options, tmp_path):
    # The engine has to be a process of its own here. One thread each: the processes wait for each other all the time.
    settings = {**SETTINGS, "VLLM_ENABLE_V1_MULTIPROCESSING": "1", "OMP_NUM_THREADS": "1"}
    engine = {**ENGINE, "max_num_batched_tokens": 1024, **options}  # few steps: each waits for both processes
    command = [sys.executable, str(SCRIPT), json.dumps(engine), str(tmp_path / "result.json")]
    result = subprocess.run(command, env={**os.environ, **settings}, capture_output=True, text=True, timeout=1200)
    assert result.returncode == 0, result.stderr[-4000:]
    for name, got in json.loads((tmp_path / "result.json").read_text()).items():
        expected = json.loads((CASES / f"{name}.json").read_text())
        assert got["prompt"] == expected["prompt_token_ids"], name
        assert got["answer"] == expected["greedy_token_ids"], name
