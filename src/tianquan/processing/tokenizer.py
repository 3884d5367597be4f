"""Byte-level BPE: text to token ids, and token ids back to text without ever cutting a character.

The checkpoint's tokenizer.json is run by the `tokenizers` library. Special tokens are structure only where
the program puts them: `encode_text` treats every string as plain text, whatever it spells.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer as BpeTokenizer

from tianquan.errors import CheckpointError, PromptError
from tianquan.processing.labels import printable


def _byte_of_character() -> dict[str, int]:
    """Return GPT-2's printable stand-ins for bytes, inverted: character -> byte."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    table = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(256) if byte not in printable)
    table.update({chr(256 + n): byte for n, byte in enumerate(others)})
    return table


_BYTE_OF_CHARACTER = _byte_of_character()


@dataclass(frozen=True)
class _SpecialToken:
    """How a special token takes its surroundings, as tokenizer.json states it."""

    token_id: int
    strip_left: bool  # white space before it belongs to it
    strip_right: bool


class Tokenizer:
    """The vocabulary of one checkpoint.

    Args:
        definition: the text of tokenizer.json.
        structure: token strings that are structure even if the file does not mark them as special.

    Raises:
        CheckpointError: the file is damaged or not a byte-level BPE.
    """

    def __init__(self, definition: str, structure: Collection[str] = ()) -> None:
        try:
            parsed = json.loads(definition)
            added = parsed["added_tokens"]
            for token in added:
                token["special"] = token["special"] or token["content"] in structure
            parsed["truncation"] = parsed["padding"] = None
            self._bpe = BpeTokenizer.from_str(json.dumps(parsed))
        except BaseException as error:  # the library raises bare Exception, and what is none
            if not isinstance(error, Exception) and not _is_panic(error):
                raise
            raise CheckpointError(
                "tokenizer.json is damaged or of an unknown kind; download or copy it again"
            ) from error
        if '"ByteLevel"' not in json.dumps(parsed.get("decoder")):
            raise CheckpointError("tokenizer.json is not a byte-level tokenizer; this model's is")
        for token in added:
            _check_added(token, self._bpe)
        self._bpe.encode_special_tokens = True  # special token strings inside text are text
        self._special = {
            token["content"]: _SpecialToken(token["id"], token["lstrip"], token["rstrip"])
            for token in added
            if token["special"]
        }
        self._special_ids = frozenset(token.token_id for token in self._special.values())
        # The tokenizers library takes the leftmost, then the longest match; so does this order.
        longest_first = sorted(self._special, key=len, reverse=True)
        self._special_pattern = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    @property
    def max_token_id(self) -> int:
        """The largest token id, special ones included."""
        return max(self._bpe.get_vocab().values(), default=-1)

    def encode_text(self, text: str) -> list[int]:
        """Return the ids of plain text.

        Raises:
            PromptError: the text holds half a surrogate pair, or is more than the library can take.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise PromptError(
                f"the text is not valid Unicode (half a surrogate pair at character {error.start}); "
                "expected whole characters; decode it as UTF-8 or UTF-16 again"
            ) from error
        try:
            return list(self._bpe.encode(text, add_special_tokens=False).ids)
        except BaseException as error:
            if not _is_panic(error):
                raise
            raise PromptError(
                f"the tokenizer cannot split a text of {len(text)} characters; make it shorter or break it into lines"
            ) from error

    def special_token_id(self, token: str) -> int | None:
        """Return the id of a special token, or None when the vocabulary has no such special token."""
        special = self._special.get(token)
        return None if special is None else special.token_id

    @property
    def special_tokens(self) -> tuple[str, ...]:
        """The strings of all special tokens."""
        return tuple(self._special)

    @property
    def special_token_ids(self) -> frozenset[int]:
        """The ids of all special tokens."""
        return self._special_ids

    def encode_structure(self, text: str, hidden: str) -> list[int]:
        """Return the ids of text a template wrote: special tokens it spells are special tokens.

        `hidden` is a character that breaks special strings users wrote; it is not part of the text.
        """
        token_ids: list[int] = []
        start = 0
        for match in self._special_pattern.finditer(text):
            special = self._special[match.group()]
            before = text[start : match.start()]
            before = before.rstrip() if special.strip_left else before
            token_ids += self.encode_text(before.replace(hidden, ""))
            token_ids.append(special.token_id)
            start = match.end()
            if special.strip_right:
                start += len(text) - start - len(text[start:].lstrip())
        return token_ids + self.encode_text(text[start:].replace(hidden, ""))

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes a token stands for; special tokens and ids outside the vocabulary stand for none."""
        token = None if token_id in self._special_ids else self._bpe.id_to_token(token_id)
        if token is None:
            return b""
        try:
            return bytes(_BYTE_OF_CHARACTER[character] for character in token)
        except KeyError:  # an added token is stored as itself, not in byte stand-ins
            return str(token).encode()

    def decode(self, token_ids: Iterable[int]) -> str:
        """Return the text of token ids; bytes that are not UTF-8 become U+FFFD."""
        return b"".join(map(self.token_bytes, token_ids)).decode("utf-8", errors="replace")


def _is_panic(error: BaseException) -> bool:
    return type(error).__name__ == "PanicException"  # of the Rust library; no Exception, and nowhere to be imported


def _check_added(token: dict[str, Any], bpe: BpeTokenizer) -> None:
    """Hold an added token against the library's view: a wrong id here would be a wrong token in every prompt."""
    content, token_id = token["content"], token["id"]
    name = repr(printable(str(content)))
    if not isinstance(content, str) or not content:
        raise CheckpointError(f"tokenizer.json: added token {token_id!r} has content {name}; expected a string")
    actual = bpe.token_to_id(content)
    if actual != token_id:
        raise CheckpointError(
            f"tokenizer.json: added token {name} has id {token_id!r}, the vocabulary gives it {actual!r}; "
            "download or copy it again"
        )
    if token["special"] and token.get("single_word"):
        raise CheckpointError(
            f"tokenizer.json: special token {name} is single_word, expected false; other kinds are not supported"
        )


class StreamDecoder:
    """Turns token ids into text as they come. The pieces join to exactly `Tokenizer.decode` of all ids."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def add(self, token_id: int) -> str:
        """Return the text that became certain with this token: whole characters only."""
        return self._utf8.decode(self._tokenizer.token_bytes(token_id))

    def finish(self) -> str:
        """Return what is left: U+FFFD for an unfinished character, else nothing."""
        return self._utf8.decode(b"", final=True)
