"""Looking through a records file before it is trained on or evaluated with: every bad record, and what is there.

Nothing stops at the first mistake. Each problem names FILE:LINE, so that one run lists all there is to mend:
JSON and roles (`records.py`), media that are missing or cannot be decoded, conversations that repeat an earlier one
(same roles, same text, same bytes of media, whatever the files are called), and, with a model's processor, those over
the context window or that the template cannot express.
"""

from __future__ import annotations

import hashlib
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image

from tianquan.errors import MediaError, TianquanError
from tianquan.processing.audio import SAMPLE_RATE
from tianquan.processing.image import ImageSettings
from tianquan.processing.labels import printable
from tianquan.processing.media import load_image, load_waveform
from tianquan.processing.messages import ImageReference, MediaSource
from tianquan.processing.processor import Processor
from tianquan.processing.video_input import DecodedVideo, load_video
from tianquan.request import MediaPolicy
from tianquan.training.examples import build_example
from tianquan.training.records import Record, RecordError, decode_line, parse_record

_GROUP_KEYS = ("task", "language")  # that evaluation reports by
_ANY_MODEL = ImageSettings(  # frames are decoded at the official size where no model is named
    scale_resolution=448, patch_size=14, max_slices=9, slice_mode=True, tokens_per_slice=64
)
_MAX_CLIP_SAMPLES = 30 * SAMPLE_RATE
_READ_BYTES = 2**20
_FIRST_BIN = 32  # tokens; each further bin of the histogram is twice as wide


@dataclass(frozen=True)
class Problem:
    """What is wrong with one record."""

    source: str  # "FILE:LINE"
    message: str

    def __str__(self) -> str:
        return f"{self.source}: {self.message}"


@dataclass(frozen=True)
class Prospect:
    """The model the records are meant for."""

    processor: Processor
    max_tokens: int  # of its context window


@dataclass
class DataReport:
    """What a file holds. Counts are of the records without problems."""

    num_lines: int = 0  # that are not blank
    num_bad: int = 0
    problems: list[Problem] = field(default_factory=list)
    num_turns: int = 0
    num_images: int = 0
    num_videos: int = 0
    num_video_frames: int = 0  # that are seen of them
    audio_seconds: list[float] = field(default_factory=list)  # of each recording
    num_tokens: list[int] = field(default_factory=list)  # of each record, when a model is given
    tasks: Counter[str] = field(default_factory=Counter)
    languages: Counter[str] = field(default_factory=Counter)

    @property
    def num_records(self) -> int:
        """Records that can be used."""
        return self.num_lines - self.num_bad

    @property
    def is_good(self) -> bool:
        """True when there is a record, and none is bad."""
        return self.num_bad == 0 and self.num_lines > 0 and not self.problems

    def to_dict(self) -> dict[str, Any]:
        """Return the documented JSON form."""
        tokens = self.num_tokens
        return {
            "ok": self.is_good,
            "records": self.num_records,
            "bad_records": self.num_bad,
            "problems": [{"source": problem.source, "message": problem.message} for problem in self.problems],
            "turns": self.num_turns,
            "images": self.num_images,
            "videos": self.num_videos,
            "video_frames": self.num_video_frames,
            "audios": len(self.audio_seconds),
            "audio_seconds": round(sum(self.audio_seconds), 3),
            "longest_audio_seconds": round(max(self.audio_seconds, default=0.0), 3),
            "tokens": None
            if not tokens
            else {
                "total": sum(tokens),
                "min": min(tokens),
                "median": int(statistics.median(tokens)),
                "max": max(tokens),
                "histogram": [
                    {"from": start, "to": stop, "records": count} for start, stop, count in histogram(tokens)
                ],
            },
            "tasks": dict(sorted(self.tasks.items())),
            "languages": dict(sorted(self.languages.items())),
        }


def histogram(counts: Sequence[int]) -> list[tuple[int, int, int]]:
    """Return (from, below, how many) of bins that double in width, up to the one with the largest count."""
    bins, start, stop = [], 0, _FIRST_BIN
    while start <= max(counts, default=-1):
        bins.append((start, stop, sum(start <= count < stop for count in counts)))
        start, stop = stop, 2 * stop
    return bins


class DataCheck:
    """Checks the records of a file one after the other; `report` grows.

    Args:
        prospect: the model the records are for; None checks what needs no model.
        media_root: folder that relative media paths start from.
        policy: caps of sizes and lengths.
    """

    def __init__(
        self, prospect: Prospect | None = None, media_root: Path | None = None, policy: MediaPolicy | None = None
    ) -> None:
        self.report = DataReport()
        self._prospect = prospect
        self._media_root = media_root
        self._policy = policy or MediaPolicy()
        self._seen: dict[bytes, str] = {}  # digest of a conversation -> where it was first

    def run(self, path: Path) -> Iterator[int]:
        """Check a file to its end, yielding the bytes read after each line.

        Raises:
            RecordError: the file cannot be read.
        """
        position = 0
        try:
            with path.open("rb") as file:
                for number, line in enumerate(file, start=1):
                    position += len(line)
                    if line.strip():
                        self.check_line(line, f"{printable(path.name)}:{number}")
                    yield position
        except OSError as error:
            raise RecordError(f"{path}: cannot be read ({error.strerror})") from error
        if self.report.num_lines == 0:
            self.report.problems.append(Problem(printable(path.name), "has no records"))

    def check_line(self, line: bytes, source: str) -> None:
        """Check one line that is not blank."""
        self.report.num_lines += 1
        messages = self._check(line, source)
        if messages:
            self.report.num_bad += 1
            self.report.problems += [Problem(source, message) for message in messages]

    def _check(self, line: bytes, source: str) -> list[str]:
        """Return what is wrong with a record; count it if nothing is."""
        try:
            record = parse_record(decode_line(line), source)
        except RecordError as error:
            return [_without_source(error, source)]
        problems = [
            f"{key} must be a string, got {type(record.extra[key]).__name__}"
            for key in _GROUP_KEYS
            if not isinstance(record.extra.get(key, ""), str)
        ]
        decoded, digest, num_frames, media_problems = self._open_media(record)
        problems += media_problems
        if problems:
            return problems
        num_tokens = None
        if self._prospect is not None:
            processor, window = self._prospect.processor, self._prospect.max_tokens
            try:
                example = build_example(processor, decoded, self._policy, None, window)
            except RecordError as error:
                return [_without_source(error, source)]
            num_tokens = len(example.prompt.token_ids)
        if (first := self._seen.setdefault(digest, source)) != source:
            return [f"repeats {first}: the same conversation with the same media"]
        self._count(decoded, num_frames, num_tokens)
        return []

    def _open_media(self, record: Record) -> tuple[Record, bytes, int, list[str]]:
        """Decode the media of a record.

        Returns:
            The record with pictures and sounds decoded and videos found, a digest of all it says, how many frames are
            seen of the videos, and which media cannot be used.
        """
        problems: list[str] = []
        hashed = hashlib.blake2b(digest_size=16)
        turns = []
        number = {"image": 0, "audio": 0, "video": 0}
        num_frames = 0
        for turn in record.turns:
            _add(hashed, turn.role.encode(), (turn.text or "").encode("utf-8", "surrogatepass"))
            images: list[ImageReference] = []
            audios: list[MediaSource] = []
            for image in turn.images:
                number["image"] += 1
                try:
                    picture = self._open_image(image.source, f"image {number['image']}", hashed)
                    images.append(replace(image, source=picture))
                except TianquanError as error:
                    problems.append(str(error))
                _add(hashed, image.detail.encode())
            for audio in turn.audios:
                number["audio"] += 1
                try:
                    audios.append(self._open_audio(audio, f"audio {number['audio']}", hashed))
                except TianquanError as error:
                    problems.append(str(error))
            videos: list[MediaSource] = []
            for source in turn.videos:
                number["video"] += 1
                try:
                    found, video = self._open_video(source, f"video {number['video']}", hashed)
                    videos.append(found)
                    num_frames += sum(frame.num_video_frames for frame in video.frames)
                except TianquanError as error:
                    problems.append(str(error))
            turns.append(replace(turn, images=tuple(images), audios=tuple(audios), videos=tuple(videos)))
        return replace(record, turns=tuple(turns)), hashed.digest(), num_frames, problems

    def _open_image(self, source: MediaSource, label: str, hashed: Any) -> Image.Image:
        data = self._read(source, label)
        _add(hashed, b"image", data)
        return load_image(data, self._policy.max_pixels, _name(source, label))

    def _open_audio(self, source: MediaSource, label: str, hashed: Any) -> tuple[Any, int]:
        data = self._read(source, label)
        _add(hashed, b"audio", data)
        return load_waveform(data, self._policy.max_audio_seconds, _name(source, label)), SAMPLE_RATE

    def _open_video(self, source: MediaSource, label: str, hashed: Any) -> tuple[Path | bytes, DecodedVideo]:
        """Return where a video is, and its frames as the model sees them; a file is never read as a whole."""
        found = source if isinstance(source, bytes) else self._path(source, label)
        _add(hashed, b"video", _digest(found, label))
        settings = self._prospect.processor.settings.image if self._prospect else _ANY_MODEL
        return found, load_video(found, self._policy, settings, _MAX_CLIP_SAMPLES, _name(source, label))

    def _read(self, source: MediaSource, label: str) -> bytes:
        """Return the encoded bytes of a medium, so that its digest does not depend on the file's name."""
        if isinstance(source, bytes):
            return source
        path = self._path(source, label)
        try:
            return path.read_bytes()
        except OSError as error:
            raise MediaError(f"{label}: {printable(str(source))}: cannot be read") from error

    def _path(self, source: MediaSource, label: str) -> Path:
        assert isinstance(source, str | Path), "records name media by path or hold their bytes"
        path = Path(source) if self._media_root is None else self._media_root / source
        try:
            if not path.is_file():
                raise MediaError(f"{label}: {printable(str(source))}: no such file")
        except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
            raise MediaError(f"{label}: {printable(str(source))}: cannot be read") from error
        return path

    def _count(self, record: Record, num_frames: int, num_tokens: int | None) -> None:
        report = self.report
        report.num_turns += len(record.turns)
        report.num_images += sum(len(turn.images) for turn in record.turns)
        report.num_videos += sum(len(turn.videos) for turn in record.turns)
        report.num_video_frames += num_frames
        report.audio_seconds += [_seconds(audio) for turn in record.turns for audio in turn.audios]
        report.tasks[record.extra.get("task", "")] += 1
        report.languages[record.extra.get("language", "")] += 1
        if num_tokens is not None:
            report.num_tokens.append(num_tokens)


def _seconds(audio: MediaSource) -> float:
    assert isinstance(audio, tuple)
    return len(audio[0]) / int(audio[1])


def _add(hashed: Any, *parts: bytes) -> None:
    for part in parts:  # with its length, so that parts cannot be confused
        hashed.update(len(part).to_bytes(8, "little") + part)


def _digest(source: Path | bytes, label: str) -> bytes:
    """Return the digest of bytes, or of a file that may be larger than memory."""
    hashed = hashlib.blake2b(digest_size=16)
    if isinstance(source, bytes):
        hashed.update(source)
        return hashed.digest()
    try:
        with source.open("rb") as file:
            while block := file.read(_READ_BYTES):
                hashed.update(block)
    except OSError as error:
        raise MediaError(f"{label}: {printable(source.name)}: cannot be read") from error
    return hashed.digest()


def _name(source: MediaSource, label: str) -> str:
    return f"{label}: {printable(Path(source).name)}" if isinstance(source, str | Path) else label


def _without_source(error: TianquanError, source: str) -> str:
    return str(error).removeprefix(f"{source}: ")
