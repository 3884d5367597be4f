"""The Python API: a loaded model that chats, generates, transcribes and keeps conversations.

llm = tianquan.load("path/to/checkpoint")
print(llm.chat([{"role": "user", "content": {"text": "What is this?", "image": "photo.jpg"}}]).text)
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tianquan.backends import Backend, make_ops
from tianquan.checkpoint import Checkpoint, find_folder, open_checkpoint
from tianquan.checkpoint.weight_reader import OnProgress
from tianquan.engine.generation import StageClock, generate_token_ids, sequence_batch
from tianquan.engine.sampler import check_params
from tianquan.errors import PromptError
from tianquan.models.omni_model import OmniModel
from tianquan.processing.messages import MediaSource
from tianquan.quantization.recipes import Recipe
from tianquan.request import (
    Completion,
    FinishReason,
    LongAudio,
    MediaPolicy,
    Prompt,
    SamplingParams,
    Timings,
    Usage,
)
from tianquan.text_stream import TextStream

logger = logging.getLogger(__name__)

# The vendor's advice for conversation; greedy decoding is advised for reading text in pictures.
CHAT_SAMPLING = SamplingParams(temperature=0.7, top_p=0.8, top_k=100, repetition_penalty=1.2, max_tokens=1024)
GREEDY = SamplingParams(temperature=0.0)
TRANSCRIBE_INSTRUCTION = "Convert speech to text."  # the vendor's prompt for speech recognition
TRANSCRIBE_SAMPLING = replace(GREEDY, max_tokens=512)  # 30 s of fast speech is under 250 tokens


@dataclass(frozen=True)
class TextPiece:
    """A piece of an answer being streamed. The last piece carries the completion."""

    text: str
    completion: Completion | None = None


class LLM:
    """One model on one backend. Calls may come from several threads; each has a KV cache of its own."""

    def __init__(self, checkpoint: Checkpoint, model: OmniModel, recipe: Recipe) -> None:
        self.checkpoint = checkpoint
        self.model = model
        self.recipe = recipe

    @property
    def tokenizer(self) -> Any:
        """The checkpoint's tokenizer."""
        return self.checkpoint.processor.tokenizer

    def chat(
        self,
        messages: Any,
        *,
        sampling: SamplingParams = CHAT_SAMPLING,
        media: MediaPolicy | None = None,
        media_root: Path | None = None,
    ) -> Completion:
        """Answer a conversation.

        Args:
            messages: vendor or OpenAI messages.
            sampling: how tokens are chosen; the vendor's advice by default.
            media: how pictures and sound are looked at; the checkpoint's settings by default.
            media_root: folder that relative media paths start from; the working folder by default.

        Raises:
            PromptError, MediaError, ParameterError: see `processing.processor` and `engine.sampler`.
        """
        return _last(self.stream_chat(messages, sampling=sampling, media=media, media_root=media_root))

    def stream_chat(
        self,
        messages: Any,
        *,
        sampling: SamplingParams = CHAT_SAMPLING,
        media: MediaPolicy | None = None,
        media_root: Path | None = None,
    ) -> Iterator[TextPiece]:
        """Answer a conversation piece by piece; arguments as for `chat`."""
        check_params(sampling)
        clock = StageClock()
        prompt = self.checkpoint.processor(messages, media, media_root)
        return self._stream(prompt, sampling, clock)

    def generate(self, text: str, *, sampling: SamplingParams = CHAT_SAMPLING) -> Completion:
        """Continue plain text, without the chat template."""
        check_params(sampling)
        clock = StageClock()
        token_ids = self.tokenizer.encode_text(text)
        if not token_ids:
            raise PromptError("the text to continue is empty")
        return _last(self._stream(Prompt(np.array(token_ids, np.int32)), sampling, clock))

    def transcribe(
        self,
        audio: MediaSource,
        *,
        long_audio: LongAudio = "error",
        instruction: str = TRANSCRIBE_INSTRUCTION,
        sampling: SamplingParams = TRANSCRIBE_SAMPLING,
    ) -> str:
        """Return what is said in a recording; see `stream_transcription`."""
        return "".join(
            piece.text
            for piece in self.stream_transcription(
                audio, long_audio=long_audio, instruction=instruction, sampling=sampling
            )
        )

    def stream_transcription(
        self,
        audio: MediaSource,
        *,
        long_audio: LongAudio = "error",
        instruction: str = TRANSCRIBE_INSTRUCTION,
        sampling: SamplingParams = TRANSCRIBE_SAMPLING,
    ) -> Iterator[TextPiece]:
        """Transcribe a recording piece by piece.

        Args:
            audio: a path, encoded bytes, or (samples, sample rate).
            long_audio: what to do with more than 30 s: refuse, keep the beginning, or split at quiet places
                and transcribe one clip after the other, a line for each.
            instruction: what the model is asked; the vendor's prompt by default.
            sampling: greedy by default.

        Raises:
            MediaError: the recording cannot be used.
        """
        processor = self.checkpoint.processor
        for n, clip in enumerate(processor.load_clips(audio, MediaPolicy(long_audio=long_audio))):
            content = {"text": instruction, "audio": (clip, processor.sample_rate)}
            if n > 0:
                yield TextPiece("\n")
            yield from self.stream_chat([{"role": "user", "content": content}], sampling=sampling)

    def trace(self, messages: Any, *, media: MediaPolicy | None = None, media_root: Path | None = None) -> Trace:
        """Return the tensors of each stage for a conversation, for comparison with another implementation."""
        prompt = self.checkpoint.processor(messages, media, media_root)
        room = self.model.config.language.max_position_embeddings
        if len(prompt.token_ids) > room:
            raise PromptError(f"the prompt has {len(prompt.token_ids)} tokens, the context window {room}")
        model = self.model
        images = model.encode_images(prompt.images) if prompt.images else None
        audios = model.encode_audios(prompt.audios) if prompt.audios else []
        hidden = model.embed(prompt, images, audios)
        cache = model.language_model.make_kv_cache(len(hidden))
        logits = model.forward(hidden, cache, sequence_batch(len(hidden), 0, cache), all_rows=True)
        to_numpy = model.ops.to_numpy
        return Trace(
            prompt.token_ids,
            None if images is None else to_numpy(images),
            [to_numpy(audio) for audio in audios],
            to_numpy(logits),
        )

    def save_low_bit(self, folder: str | Path, on_progress: OnProgress | None = None) -> None:
        """Write the model as a low-bit folder in the recipe it runs in; see `checkpoint.low_bit`.

        Raises:
            CheckpointError: it came from a low-bit folder, or the folder cannot be written.
        """
        self.checkpoint.save_low_bit(self.recipe, Path(folder), self.model.ops, on_progress)

    def _stream(self, prompt: Prompt, sampling: SamplingParams, clock: StageClock) -> Iterator[TextPiece]:
        preprocess_ms = 1000 * (time.perf_counter() - clock.started)
        stop_ids = frozenset() if sampling.ignore_eos else self.checkpoint.stop_token_ids
        stream = TextStream(self.tokenizer, sampling.stop)
        token_ids: list[int] = []
        text = ""
        reason: FinishReason = "length"
        for token_id in generate_token_ids(self.model, prompt, sampling, stop_ids, clock):
            token_ids.append(token_id)
            if token_id in stop_ids:
                reason = "stop"
                break
            piece = stream.add(token_id)
            text += piece
            if piece:
                yield TextPiece(piece)
            if stream.stopped:
                break
        rest = stream.finish()
        if stream.stopped:
            reason = "stop"
        yield TextPiece(
            rest,
            Completion(
                text=text + rest,
                token_ids=token_ids,
                prompt_token_ids=prompt.token_ids.tolist(),
                finish_reason=reason,
                usage=Usage(len(prompt.token_ids), len(token_ids), prompt.num_image_tokens, prompt.num_audio_tokens),
                timings=Timings(
                    preprocess_ms=preprocess_ms,
                    vision_ms=clock.vision_ms,
                    audio_ms=clock.audio_ms,
                    prefill_ms=clock.prefill_ms,
                    ttft_ms=clock.ttft_ms,
                    decode_ms=clock.decode_ms,
                ),
            ),
        )


@dataclass(frozen=True)
class Trace:
    """The tensors of each stage of one prompt."""

    prompt_token_ids: npt.NDArray[np.int32]  # (T,)
    image_features: npt.NDArray[np.float32] | None  # (S, Q, C)
    audio_features: list[npt.NDArray[np.float32]]  # (span, C) per clip
    logits: npt.NDArray[np.float32]  # (T, vocab)

    def to_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return the tensors by the names a trace file has."""
        arrays: dict[str, npt.NDArray[Any]] = {
            "prompt_token_ids": self.prompt_token_ids,
            "logits": self.logits,
        }
        if self.image_features is not None:
            arrays["image_features"] = self.image_features
        arrays.update({f"audio_features.{n}": features for n, features in enumerate(self.audio_features)})
        return arrays


def load(
    model: str | Path,
    *,
    precision: str | None = None,
    backend: Backend = "native",
    device: str = "cpu",
    threads: int | None = None,
    revision: str | None = None,
    on_progress: OnProgress | None = None,
) -> LLM:
    """Load a model.

    Args:
        model: a folder of the official layout, or a hub id (`owner/name`, `owner/name@revision`).
        precision: what to keep the weights in: float32, bfloat16, float16, int8, int4 or a recipe's name;
            as stored for a low-bit folder, else int4 by default.
        backend: native (C++ kernels) or reference (numpy).
        device: cpu.
        threads: threads of the native backend; None = one per core.
        revision: branch, tag or commit of a hub repository.
        on_progress: called with (weight name, bytes read) for each weight.

    Raises:
        CheckpointError, ParameterError, BackendError: nothing is loaded then.
    """
    checkpoint = open_checkpoint(find_folder(model, revision))
    recipe = checkpoint.recipe(precision)
    ops = make_ops(backend, device, threads, recipe.kv_format)
    _warn_of_storage_formats(recipe)
    weights = checkpoint.weights(recipe, ops, on_progress)
    return LLM(checkpoint, OmniModel(checkpoint.config, weights, ops), recipe)


@cache
def _warn_of_storage_formats(recipe: Recipe) -> None:
    if recipe.name in ("bfloat16", "float16"):
        logger.info("%s weights are kept as they are and computed with in float32 on this device", recipe.name)


def _last(pieces: Iterator[TextPiece]) -> Completion:
    completion = None
    for piece in pieces:
        completion = piece.completion
    assert completion is not None, "a stream ends with its completion"
    return completion
