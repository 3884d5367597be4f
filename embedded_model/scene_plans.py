"""Plan scenes in which a given question has one answer, with answers spread evenly and distractors that matter."""

from __future__ import annotations

import random

from embedded_model.asks import Ask, Language, answer
from embedded_model.colours import COLOUR_NAMES
from embedded_model.pictures import Scene, Wanted, plan_scene
from embedded_model.shapes import SHAPE_NAMES

MAX_OBJECTS = 8
COUNTS = tuple(range(MAX_OBJECTS + 1))
COUNT_WEIGHTS = (4, 16, 16, 16, 16, 16, 6, 5, 5)
NO_MATCH = 0.08  # share of questions about something that is not there
PLAN_TRIES = 200
ZONES = (0.2, 0.5, 0.8)  # share of the canvas
ZONE_JITTER = 0.07


def scene_for(ask: Ask, size: tuple[int, int], rng: random.Random, language: Language) -> tuple[Scene, str]:
    """Return a scene that answers `ask`, and the answer."""
    for _ in range(PLAN_TRIES):
        scene = plan_scene(wanted_for(ask, rng), size, rng)
        reply = answer(ask, scene, language)
        if reply is not None:
            return scene, reply
    raise AssertionError(f"no scene answers {ask} on a canvas of {size}")


def wanted_for(ask: Ask, rng: random.Random) -> list[Wanted]:
    """Return what to draw for `ask`; whether it has one answer is decided by `asks.answer`."""
    if ask.kind.startswith("only"):
        radius = rng.uniform(0.12, 0.46) if rng.random() < 0.7 else None
        return [_thing(rng, radius=radius)]
    if ask.kind == "describe":
        return [_thing(rng) for _ in range(rng.choice((1, 2, 2, 3, 3)))]
    if ask.kind.startswith("count"):
        return _counted(ask, rng)
    if ask.kind.startswith("exists"):
        return _present_or_not(ask, rng)
    if ask.kind.startswith("where"):
        return _at_a_place(ask, rng)
    if ask.kind in ("bigger_shape", "smaller_shape", "bigger_colour"):
        return _two_sizes(ask, rng)
    if ask.kind in ("left_of", "right_of", "above", "below"):
        pair = [_thing(rng, shape=ask.shape), _thing(rng, shape=ask.other)]
        return pair + _others(rng, rng.choice((0, 0, 1, 2)), not_shapes=(ask.shape, ask.other))
    others = rng.choice((0, 1, 1, 2, 2, 3, 4))
    if ask.kind == "is_colour":
        colour = ask.colour if rng.random() < 0.5 else _but(COLOUR_NAMES, rng, ask.colour)
        return [_thing(rng, shape=ask.shape, colour=colour), *_others(rng, others, not_shapes=(ask.shape,))]
    by_shape = ask.kind == "colour_of_shape"
    distractors = _others(
        rng,
        max(1, others),
        not_shapes=(ask.shape,) if by_shape else (),
        not_colours=() if by_shape else (ask.colour,),
    )
    if rng.random() < NO_MATCH:
        return distractors
    target = _thing(rng, shape=ask.shape) if by_shape else _thing(rng, colour=ask.colour)
    return [target, *(distractors if others else ())]


def _thing(
    rng: random.Random,
    shape: str | None = None,
    colour: str | None = None,
    place: tuple[float, float] | None = None,
    radius: float | None = None,
) -> Wanted:
    return Wanted(
        shape=shape or rng.choice(SHAPE_NAMES), colour=colour or rng.choice(COLOUR_NAMES), place=place, radius=radius
    )


def _but(names: tuple[str, ...], rng: random.Random, *excluded: str) -> str:
    return rng.choice([name for name in names if name not in excluded])


def _others(
    rng: random.Random, count: int, not_shapes: tuple[str, ...] = (), not_colours: tuple[str, ...] = ()
) -> list[Wanted]:
    return [
        Wanted(shape=_but(SHAPE_NAMES, rng, *not_shapes), colour=_but(COLOUR_NAMES, rng, *not_colours))
        for _ in range(count)
    ]


def _counted(ask: Ask, rng: random.Random) -> list[Wanted]:
    count = rng.choices(COUNTS, COUNT_WEIGHTS)[0]
    if ask.kind == "count_all":
        shape = rng.choice(SHAPE_NAMES) if rng.random() < 0.4 else None
        colour = rng.choice(COLOUR_NAMES) if rng.random() < 0.4 else None
        return [_thing(rng, shape, colour) for _ in range(max(1, count))]
    colour = ask.colour or (rng.choice(COLOUR_NAMES) if rng.random() < 0.5 else None)
    shape = ask.shape or (rng.choice(SHAPE_NAMES) if rng.random() < 0.5 else None)
    targets = [_thing(rng, shape, colour) for _ in range(count)]
    spare = MAX_OBJECTS - count
    return targets + _near_misses(ask, rng, max(1 - count, rng.randint(0, min(spare, 4))))


def _near_misses(ask: Ask, rng: random.Random, count: int) -> list[Wanted]:
    """Return objects that do not match; for a colour and a shape half of them match in one of the two."""
    things = []
    for _ in range(count):
        if ask.kind in ("count_shape", "exists_shape"):
            things.append(_thing(rng, _but(SHAPE_NAMES, rng, ask.shape)))
        elif ask.kind in ("count_colour", "exists_colour"):
            things.append(_thing(rng, None, _but(COLOUR_NAMES, rng, ask.colour)))
        elif rng.random() < 0.5:
            things.append(_thing(rng, ask.shape, _but(COLOUR_NAMES, rng, ask.colour)))
        else:
            things.append(_thing(rng, _but(SHAPE_NAMES, rng, ask.shape), rng.choice((ask.colour, None))))
    return things


def _present_or_not(ask: Ask, rng: random.Random) -> list[Wanted]:
    if rng.random() < 0.5:
        return _near_misses(ask, rng, rng.randint(1, 4))
    return [_thing(rng, ask.shape or None, ask.colour or None), *_near_misses(ask, rng, rng.randint(0, 3))]


def _at_a_place(ask: Ask, rng: random.Random) -> list[Wanted]:
    x, y = (rng.choice(ZONES) + rng.uniform(-ZONE_JITTER, ZONE_JITTER) for _ in range(2))
    target = _thing(rng, ask.shape, ask.colour or None, (x, y), rng.uniform(0.07, 0.2))
    others = _others(rng, rng.choice((0, 0, 1, 1, 2, 3)), not_shapes=(ask.shape,))
    return others if others and rng.random() < NO_MATCH else [target, *others]


def _two_sizes(ask: Ask, rng: random.Random) -> list[Wanted]:
    small = rng.uniform(0.06, 0.17)
    radii = [small, min(0.27, small * rng.uniform(1.35, 2.8))]
    rng.shuffle(radii)
    if ask.kind == "bigger_colour":
        pair = [_thing(rng, None, ask.colour, None, radii[0]), _thing(rng, None, ask.other, None, radii[1])]
        return pair + _others(rng, rng.choice((0, 0, 1)), not_colours=(ask.colour, ask.other))
    pair = [_thing(rng, ask.shape, None, None, radii[0]), _thing(rng, ask.other, None, None, radii[1])]
    return pair + _others(rng, rng.choice((0, 0, 1)), not_shapes=(ask.shape, ask.other))
