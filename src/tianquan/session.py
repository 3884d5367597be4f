"""A conversation that remembers: turns are added, taken back, copied and saved, and nothing is computed twice.

A session keeps the prepared media of its turns and gives the engine the whole conversation each time; the engine
finds what it knows already. Media are re-sent as what they were prepared to, so they are decoded once and encoded
once. When the context window is full, a stated policy decides what goes.

    session = llm.session(system="Be brief.", when_full="drop_oldest_turns")
    print(session.send("What is this?", images=["photo.jpg"]).text)
    print(session.send("And what is behind it?").text)
"""

from __future__ import annotations

import sys
import time
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image

from tianquan.answer import Answer, TextPiece, last
from tianquan.engine.parameter_checks import check_params
from tianquan.errors import ParameterError, PromptError
from tianquan.processing.image import decoded_rgb
from tianquan.processing.messages import MediaSource, Message, parse_messages
from tianquan.processing.processor import LoadedMedia, Processor
from tianquan.processing.video import OnVideoProgress
from tianquan.processing.video_input import DecodedVideo
from tianquan.request import AudioInput, Completion, ImageInput, MediaPolicy, Prompt, Role, SamplingParams, WhenFull
from tianquan.session_file import read_messages, to_json, write_messages

_MIN_ANSWER = 256  # tokens an answer should have room for before the window counts as full
_KEEP_SHARE = 0.75  # of the window is filled at most after dropping: dropping each turn would void the prefix each turn
_KEPT_EXCHANGES = 2  # the latest ones, which a summary leaves as they are
_SUMMARY_REQUEST = "Summarize our conversation so far in a few sentences. Keep names, numbers and decisions."
_SUMMARY_TITLE = "Summary of our conversation so far: "
_SUMMARY_REPLY = "Understood."
_SHORTEST_SUMMARY = 32  # tokens
_SUMMARY_SAMPLING = SamplingParams(temperature=0.0, max_tokens=256)
_SUMMARY_ROOM = _SUMMARY_SAMPLING.max_tokens + 64  # with the request for it


class _Room(NamedTuple):
    """How a message fits in the window."""

    prompt: Prompt
    turns: list[Turn] | None  # before it, where the policy made room
    num_dropped: int  # of them


class Answerer(Protocol):
    """What a session needs of a model; `LLM` is one."""

    @property
    def processor(self) -> Processor:
        """Makes prompts of messages and media."""
        ...

    @property
    def max_sequence_tokens(self) -> int:
        """The window: tokens a prompt and its answer may have together."""
        ...

    def answer(self, prompt: Prompt, sampling: SamplingParams, *, preprocess_ms: float = 0.0) -> Answer:
        """Begin to answer a prompt."""
        ...


@dataclass(frozen=True, eq=False)
class Turn:
    """One message of a session, with its media decoded and its pictures cut."""

    content: dict[str, Any]  # {"role", "content"} as the user gave it, for saving
    message: Message
    images: tuple[ImageInput, ...] = ()
    recordings: tuple[tuple[npt.NDArray[np.float32], ...], ...] = ()  # clips (samples,) of each recording
    videos: tuple[DecodedVideo, ...] = ()

    @property
    def role(self) -> Role:
        """Who says it."""
        return self.message.role

    @property
    def has_media(self) -> bool:
        """True when it has a picture, a recording or a video."""
        return bool(self.images or self.recordings or self.videos)


@dataclass(frozen=True)
class TurnTokens:
    """What one turn takes of the window."""

    role: Role
    tokens: int  # with the media's and the template's own
    image_tokens: int
    audio_tokens: int
    video_tokens: int = 0


@dataclass(frozen=True)
class TokenBudget:
    """How full the window is."""

    window: int
    turns: tuple[TurnTokens, ...]
    used: int  # by all turns and the opening of the next answer
    num_dropped: int  # turns the policy took out so far

    @property
    def room(self) -> int:
        """Tokens left for the next message and its answer."""
        return max(0, self.window - self.used)


@dataclass
class _PreparedAudio:
    """The clips of the last prompt: how a clip is cut depends on the longest of all, so they are made together."""

    waveforms: list[npt.NDArray[np.float32]] = field(default_factory=list)
    clips: list[AudioInput] = field(default_factory=list)


class Session:
    """One conversation with one model; made by `LLM.session`. For one thread at a time."""

    def __init__(
        self,
        answerer: Answerer,
        *,
        system: str | None,
        sampling: SamplingParams,
        media: MediaPolicy | None,
        media_root: Path | None,
        when_full: WhenFull,
        keep_media: bool,
    ) -> None:
        if when_full not in get_args(WhenFull):
            raise ParameterError(f"when_full must be one of {', '.join(get_args(WhenFull))}, got {when_full!r}")
        self.sampling = sampling
        self.num_dropped = 0
        self._answerer = answerer
        self._media = media or MediaPolicy()
        self._media_root = media_root
        self._when_full: WhenFull = when_full
        self._keep_media = keep_media
        self._turns: list[Turn] = []
        self._prepared = _PreparedAudio()
        self._system = [] if system is None else [self._make_turn({"role": "system", "content": system})]

    @property
    def turns(self) -> tuple[Turn, ...]:
        """The turns the model sees, without the system prompt."""
        return tuple(self._turns)

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The conversation as vendor messages, with the system prompt."""
        return [turn.content for turn in (*self._system, *self._turns)]

    # Talking ----------------------------------------------------------------------------------------------
    def send(
        self,
        text: str | None = None,
        *,
        images: Sequence[MediaSource] = (),
        audios: Sequence[MediaSource] = (),
        videos: Sequence[MediaSource] = (),
        sampling: SamplingParams | None = None,
        on_video: OnVideoProgress | None = None,
    ) -> Completion:
        """Say something and return the answer; see `stream`."""
        return last(
            self.stream(text, images=images, audios=audios, videos=videos, sampling=sampling, on_video=on_video)
        )

    def stream(
        self,
        text: str | None = None,
        *,
        images: Sequence[MediaSource] = (),
        audios: Sequence[MediaSource] = (),
        videos: Sequence[MediaSource] = (),
        sampling: SamplingParams | None = None,
        on_video: OnVideoProgress | None = None,
    ) -> Generator[TextPiece, None, None]:
        """Say something and yield the answer piece by piece. Left early, the conversation keeps what was said.

        Args:
            text: what is said; None with media alone.
            images: pictures, as paths, bytes, PIL images or arrays.
            audios: recordings, as paths, bytes or (samples, sample rate).
            videos: as paths, bytes or (frames, frames per second).
            sampling: for this answer; the session's by default.
            on_video: called while videos are read, with seconds done and in all.

        Raises:
            PromptError: the window is full and the policy cannot make room.
            MediaError, ParameterError: the message is not part of the conversation then.
        """
        began = time.perf_counter()
        sampling = sampling or self.sampling
        check_params(sampling)
        content = _vendor_content(text, image=images, audio=map(_own_array, audios), video=videos)
        turn = self._make_turn({"role": "user", "content": content}, on_video)
        if "image" in content:  # they are sound by now
            content["image"] = [_own_picture(image) for image in content["image"]]
        room = self._make_room(turn, sampling)
        answer = self._answerer.answer(room.prompt, sampling, preprocess_ms=1000 * (time.perf_counter() - began))
        return self._record(turn, answer, room)

    def _record(self, turn: Turn, answer: Answer, room: _Room) -> Generator[TextPiece, None, None]:
        said = ""
        try:
            for piece in answer:
                said += piece.text
                if piece.completion is not None:
                    said = piece.completion.text
                yield piece
        except (GeneratorExit, KeyboardInterrupt):
            self._add_exchange(turn, said, room)
            raise
        finally:
            answer.close()
        self._add_exchange(turn, said, room)

    def _add_exchange(self, turn: Turn, said: str, room: _Room) -> None:
        """Add what was said; only now what made room for it is forgotten."""
        if room.turns is not None:
            self._turns, self.num_dropped = room.turns, self.num_dropped + room.num_dropped
        self._turns += [turn, self._make_turn({"role": "assistant", "content": said})]

    def undo(self) -> None:
        """Take back the last message and its answer.

        Raises:
            ParameterError: there is none.
        """
        if not self._turns:
            raise ParameterError("there is nothing to undo: the conversation has no turns")
        del self._turns[-2:]

    def clear(self) -> None:
        """Take back everything but the system prompt."""
        self._turns, self.num_dropped = [], 0

    def fork(self) -> Session:
        """Return a copy that goes its own way; what both have in common is computed once."""
        other = Session(
            self._answerer,
            system=None,
            sampling=self.sampling,
            media=self._media,
            media_root=self._media_root,
            when_full=self._when_full,
            keep_media=self._keep_media,
        )
        other._system, other._turns = list(self._system), list(self._turns)
        other.num_dropped = self.num_dropped
        return other

    # Files ------------------------------------------------------------------------------------------------
    def to_json(self) -> str:
        """Return what `save` writes."""
        return to_json(self.messages)

    def save(self, path: str | Path) -> None:
        """Write the conversation as a JSON list of messages, which `tianquan generate` takes too.

        Media given as files stay references to them; others are written into the file.
        """
        write_messages(Path(path), self.messages)

    def load(self, path: str | Path) -> None:
        """Replace the conversation by a saved one.

        Raises:
            PromptError: it cannot be read, or is no conversation of a session.
            MediaError: one of its media cannot be used; the session stays as it was.
        """
        messages = read_messages(Path(path))
        system = messages[:1] if messages and messages[0]["role"] == "system" else []
        others = messages[len(system) :]
        roles = [message["role"] for message in others]
        if len(roles) % 2 or any(role != ("user", "assistant")[n % 2] for n, role in enumerate(roles)):
            raise PromptError(f"{path}: expected messages of user and assistant in turn, a system prompt before them")
        turns = [self._make_turn(message) for message in others]
        self._system, self._turns = [self._make_turn(message) for message in system], turns
        self.num_dropped = 0

    # Prompts ----------------------------------------------------------------------------------------------
    def _make_turn(self, content: dict[str, Any], on_video: OnVideoProgress | None = None) -> Turn:
        message = parse_messages([content])[0]
        processor = self._answerer.processor
        media = processor.load_media([replace(message, audios=())], self._media, self._media_root, on_video)
        recordings = tuple(
            tuple(processor.load_clips(audio, self._media, self._media_root)) for audio in message.audios
        )
        return Turn(content, message, media.images, recordings, media.videos)

    def _prompt(self, turns: Sequence[Turn], add_generation_prompt: bool = True) -> Prompt:
        turns = [*self._system, *turns]
        recordings = [recording for turn in turns for recording in turn.recordings]
        videos = tuple(video for turn in turns for video in turn.videos)
        sources = [*recordings, *(video.waveforms for video in videos)]
        waveforms = [clip for clips in sources for clip in clips]
        if list(map(id, waveforms)) != list(map(id, self._prepared.waveforms)):
            (clips,) = self._answerer.processor.prepare_clips([waveforms])
            self._prepared = _PreparedAudio(waveforms, list(clips))
        remaining = iter(self._prepared.clips)
        prepared = tuple(tuple(next(remaining) for _ in clips) for clips in sources)
        images = tuple(image for turn in turns for image in turn.images)
        media = LoadedMedia(images, prepared[: len(recordings)], videos, prepared[len(recordings) :])
        messages = [turn.message for turn in turns]
        return self._answerer.processor.assemble(messages, media, add_generation_prompt)

    def budget(self) -> TokenBudget:
        """Return what each turn takes of the window, the system prompt first if there is one."""
        turns = [*self._system, *self._turns]
        used = TurnTokens("system", 0, 0, 0)
        rows = []
        for n, turn in enumerate(turns, 1):
            # the template may open with a system prompt of its own: it counts to the first turn
            prompt = self._prompt(turns[len(self._system) : n], add_generation_prompt=False)
            media = (prompt.num_image_tokens, prompt.num_audio_tokens, prompt.num_video_tokens)
            now = (len(prompt.token_ids), *media)
            before = (used.tokens, used.image_tokens, used.audio_tokens, used.video_tokens)
            rows.append(TurnTokens(turn.role, *(a - b for a, b in zip(now, before, strict=True))))
            used = TurnTokens(turn.role, *now)
        total = len(self._prompt(self._turns).token_ids) if turns else 0
        return TokenBudget(self._window, tuple(rows), total, self.num_dropped)

    # The window -------------------------------------------------------------------------------------------
    @property
    def _window(self) -> int:
        return self._answerer.max_sequence_tokens

    def _make_room(self, turn: Turn, sampling: SamplingParams) -> _Room:
        """Return the prompt with a new turn, after the policy has made room if need be; nothing is changed yet."""
        prompt = self._prompt([*self._turns, turn])
        needed = min(sampling.max_tokens, _MIN_ANSWER)
        if self._when_full == "summarize":  # while all that is to be summed up still fits beside its summary
            needed = max(needed, min(_SUMMARY_ROOM, self._window // 4))
        if len(prompt.token_ids) + needed <= self._window:
            return _Room(prompt, None, 0)
        if self._when_full == "error":
            if len(prompt.token_ids) < self._window:
                return _Room(prompt, None, 0)  # the answer may be short
            raise PromptError(
                f"the conversation has {len(prompt.token_ids)} tokens with this message, the window {self._window}; "
                "undo turns, start anew, or choose when_full drop_oldest_turns or summarize"
            )
        turns, num_dropped = self._shorter_turns(turn, needed)
        prompt = self._prompt([*turns, turn])
        if len(prompt.token_ids) >= self._window:
            raise PromptError(
                f"the message has {len(prompt.token_ids)} tokens with what must be kept, the window {self._window}; "
                "make it shorter" + (", or do not keep turns with media" if self._keep_media else "")
            )
        return _Room(prompt, turns, num_dropped)

    def _shorter_turns(self, turn: Turn, needed: int) -> tuple[list[Turn], int]:
        """Return the turns to go on with, fewer or with a summary in place of the oldest, and how many are gone."""
        exchanges = [self._turns[n : n + 2] for n in range(0, len(self._turns), 2)]
        kept = list(exchanges)
        summary: list[Turn] = []
        if self._when_full == "summarize" and exchanges:
            old = exchanges[:-_KEPT_EXCHANGES] or exchanges[:-1] or exchanges
            summary = self._summarize([t for exchange in old for t in exchange])
            kept = [e for e in old if self._keep_media and e[0].has_media] + exchanges[len(old) :]
        goal = min(int(self._window * _KEEP_SHARE), self._window - needed)
        droppable = [e for e in kept if not (self._keep_media and e[0].has_media)]

        def flat() -> list[Turn]:
            return [*summary, *(t for exchange in kept for t in exchange)]

        while droppable and len(self._prompt([*flat(), turn]).token_ids) > goal:
            oldest = droppable.pop(0)
            kept = [e for e in kept if e is not oldest]  # what it says may be said again later
        return flat(), 2 * (len(exchanges) - len(kept))

    def _summarize(self, turns: list[Turn]) -> list[Turn]:
        """Let the model sum up turns; return the summary as an exchange, or nothing if one leaves no room for it."""
        request = self._make_turn({"role": "user", "content": _SUMMARY_REQUEST})
        room = self._window - _SUMMARY_SAMPLING.max_tokens
        first = turns[0].content["content"]
        before = 2 if isinstance(first, str) and first.startswith(_SUMMARY_TITLE) else 0  # what it sums up stays
        while len(turns) > 2 + before and len(self._prompt([*turns, request]).token_ids) > room:
            turns = [*turns[:before], *turns[before + 2 :]]
        if len(self._prompt([*turns, request]).token_ids) > self._window - _SHORTEST_SUMMARY:
            return []
        text = last(self._answerer.answer(self._prompt([*turns, request]), _SUMMARY_SAMPLING)).text
        return [
            self._make_turn({"role": "user", "content": _SUMMARY_TITLE + text}),
            self._make_turn({"role": "assistant", "content": _SUMMARY_REPLY}),
        ]


def _vendor_content(text: str | None, **media: Iterable[MediaSource]) -> dict[str, Any]:
    content: dict[str, Any] = {} if text is None else {"text": text}
    lists = {kind: list(sources) for kind, sources in media.items()}
    return content | {kind: sources for kind, sources in lists.items() if sources}


def _own_array(source: Any) -> Any:
    """Return a medium whose samples or pixels are the session's: the caller may go on to use the buffer."""
    if isinstance(source, tuple):
        return tuple(map(_own_array, source))
    return source.copy() if isinstance(source, np.ndarray) else source


def _own_picture(source: Any) -> Any:
    return decoded_rgb(source, sys.maxsize).copy() if isinstance(source, Image.Image) else _own_array(source)
