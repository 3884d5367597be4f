"""Opens pictures and sound: bytes or a file in; an RGB picture or a mono 16 kHz waveform out.

Slicing and mel spectra are elsewhere (image.py, audio.py); nothing is fetched from a network here.

The bytes are not trusted. The format is read from the first bytes against an allow-list before any decoder
runs; Pillow is given the one reader of that format and PyAV the one demuxer and a short list of decoders,
so neither can be steered to something else; pictures are capped by their header, sound while it is decoded.
Every refusal is a `MediaError` of one line that names the file (never its folder) and what to do.

Sound is mixed and resampled as `ffmpeg -ac 1 -ar 16000 -sample_fmt s16` does and divided by 32768.
Damage: a packet that does not decode is skipped, as players do, while at most 5 % of the packets and, where
the container states its length, at most 1 % of the clip (or 0.25 s) is lost; otherwise the clip is refused.
A cut file is not noticed in formats that state no length (AAC, MP3 without a Xing header, a shorter Ogg).
"""

from __future__ import annotations

import io
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple

import av
import numpy as np
import numpy.typing as npt
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.stream import Disposition
from PIL import BmpImagePlugin, GifImagePlugin, Image, ImageFile, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

from tianquan.errors import MediaError
from tianquan.processing.audio import (
    MAX_SOURCE_RATE,
    MIN_SOURCE_RATE,
    S16_SCALE,
    SAMPLE_RATE,
    mono_blocks,
    require_amplitude,
    too_long,
)
from tianquan.processing.image import require_pixels, scale_transparent, to_rgb, turn_upright
from tianquan.processing.labels import printable

TS_PACKET_LEN = 188  # bytes of an MPEG transport stream's packet, which begins with 0x47
HEAD_LEN = 4_096  # bytes; holds every signature and the first MP3 frame with its Xing header

MAX_DAMAGED_SHARE = 0.05  # of packets
MAX_LOST_SHARE = 0.01  # of the stated length
MAX_LOST_SECONDS = 0.25  # stated lengths count encoder padding: tens of milliseconds
# More packets than any coding has (raw sound of 8 channels: 1100 a second) are bytes that only look like packets:
# a body of 64 MB holds 8 million of them, a minute of work for no sound.
MAX_PACKETS_PER_SECOND = 5_000
MAX_PACKETS_BEFORE_SOUND = 10_000

# The plugin classes rather than Image.open: that one warns and fails at a global pixel limit of its own.
_IMAGE_READERS: dict[str, Callable[[BinaryIO], ImageFile.ImageFile]] = {
    "image/png": PngImagePlugin.PngImageFile,
    "image/jpeg": JpegImagePlugin.jpeg_factory,  # MPO too: its first picture
    "image/webp": WebPImagePlugin.WebPImageFile,
    "image/gif": GifImagePlugin.GifImageFile,
    "image/bmp": BmpImagePlugin.BmpImageFile,
}
_DEMUXERS = {
    "audio/wav": "wav",
    "audio/flac": "flac",
    "audio/mpeg": "mp3",
    "audio/ogg": "ogg",
    "audio/mp4": "mp4",
    "audio/aac": "aac",
    "audio/webm": "matroska",
}
_LENGTH_OF_FILE = frozenset({"audio/webm", "video/avi"})  # that state one length, the longest track's
_VIDEO_DEMUXERS = {"video/mp2t": "mpegts", "video/avi": "avi"}  # opened for a video's sound track only
_PCM_SAMPLES = ("s16le", "s16be", "s24le", "s24be", "s32le", "s32be", "f32le", "f32be", "f64le", "f64be")
_FLOAT_PCM = tuple(f"pcm_{samples}" for samples in _PCM_SAMPLES if samples.startswith("f"))
_DECODERS = {
    *(f"pcm_{samples}" for samples in _PCM_SAMPLES),
    *("pcm_u8", "pcm_alaw", "pcm_mulaw", "adpcm_ms", "adpcm_ima_wav", "flac", "alac"),
    *("mp3", "mp3float", "aac", "opus", "libopus", "vorbis", "libvorbis"),
}
_CONTAINER_OPTIONS = {
    "protocol_whitelist": "none",  # a file may not open another file or an address
    "codec_whitelist": ",".join(sorted(_DECODERS)),
    "probesize": str(2**20),  # bytes read ahead to guess parameters; as packets of 8 bytes they take 60 MB
}

_NAMES = {
    "image/png": "PNG",
    "image/jpeg": "JPEG",
    "image/webp": "WebP",
    "image/gif": "GIF",
    "image/bmp": "BMP",
    "audio/wav": "WAV",
    "audio/flac": "FLAC",
    "audio/mpeg": "MP3",
    "audio/ogg": "OGG",
    "audio/mp4": "M4A/MP4",
    "audio/aac": "AAC",
    "audio/webm": "WebM",
    "video/mp2t": "MPEG-TS",
    "video/avi": "AVI video",
}
_PICTURE_FORMATS = "a picture (PNG, JPEG, WebP, GIF or BMP)"
_SOUND_FORMATS = "sound (WAV, FLAC, MP3, OGG, M4A, AAC or WebM)"

# Formats people do send: named in the refusal, so that they know what to convert.
_REFUSED = (
    (0, b"\x00\x00\x00\x0cjP  ", "JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000"),
    (4, b"ftypavi", "AVIF"),
    *((4, b"ftyp" + brand, "HEIC") for brand in (b"hei", b"hev", b"mif1", b"mif2", b"msf1")),
    (0, b"II*\x00", "TIFF"),
    (0, b"MM\x00*", "TIFF"),
    (0, b"%PDF", "PDF"),
    (8, b"AIFF", "AIFF"),
    (0, b"\x30\x26\xb2\x75", "Windows Media"),
)


def sniff(data: bytes) -> str | None:
    """Name the format of a file from its first bytes.

    Args:
        data: at least the first 4096 bytes, or the whole file if it is shorter. A leading ID3 tag longer
            than `data` is taken for an MP3 file's.

    Returns:
        A media type of the allow-list ("image/png", "audio/mpeg", ...) or None. "audio/mp4", "audio/webm"
        and "audio/ogg" name containers that may also hold video; who opens them looks inside.
    """
    if data.startswith(b"ID3"):
        return _sniff_tagged(data[_id3_len(data) :])
    for signature, kind in (
        (b"\x89PNG\r\n\x1a\n", "image/png"),
        (b"\xff\xd8\xff", "image/jpeg"),
        (b"GIF87a", "image/gif"),
        (b"GIF89a", "image/gif"),
        (b"fLaC", "audio/flac"),
        (b"OggS", "audio/ogg"),
        (b"\x1a\x45\xdf\xa3", "audio/webm"),
    ):
        if data.startswith(signature):
            return kind
    if data[:4] in (b"RIFF", b"RF64"):
        return {b"WAVE": "audio/wav", b"WEBP": "image/webp", b"AVI ": "video/avi"}.get(data[8:12])
    if data[:2] == b"BM" and int.from_bytes(data[14:18], "little") in (12, 40, 52, 56, 64, 108, 124):
        return "image/bmp"  # two letters are no signature: the size of the second header decides
    if data[4:8] == b"ftyp" and _refused_name(data) is None:
        return "audio/mp4"
    if data[4:8] in (b"moov", b"mdat", b"wide"):  # QuickTime files of before `ftyp`
        return "audio/mp4"
    if len(data) > 2 * TS_PACKET_LEN and data[0] == data[TS_PACKET_LEN] == data[2 * TS_PACKET_LEN] == 0x47:
        return "video/mp2t"
    return _sniff_mpeg(data)


def _sniff_tagged(behind: bytes) -> str:
    """Tell what follows an ID3 tag; MP3 when in doubt, since its demuxer looks for the first frame itself."""
    if behind.startswith(b"fLaC"):
        return "audio/flac"
    return _sniff_mpeg(behind) or "audio/mpeg"


def _sniff_mpeg(data: bytes) -> str | None:
    """Recognise a bare MPEG frame: 12 sync bits, then version, layer, bit rate and sample rate fields."""
    if len(data) < 4 or data[0] != 0xFF or data[1] & 0xE0 != 0xE0:
        return None
    version, layer = data[1] >> 3 & 3, data[1] >> 1 & 3
    if layer == 0 and data[1] & 0xF0 == 0xF0:
        return "audio/aac"
    is_layer3 = layer == 1 and version != 1 and data[2] >> 4 != 15 and data[2] >> 2 & 3 != 3
    return "audio/mpeg" if is_layer3 else None


def _id3_len(head: bytes) -> int:
    """Bytes of a leading ID3v2 tag: a header of ten, then four times seven bits of length."""
    size = 0
    for byte in head[6:10]:
        size = size << 7 | byte & 0x7F
    return 10 + size


def _refused_name(head: bytes) -> str | None:
    return next((name for at, magic, name in _REFUSED if head[at : at + len(magic)] == magic), None)


class OpenedMedium(NamedTuple):
    """A file whose format is on the allow-list."""

    file: BinaryIO  # at its start
    label: str  # the file's name, or what the caller calls bytes
    kind: str
    head: bytes  # the first bytes, those after an ID3 tag if there is one
    size: int  # bytes, without the ID3 tag


def open_medium(source: bytes | Path, label: str, kinds: Collection[str], expected: str) -> OpenedMedium:
    """Open a source and hold its format against the allow-list.

    Raises:
        MediaError: missing, a folder, unreadable, empty or of another format.
    """
    file, label = (io.BytesIO(source), label) if isinstance(source, bytes) else _open_file(source)
    try:
        head = file.read(HEAD_LEN)
        kind = sniff(head)
        tag_len = _id3_len(head) if head.startswith(b"ID3") else 0
        if tag_len:  # it may hold a cover of megabytes: look behind it
            file.seek(tag_len)
            head = file.read(HEAD_LEN)
            kind = _sniff_tagged(head)
        size = file.seek(0, io.SEEK_END) - tag_len
        file.seek(0)
    except OSError as error:
        file.close()
        raise MediaError(f"{label}: the file cannot be read; check its permissions and its disk") from error
    if kind is not None and kind in kinds:
        return OpenedMedium(file, label, kind, head, size)
    file.close()
    if size == 0:
        raise MediaError(f"{label}: the file is empty (0 bytes); expected {expected}")
    found = _refused_name(head) or _NAMES.get(kind or "") or "of a format not known here"
    raise MediaError(f"{label}: the file is {found}; expected {expected}; convert it first")


def _open_file(path: Path) -> tuple[BinaryIO, str]:
    """Open a regular file, and give the name it has in messages: short, printable, without its folder."""
    label = printable(path.name)
    try:
        if path.is_dir():
            raise MediaError(f"{label}: this is a folder; expected a file")
        if not path.is_file():  # also keeps pipes and devices out, which may have no end
            raise MediaError(f"{label}: there is no such file")
        return path.open("rb"), label
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise MediaError(f"{label}: the file cannot be opened; check its name and permissions") from error


def load_image(source: bytes | Path, max_pixels: int, label: str = "image") -> Image.Image:
    """Decode a picture: upright, over white where it is transparent, 8 bits a channel.

    Args:
        source: the file's bytes or its path. Of an animation the first frame is taken.
        max_pixels: cap on width * height, compared with the header before anything is decoded.
        label: what errors call the picture where it has no file name.

    Returns:
        A picture of mode RGB.

    Raises:
        MediaError: missing, not a picture of the allow-list, too large, damaged or cut short.
    """
    opened = open_medium(source, label, _IMAGE_READERS, _PICTURE_FORMATS)
    with opened.file:
        image = _read_header(opened)
        require_pixels(image.size, max_pixels, opened.label)
        try:
            scale_transparent(image)
            image.load()
            return to_rgb(turn_upright(image), opened.label)
        except MediaError:
            raise
        except Exception as error:  # a palette that is missing, a tag of the camera's that is none
            raise _damaged_picture(opened) from error


def read_picture_size(source: bytes | Path, label: str = "image") -> tuple[int, int]:
    """Return (width, height) as a picture's header states them; nothing is decoded.

    Raises:
        MediaError: missing, not a picture of the allow-list, or its header is damaged.
    """
    opened = open_medium(source, label, _IMAGE_READERS, _PICTURE_FORMATS)
    with opened.file:
        return _read_header(opened).size


def _read_header(opened: OpenedMedium) -> Image.Image:
    try:
        return _IMAGE_READERS[opened.kind](opened.file)
    except Exception as error:  # whatever a damaged field leads to: OSError, SyntaxError, struct.error, ...
        raise _damaged_picture(opened) from error


def _damaged_picture(opened: OpenedMedium) -> MediaError:
    return MediaError(
        f"{opened.label}: the {_NAMES[opened.kind]} picture is damaged or cut short; save or download it again"
    )


def load_waveform(
    source: bytes | Path, max_seconds: float, label: str = "audio", *, of_video: bool = False
) -> npt.NDArray[np.float32]:
    """Decode the first sound stream of a file and mix and resample it to mono 16 kHz.

    Args:
        source: the file's bytes or its path.
        max_seconds: cap on the length; decoding stops there, whatever the header says.
        label: what errors call the sound where it has no file name.
        of_video: the sound track of a video is wanted, which is refused otherwise.

    Returns:
        (samples,) in [-1, 1). A 16 kHz mono 16-bit file gives its own samples / 32768, bit for bit.

    Raises:
        MediaError: missing, not sound of the allow-list, a video, too long, silent of data, damaged or cut.
    """
    opened = open_medium(source, label, {**_DEMUXERS, **_VIDEO_DEMUXERS} if of_video else _DEMUXERS, _SOUND_FORMATS)
    with opened.file:
        require_whole_riff(opened)
        try:
            decoding = _decode(opened, int(max_seconds * SAMPLE_RATE), of_video)
        except (av.FFmpegError, ValueError, RuntimeError) as error:
            raise MediaError(_undecodable(opened)) from error
    _check_damage(opened, decoding)
    waveform = np.frombuffer(decoding.samples, np.int16).astype(np.float32)
    waveform /= S16_SCALE
    return waveform


@dataclass
class _Decoding:
    """What came out of a file, and what did not."""

    samples: bytearray = field(default_factory=bytearray)  # s16; grows in place: an hour is 115 MB
    stated_seconds: float | None = None
    end: float = 0.0  # seconds; of the last packet of any track, where the length is that of the longest
    num_packets: int = 0
    num_seconds: float = 0.0  # of sound that these packets gave
    num_bytes: int = 0  # of all packets
    num_damaged: int = 0  # packets
    damaged_end: bool = False  # nothing decoded after the last damaged packet


def _decode(opened: OpenedMedium, max_samples: int, of_video: bool) -> _Decoding:
    """Decode to mono 16 kHz s16."""
    decoding = _Decoding()
    with av.open(
        opened.file,
        mode="r",
        format={**_DEMUXERS, **_VIDEO_DEMUXERS}[opened.kind],
        options=_CONTAINER_OPTIONS,
        metadata_errors="replace",  # tags are not read, and many are not in the UTF-8 they should be in
    ) as container:
        stream = _sound_stream(container, opened.label, of_video)
        every_track = of_video and opened.kind in _LENGTH_OF_FILE
        frames = _decoded_frames(opened, container, stream, decoding, every_track)
        for block in mono_blocks(frames, "s16", opened.label):
            decoding.samples += block.tobytes()
            if len(decoding.samples) > 2 * max_samples:
                raise too_long(opened.label, max_samples / SAMPLE_RATE)
        decoding.stated_seconds = _stated_seconds(opened, container, stream)
    return decoding


def _undecodable(opened: OpenedMedium) -> str:
    return (
        f"{opened.label}: the {_NAMES[opened.kind]} sound is damaged or of a kind not supported here; "
        "save it again, as WAV or FLAC"
    )


def _check_damage(opened: OpenedMedium, decoding: _Decoding) -> None:
    """Refuse a clip of which more was lost than the module's head allows."""
    if not decoding.samples and decoding.num_damaged == 0:
        raise MediaError(f"{opened.label}: there is no sound in the file")
    if decoding.num_damaged > MAX_DAMAGED_SHARE * decoding.num_packets:
        raise MediaError(_undecodable(opened))
    stated = decoding.stated_seconds
    if stated is None:
        # Bare frames without a length: their demuxers step over bytes that do not look like a frame.
        is_bare = opened.kind in ("audio/aac", "audio/mpeg")
        if is_bare and decoding.num_bytes < (1 - MAX_DAMAGED_SHARE) * opened.size:
            raise MediaError(_undecodable(opened))
        return
    seconds = max(len(decoding.samples) / 2 / SAMPLE_RATE, decoding.end)
    if decoding.damaged_end or seconds < stated - max(MAX_LOST_SECONDS, MAX_LOST_SHARE * stated):
        raise MediaError(
            f"{opened.label}: only {seconds:.2f} s of the stated {stated:.2f} s can be decoded; "
            "the file is damaged or cut short; save or download it again"
        )


def require_whole_riff(opened: OpenedMedium) -> None:
    """Refuse a cut WAV or AVI: ffmpeg takes what is there. Writers to a pipe leave 0, or 2 or 4 GB, in the field."""
    stated = int.from_bytes(opened.head[4:8], "little")
    slack = 64  # some writers count the header twice
    if opened.head[:4] == b"RIFF" and 0 < stated < 0x7FFF0000 and stated + 8 > opened.size + slack:
        raise MediaError(
            f"{opened.label}: the file ends after {opened.size} of the {stated + 8} bytes its header states; "
            "save or download it again"
        )


def _sound_stream(container: InputContainer, label: str, of_video: bool) -> AudioStream:
    """Take the first sound stream; a picture that moves makes the file a video, a cover does not."""
    if not of_video and any(not s.disposition & Disposition.attached_pic for s in container.streams.video):
        raise MediaError(f"{label}: this is a video; expected sound; extract its sound track first")
    if not container.streams.audio:
        raise MediaError(f"{label}: there is no sound in the file; expected {_SOUND_FORMATS}")
    stream = container.streams.audio[0]
    if stream.codec_context is None or stream.codec_context.name not in _DECODERS:
        raise MediaError(f"{label}: the sound has a coding not supported here; convert it to WAV or FLAC")
    return stream


def _stated_seconds(opened: OpenedMedium, container: InputContainer, stream: AudioStream) -> float | None:
    """Give the length the container states, None where ffmpeg could only guess it from the bit rate."""
    if opened.kind == "audio/aac":
        return None
    if opened.kind == "audio/mpeg" and not any(tag in opened.head[:256] for tag in (b"Xing", b"Info")):
        return None
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    return container.duration / av.time_base if container.duration is not None else None


def _decoded_frames(
    opened: OpenedMedium, container: InputContainer, stream: AudioStream, decoding: _Decoding, every_track: bool
) -> Iterator[av.AudioFrame]:
    """Yield the stream's frames, skipping and counting packets that do not decode; note where the other tracks end."""
    for packet in container.demux() if every_track else container.demux(stream):
        if every_track and packet.pts is not None and packet.time_base is not None:
            decoding.end = max(decoding.end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
        if packet.stream is not stream:
            continue
        decoding.num_packets += 1
        decoding.num_bytes += packet.size
        if decoding.num_packets > MAX_PACKETS_BEFORE_SOUND + MAX_PACKETS_PER_SECOND * decoding.num_seconds:
            raise MediaError(_undecodable(opened))
        try:
            frames = packet.decode()
        except av.FFmpegError:
            decoding.num_damaged += 1
            decoding.damaged_end = True
            continue
        for frame in frames:
            assert isinstance(frame, av.AudioFrame)
            decoding.damaged_end = False
            if not MIN_SOURCE_RATE <= frame.sample_rate <= MAX_SOURCE_RATE:
                raise MediaError(
                    f"{opened.label}: a sample rate of {frame.sample_rate} Hz; expected {MIN_SOURCE_RATE} to "
                    f"{MAX_SOURCE_RATE} Hz; the header is probably damaged"
                )
            if stream.codec_context.name in _FLOAT_PCM:  # conversion to integers would hide what is no sound
                require_amplitude(frame.to_ndarray(), opened.label)
            decoding.num_seconds += frame.samples / frame.sample_rate
            yield frame
