"""`POST /v1/chat/completions` and `POST /v1/completions`: from a body to an answer, whole or streamed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Literal

import numpy as np

from tianquan.errors import PromptError
from tianquan.request import FinishReason, Prompt, SamplingParams, TokenLogprob
from tianquan.serving import protocol
from tianquan.serving.api_error import ApiError
from tianquan.serving.call import Call
from tianquan.serving.conversation import chat_sampling, completion_sampling, resolve
from tianquan.serving.generation import Generation, Inbox, Piece, Ping
from tianquan.serving.response_forms import (
    AnswerForm,
    chat_logprobs,
    completion_logprobs,
    timings_form,
    usage_form,
)
from tianquan.serving.service import Service

COMPLETION_MAX_TOKENS = 16  # OpenAI's default for this route


@asynccontextmanager
async def open_inbox(service: Service, call: Call) -> AsyncIterator[Inbox]:
    """Listen for the client's going away, from when its body has been read."""
    inbox = Inbox(service.config.patience.ping)
    watcher = asyncio.create_task(inbox.watch(call.request.receive))
    try:
        yield inbox
    finally:
        watcher.cancel()
        inbox.close()


def salt_of(call: Call, body: protocol.SamplingFields) -> str:
    """Return what keeps caches apart: by key, and within a key by the user and the salt the client names."""
    return repr((call.salt, body.user, body.cache_salt))


async def chat_completions(service: Service, call: Call) -> None:
    """Answer a conversation."""
    with service.admission.enter() as place:
        body = await service.reader.read_json(call.request, protocol.ChatRequest)
        service.check_model(body.model)
        sampling = chat_sampling(body, service.config.max_tokens, service.vocab_size)
        place.extend(sampling.n - 1)
        async with open_inbox(service, call) as inbox:
            messages = await resolve(body.messages, service.config.max_media, service.fetcher)
            prepared = await service.prepare(inbox, lambda: service.chat_prompt(messages))
            generation = await service.generate(call, inbox, place, [prepared], sampling, salt=salt_of(call, body))
            form = AnswerForm("chatcmpl", call.id, int(time.time()), service.model_name)
            await _answer(service, call, inbox, generation, _ChatWriter(service, form, sampling), body)


async def completions(service: Service, call: Call) -> None:
    """Continue plain text, without the chat template."""
    with service.admission.enter() as place:
        body = await service.reader.read_json(call.request, protocol.CompletionRequest)
        service.check_model(body.model)
        sampling = completion_sampling(body, COMPLETION_MAX_TOKENS, service.vocab_size)
        prompts = _prompts(body)
        place.extend(sampling.n * len(prompts) - 1)
        async with open_inbox(service, call) as inbox:
            prepared = [
                await service.prepare(inbox, _plain_prompt(service, prompt, service.vocab_size)) for prompt in prompts
            ]
            generation = await service.generate(call, inbox, place, prepared, sampling, salt=salt_of(call, body))
            form = AnswerForm("cmpl", call.id, int(time.time()), service.model_name)
            await _answer(service, call, inbox, generation, _TextWriter(service, form, sampling), body)


def _prompts(body: protocol.CompletionRequest) -> list[str | list[int]]:
    prompt: Any = body.prompt
    if isinstance(prompt, str) or all(isinstance(item, int) for item in prompt):
        return [prompt]
    return list(prompt)


def _plain_prompt(service: Service, prompt: str | list[int], vocab_size: int) -> Callable[[], Prompt]:
    def make() -> Prompt:
        token_ids = service.llm.tokenizer.encode_text(prompt) if isinstance(prompt, str) else prompt
        if not token_ids:
            raise PromptError("the prompt is empty; expected at least one token")
        if not all(0 <= token_id < vocab_size for token_id in token_ids):
            raise PromptError(f"a token id of the prompt is outside the vocabulary of {vocab_size}")
        return Prompt(np.array(token_ids, np.int32))

    return make


# Writing answers ------------------------------------------------------------------------------------------
class _Writer:
    """The forms of one route's choices, whole and in pieces."""

    def __init__(self, service: Service, form: AnswerForm, sampling: SamplingParams) -> None:
        self.form = form
        self.tokenizer = service.llm.tokenizer
        self.has_logprobs = sampling.logprobs is not None

    def first(self, index: int) -> dict[str, Any] | None:
        """Return the choice of an answer's first chunk, before any text; None for no such chunk."""
        raise NotImplementedError

    def piece(self, piece: Piece) -> dict[str, Any] | None:
        """Return the choice of a chunk with text, if there is any."""
        raise NotImplementedError

    def end(self, index: int, reason: FinishReason | None) -> dict[str, Any]:
        """Return the choice of an answer's last chunk."""
        raise NotImplementedError

    def whole(self, index: int, text: str, logprobs: list[TokenLogprob], reason: FinishReason) -> dict[str, Any]:
        """Return a choice of a whole response."""
        raise NotImplementedError


class _ChatWriter(_Writer):
    def _logprobs(self, logprobs: Any) -> dict[str, Any] | None:
        return chat_logprobs(self.tokenizer, logprobs) if self.has_logprobs else None

    def _delta(
        self, index: int, delta: dict[str, Any], logprobs: Any = None, reason: str | None = None
    ) -> dict[str, Any]:
        return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}

    def first(self, index: int) -> dict[str, Any] | None:
        return self._delta(index, {"role": "assistant", "content": ""})

    def piece(self, piece: Piece) -> dict[str, Any] | None:
        if not piece.text and not piece.logprobs:
            return None
        return self._delta(piece.index, {"content": piece.text}, self._logprobs(piece.logprobs))

    def end(self, index: int, reason: FinishReason | None) -> dict[str, Any]:
        return self._delta(index, {}, None, reason)

    def whole(self, index: int, text: str, logprobs: list[TokenLogprob], reason: FinishReason) -> dict[str, Any]:
        message = {"role": "assistant", "content": text, "refusal": None}
        return {"index": index, "message": message, "logprobs": self._logprobs(logprobs), "finish_reason": reason}


class _TextWriter(_Writer):
    def __init__(self, service: Service, form: AnswerForm, sampling: SamplingParams) -> None:
        super().__init__(service, form, sampling)
        self._offsets: dict[int, int] = {}

    def _choice(self, index: int, text: str, logprobs: Any, reason: str | None) -> dict[str, Any]:
        offset = self._offsets.get(index, 0)
        self._offsets[index] = offset + len(text)
        form = completion_logprobs(self.tokenizer, logprobs, offset) if self.has_logprobs else None
        return {"index": index, "text": text, "logprobs": form, "finish_reason": reason}

    def first(self, index: int) -> dict[str, Any] | None:
        return None

    def piece(self, piece: Piece) -> dict[str, Any] | None:
        return self._choice(piece.index, piece.text, piece.logprobs, None) if piece.text else None

    def end(self, index: int, reason: FinishReason | None) -> dict[str, Any]:
        return self._choice(index, "", [], reason)

    def whole(self, index: int, text: str, logprobs: list[TokenLogprob], reason: FinishReason) -> dict[str, Any]:
        return self._choice(index, text, logprobs, reason)


async def _answer(
    service: Service,
    call: Call,
    inbox: Inbox,
    generation: Generation,
    writer: _Writer,
    body: protocol.SamplingFields,
) -> None:
    try:
        if body.stream:
            inbox.start_pings()
            options = body.stream_options
            await _stream(call, generation, writer, bool(options and options.include_usage))
        else:
            await _whole(call, generation, writer)
    finally:
        generation.close()
        note_tokens(call, generation)


def note_tokens(call: Call, generation: Generation) -> None:
    """Have the log line say how many tokens it was."""
    if generation.ends:
        usage = generation.usage
        call.notes.update(
            prompt_tokens=usage.prompt_tokens,
            cached_tokens=usage.cached_tokens,
            completion_tokens=usage.completion_tokens,
        )


async def _whole(call: Call, generation: Generation, writer: _Writer) -> None:
    texts: dict[int, str] = {}
    logprobs: dict[int, list[TokenLogprob]] = {}
    reasons: dict[int, FinishReason] = {}
    async for piece in generation.pieces():
        if isinstance(piece, Piece):
            texts[piece.index] = texts.get(piece.index, "") + piece.text
            logprobs.setdefault(piece.index, []).extend(piece.logprobs)
            if piece.finish_reason is not None:
                reasons[piece.index] = _told(piece.finish_reason)
    choices = [writer.whole(index, texts[index], logprobs[index], reasons[index]) for index in sorted(texts)]
    await call.respond_json(writer.form.whole(choices, generation.usage, generation.ends[0]))


async def _stream(call: Call, generation: Generation, writer: _Writer, include_usage: bool) -> None:
    nothing: dict[str, Any] = {"usage": None} if include_usage else {}
    await call.start_events()
    begun: set[int] = set()
    async for piece in generation.pieces():
        if isinstance(piece, Ping):
            await call.send_ping()
            continue
        if piece.index not in begun:
            begun.add(piece.index)
            first = writer.first(piece.index)
            if first is not None:
                await call.send_event(writer.form.chunk([first], **nothing))
        choice = writer.piece(piece)
        if choice is not None:
            await call.send_event(writer.form.chunk([choice], **nothing))
        if piece.finish_reason is not None:
            end = writer.end(piece.index, _told(piece.finish_reason))
            timings = timings_form(generation.end_of(piece.index))
            await call.send_event(writer.form.chunk([end], **nothing, timings=timings))
    if include_usage:
        usage, timings = usage_form(generation.usage), timings_form(generation.ends[0])
        await call.send_event(writer.form.chunk([], usage=usage, timings=timings))
    await call.end_events()


def _told(reason: FinishReason) -> Literal["stop", "length"]:
    """Return a reason clients know. Only a server that stops ends an answer by itself."""
    if reason == "abort":
        raise ApiError(503, "the server is stopping", code="stopping")
    return reason
