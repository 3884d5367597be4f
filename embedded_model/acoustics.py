"""From a synthesised clip to a recording: another voice, speed, silence, band limits, echo, noise, level.

Legend: N samples at 16 kHz.
"""

from __future__ import annotations

import random

import numpy as np
import numpy.typing as npt

SAMPLE_RATE = 16_000
Waveform = npt.NDArray[np.float32]  # (N,)

CLEAN = 0.3  # share of clips that get silence and level only
MAX_SPEED_CHANGE = 0.07
RATES = tuple(range(13_600, 22_800, 400))  # Hz; a clip taken to have this rate is a smaller or larger person's
TIMBRE = (150, 400, 800, 1300, 2000, 3000, 4500, 8000)  # Hz, where a voice is louder or weaker than another
TIMBRE_SPREAD = 7.0  # decibels


def resample(samples: npt.NDArray[np.int16], source_rate: int) -> npt.NDArray[np.int16]:
    """Return a clip at 16 kHz: the spectrum is cut at 8 kHz (exact for a whole number of periods)."""
    common = int(np.gcd(source_rate, SAMPLE_RATE))
    block = source_rate // common
    blocks = -(-samples.size // block)
    blocks = 1 << (blocks - 1).bit_length() if blocks > 1 else 1  # powers of two keep the transform fast
    padded = np.zeros(blocks * block, np.float32)
    padded[: samples.size] = samples
    out_len = blocks * (SAMPLE_RATE // common)
    spectrum = np.fft.rfft(padded)[: out_len // 2 + 1]
    wave = np.fft.irfft(spectrum, out_len) * (out_len / padded.size)
    keep = round(samples.size * SAMPLE_RATE / source_rate)
    return np.clip(np.round(wave[:keep]), -32768, 32767).astype(np.int16)


def change_voice(clip: npt.NDArray[np.int16], rng: random.Random) -> tuple[npt.NDArray[np.int16], float]:
    """Return a clip as someone else might say it, and the factor by which times inside it were stretched.

    Pitch and formants move together, up to 15 % down or 40 % up, and so does the speed; then parts of the spectrum are
    made louder or weaker. A synthesiser has some dozens of voices; a model that heard only those fails on the next.
    """
    rate = rng.choice(RATES)
    voice = resample(clip, rate).astype(np.float32)
    size = 1 << max(1, voice.size - 1).bit_length()
    frequency = np.linspace(0, SAMPLE_RATE / 2, size // 2 + 1)
    decibels = np.interp(np.log(frequency + 1), np.log(TIMBRE), [rng.gauss(0, TIMBRE_SPREAD) for _ in TIMBRE])
    voice = np.fft.irfft(np.fft.rfft(voice, size) * 10 ** (decibels / 20), size)[: voice.size].astype(np.float32)
    loudest = max(1.0, float(np.abs(voice).max()))
    voice *= float(np.abs(clip.astype(np.float32)).max()) / loudest
    return np.clip(np.round(voice), -32768, 32767).astype(np.int16), SAMPLE_RATE / rate


def record(
    clip: npt.NDArray[np.int16], rng: random.Random, noise: np.random.Generator
) -> tuple[npt.NDArray[np.int16], float, int]:
    """Return a clip as a microphone might have caught it, int16.

    Also returned: the factor by which times inside the clip were stretched, and the samples before it.
    """
    wave = clip.astype(np.float32) / 32768
    stretch = 1.0
    if rng.random() < 0.4:
        stretch = 1 / rng.uniform(1 - MAX_SPEED_CHANGE, 1 + MAX_SPEED_CHANGE)
        places = np.arange(int(wave.size * stretch), dtype=np.float32) / np.float32(stretch)
        wave = np.interp(places, np.arange(wave.size, dtype=np.float32), wave).astype(np.float32)
    lead, tail = (int(rng.uniform(0.0, 0.45) * SAMPLE_RATE) for _ in range(2))
    padded = np.zeros(lead + wave.size + tail, np.float32)
    padded[lead : lead + wave.size] = wave
    peak = max(1e-4, float(np.abs(wave).max()))
    if rng.random() >= CLEAN:
        padded = _filter(padded, rng, noise)
        if rng.random() < 0.75:
            level = float(np.sqrt(np.mean(np.square(wave)))) * 10 ** (-rng.uniform(12, 45) / 20)
            padded += _hiss(padded.size, rng, noise) * np.float32(level)
        peak = max(1e-4, float(np.abs(padded).max()))
    target = 10 ** (-rng.uniform(0.3, 20) / 20) if rng.random() < 0.7 else peak
    return np.clip(np.round(padded * (32767 * min(target, 0.99) / peak)), -32768, 32767).astype(np.int16), stretch, lead


def _filter(wave: Waveform, rng: random.Random, noise: np.random.Generator) -> Waveform:
    """Limit the band and add an echo, both as products of spectra."""
    limit, echo = rng.random() < 0.35, rng.random() < 0.35
    if not limit and not echo:
        return wave
    size = 1 << (wave.size - 1).bit_length()
    spectrum = np.fft.rfft(wave, size)
    if limit:
        frequency = np.linspace(0, SAMPLE_RATE / 2, spectrum.size)
        high, low = rng.uniform(3000, 7500), rng.uniform(40, 250)
        spectrum *= 1 / (1 + (frequency / high) ** 8) * (1 - 1 / (1 + (frequency / low) ** 4))
    if echo:
        length = int(rng.uniform(0.05, 0.25) * SAMPLE_RATE)
        decay = np.exp(-np.arange(length) * (6.9 / length))  # 60 dB over the length
        response = noise.standard_normal(length) * decay
        response *= rng.uniform(0.1, 0.5) / np.sqrt(np.sum(response**2))
        response[0] = 1.0
        spectrum *= np.fft.rfft(response, size)
    return np.fft.irfft(spectrum, size)[: wave.size].astype(np.float32)


def _hiss(size: int, rng: random.Random, noise: np.random.Generator) -> Waveform:
    """Return noise of unit power: white, or smoothed towards the low notes, or with a mains hum."""
    hiss = noise.standard_normal(size, dtype=np.float32)
    kind = rng.random()
    if kind < 0.4:
        hiss = np.convolve(hiss, np.full(8, 8**-0.5, np.float32), "same")
    elif kind < 0.5:
        pitch = rng.choice((50, 60, 100, 120))
        hum = np.sin(np.arange(size, dtype=np.float32) * np.float32(2 * np.pi * pitch / SAMPLE_RATE))
        hiss = hiss * np.float32(0.5) + hum
    return hiss
