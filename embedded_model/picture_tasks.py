"""Tasks about pictures: scenes, figures and words to read, large sheets, two pictures, a follow-up."""

from __future__ import annotations

import random
from dataclasses import replace

from embedded_model import asks, colours, prompts, shapes, small_talk, wordings
from embedded_model.asks import Ask, AskKind, Language
from embedded_model.pictures import Picture, Scene, Wanted, any_thing, plan_scene
from embedded_model.scene_plans import ZONES, scene_for
from embedded_model.sheets import draw_sheet
from embedded_model.studio import Draft, Studio
from embedded_model.words import sample_digits, sample_line
from embedded_model.writing import draw_text

TWO_PICTURES_SIDE = 224  # pixels: two pictures make twice the features


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
    wanted, side = replace(any_thing(rng), radius=rng.uniform(0.3, 0.46)), rng.randint(32, 80)
    scene = plan_scene([wanted], (side, side), rng)
    text = wordings.word(Ask(kind="only_both"), language, rng)
    reply = asks.both_words(wanted.colour, wanted.shape, language)
    return Draft().ask(text, reply, (draw_sheet(studio.draw(scene), rng),))


def two_images(studio: Studio, language: Language) -> Draft:
    """A question that compares two pictures."""
    rng = studio.rng
    kind = rng.choice(tuple(prompts.TWO_PICTURES))
    scenes = _two_scenes(kind, studio)
    question, reply = _compare(kind, scenes, rng.choice((0, 1)), language, rng)
    return Draft().ask(question, reply, tuple(studio.draw(scene) for scene in scenes))


def two_images_each(studio: Studio, language: Language) -> Draft:
    """Two pictures of one object each, and all that can be asked of both: a question for each, not always the first."""
    rng = studio.rng
    size, first = studio.size(TWO_PICTURES_SIDE), any_thing(rng)
    shape = first.shape if rng.random() < 0.4 else rng.choice([n for n in shapes.SHAPE_NAMES if n != first.shape])
    colour = first.colour if rng.random() < 0.4 else rng.choice([n for n in colours.COLOUR_NAMES if n != first.colour])
    scenes = [plan_scene([thing], size, rng) for thing in (first, Wanted(shape=shape, colour=colour))]
    kinds = [("same_shape", 0), ("same_colour", 0), ("first_what", 0), ("second_what", 0)]
    if shape != first.shape:
        kinds += [("which_shape", 0), ("which_shape", 1)]
    if colour != first.colour:
        kinds += [("which_colour", 0), ("which_colour", 1)]
    if (shape != first.shape) != (colour != first.colour):
        kinds.append(("different", 0))
    draft, pictures = Draft(), tuple(studio.draw(scene) for scene in scenes)
    for kind, asked in rng.sample(kinds, len(kinds)):
        draft.ask(*_compare(kind, scenes, asked, language, rng), () if draft.conversation else pictures)
    return draft


def _compare(kind: str, scenes: list[Scene], asked: int, language: Language, rng: random.Random) -> tuple[str, str]:
    """Return a question about two pictures, and its answer; `asked` is the picture whose object is named, if any."""
    first, second = (scene.objects[0] for scene in scenes)
    one, two, same = prompts.FIRST_SECOND[language]
    yes, no = asks.YES_NO[language]
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
    return wordings.with_articles(text), replies[kind]


def _two_scenes(kind: str, studio: Studio) -> list[Scene]:
    rng = studio.rng
    size = studio.size(TWO_PICTURES_SIDE)
    if kind == "more":
        counts = [rng.randint(1, 6), rng.randint(1, 6)]
        if rng.random() < 0.12:
            counts[1] = counts[0]
        wanted = [[any_thing(rng) for _ in range(count)] for count in counts]
        return [plan_scene(things, size, rng) for things in wanted]
    first = any_thing(rng)
    keep_shape = kind == "same_shape" and rng.random() < 0.5
    keep_colour = kind == "same_colour" and rng.random() < 0.5
    if kind == "different":
        keep_shape = rng.random() < 0.5
        keep_colour = not keep_shape
    shape = first.shape if keep_shape else rng.choice([name for name in shapes.SHAPE_NAMES if name != first.shape])
    others = [name for name in colours.COLOUR_NAMES if name != first.colour]
    colour = first.colour if keep_colour else rng.choice(others)
    return [plan_scene([thing], size, rng) for thing in (first, Wanted(shape=shape, colour=colour))]


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
