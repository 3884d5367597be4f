"""From a video to what a prompt takes of it: groups of frames with their times, and the sound track, in one budget.

The sound track comes first out of the budget, since it cannot be thinned; frames get what is left (frames.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tianquan.errors import MediaError, ParameterError
from tianquan.processing.audio import Waveform, audio_counts, fit_long_audio
from tianquan.processing.frames import (
    FrameChooser,
    VideoFrame,
    check_video_policy,
    frame_cost,
    frame_input,
    group_frames,
)
from tianquan.processing.image import ImageSettings
from tianquan.processing.media import load_waveform
from tianquan.processing.video import OnVideoProgress, frames_in_memory, open_video, read_frames
from tianquan.request import ImageInput, MediaPolicy

_BORDER_TOKENS = 4  # of a clip: begin and end embeddings, and the tokens before and behind


@dataclass(frozen=True)
class DecodedVideo:
    """A video as a prompt takes it."""

    frames: tuple[ImageInput, ...]  # one slice each; of several frames where they share tokens
    times: tuple[float, ...]  # seconds, of the first frame of each
    waveforms: tuple[Waveform, ...] = ()  # clips of the sound track, when asked for


def load_video(
    source: Path | bytes | tuple[Any, Any],
    policy: MediaPolicy,
    settings: ImageSettings,
    max_clip_samples: int,
    label: str,
    on_progress: OnVideoProgress | None = None,
) -> DecodedVideo:
    """Decode a video and fit it into its budget.

    Args:
        source: a path, the bytes of a file, or (frames, frames per second) in memory.
        policy: which frames, what they may cost, caps.
        settings: the checkpoint's.
        max_clip_samples: longest clip the audio encoder takes.
        label: what errors call a video that is no file.
        on_progress: called with (seconds done, seconds stated or None) while a file is read.

    Raises:
        MediaError: it cannot be used; see `read_frames`.
        ParameterError: a value of the policy is out of range, or the sound track leaves no room for a frame.
    """
    video = policy.video
    check_video_policy(video, settings)
    waveforms: list[Waveform] = []
    if isinstance(source, tuple):
        if video.with_sound:
            raise MediaError(f"{label}: frames in memory have no sound track; give the sound as audio")
        chooser = FrameChooser(video, None)
        for frame in frames_in_memory(*source, video, settings, policy.max_pixels, label):
            if frame.time >= chooser.earliest:
                chooser.add(frame)
    else:
        chooser = _choose_from_file(source, policy, settings, label, on_progress)
        if video.with_sound:
            seconds = min(video.max_seconds, policy.max_audio_seconds)
            waveforms = fit_long_audio(
                load_waveform(source, seconds, label, of_video=True), "chunk", max_clip_samples, label
            )
    sound_tokens = sum(audio_counts(len(waveform)).tokens + _BORDER_TOKENS for waveform in waveforms)
    room = (video.max_tokens - sound_tokens) // frame_cost(settings)
    if room < 1:
        raise ParameterError(
            f"{label}: the sound track takes {sound_tokens} of the {video.max_tokens} tokens a video may take, which "
            "leaves no room for a frame; leave the sound out, cut the video or raise max_tokens of the video policy"
        )
    groups = group_frames(chooser.frames(), room, video.max_merge)
    return decoded_video(groups, tuple(waveforms))


def decoded_video(groups: list[list[VideoFrame]], waveforms: tuple[Waveform, ...] = ()) -> DecodedVideo:
    """Return the video of these groups of frames."""
    return DecodedVideo(tuple(map(frame_input, groups)), tuple(group[0].time for group in groups), waveforms)


def _choose_from_file(
    source: Path | bytes,
    policy: MediaPolicy,
    settings: ImageSettings,
    label: str,
    on_progress: OnVideoProgress | None,
) -> FrameChooser:
    choosers: list[FrameChooser] = []

    def begin(seconds: float | None) -> FrameChooser:
        choosers.append(FrameChooser(policy.video, seconds))
        return choosers[0]

    opened = open_video(source, label)
    with opened.file:
        for frame in read_frames(opened, begin, policy.video, settings, policy.max_pixels, on_progress):
            choosers[0].add(frame)
    return choosers[0]
