"""Closed streams, odd encodings, odd names, signals: the program says one line and nothing is lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from command_line import BACKEND, assert_refused, run
from tianquan.cli.output import check_writable, one_line, terminal_safe, write_atomically
from tianquan.errors import TianquanError

HELLO = '[{"role": "user", "content": "x"}]'


def shell(line, **environment):
    program = f"{sys.executable} -m tianquan"
    full = {**os.environ, **environment}
    return subprocess.run(
        ["bash", "-c", line.replace("tianquan", program, 1)], capture_output=True, timeout=60, env=full
    )


def test_special_files_are_not_replaced(tmp_path):
    fifo = tmp_path / "pipe"
    os.mkfifo(fifo)
    with pytest.raises(TianquanError, match="not a regular file"):
        write_atomically(fifo, b"x")
    assert fifo.is_fifo()


def test_links_are_followed_and_modes_kept(tmp_path):
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "real").chmod(0o640)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write_atomically(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"new"
    assert (tmp_path / "real").stat().st_mode & 0o777 == 0o640
    write_atomically(tmp_path / "fresh", b"x")
    mask = os.umask(0)
    os.umask(mask)
    assert (tmp_path / "fresh").stat().st_mode & 0o777 == 0o666 & ~mask


@pytest.mark.parametrize("name", ["no/such/file", "x" * 5000, "a\0b"])
def test_outputs_that_cannot_be(tmp_path, name):
    with pytest.raises(TianquanError):
        check_writable(tmp_path / name)


def test_messages_are_one_printable_line():
    assert one_line("a\nb\x1b[31mc\ud800") == "a b\ufffd[31mc\ufffd"
    assert len(one_line("x" * 10**6)) < 600
    assert terminal_safe("好\n\t\x1b[2J\r") == "好\n\t\ufffd[2J\ufffd"


def test_a_conversation_survives_bad_lines(checkpoint_folder, tmp_path):
    lines = ["hi", "/image [/red]", "/image ~nouser/x", "/image " + "a" * 5000, "/save ~nouser/x", "/image 'x", "/drop"]
    (tmp_path / "not a picture.png").write_text("text")
    lines += [
        f"/image {tmp_path}/not\\ a\\ picture.png",
        "what is it?",
        "still here",
        f"/save {tmp_path / 'talk.json'}",
    ]
    result = run(
        "chat", checkpoint_folder, "--max-tokens", 3, "--temperature", 0, *BACKEND, stdin="\n".join(lines) + "\n"
    )
    assert result.returncode == 2  # some lines could not be done
    assert "Traceback" not in result.stderr
    assert "[/red]" in result.stderr
    assert "not a picture.png" in result.stderr
    talk = json.loads((tmp_path / "talk.json").read_text(encoding="utf-8"))
    assert [turn["content"] for turn in talk if turn["role"] == "user"] == [{"text": "hi"}, {"text": "still here"}]


@pytest.mark.parametrize(
    "line",
    [
        "tianquan generate {folder} --messages - --backend reference --precision float32 <&-",
        "tianquan generate {folder} --messages - --backend reference --precision float32 < /dev/null",
    ],
)
def test_no_input(checkpoint_folder, line):
    result = shell(line.format(folder=checkpoint_folder))
    assert result.returncode == 2
    assert b"Traceback" not in result.stderr


def test_closed_stderr_and_full_disk(checkpoint_folder):
    command = f"tianquan chat {checkpoint_folder} hi --max-tokens 3 --seed 1 {' '.join(BACKEND)}"
    assert len(shell(command + " 2>&-").stdout) > 1
    full = shell(command + " > /dev/full")
    assert full.returncode == 2
    assert b"Traceback" not in full.stderr


@pytest.mark.parametrize("encoding", ["gbk", "latin-1", "ascii"])
def test_terminals_of_any_encoding(checkpoint_folder, encoding):
    command = f"tianquan chat {checkpoint_folder} 你好 --max-tokens 30 --seed 1 {' '.join(BACKEND)}"
    result = shell(command, PYTHONIOENCODING=encoding)
    assert result.returncode == 0
    assert len(result.stdout) > 1


def test_json_python_does_not_like(checkpoint_folder):
    arguments = ["generate", checkpoint_folder, "--messages", "-", *BACKEND]
    assert_refused(run(*arguments, stdin=f"[{'1' * 5000}]"), "not valid JSON")
    with_mark = "\ufeff" + HELLO
    assert run(*arguments, "--max-tokens", 2, stdin=with_mark).returncode == 0


def test_termination_cleans_up(checkpoint_folder, tmp_path):
    """A signal while a folder is being written leaves nothing behind."""
    code = (
        "import sys, time; import tianquan.checkpoint.low_bit as low_bit\n"
        "slow = low_bit._arrays\n"
        "def waiting(*a):\n    print('writing', flush=True); time.sleep(30); yield from slow(*a)\n"
        "low_bit._arrays = waiting\n"
        "from tianquan.cli import main; main()"
    )
    command = [sys.executable, "-c", code, "quantize", str(checkpoint_folder), str(tmp_path / "out")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"writing\n"
        time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 128 + signal.SIGTERM
    assert list(tmp_path.iterdir()) == []
