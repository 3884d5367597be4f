"""Tests of training itself need PyTorch, which `make test-training` installs; elsewhere pytest says what is missing."""

from __future__ import annotations

import importlib.util

_NEEDED = ("torch", "accelerate", "peft")
_MISSING = [name for name in _NEEDED if importlib.util.find_spec(name) is None]

_NEED_THEM = [
    f"test_{name}.py"
    for name in (
        "dense_targets",
        "embedded_stages",
        "finetune",
        "module_tree",
        "muon",
        "processes",
        "rounded_weights",
        "trainer",
    )
]
collect_ignore = _NEED_THEM if _MISSING else []


def pytest_report_header() -> str | None:
    return f"left out without {', '.join(_MISSING)}: {', '.join(collect_ignore)}" if _MISSING else None
