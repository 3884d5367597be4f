"""Making a folder whole or not at all: what is refused, and what is left behind."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tianquan.checkpoint.new_folder import check_new_folder, format_bytes, new_folder
from tianquan.errors import CheckpointError


@pytest.mark.parametrize("name", [".", "..", "/", "x" * 300, "a/../..", "zero\0byte"])
def test_outputs_that_are_no_folder_of_their_own(tmp_path, monkeypatch, name):
    (tmp_path / "current").mkdir()
    monkeypatch.chdir(tmp_path / "current")
    with pytest.raises(CheckpointError) as caught:
        check_new_folder(Path(name))
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "current").iterdir()) == []


def test_a_symbolic_link_is_refused(tmp_path):
    (tmp_path / "target").mkdir()
    (tmp_path / "link").symlink_to("target")
    (tmp_path / "dangling").symlink_to("nowhere")
    for name in ("link", "dangling"):
        with pytest.raises(CheckpointError, match="symbolic link"):
            check_new_folder(tmp_path / name)


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "empty").mkdir()
    with new_folder(check_new_folder(tmp_path / "empty"), 1) as temporary:
        (temporary / "file").write_text("x")
    assert [path.name for path in (tmp_path / "empty").iterdir()] == ["file"]


KILLED = """
import os, signal, sys
from pathlib import Path
from tianquan.checkpoint.new_folder import new_folder
with new_folder(Path(sys.argv[1]), 1) as temporary:
    (temporary / "file").write_text("x")
    print(temporary.name, flush=True)
    sys.stdin.readline()
"""


def test_leftovers_of_killed_processes_are_removed(tmp_path):
    kept = {".out.partial-notes", ".out.partial-0123456789", ".other.partial-0123abcd", ".out.xyz"}
    for name in (*kept, ".out.partial-0123abcd"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("x")
    command = [sys.executable, "-c", KILLED, str(tmp_path / "out")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        name = other.stdout.readline().strip()
        with new_folder(tmp_path / "out", 1) as temporary:
            assert temporary.name.startswith(".out.partial-")
        assert {path.name for path in tmp_path.iterdir()} == kept | {"out", name}  # it is being written
        other.kill()
    (tmp_path / "out").rmdir()
    with new_folder(tmp_path / "out", 1):
        pass
    assert {path.name for path in tmp_path.iterdir()} == kept | {"out"}


def test_where_nothing_can_be_locked_nothing_is_removed(tmp_path, monkeypatch):
    def fails(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", fails)
    (tmp_path / ".out.partial-0123abcd").mkdir()
    with new_folder(tmp_path / "out", 1):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {"out", ".out.partial-0123abcd"}


@pytest.mark.parametrize(("mask", "mode"), [(0o077, 0o700), (0o002, 0o775)])
def test_permissions_are_the_users(tmp_path, mask, mode):
    before = os.umask(mask)
    try:
        with new_folder(tmp_path / "out", 1):
            pass
    finally:
        os.umask(before)
    assert (tmp_path / "out").stat().st_mode & 0o777 == mode


def test_parents_it_made_are_removed_after_a_failure(tmp_path):
    (tmp_path / "mine").mkdir()
    with pytest.raises(KeyboardInterrupt), new_folder(tmp_path / "mine" / "a" / "b" / "out", 1):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == [tmp_path / "mine"]
    assert list((tmp_path / "mine").iterdir()) == []


def test_a_full_disk_is_told_in_units_that_show(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1234))
    with (
        pytest.raises(CheckpointError, match=r"1\.2 kB free, 5\.0 MB needed"),
        new_folder(tmp_path / "deep" / "out", 5_000_000),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 bytes"), (999, "999 bytes"), (2_500, "2.5 kB"), (3 * 10**9, "3.0 GB")]
)
def test_bytes_have_a_unit(count, text):
    assert format_bytes(count) == text
