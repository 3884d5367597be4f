"""Making a folder whole or not at all: what is refused, and what is left behind."""

from __future__ import annotations

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


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_leftovers_of_killed_processes_are_removed(tmp_path):
    kept = {f".out.partial-{os.getpid()}-abc", ".out.partial-notes", ".other.partial-1-abc", ".out.xyz"}
    for name in (*kept, f".out.partial-{dead_pid()}-ab_c1"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("x")
    with new_folder(tmp_path / "out", 1) as temporary:
        assert temporary.name.startswith(f".out.partial-{os.getpid()}-")
    assert {path.name for path in tmp_path.iterdir()} == kept | {"out"}


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
