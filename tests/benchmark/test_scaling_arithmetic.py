from __future__ import annotations

from pathlib import Path

from benchmarks.scaling_arithmetic import tables


def test_the_page_says_what_the_script_computes():
    page = (Path(__file__).parents[2] / "docs" / "scaling.md").read_text(encoding="utf-8")
    assert all(table in page for table in tables())
