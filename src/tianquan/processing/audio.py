"""Sound as the audio encoder takes it: mono 16 kHz waveforms, clips of at most 30 s, log-mel frames.

    counts:  L samples -> L // 160 mel frames -> half the encoder frames -> half the tokens (25 a second)
    log-mel: power of a 400-sample Hann window every 160 samples, 128 triangular bands on the Slaney scale,
             m = max(log10(max(power, 1e-10)), largest - 8); (m + 4) / 4

The numbers are those of `WhisperFeatureExtractor` (Hugging Face transformers) on the clip padded with zeros
to 30 s, but frames that see only padding are filled in rather than computed.

Legend: N samples, F mel frames.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import av
import numpy as np
import numpy.typing as npt

from tianquan.errors import MediaError, ParameterError
from tianquan.processing.labels import printable
from tianquan.request import AudioInput, LongAudio

Waveform = npt.NDArray[np.float32]  # (N,) mono, 16 kHz, nominally in [-1, 1]

SAMPLE_RATE = 16_000
S16_SCALE = 32_768.0
WINDOW_LEN = 400  # samples: 25 ms
HOP_LEN = 160  # samples: 10 ms, one mel frame
MAX_SAMPLES = 30 * SAMPLE_RATE  # what the feature extractor pads or cuts a clip to
MAX_MEL_FRAMES = MAX_SAMPLES // HOP_LEN  # 3000
MIN_SAMPLES = 3 * HOP_LEN  # the first length with a token: 3 mel frames, 2 encoder frames

MIN_SOURCE_RATE = 1_000  # below: one packet could resample to minutes of sound
MAX_SOURCE_RATE = 192_000  # above: building the resampling filter takes seconds and hundreds of megabytes
_FILTER_DELAY = 1_600  # samples FFmpeg's resampler may keep back: 16 of the slower rate, 256 at 1 kHz
_FREE_CHANGES = 8  # of the rate, channels or sample format inside a file
_CHANGES_PER_SECOND = 0.1  # more of them for each second of sound: a filter graph costs some 30 ms
MAX_AMPLITUDE = 16.0  # decoders overshoot 1 by a little; integers kept in floats reach thousands

LAST_CHUNK_SAMPLES = SAMPLE_RATE  # a chunk of less than a second tells the model little
CUT_SEARCH_SHARE = 1 / 3  # of a chunk: the last 10 s of 30 are searched for a quiet place
QUIET_LEN = 3_200  # samples: 200 ms, a pause between words rather than the gap inside one
QUIET_HOP = 320


class AudioCounts(NamedTuple):
    """Sizes that follow from the length of a clip."""

    mel_frames: int
    encoder_frames: int
    tokens: int


def audio_counts(num_samples: int) -> AudioCounts:
    """Derive the sizes of a clip of `num_samples` at 16 kHz; what is past 30 s does not count."""
    mel_frames = min(num_samples, MAX_SAMPLES) // HOP_LEN
    encoder_frames = (mel_frames - 1) // 2 + 1  # a convolution of stride 2
    return AudioCounts(mel_frames, encoder_frames, (encoder_frames - 2) // 2 + 1)  # an average pool of 2


# Waveforms --------------------------------------------------------------------------------------------------
def mono_blocks(frames: Iterable[av.AudioFrame], sample_format: str, label: str) -> Iterator[npt.NDArray[Any]]:
    """Mix and resample decoded frames to mono 16 kHz, (N,) at a time, in FFmpeg's "s16" or "flt" format.

    Rate, channels or sample format may change inside a file; each change starts another filter graph.

    Raises:
        MediaError: they change far more often than where recordings were joined.
    """
    resampler, seconds, num_changes = None, 0.0, 0
    for frame in frames:
        if resampler is None or resampler.source != _source_of(frame):
            if resampler is not None:
                yield from resampler.finish()
                num_changes += 1
            if num_changes > _FREE_CHANGES + _CHANGES_PER_SECOND * seconds:
                raise MediaError(
                    f"{label}: the sample rate, channels or format of the sound change {num_changes} times in "
                    f"{seconds:.1f} s; save it again, as WAV or FLAC"
                )
            resampler = _MonoResampler(frame, sample_format)
        seconds += frame.samples / frame.sample_rate
        yield from resampler.add(frame)
    if resampler is not None:
        yield from resampler.finish()


def _source_of(frame: av.AudioFrame) -> tuple[str, str, int]:
    return frame.format.name, frame.layout.name, frame.sample_rate


class _MonoResampler:
    """FFmpeg's own mixing and resampling of frames of one kind: what `ffmpeg -ac 1 -ar 16000` does.

    PyAV's AudioResampler asks for output until an error says that there is none, and each error leaks its message
    (PyAV up to 17.0): 20 MB in an hour of sound. Here output comes in blocks of a second, asked for when it is there.
    """

    def __init__(self, frame: av.AudioFrame, sample_format: str) -> None:
        self.source = _source_of(frame)
        name, layout, self._rate = self.source
        self._num_pushed = 0  # samples, at the source's rate
        self._num_blocks = 0
        self._graph = av.filter.Graph()
        time_base = {} if frame.time_base is None else {"time_base": str(frame.time_base)}
        self._graph.link_nodes(
            self._graph.add(
                "abuffer", sample_fmt=name, channel_layout=layout, sample_rate=str(self._rate), **time_base
            ),
            self._graph.add(
                "aformat", sample_fmts=sample_format, channel_layouts="mono", sample_rates=str(SAMPLE_RATE)
            ),
            self._graph.add("asetnsamples", nb_out_samples=str(SAMPLE_RATE), pad="0"),
            self._graph.add("abuffersink"),
        ).configure()

    def add(self, frame: av.AudioFrame) -> Iterator[npt.NDArray[Any]]:
        """Take a frame; yield the seconds that are whole."""
        self._graph.push(frame)
        self._num_pushed += frame.samples
        num_certain = self._num_pushed * SAMPLE_RATE // self._rate - _FILTER_DELAY
        while (self._num_blocks + 1) * SAMPLE_RATE <= num_certain:
            self._num_blocks += 1
            yield self._pull()

    def finish(self) -> Iterator[npt.NDArray[Any]]:
        """Yield the rest."""
        self._graph.push(None)
        while True:
            try:
                yield self._pull()
            except EOFError:
                return

    def _pull(self) -> npt.NDArray[Any]:
        frame = self._graph.pull()
        assert isinstance(frame, av.AudioFrame)
        return frame.to_ndarray()[0]


def too_long(label: str, max_seconds: float) -> MediaError:
    """Return the error of a sound that is longer than the cap."""
    return MediaError(
        f"{label}: the sound is longer than the cap of {max_seconds:g} s; cut it or raise max_audio_seconds"
    )


def as_waveform(
    samples: npt.ArrayLike, sample_rate: float, label: str = "audio", *, max_seconds: float = math.inf
) -> Waveform:
    """Turn samples held in memory into a mono 16 kHz waveform.

    Args:
        samples: (N,) or (N, 2); int16, or float32 / float64 with full scale at 1.
        sample_rate: of `samples`, 1 000 to 192 000 Hz; a float must be a whole number.
        label: what errors call the sound.
        max_seconds: cap on the length.

    Returns:
        int16 samples give what a WAV file of them gives; floats are averaged over channels and are not
        rounded to 16 bits, so that mono 16 kHz float32 comes back as it is.

    Raises:
        MediaError: another shape or type, no samples, too long, NaN or infinity, or values far outside [-1, 1].
        ParameterError: a sample rate that is no whole number or out of range.
    """
    if isinstance(sample_rate, float | np.floating) and float(sample_rate).is_integer():
        sample_rate = int(sample_rate)
    if not isinstance(sample_rate, int | np.integer) or not MIN_SOURCE_RATE <= sample_rate <= MAX_SOURCE_RATE:
        raise ParameterError(
            f"{label}: sample_rate is {printable(repr(sample_rate))}; expected a whole number of Hz, "
            f"{MIN_SOURCE_RATE} to {MAX_SOURCE_RATE}"
        )
    try:
        array = np.asarray(samples)
    except (TypeError, ValueError) as error:
        raise MediaError(f"{label}: samples of unequal shapes; expected (N,) or (N, 2), not empty") from error
    shape = array.shape
    if array.ndim == 1:
        array = array[:, None]
    if array.ndim != 2 or array.shape[1] not in (1, 2) or array.size == 0:
        raise MediaError(f"{label}: samples of shape {shape}; expected (N,) or (N, 2), not empty")
    if len(array) > max_seconds * sample_rate:
        raise too_long(label, max_seconds)
    if array.dtype == np.int16:
        waveform = _resample(array, int(sample_rate), "s16")
        waveform /= S16_SCALE
        return waveform
    if array.dtype not in (np.float32, np.float64):
        raise MediaError(f"{label}: samples of type {array.dtype}; expected int16, float32 or float64")
    require_amplitude(array, label)
    return _resample(array.mean(axis=1, keepdims=True).astype(np.float32), int(sample_rate), "flt")


def _resample(samples: npt.NDArray[Any], sample_rate: int, sample_format: str) -> Waveform:
    """Bring (N, channels) to mono 16 kHz in pieces of 64 Ki samples, without a scale change."""
    layout = "mono" if samples.shape[1] == 1 else "stereo"

    def frames() -> Iterator[av.AudioFrame]:
        for start in range(0, len(samples), 65_536):
            packed = np.ascontiguousarray(samples[start : start + 65_536]).reshape(1, -1)
            frame = av.AudioFrame.from_ndarray(packed, format=sample_format, layout=layout)
            frame.sample_rate = sample_rate
            yield frame

    blocks = list(mono_blocks(frames(), sample_format, "the samples"))
    return np.concatenate(blocks).astype(np.float32) if blocks else np.zeros(0, np.float32)


def require_amplitude(samples: npt.NDArray[Any], label: str) -> None:
    """Raise MediaError when float samples are not finite or far outside [-1, 1]."""
    _require_finite(samples, label)
    largest = np.abs(samples).max(initial=0)
    if largest > MAX_AMPLITUDE:
        raise MediaError(
            f"{label}: a sample of {largest:g}; float samples have full scale at 1; divide, or pass integers as int16"
        )


def _require_finite(samples: npt.NDArray[Any], label: str) -> None:
    if not np.isfinite(samples).all():
        raise MediaError(f"{label}: the samples hold NaN or infinity; check where they come from")


def _seconds(num_samples: int) -> str:
    """Write a length so that one sample too many shows: 30.00006, not 30.00."""
    return f"{num_samples / SAMPLE_RATE:.5f}".rstrip("0").rstrip(".")


# Long sound -------------------------------------------------------------------------------------------------
def fit_long_audio(
    waveform: Waveform, mode: LongAudio, max_samples: int = MAX_SAMPLES, label: str = "audio"
) -> list[Waveform]:
    """Bring a recording to clips the encoder can take.

    Args:
        waveform: (N,).
        mode: "error" refuses what is too long, "truncate" keeps the beginning, "chunk" cuts at quiet places;
            every sample is then in exactly one clip, and the last clip is at least a second long.
        max_samples: longest clip; never more than 30 s.
        label: what errors call the sound.

    Returns:
        One clip, or the chunks in order: views of `waveform`.

    Raises:
        MediaError: too long, in mode "error".
        ParameterError: an unknown mode.
    """
    max_samples = min(max_samples, MAX_SAMPLES)
    if mode not in ("error", "truncate", "chunk"):
        raise ParameterError(f"long_audio is {mode!r}; expected 'error', 'truncate' or 'chunk'")
    if len(waveform) <= max_samples:
        return [waveform]
    if mode == "error":
        raise MediaError(
            f"{label}: {_seconds(len(waveform))} s of sound; the model takes {max_samples / SAMPLE_RATE:g} "
            "s at a time; cut it, or where there is the choice set long_audio (--long-audio) to chunk (split at quiet "
            "places) or truncate (keep the start)"
        )
    if mode == "truncate":
        return [waveform[:max_samples]]
    chunks = []
    while len(waveform) > max_samples:
        cut = _quiet_cut(waveform, max_samples)
        chunks.append(waveform[:cut])
        waveform = waveform[cut:]
    return [*chunks, waveform]


def _quiet_cut(waveform: Waveform, max_samples: int) -> int:
    """Find where to end the first chunk: amid the quietest 200 ms near its end, the last of equals."""
    latest = min(max_samples, len(waveform) - min(LAST_CHUNK_SAMPLES, max_samples // 4))
    earliest = int(latest - max_samples * CUT_SEARCH_SHARE)
    window = min(QUIET_LEN, latest - earliest)
    starts = np.arange(earliest, latest - window + 1, QUIET_HOP)
    total = np.concatenate(([0.0], np.cumsum(np.square(waveform[earliest:latest], dtype=np.float64))))
    energy = total[starts - earliest + window] - total[starts - earliest]
    quietest = len(starts) - 1 - int(np.argmin(energy[::-1]))
    return int(starts[quietest]) + window // 2


# Log-mel ----------------------------------------------------------------------------------------------------
def _mel_to_hertz(mel: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Slaney's scale: 200/3 Hz a step up to 1000 Hz (mel 15), then 27 steps for each factor of 6.4."""
    return np.where(mel < 15, mel * 200 / 3, 1000 * 6.4 ** ((mel - 15) / 27))


@lru_cache(maxsize=4)
def mel_filters(num_mels: int) -> npt.NDArray[np.float64]:
    """Return the triangular bands (num_mels, 201) from 0 to 8000 Hz, each of area one over frequency.

    Equal to `librosa.filters.mel(sr=16000, n_fft=400)`, Slaney's scale and norm.
    """
    highest = 15 + 27 * np.log(SAMPLE_RATE / 2 / 1000) / np.log(6.4)
    edges = _mel_to_hertz(np.linspace(0, highest, num_mels + 2))
    hertz = np.linspace(0, SAMPLE_RATE / 2, WINDOW_LEN // 2 + 1)
    width = np.diff(edges)
    rising = (hertz - edges[:-2, None]) / width[:-1, None]
    falling = (edges[2:, None] - hertz) / width[1:, None]
    filters = np.maximum(0, np.minimum(rising, falling)) * (2 / (edges[2:] - edges[:-2]))[:, None]
    filters.setflags(write=False)  # shared by the cache
    return filters


def log_mel(waveform: Waveform, num_mels: int, num_frames: int = MAX_MEL_FRAMES) -> npt.NDArray[np.float32]:
    """Compute the first frames of the log-mel spectrum of a clip padded with zeros to 30 s.

    Args:
        waveform: (N,), at most 30 s, finite.
        num_mels: bands.
        num_frames: how many of the 3000 frames to return.

    Returns:
        (num_frames, num_mels), at least -1.5.
    """
    assert waveform.ndim == 1
    assert len(waveform) <= MAX_SAMPLES
    assert num_frames <= MAX_MEL_FRAMES
    half = WINDOW_LEN // 2
    # Frame t is centred on sample 160 t. All frames that see the clip are computed, returned or not: the
    # largest value of the whole spectrum sets the floor. Zeros behind the clip up to the 30 s, where the
    # padding reflects; 400 of them are enough for the last such frame.
    num_seen = min(MAX_MEL_FRAMES, -(-(len(waveform) + half) // HOP_LEN))
    padded = np.zeros(min(MAX_SAMPLES, len(waveform) + WINDOW_LEN))
    padded[: len(waveform)] = waveform
    padded = np.pad(padded, half, mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(padded, WINDOW_LEN)[::HOP_LEN][:num_seen]
    hann = np.hanning(WINDOW_LEN + 1)[:-1]  # periodic
    power = np.abs(np.fft.rfft(windows * hann)) ** 2  # (F, 201)
    log_power = np.log10(np.maximum(power @ mel_filters(num_mels).T, 1e-10))  # (F, num_mels)
    floor = max(float(log_power.max()) - 8.0, -10.0)
    mel = np.full((num_frames, num_mels), floor)
    mel[:num_seen] = np.maximum(log_power[:num_frames], floor)
    return ((mel + 4.0) / 4.0).astype(np.float32)


def prepare_audio(
    waveforms: Sequence[Waveform],
    num_mels: int,
    max_frames: int = 1500,
    labels: Sequence[str] = (),
    longest_frames: int = 0,
) -> list[AudioInput]:
    """Prepare all clips of one conversation for the audio encoder.

    The original encodes them in one call, with the mel cut to twice the encoder frames of the longest clip.
    Past its own frames a clip is masked, but its last frame's convolutions reach one mel frame further, and
    find zero padding there only if the cut is at that place. So a clip keeps 2 * its encoder frames, and one
    frame more when a longer clip moves the cut.

    Args:
        waveforms: (N,) each, as `fit_long_audio` returns them.
        num_mels: bands of the checkpoint.
        max_frames: encoder frames of the checkpoint's position table (1500 = 30 s).
        labels: what errors call each clip; "audio" by default.
        longest_frames: encoder frames of the longest clip of the conversation, if it is not among these.

    Raises:
        MediaError: a clip too short for one token, longer than the position table, or not finite.
    """
    counts = [audio_counts(len(waveform)) for waveform in waveforms]
    cut = 2 * max([longest_frames, *(count.encoder_frames for count in counts)])
    named = zip(waveforms, counts, labels or ["audio"] * len(counts), strict=True)
    return [_prepare_clip(clip, count, num_mels, cut, max_frames, label) for clip, count, label in named]


def _prepare_clip(
    waveform: Waveform, counts: AudioCounts, num_mels: int, cut: int, max_frames: int, label: str
) -> AudioInput:
    milliseconds = 1000 * len(waveform) / SAMPLE_RATE
    if counts.tokens == 0:
        least = 1000 * MIN_SAMPLES // SAMPLE_RATE
        raise MediaError(f"{label}: {milliseconds:g} ms of sound; the model needs at least {least} ms")
    if counts.encoder_frames > max_frames or len(waveform) > MAX_SAMPLES:
        longest = min(max_frames * 2 * HOP_LEN, MAX_SAMPLES) / SAMPLE_RATE
        raise MediaError(f"{label}: {_seconds(len(waveform))} s of sound in one clip; the model takes {longest:g} s")
    _require_finite(waveform, label)
    mel = log_mel(waveform, num_mels, min(cut, 2 * counts.encoder_frames + 1))
    # The encoder's output depends on the cut only through that one frame, so the mel is all there is to key.
    digest = hashlib.blake2b(repr((mel.shape, counts.encoder_frames)).encode() + mel.tobytes(), digest_size=32)
    return AudioInput(mel, counts.encoder_frames, counts.tokens, len(waveform), digest.digest())
