"""The bodies of responses, by OpenAI's names; timings as llama-server has them."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Any, Literal

from tianquan.engine.interface import RequestEnd
from tianquan.processing.tokenizer import Tokenizer
from tianquan.request import TokenLogprob, Usage


def usage_form(usage: Usage) -> dict[str, Any]:
    """Return token counts."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {
            "cached_tokens": usage.cached_tokens,
            "image_tokens": usage.image_tokens,
            "audio_tokens": usage.audio_tokens,
            "video_tokens": usage.video_tokens,
            "video_frames": usage.video_frames,
        },
    }


def timings_form(end: RequestEnd) -> dict[str, Any]:
    """Return what the stages of the first answer took, in milliseconds."""
    timings, usage = end.timings, end.usage
    num_prompt = usage.prompt_tokens - usage.cached_tokens
    num_decoded = max(0, usage.completion_tokens - 1)  # the first comes with the prompt
    prompt_ms, decode_ms = timings.prefill_ms, timings.decode_ms
    form = {
        "cache_n": usage.cached_tokens,
        "prompt_n": num_prompt,
        "prompt_ms": prompt_ms,
        "prompt_per_token_ms": prompt_ms / num_prompt if num_prompt else 0.0,
        "prompt_per_second": 1000 * num_prompt / prompt_ms if prompt_ms else 0.0,
        "predicted_n": usage.completion_tokens,
        "predicted_ms": decode_ms,
        "predicted_per_token_ms": decode_ms / num_decoded if num_decoded else 0.0,
        "predicted_per_second": 1000 * num_decoded / decode_ms if decode_ms else 0.0,
        "queue_ms": timings.queue_ms,
        "preprocess_ms": timings.preprocess_ms,
        "vision_ms": timings.vision_ms,
        "audio_ms": timings.audio_ms,
        "ttft_ms": timings.ttft_ms,
    }
    return {name: round(value, 3) for name, value in form.items()}


def chat_logprobs(tokenizer: Tokenizer, logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
    """Return log-probabilities as chat completions have them."""

    def entry(token_id: int, logprob: float) -> dict[str, Any]:
        data = tokenizer.token_bytes(token_id)
        return {"token": data.decode("utf-8", errors="replace"), "logprob": logprob, "bytes": list(data)}

    content = [
        {**entry(place.token_id, place.logprob), "top_logprobs": [entry(*top) for top in place.top]}
        for place in logprobs
    ]
    return {"content": content, "refusal": None}


class TokenOffsets:
    """Where in the text of an answer its tokens begin; one inside a character begins where the character does."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._num_characters = 0  # whole ones

    def next(self, data: bytes) -> int:
        """Return the offset of the next token, whose bytes are given."""
        offset = self._num_characters
        self._num_characters += len(self._decoder.decode(data))
        return offset


def completion_logprobs(
    tokenizer: Tokenizer, logprobs: Sequence[TokenLogprob], offsets: TokenOffsets
) -> dict[str, Any]:
    """Return log-probabilities as text completions have them; `offsets` knows the tokens that came before."""

    def text(token_id: int) -> str:
        data = tokenizer.token_bytes(token_id)
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:  # part of a character; keys of `top_logprobs` must differ
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)

    return {
        "tokens": [text(place.token_id) for place in logprobs],
        "token_logprobs": [place.logprob for place in logprobs],
        "top_logprobs": [{text(token_id): logprob for token_id, logprob in place.top} for place in logprobs],
        "text_offset": [offsets.next(tokenizer.token_bytes(place.token_id)) for place in logprobs],
    }


class AnswerForm:
    """Responses and chunks of one request, which share an id, a time and a model name."""

    def __init__(self, kind: Literal["chatcmpl", "cmpl"], call_id: str, created: int, model: str) -> None:
        self._is_chat = kind == "chatcmpl"
        self._shared = {"id": f"{kind}-{call_id}", "created": created, "model": model}

    def whole(self, choices: list[dict[str, Any]], usage: Usage, end: RequestEnd) -> dict[str, Any]:
        """Return a response."""
        kind = "chat.completion" if self._is_chat else "text_completion"
        body = {**self._shared, "object": kind, "choices": choices}
        return {**body, "usage": usage_form(usage), "timings": timings_form(end)}

    def chunk(self, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        """Return one event of a stream."""
        kind = "chat.completion.chunk" if self._is_chat else "text_completion"
        return {**self._shared, "object": kind, "choices": choices, **more}
