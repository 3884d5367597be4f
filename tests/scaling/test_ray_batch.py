from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from batch.rows_of_jobs import answers, chat_row, write_job
from command_line import run
from scaling.ray_processes import PATIENCE, actor_pids
from tianquan.batch.job import BatchFiles, BatchPlan
from tianquan.scaling.batch_pipeline import plan_pieces
from tianquan.serving.config import ServeConfig

NUM_ROWS = 400
ON_RAY = ["--ray", "local", "--workers", "2", "--threads", "1"]


@pytest.fixture(scope="module")
def job(tmp_path_factory, checkpoint_folder, media_root):
    """A folder with an input and the output of a run without Ray, and the command that runs it."""
    folder = tmp_path_factory.mktemp("ray")
    write_job(folder / "in.jsonl", NUM_ROWS)

    def command(output, *options):
        model = ["--model", str(checkpoint_folder), "--media-root", str(media_root), "--precision", "float32"]
        return ["batch", str(folder / "in.jsonl"), str(output), *model, *options]

    result = run(*command(folder / "local.jsonl", "--threads", "1"))
    assert result.returncode == 0, result.stderr
    return folder, command


def test_a_lost_workers_rows_are_answered_once(job):
    folder, command = job
    output = folder / "ray.jsonl"
    process = subprocess.Popen(
        [sys.executable, "-m", "tianquan", *command(output, *ON_RAY)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    end = time.monotonic() + PATIENCE
    while not (output.exists() and output.read_bytes().count(b"\n") >= NUM_ROWS // 8):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < end
        time.sleep(0.01)
    os.kill(actor_pids("RowWorker")[0], signal.SIGKILL)
    told, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, errors
    assert f"{NUM_ROWS - 10} answers, 10 errors".encode() in told
    assert answers(output) == answers(folder / "local.jsonl")


def test_ray_goes_on_with_what_a_local_run_left(job):
    folder, command = job
    lines = (folder / "local.jsonl").read_bytes().splitlines(keepends=True)
    output = folder / "resumed.jsonl"
    output.write_bytes(b"".join(lines[:-30]) + lines[-30][:50])
    result = run_for_long(command(output, *ON_RAY))
    assert result.returncode == 0, result.stderr
    assert f"{NUM_ROWS - 30} rows were there before" in result.stdout
    assert answers(output) == answers(folder / "local.jsonl")


def run_for_long(arguments, environment=None):
    command = [sys.executable, "-m", "tianquan", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE)


# Ray gives a node 30 s to start and raises a bare Exception; on a busy machine it takes more than one attempt.
CLUSTER = """
import sys, ray
for attempt in range(5):
    try:
        found = ray.init(address="local", num_cpus=2, include_dashboard=False)
        break
    except Exception:
        ray.shutdown()
print(found.address_info["gcs_address"], flush=True)
sys.stdin.read()
"""


def test_on_a_cluster_by_its_address(job, tmp_path):
    folder, command = job
    lines = (folder / "local.jsonl").read_bytes().splitlines(keepends=True)
    output = folder / "cluster.jsonl"
    output.write_bytes(b"".join(lines[:-20]))
    inside = {**os.environ, "HOME": str(tmp_path), "RAY_AUTH_MODE": "token"}  # Ray makes the token there
    outside = {**os.environ, "HOME": str(tmp_path), "RAY_AUTH_MODE": "disabled"}
    with subprocess.Popen(
        [sys.executable, "-c", CLUSTER],
        env=inside,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as cluster:
        address = cluster.stdout.readline().decode().strip()
        assert address, "Ray does not start"
        arguments = command(output, "--ray", address, "--workers", "2", "--threads", "1")
        refused, done = (run_for_long(arguments, environment) for environment in (outside, inside))
        assert "where the cluster asks for a token" in refused.stderr
        assert done.returncode == 0, done.stderr
        assert cluster.poll() is None  # it is not ours to end
        cluster.stdin.close()
        assert cluster.wait(PATIENCE) == 0
    assert answers(output) == answers(folder / "local.jsonl")


DEADLY = """
import os, sys, threading
from pathlib import Path
import tianquan
from tianquan.batch.job import BatchPlan
from tianquan.errors import TianquanError
from tianquan.scaling import batch_pipeline
from tianquan.serving.config import ServeConfig

def load(config):
    llm = tianquan.load(config.model, precision="float32", threads=1)
    threading.Timer(0.5, os._exit, (1,)).start()
    return llm

batch_pipeline.MAX_LOSSES = 1
input, output, model = sys.argv[1:]
plan = BatchPlan(input=Path(input), output=Path(output), config=ServeConfig(model=model), load=load)
try:
    batch_pipeline.run_ray_batch(plan, "local", 1)
except TianquanError as error:
    print(error)
"""


def test_what_kills_every_worker_ends_the_job(tmp_path, checkpoint_folder):
    row = chat_row("a", "hello", max_tokens=3000, ignore_eos=True)
    (tmp_path / "in.jsonl").write_text(json.dumps(row) + "\n")
    command = [sys.executable, "-c", DEADLY, tmp_path / "in.jsonl", tmp_path / "out.jsonl", checkpoint_folder]
    result = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert "rows lost their worker more than 1 times" in result.stdout, result.stderr
    assert not (tmp_path / "out.jsonl").exists()


def test_mistakes_are_one_line(job):
    folder, command = job
    for options, word in (
        (["--ray", "127.0.0.1:1"], "no Ray cluster"),
        (["--ray", "local", "--workers", "9", "--threads", "8"], "do not fit"),
        (["--ray", "local", "--model", "/nonexistent"], "no such folder"),
    ):
        result = run(*command(folder / "none.jsonl", *options))
        assert result.returncode == 2
        assert "Traceback" not in result.stderr
        assert word in result.stderr
        assert not (folder / "none.jsonl").exists()


def test_pieces_cover_all_rows_however_many(tmp_path, monkeypatch, checkpoint_folder):
    from contextlib import ExitStack

    from tianquan.scaling import batch_pipeline

    monkeypatch.setattr(batch_pipeline, "_MAX_PIECES", 4)
    plan = BatchPlan(
        input=tmp_path / "in.jsonl",
        output=tmp_path / "out.jsonl",
        config=ServeConfig(model=str(checkpoint_folder)),
        load=lambda _: None,
    )
    for num_rows in (0, 1, 16, 17, 500, 513):
        write_job(plan.input, 500)
        data = plan.input.read_bytes().splitlines(keepends=True)
        plan.input.write_bytes(b"".join((data + data)[:num_rows]))
        with ExitStack() as stack:
            pieces = plan_pieces(BatchFiles(plan, stack))
        assert len(pieces) <= 8
        assert sum(piece.num_rows for piece in pieces) == num_rows
        starts = [len(b"".join((data + data)[: piece.number])) for piece in pieces]
        assert [piece.start for piece in pieces] == starts
        repeated = {number for piece in pieces for number in piece.repeated}
        assert {number for number in repeated if number >= 500} == set(range(500, num_rows)) & repeated
        assert len([number for number in range(500, num_rows) if number in repeated]) >= max(0, num_rows - 503)
