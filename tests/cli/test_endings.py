"""How a command ends that has too little memory: one line, code 2, and no traceback."""

from __future__ import annotations

import pytest

from tianquan import cli


def end_with(monkeypatch, error):
    def fail():
        raise error

    monkeypatch.setattr(cli, "app", fail)
    monkeypatch.setattr(cli.signal, "signal", lambda *_: None)
    monkeypatch.setattr(cli.logging, "basicConfig", lambda **_: None)
    monkeypatch.setattr(cli, "_open_standard_streams", lambda: None)
    cli.main()


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError(), "too little memory for this (out of memory)"),
        (MemoryError("tq_matmul: no room"), "tq_matmul: no room"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 8 bytes"), "8 bytes"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), "2 GiB"),
        (OSError("odd"), "odd: the output cannot be written"),
        (OSError(28, "No space left on device"), "No space left on device: the output cannot be written"),
    ],
)
def test_one_line(monkeypatch, capsys, error, words):
    with pytest.raises(SystemExit) as end:
        end_with(monkeypatch, error)
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line


def test_other_errors_of_the_program_are_not_hidden(monkeypatch):
    with pytest.raises(RuntimeError, match="a bug"):
        end_with(monkeypatch, RuntimeError("a bug"))
