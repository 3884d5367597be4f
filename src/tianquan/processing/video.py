"""Decodes videos while they stream: a file, bytes or a pipe in; a few chosen frames out. Nothing holds the whole.

Which frames are wanted is asked of a chooser (frames.py) as time goes by. Packets are read one after the other; those
since the last key frame wait undecoded, and are decoded only when a wanted frame lies among them. A long video of
which few frames are wanted costs reading it, and decoding some of its groups of pictures.

The bytes are not trusted: format, demuxer and decoders are taken from an allow-list, sizes are compared with caps
before a frame is decoded, and no stated length, rate or count of frames is believed; a length only spreads frames.
Damage is treated as in media.py: some packets that do not decode are skipped, more make the video unusable, and so
does an end before the stated length.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

import av
import numpy as np
import numpy.typing as npt
from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition
from av.video.reformatter import Interpolation
from av.video.stream import VideoStream
from PIL import Image

from tianquan.errors import MediaError
from tianquan.processing.display_matrix import orientation_of
from tianquan.processing.frames import VideoFrame, frame_size
from tianquan.processing.image import ImageSettings, decoded_rgb, require_pixels
from tianquan.processing.media import (
    HEAD_LEN,
    MAX_DAMAGED_SHARE,
    OpenedMedium,
    open_medium,
    require_whole_riff,
    sniff,
)
from tianquan.processing.video_clock import VideoClock
from tianquan.request import VideoPolicy

OnVideoProgress = Callable[[float, float | None], None]  # (seconds done, seconds stated)

MAX_LOST_SECONDS = 1.0  # not every container says how long its last frame stands
MAX_LOST_SHARE = 0.02
MAX_FRAME_PIXELS = 8192 * 4320  # 8K; a decoder holds several frames, and a GIF of a kilobyte may claim any size
MAX_WAITING_BYTES = 32 * 2**20  # of packets not decoded yet; more are decoded to be rid of them
_DECODER_THREADS = 2  # each holds frames of its own: 3 MB at 1080p, several of them
_POLL_SECONDS = 0.05
_FIRST_GAP = 2.0  # seconds between key frames, until they have been seen

VIDEO_FORMATS = "a video (MP4, MOV, MKV, WebM, AVI, MPEG-TS or GIF)"
_GIF_END = b";"
_UNUSABLE = "{}: the video is damaged or of a coding not supported here; convert it to H.264 in MP4"
_DEMUXERS = {
    "audio/mp4": "mp4",
    "audio/webm": "matroska",
    "video/mp2t": "mpegts",
    "video/avi": "avi",
    "image/gif": "gif",
}
_DECODERS = (
    *("h264", "hevc", "vp8", "vp9", "libvpx", "libvpx-vp9", "av1", "libdav1d"),
    *("mpeg4", "mpeg2video", "mjpeg", "gif"),
)
_CONTAINER_OPTIONS = {
    "protocol_whitelist": "none",  # a file may not open another file or an address
    "codec_whitelist": ",".join(_DECODERS),
    "probesize": str(5 * 2**20),
}

# Of what is still being written: waiting for megabytes would be waiting for minutes.
_STREAM_OPTIONS = {**_CONTAINER_OPTIONS, "probesize": str(32 * 2**10), "analyzeduration": "500000"}


class Chooser(Protocol):
    """Says from what time on the next frame is of use."""

    @property
    def earliest(self) -> float:
        """Seconds from the first frame."""
        ...


@dataclass
class _State:
    """What has been decoded so far."""

    num_packets: int = 0  # given to the decoder
    num_damaged: int = 0
    num_pixels: int = 0  # decoded
    gap: float = _FIRST_GAP  # longest seen between key frames, seconds
    last_key: float | None = None
    waiting: list[Packet[Any]] = field(default_factory=list)  # since a key frame, not decoded
    waiting_bytes: int = 0
    is_decoding: bool = False  # all packets since a key frame have been decoded


def read_frames(
    opened: OpenedMedium,
    chooser: Callable[[float | None], Chooser],
    policy: VideoPolicy,
    settings: ImageSettings,
    max_pixels: int,
    on_progress: OnVideoProgress | None = None,
) -> Iterator[VideoFrame]:
    """Yield the frames a chooser asks for, in order, while the video is read.

    Args:
        opened: the file, at its start; it need not be seekable.
        chooser: gets the stated length in seconds, or None, and returns what is asked for each next frame.
        policy: caps and the size of frames; what is still being written has none on its length.
        settings: the checkpoint's.
        max_pixels: cap on the width * height of a frame.
        on_progress: called with each packet.

    Raises:
        MediaError: no video, none of the allow-list, too large or long, damaged or cut short.
    """
    is_stream = isinstance(opened.file, _Stream)
    try:
        with av.open(
            opened.file,
            mode="r",
            format=_DEMUXERS[opened.kind],
            options=_STREAM_OPTIONS if is_stream else _CONTAINER_OPTIONS,
            metadata_errors="replace",
        ) as container:
            reader = _Reader(container, opened.label, policy, settings, max_pixels, on_progress, is_stream)
            yield from reader.frames(chooser(reader.stated_seconds))
            reader.check_end(opened.kind)
    except (av.FFmpegError, ValueError, RuntimeError) as error:
        raise MediaError(_UNUSABLE.format(opened.label)) from error


def open_video(source: bytes | Path, label: str) -> OpenedMedium:
    """Open a video file and hold its format against the allow-list.

    Raises:
        MediaError: missing, unreadable, empty or of another format.
    """
    opened = open_medium(source, label, _DEMUXERS, VIDEO_FORMATS)
    try:
        require_whole_riff(opened)
        _require_gif_end(opened)
    except MediaError:
        opened.file.close()
        raise
    return opened


def _require_gif_end(opened: OpenedMedium) -> None:
    """Refuse a cut GIF: it states no length, but it has an end. Zero bytes behind it are harmless."""
    if opened.kind != "image/gif":
        return
    opened.file.seek(max(0, opened.size - HEAD_LEN))
    end = opened.file.read().rstrip(b"\0")
    opened.file.seek(0)
    if not end.endswith(_GIF_END):
        raise MediaError(f"{opened.label}: the GIF has no end; it is cut short; save or download it again")


class _Reader:
    """One pass over one container."""

    def __init__(
        self,
        container: InputContainer,
        label: str,
        policy: VideoPolicy,
        settings: ImageSettings,
        max_pixels: int,
        on_progress: OnVideoProgress | None,
        is_endless: bool,
    ) -> None:
        self._is_endless = is_endless  # no cap on its length: it takes as long as it takes
        self._container, self._label, self._policy, self._settings = container, label, policy, settings
        self._max_pixels, self._on_progress = max_pixels, on_progress
        self._stream = self._picture_stream()
        self._state, self._clock = _State(), VideoClock()
        self.stated_seconds = self._stated_seconds()
        if self.stated_seconds is not None and not is_endless:
            self._require_seconds(self.stated_seconds)

    def _picture_stream(self) -> VideoStream:
        moving = [s for s in self._container.streams.video if not s.disposition & Disposition.attached_pic]
        if not moving:
            raise MediaError(f"{self._label}: there is no picture track in the file; expected {VIDEO_FORMATS}")
        stream = moving[0]
        codec = stream.codec_context
        if codec is None or codec.name not in _DECODERS:
            raise MediaError(_UNUSABLE.format(self._label))
        self._require_size(codec.width, codec.height)
        codec.options = {"max_pixels": str(min(self._max_pixels, MAX_FRAME_PIXELS))}  # the size may change on the way
        codec.thread_count = _DECODER_THREADS
        codec.thread_type = "AUTO"
        return stream

    def _require_size(self, width: int, height: int) -> None:
        require_pixels((width, height), self._max_pixels, self._label)
        if width * height > MAX_FRAME_PIXELS:
            raise MediaError(
                f"{self._label}: the video is {width} x {height}, more than the cap of {MAX_FRAME_PIXELS} pixels "
                "(8192 x 4320); make it smaller"
            )

    def _stated_seconds(self) -> float | None:
        stream = self._stream
        if stream.duration is not None and stream.time_base is not None:
            return float(stream.duration * stream.time_base)
        return None if self._container.duration is None else self._container.duration / av.time_base

    def _require_seconds(self, seconds: float) -> None:
        if seconds > self._policy.max_seconds:
            raise MediaError(
                f"{self._label}: the video is {seconds:.0f} s long, more than the cap of "
                f"{self._policy.max_seconds:g} s; cut it or raise max_seconds of the video policy"
            )

    # Packets ----------------------------------------------------------------------------------------------
    def frames(self, chooser: Chooser) -> Iterator[VideoFrame]:
        """Yield the chosen frames."""
        for packet in self._container.demux():  # all streams: the longest is the length the container states
            is_picture = packet.stream is self._stream
            time = self._clock.packet_time(packet, is_picture)
            if time is not None and not self._is_endless:
                self._require_seconds(time)
            if not is_picture:
                continue
            if time is not None and self._on_progress is not None:
                self._on_progress(max(0.0, time), self.stated_seconds)
            for decodable in self._due(packet, time, chooser.earliest):
                yield from self._chosen(decodable, chooser)

    def _due(self, packet: Packet[Any], time: float | None, earliest: float) -> list[Packet[Any]]:
        """Return the packets to decode now that this one is there."""
        state = self._state
        if packet.size == 0:  # the end: what the decoder still holds
            return [packet] if state.is_decoding else []
        if packet.is_keyframe and time is not None:
            if state.last_key is not None:
                state.gap = max(state.gap, time - state.last_key)
            state.last_key = time
            if state.is_decoding and earliest > time + state.gap:
                self._stop_decoding()
            if not state.is_decoding:
                state.waiting, state.waiting_bytes = [], 0
        if state.is_decoding:
            return [packet]
        state.waiting.append(packet)
        state.waiting_bytes += packet.size
        if time is not None and time < earliest and state.waiting_bytes <= MAX_WAITING_BYTES:
            return []
        state.is_decoding = True
        due, state.waiting, state.waiting_bytes = state.waiting, [], 0
        return due

    def _stop_decoding(self) -> None:
        self._stream.codec_context.flush_buffers()
        self._state.is_decoding = False

    # Frames -----------------------------------------------------------------------------------------------
    def _chosen(self, packet: Packet[Any], chooser: Chooser) -> Iterator[VideoFrame]:
        state = self._state
        state.num_packets += 1
        try:
            decoded = packet.decode()
        except av.FFmpegError:
            state.num_damaged += 1
            return
        for frame in decoded:
            if not isinstance(frame, av.VideoFrame) or frame.time is None:
                state.num_damaged += 1
                continue
            state.num_pixels += frame.width * frame.height
            if state.num_pixels > self._policy.max_decoded_pixels and not self._is_endless:
                raise MediaError(
                    f"{self._label}: decoding the video takes too long: its pictures are large or its key frames far "
                    "apart; convert it to a smaller size or raise max_decoded_pixels of the video policy"
                )
            time = self._clock.frame_time(frame.time)
            if time >= chooser.earliest:
                yield VideoFrame.of(time, self._rgb(frame))

    def _rgb(self, frame: av.VideoFrame) -> npt.NDArray[np.uint8]:
        """Return a frame upright and in the size the encoder takes it in."""
        self._require_size(frame.width, frame.height)
        aspect = self._stream.codec_context.sample_aspect_ratio
        width = frame.width if not aspect else max(1, round(frame.width * float(aspect)))
        shown = orientation_of(frame)
        size = (frame.height, width) if shown.swap else (width, frame.height)
        size = frame_size(size, self._settings, self._policy, self._label)
        width, height = size[::-1] if shown.swap else size
        scaled = frame.reformat(width, height, "rgb24", interpolation=Interpolation.BICUBIC)
        pixels: npt.NDArray[np.uint8] = np.ascontiguousarray(shown.upright(scaled.to_ndarray()))
        return pixels

    def check_end(self, kind: str) -> None:
        """Raise MediaError where too little came out of a file of some kind."""
        state, clock, stated = self._state, self._clock, self.stated_seconds
        if clock.first is None:
            raise MediaError(f"{self._label}: not one frame of the video can be decoded; save or download it again")
        if state.num_damaged > max(1, MAX_DAMAGED_SHARE * state.num_packets):
            raise MediaError(
                f"{self._label}: {state.num_damaged} of {state.num_packets} packets of the video are damaged; "
                "save or download it again"
            )
        start = 0.0 if kind == "audio/webm" else clock.first  # Matroska states the end, not the length
        seconds = (clock.end or 0.0) - start
        if stated is not None and seconds < stated - max(MAX_LOST_SECONDS, MAX_LOST_SHARE * stated):
            raise MediaError(
                f"{self._label}: the video ends after {seconds:.1f} s of the stated {stated:.1f} s; "
                "it is cut short; save or download it again"
            )


# Frames in memory -----------------------------------------------------------------------------------------------
def frames_in_memory(
    frames: Any, frames_per_second: Any, policy: VideoPolicy, settings: ImageSettings, max_pixels: int, label: str
) -> Iterator[VideoFrame]:
    """Yield frames given as pictures or as an array (frames, H, W, 3) of uint8, with their times.

    Raises:
        MediaError: no frames, something else than pictures, a rate that is no number above 0, or too long.
    """
    is_rate = isinstance(frames_per_second, int | float | np.number) and 0 < frames_per_second < np.inf
    is_frames = isinstance(frames, Sequence | np.ndarray) and not isinstance(frames, str | bytes)
    if not is_rate or not is_frames or len(frames) == 0:
        raise MediaError(f"{label}: expected (frames, frames per second): pictures, at least one, and a number above 0")
    if (len(frames) - 1) / frames_per_second > policy.max_seconds:
        raise MediaError(f"{label}: {len(frames)} frames are longer than the cap of {policy.max_seconds:g} s")
    for n, picture in enumerate(frames):
        if not isinstance(picture, Image.Image | np.ndarray):
            raise MediaError(f"{label}: frame {n} is {type(picture).__name__}; expected a picture")
        image = decoded_rgb(picture, max_pixels, f"{label}, frame {n}")
        size = frame_size(image.size, settings, policy, label)
        yield VideoFrame.of(n / frames_per_second, np.array(image.resize(size, Image.Resampling.BICUBIC)))


# Pipes and files that grow ----------------------------------------------------------------------------------------
class _Stream:
    """Reads on behind bytes that have been looked at; without an end as long as `is_open` says more may come."""

    def __init__(self, file: BinaryIO, is_open: Callable[[], bool]) -> None:
        self._file, self._is_open = file, is_open
        self._head = b""

    def peek(self, size: int) -> bytes:
        """Return the first `size` bytes, which will be read again."""
        while len(self._head) < size:
            more = self._next(size - len(self._head))
            if not more:
                break
            self._head += more
        return self._head

    def read(self, size: int = -1) -> bytes:
        """Return up to `size` bytes, waiting for some; none at the end."""
        if self._head:
            part, self._head = self._head[:size], self._head[size:]
            return part
        return self._next(size)

    def close(self) -> None:
        """Close what is read from."""
        self._file.close()

    def _next(self, size: int) -> bytes:
        while True:
            data = self._file.read(size)
            if data or not self._is_open():
                return data or b""
            time.sleep(_POLL_SECONDS)


def open_stream(file: BinaryIO, label: str, is_open: Callable[[], bool]) -> OpenedMedium:
    """Open a video that is still being written, or comes through a pipe: it is read forwards only.

    Args:
        file: at its start.
        label: what errors call it.
        is_open: asked where the file has nothing more to read: whether to wait.

    Raises:
        MediaError: not a video of the allow-list, by its first bytes.
    """
    stream = _Stream(file, is_open)
    head = stream.peek(HEAD_LEN)
    kind = sniff(head)
    if kind not in _DEMUXERS:
        raise MediaError(f"{label}: the stream does not begin as {VIDEO_FORMATS} does; MPEG-TS and MKV suit pipes")
    return OpenedMedium(cast(BinaryIO, stream), label, kind, head, 0)
