"""Speech from eSpeak NG through its C library: waveform and the times of words and phonemes.

The library is called in this process (1.5 ms a clip; the command line takes 32 ms). Its noise generator keeps
state between calls, so a clip is reproducible only as the n-th of a fresh process: `speech` builds each voice's
clips that way.

Source: speak_lib.h of eSpeak NG 1.51. Trap: in 1.51 the voice `cmn` spells most characters as pinyin read by
English rules ("hong two"), `cmn-latn-pinyin` pronounces them; both are in use, so both are synthesised.
"""

from __future__ import annotations

import ctypes
import ctypes.util
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

SYNCHRONOUS = 2  # AUDIO_OUTPUT_SYNCHRONOUS
PHONEME_EVENTS_IPA = 0b11
CHARACTERS_UTF8 = 1
POSITION_CHARACTERS = 1
PARAMETER_RATE, PARAMETER_PITCH, PARAMETER_RANGE = 1, 3, 4
EVENT_END_OF_LIST, EVENT_WORD, EVENT_PHONEME = 0, 1, 7

Samples = npt.NDArray[np.int16]


class EspeakError(RuntimeError):
    """eSpeak NG is missing, or refuses a voice or a text."""


class _Id(ctypes.Union):
    _fields_ = (("number", ctypes.c_int), ("string", ctypes.c_char * 8))


class _Event(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),  # characters, from 1
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),  # milliseconds
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _Id),
    )


_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


@dataclass(frozen=True, kw_only=True)
class Utterance:
    """What the synthesiser returned."""

    samples: Samples  # (N,) mono
    sample_rate: int
    words: tuple[tuple[int, int], ...]  # (text position from 0, first sample) of each word event
    phonemes: tuple[tuple[str, int], ...]  # (IPA, first sample); "" is a pause


def is_installed() -> bool:
    """Tell whether the shared library is there."""
    return ctypes.util.find_library("espeak-ng") is not None


class Synthesiser:
    """The library, initialised once a process."""

    def __init__(self) -> None:
        """Load the library.

        Raises:
            EspeakError: it is not installed.
        """
        name = ctypes.util.find_library("espeak-ng")
        if name is None:
            raise EspeakError("libespeak-ng not found; on Debian: apt-get install espeak-ng")
        self._library = ctypes.CDLL(name)
        self.sample_rate = int(self._library.espeak_Initialize(SYNCHRONOUS, 0, None, PHONEME_EVENTS_IPA))
        if self.sample_rate <= 0:
            raise EspeakError("espeak_Initialize failed: are the data files of espeak-ng installed?")
        self._chunks: list[bytes] = []
        self._words: list[tuple[int, int]] = []
        self._phonemes: list[tuple[str, int]] = []
        self._callback = _CALLBACK(self._collect)  # kept: the library holds a bare pointer to it
        self._library.espeak_SetSynthCallback(self._callback)
        self._library.espeak_Info.restype = ctypes.c_char_p
        self.version = self._library.espeak_Info(None).decode()

    def _collect(self, samples: Any, num_samples: int, events: Any) -> int:
        if num_samples > 0 and samples:
            self._chunks.append(ctypes.string_at(samples, num_samples * 2))
        n = 0
        while events[n].type != EVENT_END_OF_LIST:
            event = events[n]
            if event.type == EVENT_WORD:
                self._words.append((event.text_position - 1, event.sample))
            elif event.type == EVENT_PHONEME:
                self._phonemes.append((event.id.string.decode("utf-8", "ignore"), event.sample))
            n += 1
        return 0

    def say(self, text: str, voice: str, *, rate: int, pitch: int, pitch_range: int) -> Utterance:
        """Synthesise `text`; rate in words a minute (80..450), pitch and range 0..100.

        Raises:
            EspeakError: the voice is unknown or nothing came out.
        """
        self._chunks.clear()
        self._words.clear()
        self._phonemes.clear()
        if self._library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise EspeakError(f"eSpeak NG {self.version} has no voice {voice!r}")
        for parameter, value in ((PARAMETER_RATE, rate), (PARAMETER_PITCH, pitch), (PARAMETER_RANGE, pitch_range)):
            self._library.espeak_SetParameter(parameter, value, 0)
        encoded = text.encode()
        status = self._library.espeak_Synth(
            encoded, len(encoded) + 1, 0, POSITION_CHARACTERS, 0, CHARACTERS_UTF8, None, None
        )
        samples = np.frombuffer(b"".join(self._chunks), np.int16)
        if status != 0 or samples.size == 0:
            raise EspeakError(f"eSpeak NG returned status {status} and {samples.size} samples for {text!r}")
        return Utterance(
            samples=samples,
            sample_rate=self.sample_rate,
            words=tuple(self._words),
            phonemes=tuple(self._phonemes),
        )


@lru_cache(maxsize=1)
def synthesiser() -> Synthesiser:
    """Return this process's synthesiser: the library keeps one state a process."""
    return Synthesiser()
