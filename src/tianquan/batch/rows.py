"""The rows of an input file: read one at a time, whatever is in them.

    {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {...}}

A row that is no such thing is still a row: it has a number and gets an answer, an error. Blank lines are no rows.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from tianquan.processing.labels import printable

URLS = ("/v1/chat/completions", "/v1/completions")
MAX_CUSTOM_ID = 512  # characters
_KEYS = ("custom_id", "method", "url", "body")
_PIECE = 1 << 20  # bytes read at once of a line that is too long to keep
_LINE_END = b"\r\n"  # of a row, and no part of it: the last line may have none


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the input.

    number: of the row, from 0.
    line: of the file, from 1, for people.
    data: without the line's end; None when it is longer than rows may be.
    size: bytes of the line.
    digest: SHA-256 of the line.
    end: where in the file the next line begins.
    """

    number: int
    line: int
    data: bytes | None
    size: int
    digest: bytes
    end: int


@dataclass(frozen=True, kw_only=True)
class RowRequest:
    """What a row asks for."""

    custom_id: str
    url: str
    body: dict[str, Any]


class RowError(Exception):
    """A row that cannot be sent to a route.

    Args:
        code: a short name that programs can act on.
        message: one line.
        custom_id: of the row, when it has one.
    """

    def __init__(self, code: str, message: str, custom_id: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.custom_id = custom_id


def read_rows(file: BinaryIO, max_bytes: int, *, number: int = 0, line: int = 0) -> Iterator[Row]:
    """Yield the rows of a file from where it stands.

    Args:
        file: the input.
        max_bytes: of a row; longer ones are read past, never held.
        number: how many rows came before.
        line: how many lines came before.
    """
    end = file.tell()
    while data := file.readline(max_bytes + 2):  # a row of max_bytes, its line feed, and one byte that is too many
        line += 1
        digest, size = hashlib.sha256(data.rstrip(_LINE_END)), len(data)
        is_whole = data.endswith(b"\n") or size <= max_bytes
        piece = data
        while not piece.endswith(b"\n") and (piece := file.readline(_PIECE)):
            digest.update(piece.rstrip(_LINE_END))
            size += len(piece)
        end += size
        if is_whole and not data.strip():
            continue
        yield Row(
            number=number,
            line=line,
            data=data.rstrip(_LINE_END) if is_whole else None,
            size=size,
            digest=digest.digest(),
            end=end,
        )
        number += 1


def parse_row(row: Row) -> RowRequest:
    """Return what a row asks for; its body is for the route to check.

    Raises:
        RowError: too long, no UTF-8, no JSON object, or not of the form above.
    """
    if row.data is None:
        raise RowError("row_too_large", f"line {row.line}: the row has {row.size} bytes, more than rows may have")
    try:
        # the mark that some editors begin a file with is no part of its first row
        value = json.loads(row.data.decode("utf-8-sig" if row.line == 1 else "utf-8"))
    except UnicodeDecodeError:
        raise RowError("invalid_json", f"line {row.line}: the row is not UTF-8 text") from None
    except (ValueError, RecursionError) as error:
        words = (
            printable(str(error), 160) if isinstance(error, json.JSONDecodeError) else "numbers or nesting too large"
        )
        raise RowError("invalid_json", f"line {row.line}: the row is not valid JSON: {words}") from None
    if not isinstance(value, dict):
        raise RowError("invalid_row", f"line {row.line}: the row must be a JSON object")
    return _checked(value, f"line {row.line}")


def _checked(value: dict[str, Any], where: str) -> RowRequest:
    custom_id = value.get("custom_id")
    if not isinstance(custom_id, str) or not 0 < len(custom_id) <= MAX_CUSTOM_ID or _has_surrogate(custom_id):
        raise RowError("invalid_custom_id", f"{where}: custom_id must be text of 1 to {MAX_CUSTOM_ID} characters")
    extra = sorted(set(value) - set(_KEYS))
    if extra:
        raise RowError(
            "invalid_row",
            f"{where}: {printable(extra[0])!r} is no field of a row; expected {', '.join(_KEYS)}",
            custom_id,
        )
    if value.get("method") != "POST":
        raise RowError("invalid_method", f"{where}: method must be POST", custom_id)
    if value.get("url") not in URLS:
        raise RowError("invalid_url", f"{where}: url must be {' or '.join(URLS)}", custom_id)
    body = value.get("body")
    if not isinstance(body, dict):
        raise RowError("invalid_row", f"{where}: body must be a JSON object", custom_id)
    if body.get("stream"):
        raise RowError("invalid_value", f"{where}: stream must be left out; a batch has whole answers", custom_id)
    return RowRequest(custom_id=custom_id, url=value["url"], body=body)


def _has_surrogate(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)


class SeenIds:
    """The custom_ids met so far, as 128-bit digests: about 80 bytes of memory a row."""

    def __init__(self) -> None:
        self._seen: set[int] = set()

    def is_repeated(self, custom_id: str) -> bool:
        """Return whether an id was met before, and remember it."""
        digest = hashlib.blake2b(custom_id.encode(), digest_size=16).digest()
        number = int.from_bytes(digest, "little")
        if number in self._seen:
            return True
        self._seen.add(number)
        return False


def custom_id_of(row: Row) -> str | None:
    """Return the id a row goes by, for finding repeats: None where it has none or cannot be read."""
    try:
        return parse_row(row).custom_id
    except RowError as error:
        return error.custom_id
