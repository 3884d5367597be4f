"""The Python API: a loaded model that chats, generates, transcribes and keeps conversations. `loading.py` loads it.

llm = tianquan.load("path/to/checkpoint")
print(llm.chat([{"role": "user", "content": {"text": "What is this?", "image": "photo.jpg"}}]).text)
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tianquan.answer import Answer, TextPiece, last
from tianquan.backends.kv_cache import SequenceBatch
from tianquan.checkpoint import Checkpoint
from tianquan.checkpoint.config_files import VENDOR_SAMPLING
from tianquan.checkpoint.weight_reader import OnProgress
from tianquan.engine.constraints import ConstraintCompiler, Vocabulary
from tianquan.engine.engine import Engine
from tianquan.engine.interface import Constraint, EngineOptions, EngineRequest, EngineStatistics
from tianquan.engine.parameter_checks import check_params
from tianquan.engine_driver import EngineDriver, StepThread
from tianquan.errors import ParameterError, PromptError
from tianquan.models.omni_model import OmniModel
from tianquan.processing.messages import MediaSource
from tianquan.processing.processor import Processor
from tianquan.processing.tokenizer import Tokenizer
from tianquan.processing.video import OnVideoProgress
from tianquan.quantization.recipes import Recipe
from tianquan.request import (
    Completion,
    LongAudio,
    MediaPolicy,
    OutputFormat,
    Prompt,
    SamplingParams,
    WhenFull,
)
from tianquan.session import Session

CHAT_SAMPLING = VENDOR_SAMPLING  # where the checkpoint has no generation_config.json of its own
GREEDY = SamplingParams(temperature=0.0)
TRANSCRIBE_INSTRUCTION = "Convert speech to text."  # the vendor's prompt for speech recognition
TRANSCRIBE_SAMPLING = replace(GREEDY, max_tokens=512)  # 30 s of fast speech is under 250 tokens


class LLM:
    """One model on one backend. Calls may come from several threads: one engine answers them side by side.

    adapted: by name, this model with adapters that were loaded beside it (`load(adapters=...)`); engines of their own,
        whose steps take turns with this one's.
    has_adapter: whether the factors of one are beside the weights.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        model: OmniModel,
        recipe: Recipe,
        options: EngineOptions | None = None,
        thread: StepThread | None = None,
        has_adapter: bool = False,
    ) -> None:
        self.checkpoint = checkpoint
        self.has_adapter = has_adapter
        self.model = model
        self.recipe = recipe
        self.driver = EngineDriver(Engine(model, options), thread)
        self.adapted: dict[str, LLM] = {}
        self._compiler: ConstraintCompiler | None = None

    @property
    def processor(self) -> Processor:
        """Makes prompts of messages and media; safe on any thread."""
        return self.checkpoint.processor

    @property
    def tokenizer(self) -> Tokenizer:
        """The checkpoint's tokenizer."""
        return self.processor.tokenizer

    @property
    def max_sequence_tokens(self) -> int:
        """Tokens a prompt and its answer may have together."""
        return self.driver.engine.max_sequence_tokens

    def chat(
        self,
        messages: Any,
        *,
        sampling: SamplingParams | None = None,
        media: MediaPolicy | None = None,
        media_root: Path | None = None,
    ) -> Completion:
        """Answer a conversation.

        Args:
            messages: vendor or OpenAI messages.
            sampling: how tokens are chosen; as the checkpoint says (generation_config.json), or the vendor's advice.
            media: how pictures, video and sound are looked at; the checkpoint's settings by default.
            media_root: folder that relative media paths start from; the working folder by default.

        Raises:
            PromptError, MediaError, ParameterError: see `processing.processor` and `engine.sampler`.
        """
        return last(self.stream_chat(messages, sampling=sampling, media=media, media_root=media_root))

    def stream_chat(
        self,
        messages: Any,
        *,
        sampling: SamplingParams | None = None,
        media: MediaPolicy | None = None,
        media_root: Path | None = None,
        on_video: OnVideoProgress | None = None,
    ) -> Answer:
        """Answer a conversation piece by piece; arguments as for `chat`.

        `on_video` is called while videos are read, with seconds done and in all.
        """
        sampling = sampling or self.checkpoint.sampling
        check_params(sampling)
        began = time.perf_counter()
        prompt = self.processor(messages, media, media_root, on_video)
        return self.answer(prompt, sampling, preprocess_ms=1000 * (time.perf_counter() - began))

    def generate(self, text: str, *, sampling: SamplingParams | None = None) -> Completion:
        """Continue plain text, without the chat template."""
        sampling = sampling or self.checkpoint.sampling
        check_params(sampling)
        token_ids = self.tokenizer.encode_text(text)
        if not token_ids:
            raise PromptError("the text to continue is empty")
        return last(self.answer(Prompt(np.array(token_ids, np.int32)), sampling))

    def answer(
        self,
        prompt: Prompt,
        sampling: SamplingParams,
        *,
        salt: str = "",
        preprocess_ms: float = 0.0,
    ) -> Answer:
        """Begin to answer a prompt; the pieces come by iterating. Arguments and errors as for `request`."""
        request = self.request(prompt, sampling, salt=salt, preprocess_ms=preprocess_ms)
        return Answer(self.driver, request, self.tokenizer)

    def request(
        self,
        prompt: Prompt,
        sampling: SamplingParams,
        *,
        salt: str = "",
        preprocess_ms: float = 0.0,
    ) -> EngineRequest:
        """Return what the engine is asked for one answer: the prompt, the ends of this checkpoint, the compiled form.

        Args:
            prompt: from `processor`.
            sampling: how tokens are chosen.
            salt: keeps what is cached apart from other salts'; see `EngineRequest`.
            preprocess_ms: what making the prompt took, for the timings.

        Raises:
            ParameterError, PromptError: see `Engine.add`.
            BackendError: a form is asked for and llguidance is not installed.
        """
        if sampling.n != 1:
            raise ParameterError(f"n is {sampling.n}; several answers come from choices(), one at a time from here")
        check_params(sampling, self.model.config.language.vocab_size)
        return EngineRequest(
            prompt=prompt,
            sampling=sampling,
            stop_token_ids=frozenset() if sampling.ignore_eos else self.checkpoint.stop_token_ids,
            salt=salt,
            constraint=None if sampling.output_format is None else self.constraint(sampling.output_format),
            preprocess_ms=preprocess_ms,
        )

    def choices(
        self,
        messages: Any,
        *,
        sampling: SamplingParams | None = None,
        media: MediaPolicy | None = None,
        media_root: Path | None = None,
    ) -> list[Completion]:
        """Return `sampling.n` answers to one conversation, made side by side; arguments as for `chat`.

        With a seed, answer i has the seed plus i: the first is what `chat` gives.
        """
        sampling = sampling or self.checkpoint.sampling
        check_params(sampling)
        prompt = self.processor(messages, media, media_root)
        each = [
            replace(sampling, n=1, seed=None if sampling.seed is None else (sampling.seed + i) % 2**63)
            for i in range(sampling.n)
        ]
        answers = [self.answer(prompt, params) for params in each]
        return [last(answer) for answer in answers]

    def session(
        self,
        *,
        system: str | None = None,
        sampling: SamplingParams | None = None,
        media: MediaPolicy | None = None,
        media_root: Path | None = None,
        when_full: WhenFull = "error",
        keep_media: bool = False,
    ) -> Session:
        """Begin a conversation.

        Args:
            system: system prompt; the checkpoint's own by default.
            sampling: how tokens are chosen.
            media: how pictures, video and sound are looked at.
            media_root: folder that relative media paths start from.
            when_full: what to do when the context window is full: `error`; `drop_oldest_turns`, where the system
                prompt stays; or `summarize`, where the model writes a summary that takes the place of old turns.
            keep_media: keep turns with pictures or sound while others are dropped.

        Raises:
            ParameterError: an unknown policy.
        """
        sampling = sampling or self.checkpoint.sampling
        check_params(sampling)
        return Session(
            self,
            system=system,
            sampling=sampling,
            media=media,
            media_root=media_root,
            when_full=when_full,
            keep_media=keep_media,
        )

    def constraint(self, form: OutputFormat) -> Constraint:
        """Return a fresh constraint to answers of a form.

        Raises:
            ParameterError: the form is not valid, or no answer meets it.
            BackendError: llguidance is not installed.
        """
        if self._compiler is None:  # half a second for a large vocabulary
            tokenizer = self.tokenizer
            self._compiler = ConstraintCompiler(
                Vocabulary(
                    tuple(map(tokenizer.token_bytes, range(self.model.config.language.vocab_size))),
                    tokenizer.special_token_ids,
                    self.checkpoint.stop_token_ids,
                    tokenizer.encode_text,
                )
            )
        return self._compiler(form)

    def load_towers(self) -> None:
        """Read what sees and what hears now, of the adapters too, instead of when the first medium comes."""
        for llm in (self, *self.adapted.values()):
            llm.model.load_vision()
            llm.model.load_audio()

    def statistics(self) -> EngineStatistics:
        """Return what the engine did so far, and holds now."""
        return self.driver.statistics()

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
        processor = self.processor
        for n, clip in enumerate(processor.load_clips(audio, MediaPolicy(long_audio=long_audio))):
            content = {"text": instruction, "audio": (clip, processor.sample_rate)}
            if n > 0:
                yield TextPiece("\n")
            yield from self.stream_chat([{"role": "user", "content": content}], sampling=sampling)

    def trace(self, messages: Any, *, media: MediaPolicy | None = None, media_root: Path | None = None) -> Trace:
        """Return the tensors of each stage for a conversation, for comparison with another implementation."""
        prompt = self.processor(messages, media, media_root)
        room = self.model.config.language.max_position_embeddings
        if len(prompt.token_ids) > room:
            raise PromptError(f"the prompt has {len(prompt.token_ids)} tokens, the context window {room}")
        model = self.model
        images = model.encode_images(prompt.images) if prompt.images else None
        audios = model.encode_audios(prompt.audios) if prompt.audios else []
        hidden = model.embed(prompt, images, audios)
        cache = model.language_model.make_kv_cache(len(hidden))
        logits = model.forward(hidden, cache, SequenceBatch.alone(len(hidden), 0, cache), all_rows=True)
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
            ParameterError: it has an adapter, which would be left out.
        """
        if self.has_adapter:
            raise ParameterError("the adapter would be left out; `merge` it into the checkpoint and quantize that")
        self.checkpoint.save_low_bit(self.recipe, Path(folder), self.model.ops, on_progress)


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
