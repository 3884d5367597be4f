"""What error messages quote of files, keys and templates: one line, printable, not too long."""

from __future__ import annotations


def printable(text: str, limit: int = 80) -> str:
    """Return `text` as it can stand in a message: escaped when it holds control characters, cut at `limit`."""
    shown = text[: limit + 1]
    shown = shown if shown.isprintable() else ascii(shown)[1:-1]
    return shown if len(shown) <= limit else shown[: limit - 3] + "..."
