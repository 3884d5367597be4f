from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from batch.rows_of_jobs import answers, write_job
from command_line import assert_refused, run

OPTIONS = ["--precision", "float32", "--threads", "1", "--max-num-seqs", "4"]


@pytest.fixture
def command(checkpoint_folder, media_root, tmp_path):
    write_job(tmp_path / "in.jsonl", 90)

    def make(output):
        model = ["--model", str(checkpoint_folder), "--media-root", str(media_root)]
        return ["batch", str(tmp_path / "in.jsonl"), str(output), *model, *OPTIONS]

    return make


def kill_after(arguments, output, num_rows, how):
    process = subprocess.Popen(
        [sys.executable, "-m", "tianquan", *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    end = time.monotonic() + 60
    while not (output.exists() and output.read_bytes().count(b"\n") >= num_rows):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < end
        time.sleep(0.002)
    process.send_signal(how)
    _, errors = process.communicate(timeout=30)
    return process.returncode, errors.decode()


def test_killed_and_run_again_no_row_is_lost_or_doubled(command, tmp_path):
    whole, killed = tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"
    result = run(*command(whole))
    assert (result.returncode, result.stderr) == (0, "")
    assert "80 answers, 10 errors" in result.stdout

    assert kill_after(command(killed), killed, 10, signal.SIGKILL)[0] == -signal.SIGKILL
    code, errors = kill_after(command(killed), killed, 30, signal.SIGINT)
    assert (code, "Traceback" in errors) == (130, False)
    assert "the same command goes on" in errors
    code, errors = kill_after(command(killed), killed, 50, signal.SIGTERM)
    assert (code, "Traceback" in errors) == (128 + signal.SIGTERM, False)
    result = run(*command(killed))
    assert "rows were there before" in result.stdout
    assert answers(killed) == answers(whole)


def test_mistakes_are_told_in_one_line(command, tmp_path):
    closed = tmp_path / "closed"
    closed.mkdir()
    assert_refused(run(*command(tmp_path / "none" / "out.jsonl")), "cannot be written", "No such file")
    if os.geteuid():
        closed.chmod(0o500)
        assert_refused(run(*command(closed / "out.jsonl")), "cannot be written")
    assert_refused(run(*command("/dev/full")), "not a regular file")
    assert_refused(run(*command(tmp_path / "out.jsonl"), "--workers", "2"), "--workers needs --ray")
    assert_refused(run(*command(tmp_path / "out.jsonl"), "--model", "/nonexistent"), "no such folder")
    assert not (tmp_path / "out.jsonl").exists()
