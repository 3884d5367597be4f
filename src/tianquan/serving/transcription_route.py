"""`POST /v1/audio/transcriptions`: a recording of any length to text, clip after clip.

Longer than 30 s is split at quiet places; each clip is a conversation of its own, a line of the text. There are no
timestamps: the model gives none, and none are made up.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError
from starlette.responses import PlainTextResponse

from tianquan.llm import TRANSCRIBE_INSTRUCTION, TRANSCRIBE_SAMPLING
from tianquan.request import Prompt, SamplingParams, Usage
from tianquan.serving import protocol
from tianquan.serving.admission import Place
from tianquan.serving.api_error import ApiError, ClientGoneError
from tianquan.serving.call import Call
from tianquan.serving.completion_routes import open_inbox
from tianquan.serving.generation import Inbox, Ping
from tianquan.serving.service import ServedModel, Service

_LANGUAGES = {"zh": "Chinese", "en": "English"}
_NO_USAGE = Usage(prompt_tokens=0, completion_tokens=0, image_tokens=0, audio_tokens=0)

Clip = npt.NDArray[np.float32]


async def transcriptions(service: Service, call: Call) -> None:
    """Transcribe the recording of a form."""
    with service.admission.enter() as place:
        fields, content = await service.reader.read_form(call.request, place)
        body = _parse(fields)
        model = service.find_model(body.model)
        sampling = replace(TRANSCRIBE_SAMPLING, temperature=body.temperature or 0.0)
        most = service.config.max_audio_seconds
        async with open_inbox(service, call) as inbox, service.decoded_seconds.hold(most, inbox.unless_gone) as held:
            clips = await service.on_thread(_clips, service, inbox, content)
            held.keep(sum(map(len, clips)) / service.llm.processor.sample_rate)
            run = _Transcription(service, model, call, place, inbox, body, sampling, clips)
            if body.stream:
                inbox.start_pings()
                await run.stream()
            else:
                await run.whole()


def _parse(fields: dict[str, str]) -> protocol.TranscriptionRequest:
    """Return the checked fields; in a form all values are strings."""
    if fields.get("response_format") in ("srt", "vtt"):
        raise ApiError(
            400, "there are no timestamps to write srt or vtt with", param="response_format", code="unsupported"
        )
    values: dict[str, Any] = dict(fields)
    if "stream" in values:
        values["stream"] = {"true": True, "1": True, "false": False, "0": False}.get(fields["stream"].lower())
    try:
        if "temperature" in values:
            values["temperature"] = float(fields["temperature"])
        body = protocol.TranscriptionRequest.model_validate(values)
    except ValidationError as error:
        raise protocol.invalid_body(error) from None
    except ValueError as error:
        raise ApiError(400, "temperature must be a number", param="temperature", code="invalid_value") from error
    if body.stream and body.response_format not in (None, "json"):
        raise ApiError(
            400, "a stream is events of json; leave response_format out", param="response_format", code="unsupported"
        )
    if body.temperature is not None and not 0 <= body.temperature <= 100:
        raise ApiError(400, "temperature must be between 0 and 100", param="temperature", code="invalid_value")
    return body


def _clips(service: Service, inbox: Inbox, content: bytes) -> list[Clip]:
    if inbox.is_gone:
        raise ClientGoneError
    policy = replace(service.config.media_policy, long_audio="chunk")
    return service.llm.processor.load_clips(content, policy, label="file")


class _Transcription:
    """The clips of one recording on their way through the model."""

    def __init__(
        self,
        service: Service,
        model: ServedModel,
        call: Call,
        place: Place,
        inbox: Inbox,
        body: protocol.TranscriptionRequest,
        sampling: SamplingParams,
        clips: list[Clip],
    ) -> None:
        self._service = service
        self._model = model
        self._call = call
        self._place = place
        self._inbox = inbox
        self._body = body
        self._sampling = sampling
        self._clips = clips
        self._usage = _NO_USAGE
        self._finish_reason = "stop"

    async def whole(self) -> None:
        """Respond when all of it is heard."""
        text = "".join([piece async for piece in self._pieces() if isinstance(piece, str)])
        kind = self._body.response_format
        if kind == "text":
            await self._call.respond(PlainTextResponse(text + "\n"))
            return
        form: dict[str, Any] = {"text": text, "finish_reason": self._finish_reason, "usage": self._usage_form()}
        if kind == "verbose_json":
            form |= {"task": "transcribe", "duration": self._duration(), "language": self._language()}
        await self._call.respond_json(form)

    async def stream(self) -> None:
        """Respond with events, as text becomes certain."""
        call, text = self._call, ""
        await call.start_events()
        async for piece in self._pieces():
            if isinstance(piece, Ping):
                await call.send_ping()
            elif piece:
                text += piece
                await call.send_event({"type": "transcript.text.delta", "delta": piece})
        done = {"text": text, "finish_reason": self._finish_reason, "usage": self._usage_form()}
        await call.send_event({"type": "transcript.text.done", **done})
        await call.end_events()

    async def _pieces(self) -> AsyncIterator[str | Ping]:
        service = self._service
        for n, clip in enumerate(self._clips):
            if n > 0:
                yield "\n"
            prepared = await service.prepare(self._inbox, partial(self._prompt, clip))
            generation = await service.generate(
                self._call,
                self._inbox,
                self._place,
                [prepared],
                self._sampling,
                model=self._model,
                salt=repr((self._call.salt, None, None)),
                is_last=n == len(self._clips) - 1,
            )
            try:
                async for piece in generation.pieces():
                    if isinstance(piece, Ping):
                        yield piece
                        continue
                    if piece.finish_reason == "length":  # what was said goes on, or the model repeats itself
                        self._finish_reason = "length"
                    yield piece.text
            finally:
                generation.close()
            self._add(generation.usage)

    def _prompt(self, clip: Clip) -> Prompt:
        instruction = TRANSCRIBE_INSTRUCTION
        if self._body.language is not None:
            instruction += f" The speech is in {_LANGUAGES[self._body.language]}."
        if self._body.prompt:
            instruction += "\n" + self._body.prompt
        audio = (clip, self._service.llm.processor.sample_rate)
        content = {"text": instruction, "audio": audio}
        return self._service.chat_prompt([{"role": "user", "content": content}])

    def _add(self, usage: Usage) -> None:
        self._usage = Usage(**{name: getattr(self._usage, name) + value for name, value in vars(usage).items()})
        self._call.notes.update(
            prompt_tokens=self._usage.prompt_tokens, completion_tokens=self._usage.completion_tokens
        )

    def _usage_form(self) -> dict[str, Any]:
        usage = self._usage
        return {
            "type": "tokens",
            "input_tokens": usage.prompt_tokens,
            "output_tokens": usage.completion_tokens,
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
            "input_token_details": {
                "audio_tokens": usage.audio_tokens,
                "text_tokens": usage.prompt_tokens - usage.audio_tokens,
            },
        }

    def _duration(self) -> float:
        rate = self._service.llm.processor.sample_rate
        return round(sum(len(clip) for clip in self._clips) / rate, 3)

    def _language(self) -> str:
        """Return what the client said; the model does not tell languages apart by itself."""
        return {"zh": "chinese", "en": "english"}.get(self._body.language or "", "unknown")
