"""The processes that Ray runs actors in, found by the titles it gives them."""

from __future__ import annotations

from pathlib import Path

PATIENCE = 600  # seconds for what takes a few on an idle machine: a limit for what hangs, no measurement


def actor_pids(word):
    """Return the processes of this machine's Ray actors whose title has a word in it."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                title = (entry / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue  # it ended meanwhile
            if title.startswith("ray::") and word in title:
                found.append(int(entry.name))
    return found
