"""From a request's body to what the model takes: messages with bytes for media, and sampling parameters."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from tianquan.engine.parameter_checks import MAX_TOP_LOGPROBS, check_params
from tianquan.errors import ParameterError
from tianquan.request import OutputFormat, SamplingParams
from tianquan.serving import protocol
from tianquan.serving.api_error import ApiError, as_api_error
from tianquan.serving.tool_messages import calls_as_text, forced_format
from tianquan.tools import Tool

Fetch = Callable[[str], Awaitable[bytes]]

_SAME_NAMES = (
    *("min_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty"),
    *("frequency_penalty", "seed", "n", "ignore_eos"),
)
COMPLETION_MAX_TOKENS = 16  # OpenAI's default for that route
_ANY_OBJECT = OutputFormat(kind="json_schema", definition='{"type": "object"}')


# Sampling -------------------------------------------------------------------------------------------------
def chat_sampling(
    body: protocol.ChatRequest, tools: tuple[Tool, ...], default: SamplingParams, vocab_size: int
) -> SamplingParams:
    """Return how the answers to a chat are sampled.

    Args:
        body: of the request.
        tools: those the model is told of.
        default: for what the request does not say.
        vocab_size: number of token ids.

    Raises:
        ApiError: a value out of range, or fields that exclude each other.
    """
    limits = {body.max_tokens, body.max_completion_tokens} - {None}
    if len(limits) > 1:
        raise _conflict("max_tokens and max_completion_tokens differ; give one of them", "max_tokens")
    if body.top_logprobs is not None and not body.logprobs:
        raise _conflict("top_logprobs needs logprobs: true", "top_logprobs")
    output_format = _output_format(body.response_format)
    if tools and output_format is not None:
        raise _conflict("an answer of a given form cannot call tools; give response_format or tools", "response_format")
    return _sampling(
        body,
        default,
        max_tokens=body.max_completion_tokens or body.max_tokens or default.max_tokens,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        output_format=output_format or forced_format(body, tools),
        vocab_size=vocab_size,
    )


def completion_sampling(body: protocol.CompletionRequest, default: SamplingParams, vocab_size: int) -> SamplingParams:
    """Return how the continuations of plain text are sampled; as `chat_sampling`."""
    return _sampling(
        body,
        default,
        max_tokens=body.max_tokens or COMPLETION_MAX_TOKENS,
        logprobs=body.logprobs,
        output_format=None,
        vocab_size=vocab_size,
    )


def _sampling(
    body: protocol.SamplingFields,
    default: SamplingParams,
    *,
    max_tokens: int,
    logprobs: int | None,
    output_format: OutputFormat | None,
    vocab_size: int,
) -> SamplingParams:
    if body.stream_options is not None and not body.stream:
        raise _conflict("stream_options needs stream: true", "stream_options")
    for name in ("max_tokens", "max_completion_tokens"):
        if getattr(body, name, None) == 0:
            raise ApiError(400, f"{name} must be at least 1, got 0", param=name, code="invalid_value")
    base = SamplingParams() if body.temperature == 0 else default  # 0 alone means plain greedy decoding
    given = {name: getattr(body, name) for name in _SAME_NAMES if getattr(body, name) is not None}
    stop = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
    try:
        params = replace(
            base,
            **given,
            max_tokens=max_tokens,
            stop=stop,
            logprobs=logprobs,
            output_format=output_format,
            logit_bias=_logit_bias(body.logit_bias or {}),
        )
        check_params(params, vocab_size)
    except ParameterError as error:
        name = str(error).split(" ", 1)[0]
        name = "top_logprobs" if name == "logprobs" and isinstance(body, protocol.ChatRequest) else name
        raise as_api_error(error, name if name in type(body).model_fields else None) from error
    return params


def _logit_bias(biases: dict[str, float]) -> tuple[tuple[int, float], ...]:
    if not all(token_id.isascii() and token_id.isdigit() and len(token_id) <= 10 for token_id in biases):
        raise ParameterError("logit_bias must have token ids as keys")
    return tuple((int(token_id), value) for token_id, value in biases.items())


def _output_format(form: Any) -> OutputFormat | None:
    if isinstance(form, protocol.JsonObjectFormat):
        return _ANY_OBJECT
    if isinstance(form, protocol.JsonSchemaFormat):
        return OutputFormat(kind="json_schema", definition=json.dumps(form.json_schema.schema_))
    return None


def _conflict(message: str, param: str) -> ApiError:
    return ApiError(400, message, param=param, code="invalid_value")


# Messages -------------------------------------------------------------------------------------------------
def num_media(messages: Sequence[Any]) -> int:
    """Return how many pictures, recordings and videos a conversation has."""
    return sum(not isinstance(part, protocol.TextPart) for _, part in _parts(messages))


def text_len(messages: Sequence[Any]) -> int:
    """Return how many characters of text a conversation has, calls of tools among them."""
    whole = sum(len(message.content) for message in messages if isinstance(message.content, str))
    calls = [call.function for message in messages for call in getattr(message, "tool_calls", None) or ()]
    called = sum(len(function.name) + len(function.arguments) for function in calls)
    return whole + called + sum(len(part.text) for _, part in _parts(messages) if isinstance(part, protocol.TextPart))


async def resolve(
    messages: Sequence[Any], max_media: int, fetch: Fetch, hold: Callable[[int], None]
) -> list[dict[str, Any]]:
    """Return a conversation as the processor takes it, with the bytes of its media: no URL and no path is left.

    Args:
        messages: of a checked body.
        max_media: most pictures, recordings and videos.
        fetch: gives the bytes of a URL, or raises; asked once for each.
        hold: counts bytes that did not come with the body, or raises.

    Raises:
        ApiError: too many media, a kind that is not supported, or one that cannot be had.
    """
    if num_media(messages) > max_media:
        raise ApiError(
            400,
            f"{num_media(messages)} pictures, recordings and videos; at most {max_media} are taken",
            code="too_many_media",
        )
    sources: dict[str, bytes] = {}  # by where they are: a list of parts of one message each
    fetched: dict[str, bytes] = {}  # by URL, those of other places
    for where, part in _parts(messages):
        url = _url(part)
        if url is None:
            continue
        try:
            sources[where] = data = fetched[url] if url in fetched else await fetch(url)
        except Exception as error:
            raise as_api_error(error, where) from error
        if not url.startswith("data:") and url not in fetched:
            hold(len(data))
            fetched[url] = data
    return [_resolved(message, f"messages[{n}]", sources) for n, message in enumerate(messages)]


def _parts(messages: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    for n, message in enumerate(messages):
        if isinstance(message.content, list):
            for k, part in enumerate(message.content):
                yield f"messages[{n}].content[{k}]", part


def _url(part: Any) -> str | None:
    if isinstance(part, protocol.ImagePart):
        return part.image_url.url
    if isinstance(part, protocol.AudioUrlPart):
        return part.audio_url.url
    if isinstance(part, protocol.InputAudioPart):
        return f"data:audio/{part.input_audio.format};base64,{part.input_audio.data}"
    if isinstance(part, protocol.VideoUrlPart):
        return part.video_url.url
    return None


def _resolved(message: Any, where: str, sources: dict[str, bytes]) -> dict[str, Any]:
    role = "system" if message.role == "developer" else message.role
    content = message.content
    calls = message.tool_calls if isinstance(message, protocol.AssistantMessage) else None
    if calls:
        texts = [part.text for part in content] if isinstance(content, list) else [content] if content else []
        return {"role": role, "content": "\n".join([*texts, calls_as_text(calls, where)])}
    if content is None:
        raise ApiError(400, f"{where}.content is missing", param=f"{where}.content", code="invalid_value")
    if isinstance(content, str):
        return {"role": role, "content": content}
    parts: list[dict[str, Any]] = []
    for k, part in enumerate(content):
        data = sources.get(f"{where}.content[{k}]")
        if isinstance(part, protocol.TextPart):
            parts.append({"type": "text", "text": part.text})
        elif isinstance(part, protocol.ImagePart):
            parts.append({"type": "image_url", "image_url": {"url": data, "detail": part.image_url.detail}})
        else:
            kind = "video_url" if isinstance(part, protocol.VideoUrlPart) else "audio_url"
            parts.append({"type": kind, kind: {"url": data}})
    if all(isinstance(part, protocol.TextPart) for part in content):  # templates ask whether the content is a string
        return {"role": role, "content": "\n".join(part["text"] for part in parts)}
    return {"role": role, "content": parts}


assert MAX_TOP_LOGPROBS >= 20, "OpenAI's clients may ask for 20"
