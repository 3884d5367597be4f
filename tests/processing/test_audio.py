"""Log-mel equal to the padded definition and the conformance cases; long sound; samples held in memory."""

from __future__ import annotations

import io
import json
import wave
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tianquan.errors import MediaError, ParameterError
from tianquan.processing.audio import (
    MAX_SAMPLES,
    MIN_SAMPLES,
    as_waveform,
    audio_counts,
    fit_long_audio,
    log_mel,
    mel_filters,
    mono_blocks,
    prepare_audio,
)
from tianquan.processing.media import load_waveform

CONFORMANCE = Path(__file__).parents[1] / "conformance"
MEDIA = CONFORMANCE / "media"
CASES = [json.loads(path.read_text("utf-8")) for path in sorted((CONFORMANCE / "cases").glob("*.json"))]
CASES = [case for case in CASES if case["audios"]]
RATE = 16_000
LENGTHS = [1, 160, 199, 201, 480, 1600, 12_345, 16_000, 70_144, 479_000, 479_799, 479_801, 479_999, 480_000]


def noise(length: int, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(length) * 0.1).astype(np.float32)


def plain_log_mel(waveform: np.ndarray, num_mels: int = 128) -> np.ndarray:
    """The definition: pad to 30 s, reflect half a window, 3000 frames, one DFT each."""
    padded = np.zeros(480_000)
    padded[: len(waveform)] = waveform
    padded = np.concatenate((padded[200:0:-1], padded, padded[-2:-202:-1]))
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    frames = np.stack([padded[160 * t : 160 * t + 400] for t in range(3000)]) * window
    power = np.abs(np.fft.fft(frames)[:, :201]) ** 2
    log_power = np.log10(np.maximum(power @ mel_filters(num_mels).T, 1e-10))
    return (np.maximum(log_power, log_power.max() - 8) + 4) / 4


# Log-mel ----------------------------------------------------------------------------------------------------
def test_mel_filters_have_the_known_values():
    # librosa.filters.mel(sr=16000, n_fft=400, n_mels=128), which is openai/whisper's mel_128
    filters = mel_filters(128)
    assert filters.shape == (128, 201)
    assert filters.sum() == pytest.approx(3.1909855285406996, rel=1e-12)
    for band, bin_, value in (
        (0, 1, 0.012373986332636965),
        (1, 1, 0.03039256487135522),
        (5, 3, 0.005644592206081326),
        (30, 18, 0.033867553236487685),
        (64, 43, 0.01809151762107613),
        (100, 102, 0.009409416247795765),
        (127, 195, 0.005041601675024642),
        (127, 196, 0.004457120795012996),
    ):
        assert filters[band, bin_] == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize("length", LENGTHS)
def test_log_mel_equals_the_padded_definition(length):
    waveform = noise(length, length)
    expected = plain_log_mel(waveform)
    mel = log_mel(waveform, 128)
    assert mel.shape == (3000, 128)
    np.testing.assert_allclose(mel, expected, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(log_mel(waveform, 128, 7), mel[:7])


def test_the_loudest_place_counts_even_past_the_returned_frames():
    waveform = noise(16_159) * 1e-3
    waveform[-20:] = 1.0  # seen only by frames past the clip's 100
    np.testing.assert_allclose(log_mel(waveform, 80, 100), plain_log_mel(waveform, 80)[:100], rtol=0, atol=1e-6)


def test_silence():
    mel = prepare_audio([np.zeros(RATE, np.float32)], 128)[0].mel
    assert (mel == -1.5).all()


# Clips of a conversation ------------------------------------------------------------------------------------
@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_conformance_counts_and_mel_sums(case):
    waveforms = [load_waveform(MEDIA / audio["file"], 60) for audio in case["audios"]]
    clips = prepare_audio(waveforms, 128)
    for waveform, clip, expected in zip(waveforms, clips, case["audios"], strict=True):
        assert audio_counts(len(waveform)) == (
            expected["mel_frames"],
            expected["encoder_frames"],
            expected["tokens"],
        )
        assert (clip.num_samples, clip.num_frames) == (expected["num_samples"], expected["encoder_frames"])
        assert (clip.num_tokens, clip.span) == (expected["tokens"], expected["span"])
        total = clip.mel[: expected["mel_frames"]].sum(dtype=np.float64)
        assert total == pytest.approx(expected["mel_sum"], rel=1e-6)


def test_mel_is_cut_as_the_longest_clip_demands():
    short, long = noise(16_000, 1), noise(40_000, 2)
    alone = prepare_audio([short], 128)[0]
    assert alone.mel.shape == (100, 128)
    beside = prepare_audio([short, long], 128)
    assert [clip.mel.shape[0] for clip in beside] == [101, 250]
    full = log_mel(short, 128)
    np.testing.assert_array_equal(beside[0].mel, full[:101])
    np.testing.assert_array_equal(alone.mel, full[:100])
    assert beside[0].digest != alone.digest
    assert prepare_audio([long, short, short], 128)[2].digest == beside[0].digest
    assert [clip.mel.shape[0] for clip in prepare_audio([short, short], 128)] == [100, 100]
    odd = prepare_audio([noise(24_576)], 128)[0]  # 153 mel frames, 77 encoder frames
    assert odd.mel.shape == (154, 128)
    limits = prepare_audio([noise(480_000), noise(479_840)], 128)
    assert [clip.mel.shape[0] for clip in limits] == [3000, 3000]
    assert prepare_audio([], 128) == []


def test_clips_that_cannot_be_used():
    for length in (0, 160, 320, MIN_SAMPLES - 1):
        with pytest.raises(MediaError, match="at least 30 ms"):
            prepare_audio([noise(16_000), noise(length)], 128)
    assert prepare_audio([noise(MIN_SAMPLES)], 128)[0].num_tokens == 1
    for bad in (np.nan, np.inf):
        waveform = noise(1600)
        waveform[800] = bad
        with pytest.raises(MediaError, match="NaN or infinity"):
            prepare_audio([waveform], 128)
    with pytest.raises(MediaError, match="the model takes 30 s"):
        prepare_audio([noise(480_001)], 128)
    with pytest.raises(MediaError, match="the model takes 10 s"):
        prepare_audio([noise(160_320)], 128, max_frames=500)


# Long sound -------------------------------------------------------------------------------------------------
def test_thirty_seconds_fit():
    waveform = noise(MAX_SAMPLES)
    for mode in ("error", "truncate", "chunk"):
        assert [len(clip) for clip in fit_long_audio(waveform, mode)] == [MAX_SAMPLES]


def test_too_long_is_an_error_that_tells_the_options():
    with pytest.raises(MediaError, match=r"30\.00006 s of sound.*30 s at a time.*chunk.*truncate"):
        fit_long_audio(noise(MAX_SAMPLES + 1), "error")
    with pytest.raises(ParameterError, match="expected 'error', 'truncate' or 'chunk'"):
        fit_long_audio(noise(10), "cut")


def test_truncate_keeps_the_beginning():
    waveform = noise(MAX_SAMPLES + 5000)
    (clip,) = fit_long_audio(waveform, "truncate")
    np.testing.assert_array_equal(clip, waveform[:MAX_SAMPLES])


def test_chunks_end_in_a_pause():
    waveform = noise(70 * RATE)
    pauses = [(25 * RATE, 25 * RATE + 8000), (50 * RATE, 50 * RATE + 8000)]
    for start, end in pauses:
        waveform[start:end] *= 0.01
    cuts = np.cumsum([len(clip) for clip in fit_long_audio(waveform, "chunk")])[:-1]
    assert len(cuts) == 2
    for cut, (start, end) in zip(cuts, pauses, strict=True):
        assert start < cut < end


@given(st.integers(1, 100 * RATE), st.sampled_from([MAX_SAMPLES, 160_000, 4_000]))
@settings(max_examples=30)
def test_chunks_hold_every_sample_once(length, max_samples):
    waveform = np.arange(length, dtype=np.float32) % 1000 / 1000
    chunks = fit_long_audio(waveform, "chunk", max_samples)
    np.testing.assert_array_equal(np.concatenate(chunks), waveform)
    assert max(len(chunk) for chunk in chunks) <= max_samples
    if len(chunks) > 1:
        assert min(len(chunk) for chunk in chunks) >= min(RATE, max_samples // 4)
    assert len(chunks) <= 2 + length // (max_samples // 2)


def test_silence_is_cut_into_few_chunks():
    assert len(fit_long_audio(np.zeros(120 * RATE, np.float32), "chunk")) <= 5


# Samples held in memory -------------------------------------------------------------------------------------
@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100])
@pytest.mark.parametrize("channels", [1, 2])
def test_int16_samples_equal_a_wav_file(rate, channels):
    samples = (noise(rate * 5 * channels).reshape(-1, channels) * 32768).astype(np.int16)
    file = io.BytesIO()
    with wave.open(file, "wb") as output:
        output.setnchannels(channels)
        output.setsampwidth(2)
        output.setframerate(rate)
        output.writeframes(samples.tobytes())
    waveform = as_waveform(samples, rate)
    np.testing.assert_array_equal(waveform, load_waveform(file.getvalue(), 60))
    assert abs(len(waveform) - 5 * RATE) <= 1


def test_float_samples_keep_their_precision():
    waveform = noise(3000)
    np.testing.assert_array_equal(as_waveform(waveform, RATE), waveform)
    np.testing.assert_array_equal(as_waveform(waveform.astype(np.float64), RATE), waveform)
    np.testing.assert_array_equal(as_waveform(waveform[:, None], RATE), waveform)
    stereo = np.stack((waveform, waveform / 2), axis=1)
    np.testing.assert_allclose(as_waveform(stereo, RATE), waveform * 0.75, rtol=1e-6)
    assert as_waveform(waveform[::2], RATE).shape == (1500,)


@pytest.mark.parametrize("rate", [8_000, 44_100, 48_000])
def test_float_resampling_keeps_a_tone(rate):
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(rate) / rate)
    waveform = as_waveform(tone, rate)
    assert abs(len(waveform) - RATE) <= 1
    expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(len(waveform)) / RATE)
    assert np.abs(waveform - expected)[1000:-1000].max() < 0.01


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (np.zeros(0, np.float32), "not empty"),
        (np.zeros((2, 100), np.float32), r"expected \(N,\) or \(N, 2\)"),
        (np.zeros((3, 2, 2), np.float32), "expected"),
        (np.zeros(10, np.int32), "type int32"),
        (np.array([0.0, np.nan]), "NaN"),
        (np.array([0.0, -np.inf], np.float32), "NaN or infinity"),
        (np.array([0.0, 12_000.0]), "full scale at 1"),
        (np.array([0.0, 1e300]), "full scale at 1"),
    ],
)
def test_bad_samples(samples, message):
    with pytest.raises(MediaError, match=message):
        as_waveform(samples, RATE)


@pytest.mark.parametrize("rate", [0, -16_000, 999, 1_000_000, 16_000.5, float("nan"), None, "16000", True])
def test_bad_sample_rates(rate):
    with pytest.raises(ParameterError, match="whole number of Hz"):
        as_waveform(noise(100), rate)


@pytest.mark.parametrize("rate", [16_000.0, np.int64(16_000), np.float64(16_000), np.uint16(16_000)])
def test_whole_sample_rates_of_any_type(rate):
    samples = noise(100)
    np.testing.assert_array_equal(as_waveform(samples, rate), samples)


def test_ragged_samples():
    with pytest.raises(MediaError, match="unequal shapes"):
        as_waveform([[0.0, 0.1], [0.2]], RATE)


def test_errors_name_the_sound():
    for failing in (
        lambda: fit_long_audio(noise(MAX_SAMPLES + 1), "error", label="talk.wav"),
        lambda: prepare_audio([noise(10)], 128, labels=["talk.wav"]),
        lambda: as_waveform(np.zeros(10, np.int32), RATE, "talk.wav"),
    ):
        with pytest.raises(MediaError, match=r"^talk\.wav: "):
            failing()


def frames_at(rates, num_samples):
    for rate in rates:
        frame = av.AudioFrame.from_ndarray(np.zeros((1, num_samples), np.int16), format="s16", layout="mono")
        frame.sample_rate = rate
        yield frame


def test_recordings_that_were_joined_are_one():
    blocks = mono_blocks(frames_at([8000, 16000, 44100, 48000], 24000), "s16", "sound")
    assert sum(map(len, blocks)) == pytest.approx(24000 * sum(16000 / rate for rate in (8000, 16000, 44100, 48000)), 50)


def test_a_rate_that_changes_with_every_packet_is_refused():
    """Each change costs a filter graph, and so few samples come out that no cap on the length would end it."""
    with pytest.raises(MediaError, match="sound: the sample rate, channels or format of the sound change 9 times in"):
        list(mono_blocks(frames_at([191990, 191970] * 1000, 16), "s16", "sound"))


def test_samples_in_memory_have_the_cap_of_files():
    assert len(as_waveform(np.zeros(RATE, np.int16), RATE, max_seconds=1.0)) == RATE
    with pytest.raises(MediaError, match="voice: the sound is longer than the cap of 1 s"):
        as_waveform(np.zeros(8001, np.int16), 8000, "voice", max_seconds=1.0)
