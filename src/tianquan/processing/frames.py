"""Which frames of a video the model sees, and which of them share tokens. Decoding is in video.py.

    decoded frames -> chosen by time -> near-duplicates dropped -> at most `max_frames`
    -> consecutive ones of little change put into groups, and only then frames left out, until the tokens fit

How much changes between two frames is the largest difference among 8 x 8 cells of their 32 x 32 thumbnails, in grey
levels, or in half the levels of a colour, which codecs keep less exactly: a small thing that moves counts as much as a
large one, one that turns from red to an equally dark green counts too, and noise averages out.

A group costs what one frame costs. The encoder sees each of its frames; their tokens are averaged, query by query.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from tianquan.errors import ParameterError
from tianquan.processing.image import ImageSettings, Size, pixels_digest, plan_slices
from tianquan.request import FrameSampling, ImageInput, SliceGrid, VideoPolicy

DUPLICATE_CHANGE = 2.0  # grey levels: what a codec's noise leaves in a cell of a still scene
MERGE_CHANGE = 16.0  # beyond, the mean of two frames shows neither
SCENE_CHANGE = 24.0
DEFAULT_RATE = {"uniform": 4.0, "rate": 1.0, "scenes": 4.0}  # frames a second
MAX_RATE = 120.0
MAX_FRAMES = 1024
_EARLY_FROM = 1.0  # seconds between frames
_EARLY_SHARE = 0.25  # of those
_SAME_TIME = 1e-3  # seconds: times of a container are rounded
_THUMBNAIL = 32  # pixels a side
_CELLS = 8  # a side
_GREY = np.array([0.299, 0.587, 0.114], np.float32)  # of red, green and blue

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class VideoFrame:
    """One chosen frame."""

    time: float  # seconds from the first frame
    pixels: Pixels  # (height, width, 3), sides multiples of the patch size
    cells: npt.NDArray[np.float32]  # (8, 8, 4, 4, 3) thumbnail, by cell

    @classmethod
    def of(cls, time: float, pixels: Pixels) -> VideoFrame:
        """Return a frame with its thumbnail."""
        small = Image.fromarray(pixels).resize((_THUMBNAIL, _THUMBNAIL), Image.Resampling.BOX)
        side = _THUMBNAIL // _CELLS
        cells = np.asarray(small, np.float32).reshape(_CELLS, side, _CELLS, side, 3).transpose(0, 2, 1, 3, 4)
        return cls(time, pixels, cells)

    def change_from(self, other: VideoFrame) -> float:
        """Return how much changed between two frames, in grey levels; infinite where their sizes differ."""
        if self.pixels.shape != other.pixels.shape:
            return math.inf
        change = self.cells - other.cells
        grey = np.abs(change @ _GREY).mean(axis=(2, 3)).max()
        colour = np.abs(change).mean(axis=(2, 3)).max() / 2
        return float(max(grey, colour))


def check_video_policy(policy: VideoPolicy, settings: ImageSettings) -> None:
    """Raise ParameterError when a value of the policy is out of range."""
    limits: tuple[tuple[str, float | None, float, float], ...] = (
        ("frames_per_second", policy.frames_per_second, 1e-3, MAX_RATE),
        ("max_frames", policy.max_frames, 1, MAX_FRAMES),
        ("max_merge", policy.max_merge, 1, MAX_FRAMES),
        ("max_tokens of a video", policy.max_tokens, frame_cost(settings), 10**6),
        ("frame_pixels", policy.frame_pixels, settings.patch_size**2, settings.scale_resolution**2),
        ("max_seconds of a video", policy.max_seconds, 0.1, 10**6),
    )
    for name, value, least, most in limits:
        if value is not None and not least <= value <= most:
            raise ParameterError(f"{name} is {value:g}; expected {least:g} to {most:g}")
    if policy.sampling not in DEFAULT_RATE:
        raise ParameterError(f"video sampling is {policy.sampling!r}; expected one of {', '.join(DEFAULT_RATE)}")


def frame_cost(settings: ImageSettings) -> int:
    """Return the most prompt tokens of one frame: its slice with its borders, its time, a line feed."""
    return settings.tokens_per_slice + 2 + len("7200.0s") + 1


def frame_size(size: Size, settings: ImageSettings, policy: VideoPolicy, label: str) -> Size:
    """Return (width, height) at which a frame of this size is encoded: one slice.

    Raises:
        MediaError: too long and thin, see `plan_slices`.
    """
    pixels = min(policy.frame_pixels or settings.scale_resolution**2, settings.scale_resolution**2)
    return plan_slices(*size, math.isqrt(pixels), settings.patch_size, 0, label).overview


class FrameChooser:
    """Decides frame by frame what is kept; holds at most `max_frames` + 1 frames.

    Args:
        policy: which frames.
        seconds: length of the video where it is stated; spreads uniform frames from the start, no more than a hint.
    """

    def __init__(self, policy: VideoPolicy, seconds: float | None) -> None:
        self._sampling: FrameSampling = policy.sampling
        self._max_frames = policy.max_frames
        self._interval = 1 / (policy.frames_per_second or DEFAULT_RATE[policy.sampling])
        if policy.sampling == "uniform" and seconds is not None:
            spread = seconds / policy.max_frames
            if spread >= _EARLY_FROM:  # the last frame would be one too many, see `earliest`
                spread = seconds / (policy.max_frames - _EARLY_SHARE)
            self._interval = max(self._interval, spread)
        self._target = 0.0
        self._frames: list[VideoFrame] = []

    @property
    def earliest(self) -> float:
        """Time of the next frame that is of use, in seconds.

        Of frames seconds apart, one a little early is as good, and saves decoding up to a late one.
        """
        return max(0.0, self._target - self._tolerance)

    @property
    def _tolerance(self) -> float:
        return self._interval * _EARLY_SHARE if self._interval >= _EARLY_FROM else _SAME_TIME

    def add(self, frame: VideoFrame) -> bool:
        """Take a frame whose time has come; return whether it is kept for now."""
        missed = (frame.time + self._tolerance - self._target) // self._interval
        self._target += self._interval * (max(0.0, missed) + 1)
        least = SCENE_CHANGE if self._sampling == "scenes" else DUPLICATE_CHANGE
        if self._frames and frame.change_from(self._frames[-1]) < least:
            return False
        self._frames.append(frame)
        if len(self._frames) > self._max_frames:
            self._thin()
        return True

    def _thin(self) -> None:
        if self._sampling == "scenes":  # the least of the changes goes
            changes = [b.change_from(a) for a, b in itertools.pairwise(self._frames)]
            del self._frames[1 + int(np.argmin(changes))]
            return
        self._frames = self._frames[::2]
        self._interval *= 2
        self._target = self._frames[-1].time + self._interval

    def frames(self) -> list[VideoFrame]:
        """Return the frames kept so far."""
        return list(self._frames)


def group_frames(frames: Sequence[VideoFrame], max_groups: int, max_merge: int) -> list[list[VideoFrame]]:
    """Put frames into at most `max_groups` groups of consecutive frames.

    While there are too many, the two neighbours between which least changes become one, up to `max_merge` frames and
    to a change of 16 grey levels; if there are still too many, frames spread evenly are left out.
    """
    groups = [[frame] for frame in frames]
    while len(groups) > max_groups:
        changes = [
            b[0].change_from(a[-1]) if len(a) + len(b) <= max_merge else math.inf for a, b in itertools.pairwise(groups)
        ]
        if not changes or min(changes) > MERGE_CHANGE:
            break
        first = int(np.argmin(changes))
        groups[first : first + 2] = [groups[first] + groups[first + 1]]
    if len(groups) > max_groups:
        kept = np.linspace(0, len(groups) - 1, max_groups).round().astype(int)
        groups = [groups[n] for n in kept]
    return groups


def frame_input(group: Sequence[VideoFrame]) -> ImageInput:
    """Return what the encoder takes of the frames that share tokens."""
    pixels = group[0].pixels if len(group) == 1 else np.stack([frame.pixels for frame in group])
    digest = pixels_digest([pixels])
    return ImageInput((pixels,), SliceGrid(0, 0), digest, num_video_frames=len(group))


def time_text(seconds: float) -> str:
    """Return how a frame's time is written before it."""
    return f"{seconds:.1f}s"
