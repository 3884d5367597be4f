"""Voices that the synthesiser does not have: another pitch and speed, for training alone."""

from __future__ import annotations

import random

import numpy as np
import pytest
from embedded_model.studio import Studio

from embedded_model import acoustics


def loudest_frequency(samples):
    spectrum = np.abs(np.fft.rfft(samples.astype(np.float64) * np.hanning(samples.size)))
    return np.argmax(spectrum) * acoustics.SAMPLE_RATE / samples.size


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("size", [1, 2, 333, 16_000])
def test_a_changed_voice_is_as_loud_and_stretched_as_said(seed, size):
    clip = np.full(size, -32768, np.int16)
    clip[::2] = 32767
    changed, stretch = acoustics.change_voice(clip, random.Random(seed))
    assert changed.dtype == np.int16
    assert abs(changed.size - size * stretch) <= 1
    assert 1 / 1.45 < stretch < 1 / 0.8
    assert np.abs(changed.astype(np.int64)).max() <= 32768


@pytest.mark.parametrize("seed", range(12))
def test_pitch_and_speed_move_together(seed):
    tone = (8000 * np.sin(np.arange(32_000) * 2 * np.pi * 440 / acoustics.SAMPLE_RATE)).astype(np.int16)
    changed, stretch = acoustics.change_voice(tone, random.Random(seed))
    middle = changed[1000:-1000]  # at the ends of a clip that is cut off there is more than the tone
    assert loudest_frequency(middle) == pytest.approx(440 / stretch, abs=2)


def test_half_of_what_is_trained_on_is_changed_and_nothing_else(train, heldout):
    for stream, share in ((train, 0.5), (heldout, 0.0)):
        clips = [stream.bank().clip(n) for n in range(20)]
        changed = 0
        for n in range(80):
            clip = clips[n % 20]
            studio = Studio(rng=random.Random(n), split=stream.split, max_side=112, bank=stream.bank)
            sound = studio.sound(clip)
            lead = sound.phonemes[0].start - clip.phonemes[0].start
            lasted = (sound.phonemes[-1].end - lead) / clip.phonemes[-1].end
            changed += not 0.92 < lasted < 1.09  # what a recording alone may do
        assert changed == 0 if share == 0 else 20 <= changed <= 50
