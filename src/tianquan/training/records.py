"""Training records: conversations in a JSON-lines file, each checked, each error naming its line.

Two forms, one per line:
- the vendor's: {"conversations": [{"role", "content": string or {"text", "image", "audio", "video"}}, ...]}
- OpenAI's:     {"messages": [{"role", "content"}, ...]}
Further keys of a record (`task`, `language`, `id`, ...) are kept for statistics and evaluation.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from tianquan.errors import TianquanError
from tianquan.processing.labels import printable
from tianquan.processing.messages import Message, parse_messages

_CONVERSATION_KEYS = ("conversations", "messages")
_BYTE_ORDER_MARK = "\ufeff"
_NO_BYTE_OF_TEXT = re.compile("[\udc80-\udcff]")  # what stands for a byte that is not UTF-8
_PAIRED = re.compile(r"\\u[dD][89a-fA-F]")  # an escape that means half of a character


class RecordError(TianquanError):
    """A record of a training or evaluation file cannot be used; the message names file and line."""


@dataclass(frozen=True)
class Record:
    """One conversation that ends with an answer of the assistant."""

    turns: tuple[Message, ...]
    source: str  # "FILE:LINE", for messages
    extra: dict[str, Any] = field(default_factory=dict)  # keys beside the conversation

    @property
    def answer(self) -> str:
        """The text of the last assistant turn."""
        return self.turns[-1].text or ""


def parse_record(line: str, source: str) -> Record:
    """Return the record of one line.

    Raises:
        RecordError: not UTF-8, not JSON, a key twice, no conversation, wrong roles, or no answer to learn.
    """
    if line.startswith(_BYTE_ORDER_MARK):
        raise RecordError(f"{source}: begins with a byte-order mark; save the file as UTF-8 without one")
    if not line.isascii() and (wrong := _NO_BYTE_OF_TEXT.search(line)):
        position = len(line[: wrong.start()].encode("utf-8", "surrogateescape"))
        raise RecordError(f"{source}: not UTF-8 text at byte {position} of the line")
    try:
        value = json.loads(line, object_pairs_hook=_without_repeats)
    except _RepeatedKeyError as error:
        raise RecordError(f"{source}: the key {printable(repr(str(error)))} occurs twice in an object") from error
    except (ValueError, RecursionError) as error:  # ValueError also for an integer of thousands of digits
        raise RecordError(f"{source}: not valid JSON") from error
    if not isinstance(value, dict):
        raise RecordError(f"{source}: a record must be an object, got {type(value).__name__}")
    if _PAIRED.search(line) and not _is_text(value):
        raise RecordError(f"{source}: has half of a character (a \\ud800-\\udfff escape without its other half)")
    present = [key for key in _CONVERSATION_KEYS if key in value]
    if len(present) != 1:
        raise RecordError(f"{source}: a record must have either conversations or messages, got {sorted(value)[:6]}")
    try:
        turns = tuple(parse_messages(value[present[0]]))
    except TianquanError as error:
        raise RecordError(f"{source}: {error}") from error
    _check_roles(turns, source)
    extra = {key: item for key, item in value.items() if key not in _CONVERSATION_KEYS}
    return Record(turns, source, extra)


class _RepeatedKeyError(Exception):
    """Of two values JSON keeps the last one; which of them is meant, nobody knows."""


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        raise _RepeatedKeyError(next(key for key in keys if keys.count(key) > 1))
    return found


def _is_text(value: Any) -> bool:
    """Return whether all texts of a JSON value can be written as UTF-8."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_roles(turns: tuple[Message, ...], source: str) -> None:
    """Raise unless system comes first only, and users and the assistant take turns, the assistant last."""
    talk = turns[1:] if turns[0].role == "system" else turns
    expected = ["user", "assistant"] * (len(talk) // 2)
    if not talk or [turn.role for turn in talk] != expected:
        got = ", ".join(turn.role for turn in turns)
        raise RecordError(f"{source}: turns must alternate user and assistant and end with assistant, got {got}")
    for turn in talk[1::2]:
        if not turn.text:
            raise RecordError(f"{source}: an assistant turn has no text to learn")
        if turn.images or turn.audios or turn.videos:
            raise RecordError(f"{source}: an assistant turn cannot hold media")


def decode_line(line: bytes) -> str:
    """Return a line as text for `parse_record`; a bad byte spoils its line only."""
    return line.decode("utf-8", "surrogateescape")


def read_lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yield (line, "FILE:LINE") of the lines of a records file that are not blank.

    Raises:
        RecordError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:  # lines end at \n and nowhere else
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield decode_line(line), f"{path.name}:{number}"
    except OSError as error:
        raise RecordError(f"{path}: cannot be read ({error.strerror})") from error


def read_records(path: Path, limit: int | None = None) -> list[Record]:
    """Return the records of a file, or the first `limit` of them; lines after these are not looked at.

    Raises:
        RecordError: the file or one of its records cannot be used, or it has none.
    """
    records = [parse_record(line, source) for line, source in islice(read_lines(path), limit)]
    if not records:
        raise RecordError(f"{path}: has no records")
    return records
