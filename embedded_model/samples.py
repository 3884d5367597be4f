"""The stream of samples: sample i depends on seed, split and i alone, so workers may share it and training resume.

stream = SampleStream("train", seed=0)
sample = stream.sample(12345)                          # by the stream's task weights
sample = stream.sample(12345, weights={"count": 1.0})  # a stage of a curriculum
picture = stream.picture(7, size=(112, 112))           # dense pre-training of the vision tower
sound = stream.sound(7)                                # and of the audio tower
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from embedded_model import asks, colours, fonts, scene_plans, shapes, speech, words
from embedded_model.asks import Ask, Language
from embedded_model.films import Film
from embedded_model.fonts import Split
from embedded_model.pictures import CANVASES, Picture, Wanted, draw_scene, plan_scene
from embedded_model.speech import ClipBank
from embedded_model.studio import Sound, Studio
from embedded_model.tasks import SPEECH_TASKS, TASKS
from embedded_model.writing import draw_text

WEIGHTS: dict[str, float] = {
    "colour": 6,
    "shape": 7,
    "colour_shape": 8,
    "describe": 4,
    "count": 12,
    "exists": 5,
    "position": 4,
    "compare": 4,
    "relation": 3,
    "read_digits": 9,
    "read_text": 7,
    "sheet_number": 0,
    "sheet_shape": 0,
    "two_images": 5,
    "two_images_each": 0,
    "follow_up": 6,
    "find_by_shape": 0,
    "relate": 0,
    "count_each": 0,
    "count_groups": 0,
    "tally": 0,
    "interview": 0,  # of a later stage
    "transcribe": 12,
    "spoken_digits": 4,
    "spoken_question": 10,
    "spoken_each": 0,
    "spoken_counts": 0,
    "spoken_interview": 0,
    "spoken_chat": 3,
    "text": 3,
    "film_direction": 0,
    "film_order": 0,
    "film_ends": 0,
    "film_colour": 0,
    "film_bounces": 0,
    "film_moments": 0,
    "film_speech": 0,
}
DENSE_TEXT_SHARE = 0.35  # of the pictures for dense pre-training
DENSE_DIGITS_SHARE = 0.5  # of these


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A conversation in the vendor's form, media in memory: pictures as PIL, clips as (int16 samples, 16000)."""

    index: int
    task: str
    language: Language
    conversation: list[dict[str, Any]]
    pictures: tuple[Picture, ...]  # with their patch labels, in the order of the conversation
    sounds: tuple[Sound, ...]  # with their frame labels, likewise
    films: tuple[Film, ...]
    asks: tuple[Ask, ...]  # the questions about a scene, without words


class SampleStream:
    """Samples by number, made when asked for."""

    def __init__(
        self,
        split: Split,
        *,
        seed: int = 0,
        weights: Mapping[str, float] | None = None,
        chinese: Mapping[str, float] | None = None,
        bank_folder: Path = speech.DEFAULT_FOLDER,
        max_side: int = CANVASES[-1],
    ) -> None:
        """Open a stream.

        Args:
            split: whose fonts and voices.
            seed: other seeds, other samples.
            weights: of tasks, all by default.
            chinese: share of a task's samples, half if not named here.
            bank_folder: of the clip bank.
            max_side: of the canvases, pixels.

        Raises:
            ValueError: an unknown split or task.
            fonts.MissingFontsError: a font is not installed.
        """
        if split not in get_args(Split):
            raise ValueError(f"split is one of {get_args(Split)}, got {split!r}")
        self.split: Split = split
        self.seed = seed
        self.weights = _checked(WEIGHTS if weights is None else weights)
        self.chinese = _checked(chinese or {})
        self._bank_folder = bank_folder
        self._bank: ClipBank | None = None
        self._max_side = max_side
        fonts.require_fonts()

    def bank(self) -> ClipBank:
        """Return the clips of the split, read when first needed.

        Raises:
            speech.BankMissingError: there is no clip bank in the folder.
        """
        if self._bank is None:
            self._bank = ClipBank(self.split, self._bank_folder)
        return self._bank

    def sample(self, index: int, weights: Mapping[str, float] | None = None) -> Sample:
        """Return sample `index`; `weights` replaces the stream's, for a stage of a curriculum."""
        chosen = self.weights if weights is None else _checked(weights)
        studio = self._studio("sample", index)
        task = studio.rng.choices(tuple(chosen), tuple(chosen.values()))[0]
        language = asks.LANGUAGES[studio.rng.getrandbits(1)]
        if task in self.chinese:
            language = "zh" if studio.rng.random() < self.chinese[task] else "en"
        draft = TASKS[task](studio, language)
        return Sample(
            index=index,
            task=task,
            language=language,
            conversation=draft.conversation,
            pictures=tuple(draft.pictures),
            sounds=tuple(draft.sounds),
            films=tuple(draft.films),
            asks=tuple(draft.asks),
        )

    def picture(
        self,
        index: int,
        size: tuple[int, int] | None = None,
        text_share: float = DENSE_TEXT_SHARE,
        max_objects: int = scene_plans.MAX_OBJECTS,
        large: bool = False,
        digits_share: float = DENSE_DIGITS_SHARE,
    ) -> Picture:
        """Return a picture without a question: a scene or, for `text_share` of the numbers, digits or text.

        `digits_share` of the latter are digits; `large` makes objects at least half as large as they can be.
        """
        studio = self._studio("picture", index)
        rng = studio.rng
        size = size or studio.size()
        if rng.random() < text_share:
            lines: tuple[str, ...] = (words.sample_digits(rng),)
            if rng.random() < 1 - digits_share:
                language = rng.choice(asks.LANGUAGES)
                lines = tuple(
                    words.sample_line(rng, language, rng.choice((1, 1, 2))) for _ in range(rng.choice((1, 1, 2)))
                )
            return draw_text(lines, size, self.split, rng, studio.noise)
        count = rng.randint(1, max_objects)
        things = [
            Wanted(
                shape=rng.choice(shapes.SHAPE_NAMES),
                colour=rng.choice(colours.COLOUR_NAMES),
                radius=rng.uniform(0.2, 0.4) / count**0.5 if large else None,
            )
            for _ in range(count)
        ]
        return draw_scene(plan_scene(things, size, rng), rng, studio.noise)

    def sound(self, index: int) -> Sound:
        """Return a recorded clip without a question."""
        studio = self._studio("sound", index)
        kinds = ("digits", "name", "command", "question", "chat")
        return studio.sound(self.bank().sample_clip(studio.rng.choice(asks.LANGUAGES), kinds, studio.rng))

    def _studio(self, purpose: str, index: int) -> Studio:
        rng = random.Random(f"{self.seed}/{self.split}/{purpose}/{index}")
        return Studio(rng=rng, split=self.split, max_side=self._max_side, bank=self.bank)


def _checked(weights: Mapping[str, float]) -> dict[str, float]:
    unknown = sorted(set(weights) - set(TASKS))
    if unknown:
        raise ValueError(f"unknown tasks: {', '.join(unknown)}; there are {', '.join(TASKS)}")
    return {task: weight for task, weight in weights.items() if weight > 0}


def without_speech(weights: Mapping[str, float] = WEIGHTS) -> dict[str, float]:
    """Return the weights of the tasks that need no clip bank."""
    return {task: weight for task, weight in weights.items() if task not in SPEECH_TASKS}
