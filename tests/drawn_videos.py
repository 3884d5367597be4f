"""Small videos made for the tests: a light square on a dark ground, moved by a function of the frame's number."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from fractions import Fraction

import av
import numpy as np

SIZE = (96, 64)
PIXEL_FORMATS = {"mjpeg": "yuvj420p", "gif": "rgb8"}


def square(x: int, y: int = 24, size: tuple[int, int] = SIZE, level: int = 230) -> np.ndarray:
    """Return one picture (H, W, 3)."""
    picture = np.full((size[1], size[0], 3), 30, np.uint8)
    picture[y : y + 16, x : x + 16] = (level, 60, 60)
    return picture


def moving(count: int) -> list[np.ndarray]:
    """Return pictures in which the square goes from left to right."""
    return [square(round(n / max(1, count - 1) * (SIZE[0] - 16))) for n in range(count)]


def encode(
    pictures: Iterable[np.ndarray],
    *,
    rate: int = 10,
    container: str = "mp4",
    codec: str = "libx264",
    gop: int = 12,
    times: Callable[[int], int] = lambda n: n,
    last_stands: int | None = None,
    tone: bool = False,
) -> bytes:
    """Return the bytes of a video; `times` gives the frame's time, `last_stands` how long the last is shown, in units
    of 1 / rate."""
    pictures = list(pictures)
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        height, width = pictures[0].shape[:2]
        stream = output.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = width, height, PIXEL_FORMATS.get(codec, "yuv420p")
        stream.gop_size = gop
        sound = output.add_stream("aac", rate=16000, layout="mono") if tone else None
        packets = []
        for n, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = times(n), Fraction(1, rate)
            packets += stream.encode(frame)
        packets += stream.encode()
        if last_stands is not None:
            last = max(packets, key=lambda packet: packet.pts)
            last.duration = round(last_stands / rate / last.time_base)
        output.mux(packets)
        if sound is not None:
            samples = round(16000 * len(pictures) / rate)
            wave = (8000 * np.sin(np.arange(samples) * 2 * np.pi * 440 / 16000)).astype(np.int16)
            for start in range(0, samples, 1024):
                block = av.AudioFrame.from_ndarray(wave[None, start : start + 1024], format="s16", layout="mono")
                block.sample_rate, block.pts = 16000, start
                output.mux(sound.encode(block))
            output.mux(sound.encode())
    return file.getvalue()
