"""Media made from numbers, and conversations about them: a verification needs no file beside the checkpoint."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

SAMPLE_RATE = 16000
_TONE_HERTZ = 440.0
_LOUDNESS = 0.3  # of full scale

Messages = list[dict[str, Any]]


def picture(width: int, height: int) -> npt.NDArray[np.uint8]:
    """Return (height, width, 3): a red disc on a white ground that darkens to the right."""
    rows, cols = np.mgrid[0:height, 0:width]
    pixels = np.empty((height, width, 3), np.uint8)
    pixels[:] = (255 - 64 * cols // width)[..., None]
    radius = min(width, height) / 3
    disc = (rows - height / 2) ** 2 + (cols - width / 2) ** 2 < radius**2
    pixels[disc] = (220, 30, 30)
    return pixels


def tone(seconds: float) -> tuple[npt.NDArray[np.float32], int]:
    """Return samples and their rate: a tone of 440 Hz that swells and fades."""
    time = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    swell = np.sin(np.pi * time / seconds)
    return (_LOUDNESS * swell * np.sin(2 * np.pi * _TONE_HERTZ * time)).astype(np.float32), SAMPLE_RATE


def conversations() -> dict[str, Messages]:
    """Return one conversation for each kind of input. No turn has two of a kind: not every template places them."""
    return {
        "text": [_user(text="What is one and one? 一加一等于几？")],
        "image": [_user(text="What colour is the disc?", image=picture(224, 224))],
        "audio": [_user(text="What do you hear?", audio=tone(1.3))],
        "everything": [
            _user(text="A picture and a sound.", image=picture(700, 420), audio=tone(0.7)),
            {"role": "assistant", "content": "I see and hear them. 好的。"},
            _user(text="And these?", image=picture(120, 80), audio=tone(2.1)),
        ],
    }


def _user(**content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}
