"""What answers are judged by: exact match, character and word error rates, intervals of shares.

Answers are compared after `normalise`: NFKC (full-width forms become plain ones, raised digits ^n), case folded,
punctuation removed except inside numbers (3.5, .5, 1-2, -4), white space collapsed. Symbols (+ = $ % # & @) carry
meaning and stay, and so does a text that is nothing but punctuation.

    error rate = edits / units of the expected text,   edits = Levenshtein distance

A character error rate (CER) counts characters, white space left out. A word error rate (WER) counts words; scripts
that write without spaces (Chinese, Japanese, Thai, ...) have no words to count there, so each of their characters is
a unit of its own, also in mixed text.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

_Z_95 = 1.959963984540054  # standard deviations around the mean that hold 95 % of a normal distribution
_IN_NUMBER = re.compile(r"(?<=\d)[^\w\s](?=\d)|(?<![\w])-(?=\.?\d)|(?<![\w.])\.(?=\d)")
_MINUS = re.compile(r"\u2212|(?<!\w)[\u2013\u2014](?=\.?\d)")  # and dashes that stand for one
_RAISED = re.compile("[\u2070\u00b9\u00b2\u00b3\u2074-\u2079]+")
_SYMBOLS = frozenset("%‰#&@\\")  # that Unicode counts among punctuation
_WORDLESS = r"\u0e00-\u0e7f\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_UNIT = re.compile(rf"[{_WORDLESS}]|[^\s{_WORDLESS}]+")


def normalise(text: str) -> str:
    """Return text as it is compared; see the head of this file."""
    text = _RAISED.sub(lambda digits: f"^{digits[0]}", _MINUS.sub("-", text))
    text = unicodedata.normalize("NFKC", text).casefold()
    kept = {match.start() for match in _IN_NUMBER.finditer(text)}
    shown = (
        character if n in kept or not _is_punctuation(character) else _gap(text, n) for n, character in enumerate(text)
    )
    return " ".join("".join(shown).split()) or " ".join(text.split())


def _is_punctuation(character: str) -> bool:
    return unicodedata.category(character).startswith("P") and character not in _SYMBOLS


def _gap(text: str, n: int) -> str:
    """Return what stands for a punctuation mark: nothing inside a word (don't), else a space (red,blue)."""
    inside = 0 < n < len(text) - 1 and text[n - 1].isalpha() and text[n + 1].isalpha()
    return "" if inside and text[n] in "'’" else " "


def characters(text: str) -> list[str]:
    """Return the units of a character error rate."""
    return [character for character in normalise(text) if not character.isspace()]


def words(text: str) -> list[str]:
    """Return the units of a word error rate."""
    return _UNIT.findall(normalise(text))


def is_exact(expected: str, got: str) -> bool:
    """Return whether an answer is the expected one. White space counts where it separates words only."""
    return words(expected) == words(got)


def edit_distance(expected: Sequence[Hashable], got: Sequence[Hashable]) -> int:
    """Return the least number of insertions, deletions and substitutions that turn one sequence into the other."""
    numbers: dict[Hashable, int] = {}
    first, second = (
        np.array([numbers.setdefault(unit, len(numbers)) for unit in sequence], np.int64)
        for sequence in (expected, got)
    )
    steps = np.arange(len(second) + 1)
    row = steps
    for n, unit in enumerate(first, start=1):
        # The usual recurrence but for insertions, which run along the row: a running minimum of row - steps.
        best = np.empty_like(row)
        best[0] = n
        best[1:] = np.minimum(row[1:] + 1, row[:-1] + (second != unit))
        row = np.minimum.accumulate(best - steps) + steps
    return int(row[-1])


@dataclass(frozen=True)
class ErrorCount:
    """Edits against the number of expected units, summed over any number of answers."""

    edits: int = 0
    length: int = 0

    def __add__(self, other: ErrorCount) -> ErrorCount:
        return ErrorCount(self.edits + other.edits, self.length + other.length)

    @property
    def rate(self) -> float | None:
        """Edits per unit, above 1 when the answer is much longer; None when nothing was expected."""
        return self.edits / self.length if self.length else None


def character_errors(expected: str, got: str) -> ErrorCount:
    """Return the character errors of one answer."""
    units = characters(expected)
    return ErrorCount(edit_distance(units, characters(got)), len(units))


def word_errors(expected: str, got: str) -> ErrorCount:
    """Return the word errors of one answer."""
    units = words(expected)
    return ErrorCount(edit_distance(units, words(got)), len(units))


def wilson_interval(num_right: int, num_total: int) -> tuple[float, float]:
    """Return the 95 % interval of a share, after Wilson (1927): sound for few records and shares near 0 or 1.

    Args:
        num_right: how many of them.
        num_total: how many; for 0 the interval is 0 to 1.
    """
    assert 0 <= num_right <= num_total, (num_right, num_total)
    if num_total == 0:
        return 0.0, 1.0
    share, z2 = num_right / num_total, _Z_95**2
    centre = (share + z2 / (2 * num_total)) / (1 + z2 / num_total)
    half = _Z_95 / (1 + z2 / num_total) * math.sqrt(share * (1 - share) / num_total + z2 / (4 * num_total**2))
    return max(0.0, centre - half), min(1.0, centre + half)
