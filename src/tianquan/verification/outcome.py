"""What one check found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "FAILED", "skipped"]


@dataclass(frozen=True)
class Outcome:
    """One line of a verification."""

    status: Status
    name: str
    detail: str  # numbers, and what to do when it failed

    def __str__(self) -> str:
        return f"{self.status:<8} {self.name:<34} {self.detail}"


def judge(name: str, holds: bool, detail: str) -> Outcome:
    """Return the outcome of a check that holds or does not."""
    return Outcome("ok" if holds else "FAILED", name, detail)
