"""`POST /v1/chat/completions` and `POST /v1/completions`: from a body to an answer, whole or streamed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import numpy as np

from tianquan.errors import PromptError
from tianquan.request import FinishReason, Prompt, TokenLogprob
from tianquan.serving import protocol
from tianquan.serving.api_error import ApiError
from tianquan.serving.call import Call
from tianquan.serving.choice_writers import ChatWriter, ChoiceWriter, Reason, TextWriter
from tianquan.serving.conversation import chat_sampling, completion_sampling, text_len
from tianquan.serving.generation import Generation, Inbox, Piece, Ping
from tianquan.serving.response_forms import AnswerForm, timings_form, usage_form
from tianquan.serving.service import Service
from tianquan.serving.tool_messages import told_tools, with_tools


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
        body = await service.reader.read_json(call.request, protocol.ChatRequest, place)
        model = service.find_model(body.model)
        tools = told_tools(body)
        sampling = chat_sampling(body, tools, service.default_sampling, service.vocab_size)
        place.extend(sampling.n - 1)
        async with open_inbox(service, call) as inbox:
            service.check_text_len(text_len(body.messages))
            messages = await service.resolve(inbox, place, body.messages)
            prepared = await service.prepare(inbox, lambda: service.chat_prompt(with_tools(messages, tools)))
            salt = salt_of(call, body)
            generation = await service.generate(call, inbox, place, [prepared], sampling, model=model, salt=salt)
            has_logprobs, only_one = sampling.logprobs is not None, body.parallel_tool_calls is False
            form = AnswerForm("chatcmpl", call.id, int(time.time()), model.name)
            await _answer(
                service,
                call,
                inbox,
                generation,
                ChatWriter(form, service.llm.tokenizer, has_logprobs, tools, only_one),
                body,
            )


async def completions(service: Service, call: Call) -> None:
    """Continue plain text, without the chat template."""
    with service.admission.enter() as place:
        body = await service.reader.read_json(call.request, protocol.CompletionRequest, place)
        model = service.find_model(body.model)
        sampling = completion_sampling(body, service.default_sampling, service.vocab_size)
        prompts = _prompts(body)
        for prompt in prompts:
            service.check_text_len(len(prompt))
        place.extend(sampling.n * len(prompts) - 1)
        async with open_inbox(service, call) as inbox:
            prepared = [
                await service.prepare(inbox, _plain_prompt(service, prompt, service.vocab_size)) for prompt in prompts
            ]
            salt = salt_of(call, body)
            generation = await service.generate(call, inbox, place, prepared, sampling, model=model, salt=salt)
            form = AnswerForm("cmpl", call.id, int(time.time()), model.name)
            await _answer(
                service,
                call,
                inbox,
                generation,
                TextWriter(form, service.llm.tokenizer, sampling.logprobs is not None),
                body,
            )


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
async def _answer(
    service: Service,
    call: Call,
    inbox: Inbox,
    generation: Generation,
    writer: ChoiceWriter,
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


async def _whole(call: Call, generation: Generation, writer: ChoiceWriter) -> None:
    texts: dict[int, str] = {}
    logprobs: dict[int, list[TokenLogprob]] = {}
    reasons: dict[int, Reason] = {}
    async for piece in generation.pieces():
        if isinstance(piece, Piece):
            texts[piece.index] = texts.get(piece.index, "") + piece.text
            logprobs.setdefault(piece.index, []).extend(piece.logprobs)
            if piece.finish_reason is not None:
                reasons[piece.index] = _told(piece.finish_reason)
    choices = [writer.whole(index, texts[index], logprobs[index], reasons[index]) for index in sorted(texts)]
    await call.respond_json(writer.form.whole(choices, generation.usage, generation.ends[0]))


async def _stream(call: Call, generation: Generation, writer: ChoiceWriter, include_usage: bool) -> None:
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
            *rest, end = writer.end(piece.index, _told(piece.finish_reason))
            for choice in rest:
                await call.send_event(writer.form.chunk([choice], **nothing))
            timings = timings_form(generation.end_of(piece.index))
            await call.send_event(writer.form.chunk([end], **nothing, timings=timings))
    if include_usage:
        usage, timings = usage_form(generation.usage), timings_form(generation.ends[0])
        await call.send_event(writer.form.chunk([], usage=usage, timings=timings))
    await call.end_events()


def _told(reason: FinishReason) -> Reason:
    """Return a reason clients know. Only a server that stops ends an answer by itself."""
    if reason == "abort":
        raise ApiError(503, "the server is stopping", code="stopping")
    return reason
