"""Changing one key of a JSON file."""

from __future__ import annotations

import json
from pathlib import Path


def edit_json(path: Path, **changes: object) -> None:
    """Set keys of a JSON file; `...` removes a key."""
    values = json.loads(path.read_text(encoding="utf-8"))
    for key, value in changes.items():
        if value is ...:
            values.pop(key)
        else:
            values[key] = value
    path.write_text(json.dumps(values), encoding="utf-8")
