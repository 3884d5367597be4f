"""Many questions about one picture: a picture is costly to look at, and each question teaches something else.

Some are drills: nothing but what the model does not do yet, of pictures in which a guess is mostly wrong.
"""

from __future__ import annotations

import itertools

from embedded_model import asks, colours, shapes, wordings
from embedded_model.asks import Ask, AskKind, Language
from embedded_model.pictures import Scene, Wanted, any_thing, plan_scene
from embedded_model.scene_plans import scene_for
from embedded_model.studio import Draft, Studio

COUNT_KINDS: tuple[AskKind, ...] = ("count_all", "count_shape", "count_colour", "count_both")
RELATION_KINDS: tuple[AskKind, ...] = ("left_of", "right_of", "above", "below")
GROUP_SIZES = ((4, 4), (4, 4), (3, 3, 3))  # most things of each group
SIZE_KINDS: tuple[AskKind, ...] = ("bigger_shape", "smaller_shape")
NAMED_BESIDE = 2  # shapes and colours of a tally that may not be there
MOST_ASKED = 8  # questions of one scene
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


def interview(studio: Studio, language: Language) -> Draft:
    """Many questions about one scene: a picture is costly to look at, and each question teaches something else."""
    ask = asks.random_ask(studio.rng.choices(*zip(*INTERVIEW_KINDS.items(), strict=True))[0], studio.rng)
    scene, reply = scene_for(ask, studio.size(), studio.rng, language)
    draft = Draft(asks=[ask]).ask(wordings.word(ask, language, studio.rng), reply, (studio.draw(scene),))
    return ask_more(studio, language, draft, scene, studio.rng.randint(*MORE_QUESTIONS))


def ask_more(studio: Studio, language: Language, draft: Draft, scene: Scene, num_turns: int) -> Draft:
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


def find_by_shape(studio: Studio, language: Language) -> Draft:
    """Large objects of different shapes and colours, each asked for by its shape, and one that is not there."""
    scene, names = large_things(studio)
    questions = [
        asks.random_ask(kind, studio.rng, name) for name in names for kind in ("colour_of_shape", "where_shape")
    ]
    studio.rng.shuffle(questions)
    return _ask_all(studio, language, scene, questions)


def relate(studio: Studio, language: Language) -> Draft:
    """The same with pairs of them, each both ways round: what is left of, above, larger than what."""
    scene, names = large_things(studio, most=3)
    pairs = list(itertools.permutations(names[:-1], 2))
    questions = [Ask(kind=kind, shape=first, other=other) for first, other in pairs for kind in RELATION_KINDS]
    questions += [Ask(kind=studio.rng.choice(SIZE_KINDS), shape=first, other=other) for first, other in pairs[:2]]
    return _ask_all(studio, language, scene, studio.rng.sample(questions, len(questions)))


def large_things(studio: Studio, most: int = 4) -> tuple[Scene, list[str]]:
    """Return a scene of two to `most` large objects, their shapes, and last a shape that is not there."""
    rng = studio.rng
    count = min(most, rng.choice((2, 2, 3, 3, 4)))
    names, tints = rng.sample(shapes.SHAPE_NAMES, count + 1), rng.sample(colours.COLOUR_NAMES, count)
    wanted = [
        Wanted(shape=shape, colour=colour, radius=rng.uniform(0.2, 0.4) / count**0.5)
        for shape, colour in zip(names, tints, strict=False)
    ]
    return plan_scene(wanted, studio.size(), rng), names


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
    scene, by_colour, names = _groups(studio)
    rng = studio.rng
    asked = names if rng.random() < 0.3 else names[:-1]  # the last is not there
    questions = [
        Ask(kind="count_colour", colour=name) if by_colour else Ask(kind="count_shape", shape=name) for name in asked
    ]
    if rng.random() < 0.3:
        questions.append(Ask(kind="count_all"))
    return _ask_all(studio, language, scene, rng.sample(questions, len(questions)))


def tally(studio: Studio, language: Language) -> Draft:
    """A dozen shapes and colours named one after the other, there or not; each name has its number as a target."""
    rng = studio.rng
    if rng.random() < 0.4:
        scene, _, _ = _groups(studio)
    else:
        scene, _ = scene_for(asks.random_ask(rng.choice(COUNT_KINDS), rng), studio.size(), rng, language)
    things = scene.objects
    names = {(thing.shape, "") for thing in things} | {("", thing.colour) for thing in things}
    names |= {(thing.shape, thing.colour) for thing in rng.sample(things, min(3, len(things)))}
    for _ in range(NAMED_BESIDE):
        other = any_thing(rng)
        names |= {(other.shape, ""), ("", other.colour), (rng.choice(things).shape, other.colour)}
    named = [_name(shape, colour, language) for shape, colour in rng.sample(sorted(names), len(names))]
    everything = Ask(kind="count_all")
    comma, stop = (", ", ". ") if language == "en" else ("、", "。")
    question = comma.join(named) + stop + wordings.word(everything, language, rng)
    return Draft(asks=[everything]).ask(question, str(len(things)), (studio.draw(scene),))


def _name(shape: str, colour: str, language: Language) -> str:
    """Return what shapes of a kind and colour are called, either of which may be left open."""
    is_english = language == "en"
    colour_word = asks.colour_word(colour, language) if colour else ""
    shape_word = "" if not shape else shapes.BY_NAME[shape].plural if is_english else asks.shape_word(shape, language)
    return (" " if is_english else "的" if colour and shape else "").join((colour_word, shape_word)).strip()


def _groups(studio: Studio) -> tuple[Scene, bool, list[str]]:
    """Return a scene of two or three groups of one colour (then True) or shape each, their names, and one not there."""
    rng = studio.rng
    by_colour = rng.random() < 0.5
    sizes = [rng.randint(1, most) for most in rng.choice(GROUP_SIZES)]
    names = rng.sample(colours.COLOUR_NAMES if by_colour else shapes.SHAPE_NAMES, len(sizes) + 1)
    alike = any_thing(rng) if rng.random() < 0.4 else None  # in what is not asked for
    large = rng.uniform(0.2, 0.38) / sum(sizes) ** 0.5
    wanted = []
    for name, size in zip(names, sizes, strict=False):
        for _ in range(size):
            other = alike or any_thing(rng)
            shape, colour = (other.shape, name) if by_colour else (name, other.colour)
            wanted.append(Wanted(shape=shape, colour=colour, radius=large * rng.uniform(0.8, 1.1)))
    return plan_scene(wanted, studio.size(), rng), by_colour, names


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
