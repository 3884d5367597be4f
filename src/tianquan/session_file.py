"""Saved conversations: a JSON list of vendor messages. Media that are no files are written into it.

Pictures are kept exactly (PNG); sound given as float samples is rounded to 16 bits.
"""

from __future__ import annotations

import base64
import io
import json
import os
import re
import sys
import wave
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from tianquan.errors import PromptError, TianquanError
from tianquan.processing.audio import as_waveform
from tianquan.processing.image import decoded_rgb
from tianquan.processing.messages import MediaSource, parse_source

_SAMPLE_RATE = 16000
_LOUDEST = 1.25  # times full scale
_HALF = re.compile("[\ud800-\udfff]")


def to_json(messages: list[dict[str, Any]]) -> str:
    """Return the text of the file."""
    return json.dumps([_plain(message) for message in messages], ensure_ascii=False, indent=1)


def write_messages(path: Path, messages: list[dict[str, Any]]) -> None:
    """Write messages; the file is complete or not there.

    Raises:
        TianquanError: it cannot be written.
    """
    if not path.name:
        raise TianquanError(f"{path}: is a folder; expected the name of a file")
    # A name of a file that is no UTF-8 has halves of characters in it: escaped, they come back as they were.
    text = _HALF.sub(lambda half: f"\\u{ord(half[0]):04x}", to_json(messages)).encode() + b"\n"
    temporary = path.with_name(path.name + ".part")
    try:
        temporary.write_bytes(text)
        os.replace(temporary, path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise TianquanError(f"{path}: cannot be written ({error.strerror})") from error


def read_messages(path: Path) -> list[dict[str, Any]]:
    """Return saved messages, with role and content each.

    Raises:
        PromptError: the file cannot be read or is no list of messages.
    """
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for, a device may never end
            raise PromptError(f"{path}: is not a regular file; expected a saved conversation")
        messages = json.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise PromptError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise PromptError(f"{path}: not valid JSON in UTF-8; expected a saved conversation") from error
    if not isinstance(messages, list) or not all(
        isinstance(m, dict) and {"role", "content"} <= set(m) for m in messages
    ):
        raise PromptError(f"{path}: not a list of messages with role and content; expected a saved conversation")
    return messages


def _plain(message: dict[str, Any]) -> dict[str, Any]:
    content = message["content"]
    if not isinstance(content, dict):
        return message
    plain = dict(content)
    if "image" in plain:
        plain["image"] = [_image_reference(image) for image in _listed(plain["image"])]
    if "audio" in plain:
        plain["audio"] = [_audio_reference(audio) for audio in _listed(plain["audio"])]
    if "video" in plain:
        plain["video"] = [_video_reference(video) for video in _listed(plain["video"])]
    return {**message, "content": plain}


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _image_reference(source: MediaSource) -> str:
    source = parse_source(source, "image")
    if isinstance(source, str | Path):
        return str(source)
    if isinstance(source, bytes):
        return _data_url("application/octet-stream", source)
    assert not isinstance(source, tuple), "a session takes no tuple as a picture"
    file = io.BytesIO()
    decoded_rgb(source, sys.maxsize).save(file, "PNG")  # as the model saw it
    return _data_url("image/png", file.getvalue())


def _audio_reference(source: MediaSource) -> str:
    source = parse_source(source, "audio")
    if isinstance(source, str | Path):
        return str(source)
    if isinstance(source, bytes):
        return _data_url("application/octet-stream", source)
    assert isinstance(source, tuple)
    return _data_url("audio/wav", _wav(as_waveform(*source, "audio")))


def _video_reference(source: MediaSource) -> str:
    source = parse_source(source, "video")
    if isinstance(source, str | Path):
        return str(source)
    if isinstance(source, bytes):
        return _data_url("application/octet-stream", source)
    raise PromptError("frames in memory cannot be saved with a conversation; write the video to a file and give that")


def _wav(waveform: np.ndarray[Any, np.dtype[np.float32]]) -> bytes:
    """Return a WAV file of samples (N,) at 16 kHz in 16 bits, which is what files are decoded to anyway.

    Raises:
        PromptError: it is far louder than full scale, which such a file cannot be; what a resampler adds is clipped.
    """
    peak = float(np.abs(waveform).max(initial=0))
    if peak > _LOUDEST:
        raise PromptError(
            f"a recording reaches {peak:.2g} times full scale, which cannot be saved with a conversation; divide its "
            "samples by that before you send it, or give it as a file"
        )
    samples = np.clip(np.round(waveform * 32768.0), -32768, 32767).astype("<i2")
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(_SAMPLE_RATE)
        writer.writeframes(samples.tobytes())
    return file.getvalue()


def _data_url(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
