"""The choices of a response, whole and in pieces, in the forms of the two completion routes."""

from __future__ import annotations

import uuid
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Literal

from tianquan.processing.tokenizer import Tokenizer
from tianquan.request import TokenLogprob
from tianquan.serving.generation import Piece
from tianquan.serving.response_forms import AnswerForm, TokenOffsets, chat_logprobs, completion_logprobs
from tianquan.tools import Tool, ToolCall, parse_tool_calls

Reason = Literal["stop", "length"]
Choice = dict[str, Any]

_CALL_START = "<tool_call>"  # see tianquan.tools


class ChoiceWriter(ABC):
    """What one route writes.

    Args:
        form: of the response around the choices.
        tokenizer: for the text of tokens.
        has_logprobs: log-probabilities were asked for.
    """

    def __init__(self, form: AnswerForm, tokenizer: Tokenizer, has_logprobs: bool) -> None:
        self.form = form
        self._tokenizer = tokenizer
        self._has_logprobs = has_logprobs

    @abstractmethod
    def first(self, index: int) -> Choice | None:
        """Return the choice of an answer's first chunk, before any text; None for no such chunk."""

    @abstractmethod
    def piece(self, piece: Piece) -> Choice | None:
        """Return the choice of a chunk with text, if there is any."""

    @abstractmethod
    def end(self, index: int, reason: Reason) -> list[Choice]:
        """Return the choices of an answer's last chunks."""

    @abstractmethod
    def whole(self, index: int, text: str, logprobs: Sequence[TokenLogprob], reason: Reason) -> Choice:
        """Return a choice of a whole response."""


class ChatWriter(ChoiceWriter):
    """Chat completions.

    Args:
        form, tokenizer, has_logprobs: see `ChoiceWriter`.
        tools: calls of these are told from text; none looks for no calls.
        only_one: of several calls in an answer the first counts.
    """

    def __init__(
        self, form: AnswerForm, tokenizer: Tokenizer, has_logprobs: bool, tools: Sequence[Tool], only_one: bool
    ) -> None:
        super().__init__(form, tokenizer, has_logprobs)
        self._tools = tools
        self._only_one = only_one
        self._texts: dict[int, _TextBeforeCalls] = {}

    def _logprobs(self, logprobs: Sequence[TokenLogprob]) -> dict[str, Any] | None:
        return chat_logprobs(self._tokenizer, logprobs) if self._has_logprobs else None

    @staticmethod
    def _delta(index: int, delta: dict[str, Any], logprobs: Any = None, reason: str | None = None) -> Choice:
        return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}

    def first(self, index: int) -> Choice | None:
        """Return the choice with the role."""
        return self._delta(index, {"role": "assistant", "content": ""})

    def piece(self, piece: Piece) -> Choice | None:
        """Return the choice of a chunk with text, if there is any."""
        text = piece.text
        if self._tools:
            text = self._texts.setdefault(piece.index, _TextBeforeCalls()).add(text)
        if not text and not (piece.logprobs and self._has_logprobs):
            return None
        return self._delta(piece.index, {"content": text}, self._logprobs(piece.logprobs))

    def end(self, index: int, reason: Reason) -> list[Choice]:
        """Return the calls, if there are any, and the reason."""
        if not self._tools:
            return [self._delta(index, {}, None, reason)]
        held = self._texts.setdefault(index, _TextBeforeCalls())
        text, calls = self._parse(held.text)
        rest = held.rest(text if calls else held.text)
        choices = [self._delta(index, {"content": rest})] if rest else []
        if calls:
            forms = [{"index": n, **_call_form(call)} for n, call in enumerate(calls)]
            choices.append(self._delta(index, {"tool_calls": forms}))
        return [*choices, self._delta(index, {}, None, "tool_calls" if calls else reason)]

    def whole(self, index: int, text: str, logprobs: Sequence[TokenLogprob], reason: Reason) -> Choice:
        """Return a choice with a message."""
        text, calls = self._parse(text) if self._tools else (text, ())
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if calls:
            message |= {"content": text or None, "tool_calls": [_call_form(call) for call in calls]}
        told = "tool_calls" if calls else reason
        return {"index": index, "message": message, "logprobs": self._logprobs(logprobs), "finish_reason": told}

    def _parse(self, text: str) -> tuple[str, Sequence[ToolCall]]:
        text, calls = parse_tool_calls(text, self._tools)
        return text, calls[:1] if self._only_one else calls


class _TextBeforeCalls:
    """Lets text through up to where a call may begin."""

    def __init__(self) -> None:
        self.text = ""
        self._num_sent = 0

    def add(self, text: str) -> str:
        """Return what is certainly no call."""
        self.text += text
        begin = self.text.find(_CALL_START, max(0, self._num_sent - len(_CALL_START)))
        if begin < 0:
            longest = min(len(self.text), len(_CALL_START) - 1)
            overlap = next((n for n in range(longest, 0, -1) if _CALL_START.startswith(self.text[-n:])), 0)
            begin = len(self.text) - overlap
        begin = max(begin, self._num_sent)
        sent, self._num_sent = self.text[self._num_sent : begin], begin
        return sent

    def rest(self, final: str) -> str:
        """Return what of the final text was not let through; calls leave no white space around them."""
        sent = self.text[: self._num_sent]
        for start in (sent, sent.strip()):
            if final.startswith(start):
                return final[len(start) :]
        return ""


def _call_form(call: ToolCall) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function}


class TextWriter(ChoiceWriter):
    """Text completions."""

    def __init__(self, form: AnswerForm, tokenizer: Tokenizer, has_logprobs: bool) -> None:
        super().__init__(form, tokenizer, has_logprobs)
        self._offsets: defaultdict[int, TokenOffsets] = defaultdict(TokenOffsets)

    def _choice(self, index: int, text: str, logprobs: Sequence[TokenLogprob], reason: str | None) -> Choice:
        form = None
        if self._has_logprobs:
            form = completion_logprobs(self._tokenizer, logprobs, self._offsets[index])
        return {"index": index, "text": text, "logprobs": form, "finish_reason": reason}

    def first(self, index: int) -> Choice | None:
        """Return nothing: this route has no roles."""
        return None

    def piece(self, piece: Piece) -> Choice | None:
        """Return the choice of a chunk with text or log-probabilities, if there are any."""
        if not piece.text and not (piece.logprobs and self._has_logprobs):
            return None
        return self._choice(piece.index, piece.text, piece.logprobs, None)

    def end(self, index: int, reason: Reason) -> list[Choice]:
        """Return the choice with the reason."""
        return [self._choice(index, "", (), reason)]

    def whole(self, index: int, text: str, logprobs: Sequence[TokenLogprob], reason: Reason) -> Choice:
        """Return a choice with all text."""
        return self._choice(index, text, logprobs, reason)
