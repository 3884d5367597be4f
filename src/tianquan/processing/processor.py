"""From a conversation to a prompt: template, media, placeholders, token ids and feature spans.

    messages -> template text with media marks -> token ids, each medium expanded to its placeholder tokens

Text from users stays text. Before the template runs, every string in it that spells a special token or a
media mark is broken by a character that occurs nowhere else; after the template has run, structure is found
in what is unbroken, and the character is taken out again. Text without such strings is not touched at all,
so templates that trim, compare or measure it see what the original would see.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from tianquan.errors import CheckpointError, MediaError, PromptError
from tianquan.processing.audio import Waveform, as_waveform, fit_long_audio, prepare_audio
from tianquan.processing.chat_template import ChatTemplate
from tianquan.processing.image import decoded_rgb, require_pixels
from tianquan.processing.image_detail import look_at
from tianquan.processing.labels import printable
from tianquan.processing.media import load_image, load_waveform, read_picture_size
from tianquan.processing.messages import ImageReference, MediaSource, Message, parse_messages, parse_source
from tianquan.processing.prompt_builder import ProcessorSettings, PromptBuilder
from tianquan.processing.tokenizer import Tokenizer
from tianquan.processing.video import OnVideoProgress
from tianquan.processing.video_input import DecodedVideo, load_video
from tianquan.request import AudioInput, ImageInput, MediaPolicy, Prompt, SliceGrid

IMAGE_MARK = "(<image>./</image>)"
AUDIO_MARK = "(<audio>./</audio>)"
MediaKind = Literal["image", "audio"]
_KINDS: dict[str, MediaKind] = {IMAGE_MARK: "image", AUDIO_MARK: "audio"}
_MEDIA_MARKS = re.compile("|".join(map(re.escape, _KINDS)))
_PRIVATE_USE = range(0xE000, 0xF900)  # characters with no assigned meaning: one is chosen that no text holds
_SAMPLES_PER_FRAME = 320  # of one encoder frame: mel hop 160, convolution stride 2


@dataclass(frozen=True)
class LoadedMedia:
    """The media of a conversation, in order; a long recording may have become several clips."""

    images: tuple[ImageInput, ...]
    recordings: tuple[tuple[AudioInput, ...], ...]
    videos: tuple[DecodedVideo, ...] = ()
    sound_tracks: tuple[tuple[AudioInput, ...], ...] = ()  # of each video


class Processor:
    """Prompts for one checkpoint. Safe to use from several threads.

    Args:
        tokenizer: the vocabulary.
        chat_template: the checkpoint's Jinja template, run in a sandbox.
        special_strings: bos_token, eos_token, ... for the template.
        settings: how media become tokens.

    Raises:
        CheckpointError: the tokenizer lacks a placeholder token, or the template does not parse.
    """

    sample_rate = 16000  # of waveforms, in Hz

    def __init__(
        self,
        tokenizer: Tokenizer,
        chat_template: str,
        special_strings: dict[str, str],
        settings: ProcessorSettings,
    ) -> None:
        self.tokenizer = tokenizer
        self.settings = settings
        self._special_strings = special_strings
        self._template = ChatTemplate(chat_template)
        self.placeholder_ids: dict[str, int] = {}  # of the strings of `settings.tokens`
        for token in settings.tokens.all():
            token_id = tokenizer.special_token_id(token)
            if token_id is None:
                raise CheckpointError(
                    f"the tokenizer has no special token {token!r}, which this model needs to place media"
                )
            self.placeholder_ids[token] = token_id
        structure = sorted({*tokenizer.special_tokens, IMAGE_MARK, AUDIO_MARK}, key=len, reverse=True)
        self._structure_beginnings = tuple({token[:n] for token in structure for n in range(1, len(token))})
        self._structure_endings = tuple({token[n:] for token in structure for n in range(1, len(token))})
        # Nothing can be put inside of one character; such a token is not kept from texts.
        self._structure_pattern = re.compile("|".join(re.escape(token) for token in structure if len(token) > 1))

    def __call__(
        self,
        messages: Any,
        policy: MediaPolicy | None = None,
        media_root: str | Path | None = None,
        on_video: OnVideoProgress | None = None,
    ) -> Prompt:
        """Return the prompt for a conversation, ready for the assistant's answer.

        Args:
            messages: vendor or OpenAI messages, see `messages.py`.
            policy: how media are looked at; the checkpoint's settings by default.
            media_root: folder that relative media paths start from; the working folder by default.
            on_video: called while videos are read, with seconds done and in all.

        Raises:
            PromptError: messages of the wrong form, or media the template does not place.
            MediaError: a picture or a clip that cannot be used.
        """
        turns = parse_messages(messages)
        prompt = self.assemble(turns, self.load_media(turns, policy or MediaPolicy(), media_root, on_video))
        if not len(prompt.token_ids):
            raise PromptError(
                "the chat template gave an empty prompt; expected at least one token; check the checkpoint's template"
            )
        return prompt

    # Template ---------------------------------------------------------------------------------------------
    def render_messages(self, messages: Any) -> tuple[str, str]:
        """Return `render` of messages not parsed yet."""
        return self.render(parse_messages(messages))

    def render(self, turns: Sequence[Message], add_generation_prompt: bool = True) -> tuple[str, str]:
        """Return the template's text for a conversation, and the character that breaks user text in it.

        Raises:
            PromptError: the template refuses the conversation or fails.
        """
        texts = [turn.text for turn in turns if turn.text]
        breaker = _unused_character([self._template.source, *self.tokenizer.special_tokens, *texts])
        content = [self._template_message(turn, breaker) for turn in turns]
        text = self._template.render(
            messages=content,
            add_generation_prompt=add_generation_prompt,
            tools=None,
            documents=None,
            **self._special_strings,
        )
        return text, breaker

    def _template_message(self, turn: Message, breaker: str) -> dict[str, Any]:
        text = None if turn.text is None else self._break_structure(turn.text, breaker)
        if turn.is_plain:
            return {"role": turn.role, "content": text}
        content: dict[str, Any] = {}
        if text is not None:
            content["text"] = text
        # The template asks whether there is one and counts them; what it is stays here. It knows of no video.
        is_listed = bool(turn.listed & {"image", "video"}) or len(turn.images) + len(turn.videos) > 1
        for key, number, listed in (
            ("image", len(turn.images) + len(turn.videos), is_listed),
            ("audio", len(turn.audios), "audio" in turn.listed),
        ):
            if number:
                content[key] = [key] * number if listed else key
        return {"role": turn.role, "content": content}

    def _break_structure(self, text: str, breaker: str) -> str:
        """Put `breaker` inside every special string that text spells or could complete at its ends."""
        while self._structure_pattern.search(text):  # again for what lay inside of one, or began in it
            text = self._structure_pattern.sub(lambda match: match.group()[0] + breaker + match.group()[1:], text)
        if text.endswith(self._structure_beginnings):
            text += breaker
        if text.startswith(self._structure_endings):
            text = breaker + text
        return text

    # Media ------------------------------------------------------------------------------------------------
    def load_media(
        self,
        turns: Sequence[Message],
        policy: MediaPolicy,
        root: str | Path | None = None,
        on_video: OnVideoProgress | None = None,
    ) -> LoadedMedia:
        """Return all media of a conversation, ready for the encoders.

        Raises:
            MediaError: one cannot be used.
        """
        images = [image for turn in turns for image in turn.images]
        audios = [audio for turn in turns for audio in turn.audios]
        sources = [video for turn in turns for video in turn.videos]
        _require_total_pixels([image.source for image in images], policy, root)
        loaded = [
            self._load_image(image, policy, root, f"image {n} of the conversation") for n, image in enumerate(images, 1)
        ]
        names = [f"audio {n} of the conversation" for n in range(1, len(audios) + 1)]
        recordings = [self.load_clips(audio, policy, root, name) for audio, name in zip(audios, names, strict=True)]
        labels = [_label(audio, name) for audio, name in zip(audios, names, strict=True)]
        video_names = [f"video {n} of the conversation" for n in range(1, len(sources) + 1)]
        videos = [
            self.load_video(source, policy, root, name, on_video)
            for source, name in zip(sources, video_names, strict=True)
        ]
        labels += [_label(source, name) for source, name in zip(sources, video_names, strict=True)]
        recordings_of_all = [*recordings, *(video.waveforms for video in videos)]
        prepared = self.prepare_clips(recordings_of_all, labels)
        return LoadedMedia(
            tuple(loaded), prepared[: len(recordings)], tuple(videos), sound_tracks=prepared[len(recordings) :]
        )

    def prepare_clips(
        self, recordings: Sequence[Sequence[Waveform]], labels: Sequence[str] = ()
    ) -> tuple[tuple[AudioInput, ...], ...]:
        """Return the clips of all recordings of a conversation; how one is cut depends on the longest of all."""
        names = [label for label, clips in zip(labels, recordings, strict=True) for _ in clips] if labels else []
        waveforms = [waveform for clips in recordings for waveform in clips]
        prepared = iter(prepare_audio(waveforms, self.settings.num_mels, self.settings.max_audio_frames, names))
        return tuple(tuple(next(prepared) for _ in clips) for clips in recordings)

    def load_video(
        self,
        source: MediaSource,
        policy: MediaPolicy,
        root: str | Path | None = None,
        label: str = "video",
        on_progress: OnVideoProgress | None = None,
    ) -> DecodedVideo:
        """Return the frames of a video, and its sound track where the policy asks for it; see `video_input`.

        Raises:
            MediaError: it cannot be used.
        """
        source = parse_source(source, label)
        if isinstance(source, str | Path | bytes):
            source = _resolve(source, root)
        elif not isinstance(source, tuple):
            raise MediaError(
                f"{label}: a video must be a path, bytes or (frames, frames per second), got {type(source).__name__}"
            )
        max_samples = self.settings.max_audio_frames * _SAMPLES_PER_FRAME
        return load_video(source, policy, self.settings.image, max_samples, label, on_progress)

    def _load_image(
        self, image: ImageReference, policy: MediaPolicy, root: str | Path | None, label: str
    ) -> ImageInput:
        source = image.source
        if isinstance(source, Image.Image | np.ndarray):
            picture = decoded_rgb(source, policy.max_pixels, label)
        elif isinstance(source, str | Path | bytes):
            picture = load_image(_resolve(source, root), policy.max_pixels, label)
        else:
            raise MediaError(
                f"{label}: a picture must be a path, bytes, a PIL image or an array, got {type(source).__name__}"
            )
        image_policy = policy.image
        if image.detail == "low":
            image_policy = replace(image_policy, max_slices=0)
        return look_at(picture, self.settings.image, image_policy, _label(source, label))

    def load_clips(
        self, source: MediaSource, policy: MediaPolicy, root: str | Path | None = None, label: str = "audio"
    ) -> list[npt.NDArray[np.float32]]:
        """Return the clips (samples,) at `sample_rate` of one recording: several when it is long and split.

        `label` is what errors call a recording that is no file.

        Raises:
            MediaError: it cannot be decoded, or is too long for the policy.
        """
        source = parse_source(source, label)
        if isinstance(source, str | Path | bytes):
            waveform = load_waveform(_resolve(source, root), policy.max_audio_seconds, label)
        elif isinstance(source, tuple):
            waveform = as_waveform(*source, label, max_seconds=policy.max_audio_seconds)
        else:
            raise MediaError(
                f"{label}: a recording must be a path, bytes or (samples, sample rate), got {type(source).__name__}"
            )
        max_samples = self.settings.max_audio_frames * _SAMPLES_PER_FRAME
        return fit_long_audio(waveform, policy.long_audio, max_samples, _label(source, label))

    # Tokens -----------------------------------------------------------------------------------------------
    def encode_turns(self, turns: Sequence[Message], add_generation_prompt: bool = True) -> list[list[int] | MediaKind]:
        """Return a conversation as token ids, with the kind of medium wherever one goes; a video is an image here.

        Raises:
            PromptError: the template refuses the turns, or does not place each medium once.
        """
        text, breaker = self.render(turns, add_generation_prompt)
        pieces = self.encode_marked(text, breaker)
        expected: dict[MediaKind, int] = {
            "image": sum(len(turn.images) + len(turn.videos) for turn in turns),
            "audio": sum(len(turn.audios) for turn in turns),
        }
        for kind, number in expected.items():
            if pieces.count(kind) != number:
                raise PromptError(
                    f"the checkpoint's chat template placed {pieces.count(kind)} {kind} inputs, the messages have "
                    f"{number}; its template may not allow {kind} in that role or turn"
                )
        return pieces

    def encode_marked(self, text: str, hidden: str) -> list[list[int] | MediaKind]:
        """Return the token ids of text a template wrote, with the kind of medium at each media mark.

        `hidden` is a character that breaks special strings users wrote; it is not part of the text.
        """
        pieces: list[list[int] | MediaKind] = []
        start = 0
        for match in _MEDIA_MARKS.finditer(text):
            pieces += [self.tokenizer.encode_structure(text[start : match.start()], hidden), _KINDS[match.group()]]
            start = match.end()
        return [*pieces, self.tokenizer.encode_structure(text[start:], hidden)]

    def image_token_ids(self, grid: SliceGrid, number: int) -> list[int]:
        """Return the tokens that stand for picture `number` of a conversation, counted from 0."""
        builder = self._prompt_builder(number)
        builder.add_image(grid)
        return builder.token_ids

    def audio_token_ids(self, spans: Sequence[int]) -> list[int]:
        """Return the tokens that stand for one recording, whose clips take `spans` placeholders each."""
        builder = self._prompt_builder()
        for span_len in spans:
            builder.add_audio(span_len)
        return builder.token_ids

    def _prompt_builder(self, num_images: int = 0) -> PromptBuilder:
        return PromptBuilder(self.tokenizer, self.placeholder_ids, self.settings, num_images)

    def assemble(self, turns: Sequence[Message], media: LoadedMedia, add_generation_prompt: bool = True) -> Prompt:
        """Return the prompt of a conversation, or of its beginning, with the media of the whole.

        Raises:
            PromptError: the template refuses the turns, or does not place each medium once.
        """
        images, videos, recordings = (
            iter(media.images),
            zip(media.videos, media.sound_tracks, strict=True),
            iter(media.recordings),
        )
        is_video = iter([kind for turn in turns for kind in [False] * len(turn.images) + [True] * len(turn.videos)])
        builder = self._prompt_builder()
        for piece in self.encode_turns(turns, add_generation_prompt):
            if piece == "audio":
                builder.add_clips(next(recordings))
            elif piece != "image":
                builder.token_ids += piece
            elif next(is_video):
                builder.add_video(*next(videos))
            else:
                builder.add_picture(next(images))
        return Prompt(
            np.array(builder.token_ids, np.int32), tuple(builder.images), tuple(builder.clips), tuple(builder.spans)
        )


def _resolve(source: str | Path | bytes, root: str | Path | None) -> Path | bytes:
    if isinstance(source, bytes):
        return source
    return Path(source) if root is None else Path(root) / source


def _label(source: MediaSource, default: str) -> str:
    """Return what errors call a medium: its file's name if it has one."""
    return printable(Path(source).name) if isinstance(source, str | Path) else default


def _require_total_pixels(sources: Sequence[MediaSource], policy: MediaPolicy, root: str | Path | None) -> None:
    """Raise MediaError when pictures have too many pixels together, by their headers: none of them is decoded.

    What is no picture is left for who loads it to refuse.
    """
    max_pixels = policy.max_total_pixels
    if max_pixels is None:
        return
    total = 0
    for n, source in enumerate(sources, 1):
        label = f"image {n} of the conversation"
        if isinstance(source, str | Path | bytes):
            width, height = read_picture_size(_resolve(source, root), label)
        elif isinstance(source, Image.Image):
            width, height = source.size
        elif isinstance(source, np.ndarray) and source.ndim >= 2:
            height, width = source.shape[:2]
        else:
            continue
        require_pixels((width, height), policy.max_pixels, _label(source, label))
        total += width * height
        if total > max_pixels:
            raise MediaError(
                f"the first {n} of {len(sources)} pictures of the conversation have {total} pixels together, more than "
                f"the cap of {max_pixels}; send fewer or smaller ones, or raise max_total_pixels"
            )


def _unused_character(texts: Sequence[str]) -> str:
    used = set().union(*texts)
    for code in _PRIVATE_USE:
        if chr(code) not in used:
            return chr(code)
    raise PromptError("the messages use every private-use character; at least one must be free")
