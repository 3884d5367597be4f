"""Conversations as users write them, checked and brought into one form.

Two forms come in, and may be mixed within a conversation:
- the vendor's: {"role", "content": string or {"text", "image", "audio", "video"}}, each medium one or a list;
- OpenAI's: {"role", "content": string or a list of parts of type text, image_url, input_audio, audio_url, video_url}.

The model's template knows the vendor's form only, and no video: it sees a video as one more picture, behind those of
the turn. Within a turn it decides the order of pictures, sound and text; an OpenAI list that interleaves them keeps
the order within each kind, not between kinds.
"""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from PIL import Image

from tianquan.errors import MediaError, PromptError
from tianquan.processing.labels import printable
from tianquan.request import Role

# What a medium may be given as: a path, encoded bytes, a decoded picture as an image or as an array (H, W, 3) of
# uint8, (samples, sample rate), or (frames, frames per second).
MediaSource = str | Path | bytes | Image.Image | tuple[Any, Any] | np.ndarray[Any, Any]
Detail = Literal["auto", "low", "high"]

_VENDOR_KEYS = ("text", "image", "audio", "video")


@dataclass(frozen=True)
class ImageReference:
    """A picture not loaded yet. `low` asks for the overview only."""

    source: MediaSource
    detail: Detail = "auto"


@dataclass(frozen=True)
class Message:
    """One turn.

    `keys` holds which vendor keys the turn has, in order, and whether a medium stood alone or in a list:
    a template may ask.
    """

    role: Role
    text: str | None
    images: tuple[ImageReference, ...] = ()
    audios: tuple[MediaSource, ...] = ()
    is_plain: bool = False  # the content was a string
    listed: frozenset[str] = frozenset()  # vendor keys whose value was a list
    videos: tuple[MediaSource, ...] = ()


def parse_messages(messages: Any) -> list[Message]:
    """Return the turns of a conversation.

    Raises:
        PromptError: not a list of messages, an unknown role, key or part, a value of the wrong type.
        MediaError: a URL that would have to be fetched, or base64 that is not.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str | bytes) or not messages:
        raise PromptError(f"messages must be a non-empty list of {{role, content}}, got {_describe(messages)}")
    return [_parse_message(message, f"messages[{n}]") for n, message in enumerate(messages)]


def _parse_message(message: Any, where: str) -> Message:
    if not isinstance(message, Mapping):
        raise PromptError(f"{where} must be an object with role and content, got {_describe(message)}")
    role: Any = message.get("role")
    content = message.get("content")
    if not _is_one_of(role, Role):
        raise PromptError(f"{where}.role must be one of {', '.join(get_args(Role))}, got {_describe(role)}")
    extra = sorted(set(message) - {"role", "content"}, key=str)
    if extra:
        raise PromptError(f"{where} has unsupported keys: {_names(extra)}")
    if isinstance(content, str):
        return Message(role, content, is_plain=True)
    if isinstance(content, Mapping):
        return _parse_vendor(role, content, f"{where}.content")
    if isinstance(content, Sequence) and not isinstance(content, bytes):
        return _parse_parts(role, content, f"{where}.content")
    raise PromptError(f"{where}.content must be a string, an object or a list of parts, got {_describe(content)}")


def _parse_vendor(role: Role, content: Mapping[str, Any], where: str) -> Message:
    extra = sorted(set(content) - set(_VENDOR_KEYS), key=str)
    if extra:
        raise PromptError(f"{where} has unsupported keys: {_names(extra)}; expected {_VENDOR_KEYS}")
    text = content.get("text")
    if text is not None and not isinstance(text, str):
        raise PromptError(f"{where}.text must be a string, got {_describe(text)}")
    listed, media = set(), {}
    for key in _VENDOR_KEYS[1:]:
        value = content.get(key)
        if isinstance(value, list):
            listed.add(key)
        values = value if isinstance(value, list) else [] if value is None else [value]
        media[key] = [parse_source(v, f"{where}.{key}") for v in values]
    if text is None and not any(media.values()):
        raise PromptError(f"{where} is empty; expected text, image, audio or video")
    images = tuple(ImageReference(source) for source in media["image"])
    audios, videos = tuple(media["audio"]), tuple(media["video"])
    return Message(role, text, images, audios, listed=frozenset(listed), videos=videos)


def _parse_parts(role: Role, parts: Sequence[Any], where: str) -> Message:
    texts: list[str] = []
    images: list[ImageReference] = []
    audios: list[MediaSource] = []
    videos: list[MediaSource] = []
    for n, part in enumerate(parts):
        here = f"{where}[{n}]"
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "text" and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif kind == "image_url":
            images.append(_parse_image_url(part.get("image_url"), f"{here}.image_url"))
        elif kind in ("audio_url", "video_url"):
            url = part.get(kind)
            source = parse_source(url.get("url") if isinstance(url, Mapping) else url, f"{here}.{kind}")
            (audios if kind == "audio_url" else videos).append(source)
        elif kind == "input_audio":
            audio = part.get("input_audio")
            if not isinstance(audio, Mapping) or not isinstance(audio.get("data"), str):
                raise PromptError(f"{here}.input_audio must be an object with data (base64) and format")
            audios.append(_decode_base64(audio["data"], f"{here}.input_audio.data"))
        else:
            raise PromptError(
                f"{here} must be a part of type text, image_url, input_audio, audio_url or video_url, "
                f"got {_describe(part)}"
            )
    if not parts:
        raise PromptError(f"{where} is empty; expected at least one part")
    text = "\n".join(texts) if texts else None
    listed = frozenset(_VENDOR_KEYS[1:])
    return Message(role, text, tuple(images), tuple(audios), listed=listed, videos=tuple(videos))


def _parse_image_url(value: Any, where: str) -> ImageReference:
    url: Any
    detail: Any
    url, detail = (value.get("url"), value.get("detail", "auto")) if isinstance(value, Mapping) else (value, "auto")
    if not _is_one_of(detail, Detail):
        raise PromptError(f"{where}.detail must be one of {', '.join(get_args(Detail))}, got {_describe(detail)}")
    return ImageReference(parse_source(url, where), detail)


def parse_source(value: Any, where: str) -> MediaSource:
    """Return a source with data: URLs decoded; other URLs are refused, nothing is fetched here.

    Raises:
        PromptError: of a type no medium is given as.
        MediaError: a URL that would have to be fetched, base64 that is not, a tuple of other than two.
    """
    if isinstance(value, bytearray | io.BytesIO):
        return value.getvalue() if isinstance(value, io.BytesIO) else bytes(value)
    if isinstance(value, Path | bytes | Image.Image | np.ndarray):
        return value
    if isinstance(value, tuple):
        if len(value) != 2:
            expected = "(samples, sample rate) or (frames, frames per second)"
            raise MediaError(f"{where}: a tuple of {len(value)}; expected {expected}")
        return value
    if not isinstance(value, str) or not value:
        raise PromptError(f"{where} must be a path, a data: URL or bytes, got {_describe(value)}")
    if value.startswith("data:"):
        header, comma, data = value.partition(",")
        if not comma or not header.endswith(";base64"):
            raise MediaError(f"{where}: a data: URL must be base64 (data:TYPE;base64,...)")
        return _decode_base64(data, where)
    scheme, separator, _ = value.partition("://")
    if separator:
        raise MediaError(f"{where}: {printable(scheme, 20)}: URLs are not fetched; give a local path or a data: URL")
    return value


def _decode_base64(data: str, where: str) -> bytes:
    try:
        return base64.b64decode("".join(data.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise MediaError(f"{where}: not valid base64") from error


def _is_one_of(value: Any, literal: Any) -> bool:
    return isinstance(value, str) and value in get_args(literal)


def _describe(value: Any) -> str:
    """Name a wrong value without printing a user's content."""
    if isinstance(value, Mapping):
        return f"an object with keys {_names(sorted(value, key=str)[:6]) or 'none'}"
    if isinstance(value, str):
        return repr(value[:40])
    return "an empty list" if isinstance(value, list) and not value else type(value).__name__


def _names(keys: Sequence[Any]) -> str:
    return ", ".join(printable(str(key), 40) for key in keys[:20])
