"""The examples of docs/python.md run, in their order."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def test_the_examples_of_the_page_run(tmp_path, monkeypatch, capsys):
    pytest.importorskip("llguidance")
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) > 4
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    exec(compile("\n".join(blocks), "docs/python.md", "exec"), {})
    said = capsys.readouterr().out
    assert said.count("a red circle, a yellow triangle and a blue square") >= 4
    assert "\nturn on the light\n" in said
    assert "\nred\n" in said
    assert (tmp_path / "talk.json").is_file()
