"""The tasks: each builds a conversation in the vendor's form, with media in memory.

A task takes a `Studio` (randomness, split, clips) and a language and returns a `Draft`.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import numpy.typing as npt

from embedded_model import acoustics, asks, colours, prompts, shapes, small_talk, wordings
from embedded_model.asks import Ask, AskKind, Language
from embedded_model.films import FILM_KINDS, Film, FilmKind, draw_film
from embedded_model.fonts import Split
from embedded_model.pictures import Picture, Scene, Wanted, draw_scene, plan_scene, sample_size
from embedded_model.scene_plans import ZONES, scene_for
from embedded_model.sheets import draw_sheet
from embedded_model.speech import FRAME_SAMPLES, Clip, ClipBank, Span
from embedded_model.words import sample_digits, sample_line
from embedded_model.writing import draw_text

OTHER_LANGUAGE = 0.12  # share of reading and transcription prompts in the other language than the medium
TWO_PICTURES_SIDE = 224  # pixels: two pictures make twice the features
COUNT_KINDS: tuple[AskKind, ...] = ("count_all", "count_shape", "count_colour", "count_both")
RELATION_KINDS: tuple[AskKind, ...] = ("left_of", "right_of", "above", "below")
GROUP_SIZES = ((4, 4), (4, 4), (3, 3, 3))  # most things of each group
SIZE_KINDS: tuple[AskKind, ...] = ("bigger_shape", "smaller_shape")
MOST_ASKED = 8  # questions of one scene
MOST_SPOKEN = 4  # spoken ones, of
CLIPS_TRIED = 120
MORE_QUESTIONS = (3, 6)  # of an interview, after the first
INTERVIEW_KINDS: dict[AskKind, float] = {  # how often each is asked; finding by shape and counting take longest
    "colour_of_shape": 18,
    "shape_of_colour": 6,
    "only_both": 5,
    "count_all": 7,
    "count_shape": 12,
    "count_colour": 7,
    "count_both": 8,
    "exists_shape": 5,
    "exists_colour": 2,
    "exists_both": 4,
    "is_colour": 5,
    "where_shape": 14,
    "where_both": 5,
    "bigger_shape": 2,
    "smaller_shape": 1,
    "bigger_colour": 1,
    "left_of": 2,
    "right_of": 1,
    "above": 2,
    "below": 1,
    "describe": 6,
}


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
        """Record a clip."""
        samples, stretch, lead = acoustics.record(clip.samples, self.rng, self.noise)

        def moved(spans: tuple[Span, ...]) -> tuple[Span, ...]:
            return tuple(Span(s.token, round(s.start * stretch) + lead, round(s.end * stretch) + lead) for s in spans)

        return Sound(samples=samples, clip=clip, words=moved(clip.words), phonemes=moved(clip.phonemes))

    def prompt_language(self, language: Language) -> Language:
        """Return the language of a prompt about a medium in `language`."""
        if self.rng.random() < OTHER_LANGUAGE:
            return "zh" if language == "en" else "en"
        return language


# Pictures ---------------------------------------------------------------------------------------------------
def about_scene(studio: Studio, language: Language, kinds: tuple[AskKind, ...], weights: tuple[int, ...]) -> Draft:
    """One question about one scene."""
    ask = asks.random_ask(studio.rng.choices(kinds, weights)[0], studio.rng)
    scene, reply = scene_for(ask, studio.size(), studio.rng, language)
    text = wordings.word(ask, language, studio.rng)
    return Draft(asks=[ask]).ask(text, reply, (studio.draw(scene),))


def read_digits(studio: Studio, language: Language) -> Draft:
    """A number to read."""
    digits = sample_digits(studio.rng)
    return Draft().ask(studio.rng.choice(prompts.READ_DIGITS[language]), digits, (studio.write((digits,)),))


def read_text(studio: Studio, language: Language) -> Draft:
    """A word or a few short lines to read, in the language of the text or, sometimes, asked in the other."""
    rng = studio.rng
    num_lines = rng.choice((1, 1, 1, 1, 2, 3))
    lines = tuple(sample_line(rng, language, rng.choice((1, 1, 1, 2, 3))) for _ in range(num_lines))
    prompt = rng.choice(prompts.READ_TEXT[studio.prompt_language(language)])
    return Draft().ask(prompt, "\n".join(lines), (studio.write(lines),))


def sheet_number(studio: Studio, language: Language) -> Draft:
    """A number somewhere on a large sheet."""
    rng = studio.rng
    digits = sample_digits(rng)
    thing = draw_text((digits,), (rng.randint(60, 104), rng.randint(34, 80)), studio.split, rng, studio.noise)
    return Draft().ask(rng.choice(prompts.READ_DIGITS[language]), digits, (draw_sheet(thing, rng),))


def sheet_shape(studio: Studio, language: Language) -> Draft:
    """A shape somewhere on a large sheet."""
    rng = studio.rng
    wanted, side = replace(_any_thing(rng), radius=rng.uniform(0.3, 0.46)), rng.randint(32, 80)
    scene = plan_scene([wanted], (side, side), rng)
    text = wordings.word(Ask(kind="only_both"), language, rng)
    reply = asks.both_words(wanted.colour, wanted.shape, language)
    return Draft().ask(text, reply, (draw_sheet(studio.draw(scene), rng),))


def two_images(studio: Studio, language: Language) -> Draft:
    """A question that compares two pictures."""
    rng = studio.rng
    kind = rng.choice(tuple(prompts.TWO_PICTURES))
    scenes = _two_scenes(kind, studio)
    first, second = (scene.objects[0] for scene in scenes)
    one, two, same = prompts.FIRST_SECOND[language]
    yes, no = asks.YES_NO[language]
    asked = rng.choice((0, 1))
    shape, colour = (first, second)[asked].shape, (first, second)[asked].colour
    counts = [len(scene.objects) for scene in scenes]
    replies = {
        "same_shape": yes if first.shape == second.shape else no,
        "same_colour": yes if first.colour == second.colour else no,
        "more": same if counts[0] == counts[1] else one if counts[0] > counts[1] else two,
        "which_shape": (one, two)[asked],
        "which_colour": (one, two)[asked],
        "first_what": asks.both_words(first.colour, first.shape, language),
        "second_what": asks.both_words(second.colour, second.shape, language),
        "different": prompts.DIFFERENCE[language][0 if first.shape != second.shape else 1],
    }
    text = rng.choice(prompts.TWO_PICTURES[kind][language])
    text = text.format(shape=asks.shape_word(shape, language), colour=asks.colour_word(colour, language))
    text = wordings.with_articles(text)
    return Draft().ask(text, replies[kind], tuple(studio.draw(scene) for scene in scenes))


def _two_scenes(kind: str, studio: Studio) -> list[Scene]:
    rng = studio.rng
    size = studio.size(TWO_PICTURES_SIDE)
    if kind == "more":
        counts = [rng.randint(1, 6), rng.randint(1, 6)]
        if rng.random() < 0.12:
            counts[1] = counts[0]
        wanted = [[_any_thing(rng) for _ in range(count)] for count in counts]
        return [plan_scene(things, size, rng) for things in wanted]
    first = _any_thing(rng)
    keep_shape = kind == "same_shape" and rng.random() < 0.5
    keep_colour = kind == "same_colour" and rng.random() < 0.5
    if kind == "different":
        keep_shape = rng.random() < 0.5
        keep_colour = not keep_shape
    shape = first.shape if keep_shape else rng.choice([name for name in shapes.SHAPE_NAMES if name != first.shape])
    others = [name for name in colours.COLOUR_NAMES if name != first.colour]
    colour = first.colour if keep_colour else rng.choice(others)
    return [plan_scene([thing], size, rng) for thing in (first, Wanted(shape=shape, colour=colour))]


def _any_thing(rng: random.Random) -> Wanted:
    return Wanted(shape=rng.choice(shapes.SHAPE_NAMES), colour=rng.choice(colours.COLOUR_NAMES))


def follow_up(studio: Studio, language: Language) -> Draft:
    """Two or three turns: about one scene, or a change of subject."""
    form = studio.rng.random()
    if form < 0.15:
        exchange = small_talk.sample_exchange(language, studio.rng)
        draft = Draft().ask(exchange.question, exchange.answer)
        return _ask_on(studio, language, draft, _varied_scene(studio), 1)
    draft = _ask_on(studio, language, Draft(), _varied_scene(studio), studio.rng.choice((2, 2, 3)))
    if form < 0.3:
        exchange = small_talk.sample_exchange(language, studio.rng)
        draft.ask(exchange.question, exchange.answer)
    return draft


def _varied_scene(studio: Studio) -> Scene:
    """Return a scene of one to four objects that share neither shape nor colour, so that most asks fit."""
    rng = studio.rng
    count = rng.choice((1, 1, 2, 2, 3, 4))
    pairs = zip(rng.sample(shapes.SHAPE_NAMES, count), rng.sample(colours.COLOUR_NAMES, count), strict=True)
    place = (rng.choice(ZONES), rng.choice(ZONES)) if count == 1 else None
    return plan_scene([Wanted(shape=s, colour=c, place=place) for s, c in pairs], studio.size(), rng)


def _ask_on(studio: Studio, language: Language, draft: Draft, scene: Scene, num_turns: int) -> Draft:
    """Add turns about a scene; the picture comes with the first, no question is asked twice."""
    rng = studio.rng
    pictures: tuple[Picture, ...] = (studio.draw(scene),)
    wanted_turns = len(draft.asks) + num_turns
    kinds = [kind for kind in asks.ASK_KINDS if len(scene.objects) == 1 or not kind.startswith("only")]
    while len(draft.asks) < wanted_turns:
        thing = rng.choice(scene.objects)
        known = rng.random() < 0.85
        ask = asks.random_ask(rng.choice(kinds), rng, thing.shape if known else None, thing.colour if known else None)
        reply = asks.answer(ask, scene, language)
        if reply is None or ask in draft.asks:
            continue
        draft.ask(wordings.word(ask, language, rng), reply, pictures)
        draft.asks.append(ask)
        pictures = ()
    return draft


def interview(studio: Studio, language: Language) -> Draft:
    """Many questions about one scene: a picture is costly to look at, and each question teaches something else."""
    ask = asks.random_ask(studio.rng.choices(*zip(*INTERVIEW_KINDS.items(), strict=True))[0], studio.rng)
    scene, reply = scene_for(ask, studio.size(), studio.rng, language)
    draft = Draft(asks=[ask]).ask(wordings.word(ask, language, studio.rng), reply, (studio.draw(scene),))
    return _ask_more(studio, language, draft, scene, studio.rng.randint(*MORE_QUESTIONS))


def find_by_shape(studio: Studio, language: Language) -> Draft:
    """Large objects of different shapes and colours, each asked for by its shape, and one that is not there."""
    scene, names = _large_things(studio)
    questions = [
        asks.random_ask(kind, studio.rng, name) for name in names for kind in ("colour_of_shape", "where_shape")
    ]
    studio.rng.shuffle(questions)
    return _ask_all(studio, language, scene, questions)


def relate(studio: Studio, language: Language) -> Draft:
    """The same with pairs of them, each both ways round: what is left of, above, larger than what."""
    scene, names = _large_things(studio, most=3)
    pairs = list(itertools.permutations(names[:-1], 2))
    questions = [Ask(kind=kind, shape=first, other=other) for first, other in pairs for kind in RELATION_KINDS]
    questions += [Ask(kind=studio.rng.choice(SIZE_KINDS), shape=first, other=other) for first, other in pairs[:2]]
    return _ask_all(studio, language, scene, studio.rng.sample(questions, len(questions)))


def _large_things(studio: Studio, most: int = 4) -> tuple[Scene, list[str]]:
    """Return a scene of two to `most` large objects, their shapes, and last a shape that is not there."""
    rng = studio.rng
    count = min(most, rng.choice((2, 2, 3, 3, 4)))
    names, tints = rng.sample(shapes.SHAPE_NAMES, count + 1), rng.sample(colours.COLOUR_NAMES, count)
    wanted = [
        Wanted(shape=shape, colour=colour, radius=rng.uniform(0.2, 0.4) / count**0.5)
        for shape, colour in zip(names, tints, strict=False)
    ]
    return plan_scene(wanted, studio.size(), rng), names


def _ask_all(studio: Studio, language: Language, scene: Scene, questions: list[Ask]) -> Draft:
    """Ask what the scene answers; the picture comes with the first question."""
    draft, pictures = Draft(), (studio.draw(scene),)
    for ask in questions[:MOST_ASKED]:
        reply = asks.answer(ask, scene, language)
        if reply is not None:
            draft.ask(wordings.word(ask, language, studio.rng), reply, () if draft.asks else pictures)
            draft.asks.append(ask)
    if draft.asks:
        return draft
    everything = Ask(kind="count_all")
    return draft.ask(wordings.word(everything, language, studio.rng), str(len(scene.objects)), pictures)


def count_each(studio: Studio, language: Language) -> Draft:
    """All objects of a scene counted, and those of each shape and of each colour, in any order."""
    rng = studio.rng
    first = asks.random_ask(rng.choice(COUNT_KINDS), rng)
    scene, _ = scene_for(first, studio.size(), rng, language)
    things = scene.objects
    questions = {first: None, Ask(kind="count_all"): None}  # a set that keeps its order: samples repeat
    questions |= {Ask(kind="count_shape", shape=thing.shape): None for thing in things}
    questions |= {Ask(kind="count_colour", colour=thing.colour): None for thing in things}
    questions |= {Ask(kind="count_both", shape=thing.shape, colour=thing.colour): None for thing in things[:2]}
    # Most things are there once; asked so each time, the model would answer one.
    kept = [ask for ask in questions if ask == first or asks.answer(ask, scene, language) != "1" or rng.random() < 0.2]
    return _ask_all(studio, language, scene, rng.sample(kept, len(kept)))


def count_groups(studio: Studio, language: Language) -> Draft:
    """Two or three groups of one colour, or of one shape, each counted: how many there are in all does not tell."""
    rng = studio.rng
    by_colour = rng.random() < 0.5
    sizes = [rng.randint(1, most) for most in rng.choice(GROUP_SIZES)]
    names = rng.sample(colours.COLOUR_NAMES if by_colour else shapes.SHAPE_NAMES, len(sizes) + 1)
    alike = _any_thing(rng) if rng.random() < 0.4 else None  # in what is not asked for
    large = rng.uniform(0.2, 0.38) / sum(sizes) ** 0.5
    wanted = []
    for name, size in zip(names, sizes, strict=False):
        for _ in range(size):
            other = alike or _any_thing(rng)
            shape, colour = (other.shape, name) if by_colour else (name, other.colour)
            wanted.append(Wanted(shape=shape, colour=colour, radius=large * rng.uniform(0.8, 1.1)))
    scene = plan_scene(wanted, studio.size(), rng)
    asked = names if rng.random() < 0.3 else names[:-1]  # the last is not there
    questions = [
        Ask(kind="count_colour", colour=name) if by_colour else Ask(kind="count_shape", shape=name) for name in asked
    ]
    if rng.random() < 0.3:
        questions.append(Ask(kind="count_all"))
    return _ask_all(studio, language, scene, rng.sample(questions, len(questions)))


def _ask_more(studio: Studio, language: Language, draft: Draft, scene: Scene, num_turns: int) -> Draft:
    """Add up to `num_turns` other questions about the scene, as far as it answers them."""
    rng = studio.rng
    kinds, weights = zip(*INTERVIEW_KINDS.items(), strict=True)
    for _ in range(4 * num_turns):
        kind = rng.choices(kinds, weights)[0]
        thing = rng.choice(scene.objects)
        known = rng.random() < (0.5 if kind.startswith(("exists", "is_")) else 0.85)
        ask = asks.random_ask(kind, rng, thing.shape if known else None, thing.colour if known else None)
        reply = asks.answer(ask, scene, language)
        if reply is None or ask in draft.asks:
            continue
        draft.ask(wordings.word(ask, language, rng), reply)
        draft.asks.append(ask)
        num_turns -= 1
        if num_turns == 0:
            break
    return draft


# Speech -----------------------------------------------------------------------------------------------------
def transcribe(studio: Studio, language: Language) -> Draft:
    """A clip to write down."""
    clip = studio.bank().sample_clip(language, ("digits", "name", "command", "question", "chat"), studio.rng)
    prompt_language = studio.prompt_language(language)
    text = prompts.TRANSCRIBE_MAIN[prompt_language]
    if studio.rng.random() < 0.4:
        text = studio.rng.choice(prompts.TRANSCRIBE[prompt_language])
    return Draft().ask(text, clip.phrase.text, sound=studio.sound(clip))


def spoken_digits(studio: Studio, language: Language) -> Draft:
    """Spoken digits to write as figures."""
    clip = studio.bank().sample_clip(language, ("digits",), studio.rng)
    assert clip.phrase.reply is not None, "digits come with their figures"
    return Draft().ask(studio.rng.choice(prompts.SPOKEN_DIGITS[language]), clip.phrase.reply, sound=studio.sound(clip))


def spoken_question(studio: Studio, language: Language) -> Draft:
    """A picture and a question about it, spoken."""
    clip = studio.bank().sample_clip(language, ("question",), studio.rng)
    assert clip.phrase.ask is not None, "a question comes with what it asks"
    scene, reply = scene_for(clip.phrase.ask, studio.size(), studio.rng, language)
    text = studio.rng.choice(prompts.ANSWER_SPOKEN[language]) if studio.rng.random() < 0.3 else None
    return Draft(asks=[clip.phrase.ask]).ask(text, reply, (studio.draw(scene),), studio.sound(clip))


def spoken_each(studio: Studio, language: Language) -> Draft:
    """Large objects of different shapes and colours, and several spoken questions about them."""
    rng = studio.rng
    scene, _ = _large_things(studio)
    draft = Draft()
    pictures: tuple[Picture, ...] = (studio.draw(scene),)
    for _ in range(CLIPS_TRIED):
        clip = studio.bank().sample_clip(language, ("question",), rng)
        ask = clip.phrase.ask
        assert ask is not None, "a question comes with what it asks"
        reply = asks.answer(ask, scene, language)
        # Most clips name what is not there; asked so each time, the model would answer none.
        is_absent = reply in ("0", asks.NONE[language], asks.HAVE[language][1])
        if reply is None or ask in draft.asks or (is_absent and rng.random() < 0.9):
            continue
        draft.ask(None, reply, pictures, studio.sound(clip))
        draft.asks.append(ask)
        pictures = ()
        if len(draft.asks) == MOST_SPOKEN:
            break
    return draft if draft.asks else spoken_question(studio, language)


def spoken_interview(studio: Studio, language: Language) -> Draft:
    """A picture, a spoken question about it, and more questions in writing."""
    draft = spoken_question(studio, language)
    scene = draft.pictures[0].scene
    assert scene is not None, "a spoken question is about a scene"
    return _ask_more(studio, language, draft, scene, studio.rng.randint(*MORE_QUESTIONS))


def spoken_chat(studio: Studio, language: Language) -> Draft:
    """Small talk, spoken: the answer, not the transcript."""
    clip = studio.bank().sample_clip(language, ("chat",), studio.rng)
    assert clip.phrase.reply is not None, "small talk comes with its answer"
    text = studio.rng.choice(prompts.ANSWER_SPOKEN[language]) if studio.rng.random() < 0.3 else None
    return Draft().ask(text, clip.phrase.reply, sound=studio.sound(clip))


# Films ------------------------------------------------------------------------------------------------------
def watch(studio: Studio, language: Language, kind: FilmKind) -> Draft:
    """One question about what happens in a film."""
    film = draw_film(kind, language, studio.rng, studio.noise)
    return Draft().ask(film.question, film.reply, film=film)


def film_ends(studio: Studio, language: Language) -> Draft:
    """What appears or disappears first and last, asked one after the other."""
    film = draw_film("order", language, studio.rng, studio.noise)
    assert film.other_end is not None, "an ordered film has two ends"
    return Draft().ask(film.question, film.reply, film=film).ask(*film.other_end)


def film_speech(studio: Studio, language: Language) -> Draft:
    """A film with a word spoken meanwhile: what is said, or what happens."""
    rng = studio.rng
    film = draw_film(rng.choice(FILM_KINDS), language, rng, studio.noise)
    clip = studio.bank().sample_clip(language, ("digits", "name", "command"), rng)
    sound = studio.sound(clip)
    if rng.random() < 0.3:
        return Draft().ask(film.question, film.reply, sound=sound, film=film)
    return Draft().ask(rng.choice(prompts.SAID_IN_FILM[language]), clip.phrase.text, sound=sound, film=film)


# Text -------------------------------------------------------------------------------------------------------
def text(studio: Studio, language: Language) -> Draft:
    """Small talk, written; now and then two exchanges."""
    draft = Draft()
    for _ in range(studio.rng.choice((1, 1, 1, 2))):
        exchange = small_talk.sample_exchange(language, studio.rng)
        draft.ask(exchange.question, exchange.answer)
    return draft


Task = Callable[[Studio, Language], Draft]
TASKS: dict[str, Task] = {
    "colour": partial(about_scene, kinds=("colour_of_shape", "only_colour"), weights=(2, 1)),
    "shape": partial(about_scene, kinds=("shape_of_colour", "only_shape"), weights=(2, 1)),
    "colour_shape": partial(about_scene, kinds=("only_both",), weights=(1,)),
    "describe": partial(about_scene, kinds=("describe",), weights=(1,)),
    "count": partial(
        about_scene, kinds=("count_all", "count_shape", "count_colour", "count_both"), weights=(3, 3, 2, 2)
    ),
    "exists": partial(
        about_scene, kinds=("exists_shape", "exists_colour", "exists_both", "is_colour"), weights=(3, 2, 3, 2)
    ),
    "position": partial(about_scene, kinds=("where_shape", "where_both"), weights=(2, 1)),
    "compare": partial(about_scene, kinds=("bigger_shape", "smaller_shape", "bigger_colour"), weights=(2, 1, 1)),
    "relation": partial(about_scene, kinds=("left_of", "right_of", "above", "below"), weights=(1, 1, 1, 1)),
    "read_digits": read_digits,
    "read_text": read_text,
    "sheet_number": sheet_number,
    "sheet_shape": sheet_shape,
    "two_images": two_images,
    "follow_up": follow_up,
    "find_by_shape": find_by_shape,
    "relate": relate,
    "count_each": count_each,
    "count_groups": count_groups,
    "interview": interview,
    "transcribe": transcribe,
    "spoken_digits": spoken_digits,
    "spoken_question": spoken_question,
    "spoken_interview": spoken_interview,
    "spoken_each": spoken_each,
    "spoken_chat": spoken_chat,
    "text": text,
    "film_direction": partial(watch, kind="direction"),
    "film_order": partial(watch, kind="order"),
    "film_ends": film_ends,
    "film_colour": partial(watch, kind="colour_change"),
    "film_bounces": partial(watch, kind="bounces"),
    "film_speech": film_speech,
}
SHEET_TASKS = frozenset({"sheet_number", "sheet_shape"})  # need slices
SPEECH_TASKS = frozenset(
    {
        *("transcribe", "spoken_digits", "spoken_question", "spoken_each", "spoken_interview", "spoken_chat"),
        "film_speech",
    }
)
