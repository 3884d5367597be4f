"""What a task builds with: randomness, canvases and clips, and the conversation that is being written."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from embedded_model import acoustics
from embedded_model.asks import Ask, Language
from embedded_model.films import Film
from embedded_model.fonts import Split
from embedded_model.pictures import Picture, Scene, draw_scene, sample_size
from embedded_model.speech import FRAME_SAMPLES, Clip, ClipBank, Span
from embedded_model.writing import draw_text

CHANGED_VOICES = 0.5  # share of the clips for training
OTHER_LANGUAGE = 0.12  # share of reading and transcription prompts in the other language than the medium


@dataclass(frozen=True, kw_only=True)
class Sound:
    """A clip as recorded, and where its words and phonemes lie in it."""

    samples: npt.NDArray[np.int16]  # (N,) 16 kHz
    clip: Clip
    words: tuple[Span, ...]
    phonemes: tuple[Span, ...]

    def frame_classes(self, spans: tuple[Span, ...], classes: dict[str, int]) -> npt.NDArray[np.int64]:
        """Return the class of the span at each 20 ms frame, 0 where there is none: (encoder frames,)."""
        frames = (self.samples.size // 160 - 1) // 2 + 1
        labels = np.zeros(frames, np.int64)
        for token, start, end in spans:
            labels[-(-start // FRAME_SAMPLES) : -(-end // FRAME_SAMPLES)] = classes.get(token, 0)
        return labels


@dataclass(kw_only=True)
class Draft:
    """A conversation being written."""

    conversation: list[dict[str, Any]] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    sounds: list[Sound] = field(default_factory=list)
    films: list[Film] = field(default_factory=list)
    asks: list[Ask] = field(default_factory=list)  # about the one scene, a turn each

    def ask(
        self,
        text: str | None,
        reply: str,
        pictures: tuple[Picture, ...] = (),
        sound: Sound | None = None,
        film: Film | None = None,
    ) -> Draft:
        """Add a question with its media, and the reply."""
        content: dict[str, Any] = {} if text is None else {"text": text}
        if pictures:
            images = [picture.image for picture in pictures]
            content["image"] = images[0] if len(images) == 1 else images
            self.pictures.extend(pictures)
        if sound is not None:
            content["audio"] = (sound.samples, acoustics.SAMPLE_RATE)
            self.sounds.append(sound)
        if film is not None:
            content["video"] = (film.frames, film.rate)
            self.films.append(film)
        self.conversation.append({"role": "user", "content": content})
        self.conversation.append({"role": "assistant", "content": {"text": reply}})
        return self


@dataclass(kw_only=True)
class Studio:
    """What a task draws from."""

    rng: random.Random
    split: Split
    max_side: int
    bank: Callable[[], ClipBank]  # called by the tasks with speech only

    @cached_property
    def noise(self) -> np.random.Generator:
        """Randomness for arrays, seeded by `rng`."""
        return np.random.default_rng(self.rng.getrandbits(64))

    def size(self, max_side: int | None = None) -> tuple[int, int]:
        """Return a canvas size."""
        return sample_size(self.rng, min(max_side or self.max_side, self.max_side))

    def draw(self, scene: Scene) -> Picture:
        """Draw a scene."""
        return draw_scene(scene, self.rng, self.noise)

    def write(self, lines: tuple[str, ...]) -> Picture:
        """Draw a text picture."""
        return draw_text(lines, self.size(), self.split, self.rng, self.noise)

    def sound(self, clip: Clip) -> Sound:
        """Record a clip; half of those for training are said by voices that the synthesiser does not have."""
        said, stretch = clip.samples, 1.0
        if self.split == "train" and self.rng.random() < CHANGED_VOICES:
            said, stretch = acoustics.change_voice(said, self.rng)
        samples, slower, lead = acoustics.record(said, self.rng, self.noise)
        stretch *= slower

        def moved(spans: tuple[Span, ...]) -> tuple[Span, ...]:
            return tuple(Span(s.token, round(s.start * stretch) + lead, round(s.end * stretch) + lead) for s in spans)

        return Sound(samples=samples, clip=clip, words=moved(clip.words), phonemes=moved(clip.phonemes))

    def prompt_language(self, language: Language) -> Language:
        """Return the language of a prompt about a medium in `language`."""
        if self.rng.random() < OTHER_LANGUAGE:
            return "zh" if language == "en" else "en"
        return language
