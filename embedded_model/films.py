"""Draw films: a few small frames in which one thing happens, and the question that asks about it.

Kinds: a shape moves left, right, up or down; two or three shapes appear or disappear one after the other; a shape
changes its colour; a shape bounces on the ground one to four times. The ground, the objects' exact colours and the
faults of the camera are the same in all frames of a film.

Most films are short and staged, a frame for each thing that happens; the others are what a video of a few seconds is
when it is looked at a few times a second: small steps, and a ball that is hardly ever caught on the ground.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from embedded_model import asks, backgrounds, colours, shapes
from embedded_model.asks import Language
from embedded_model.pictures import MIN_CONTRAST, Object, Scene, Wanted, degrade, paint, plan_scene

SIDE = 112  # pixels, of films without a size of their own
NUM_FRAMES = (4, 8)
MANY_FRAMES = (9, 20)
MANY_SHARE = 0.35  # of films
RATES = (1.0, 2.0, 4.0)  # frames a second
RATE_OF_MANY = 4.0
MAX_BOUNCES = 4
STAGED_SHARE = 0.35  # of bouncing films: a frame on the ground for each bounce
NEAR_GROUND = 0.13  # share of an arc, before and after a contact
FRAMES_PER_ARC = (2.0, 6.0)  # fewer frames of a bounce would not show it
UNEVEN_SHARE = (
    0.5  # of these films: moments are up to `UNEVEN` of a step off, as of a video looked at between its frames
)
UNEVEN = 0.15
BOUNCING_SIZES = ((SIDE, SIDE), (SIDE, SIDE), (128, 98), (144, 84), (98, 126))  # pixels

FilmKind = Literal["direction", "order", "colour_change", "bounces"]
FILM_KINDS: tuple[FilmKind, ...] = get_args(FilmKind)
Direction = Literal["left", "right", "up", "down"]
_STEPS: dict[Direction, tuple[int, int]] = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
_DIRECTIONS: dict[Language, dict[Direction, str]] = {
    "en": {direction: direction for direction in _STEPS},
    "zh": {"left": "向左", "right": "向右", "up": "向上", "down": "向下"},
}
_QUESTIONS: dict[str, dict[Language, tuple[str, ...]]] = {
    "direction": {
        "en": (
            *("Which way does the {shape} move?", "In which direction does the {shape} move?", "Where is it moving?"),
            *("Which direction does the {colour} {shape} go?", "Does the {shape} move left, right, up or down?"),
            *("What direction does the {shape} move?", "Which way is the {shape} moving?", "Which way does it go?"),
        ),
        "zh": (
            *("{shape}向哪个方向移动？", "{shape}往哪边动？", "它朝哪个方向移动？", "{colour}的{shape}向哪里移动？"),
            "视频里的{shape}往哪个方向走？",
        ),
    },
    "appear_first": {
        "en": ("What appears first?", "Which shape appears first?", "What is the first thing to appear?"),
        "zh": ("什么先出现？", "哪个图形最先出现？", "最先出现的是什么？"),
    },
    "appear_last": {
        "en": ("What appears last?", "Which shape appears last?", "What is the last thing to appear?"),
        "zh": ("什么最后出现？", "哪个图形最后出现？", "最后出现的是什么？"),
    },
    "disappear_first": {
        "en": ("What disappears first?", "Which shape disappears first?", "What is the first thing to go away?"),
        "zh": ("什么先消失？", "哪个图形最先消失？", "最先消失的是什么？"),
    },
    "disappear_last": {
        "en": ("What disappears last?", "Which shape disappears last?", "What is the last thing to go away?"),
        "zh": ("什么最后消失？", "哪个图形最后消失？", "最后消失的是什么？"),
    },
    "colour_after": {
        "en": (
            "What color does the {shape} turn?",
            "What color is the {shape} at the end?",
            "It changes to what color?",
        ),
        "zh": ("{shape}变成了什么颜色？", "最后{shape}是什么颜色？", "它变成了什么颜色？"),
    },
    "colour_before": {
        "en": ("What color is the {shape} at first?", "What color was the {shape} before it changed?"),
        "zh": ("{shape}一开始是什么颜色？", "{shape}变色之前是什么颜色？"),
    },
    "bounces": {
        "en": (
            *("How many times does the {shape} bounce?", "How often does it bounce?", "Count the bounces."),
            *("How many times does the {shape} hit the ground?", "How many bounces are there?"),
            *("How many times does the ball bounce?", "How many times does the {colour} {shape} bounce?"),
        ),
        "zh": (
            *("{shape}弹了几次？", "它弹跳了几次？", "{shape}碰到地面几次？", "数一数弹跳的次数。", "球弹了几次？"),
            "{colour}的{shape}弹跳了多少次？",
        ),
    },
}


@dataclass(frozen=True, kw_only=True)
class Film:
    """A film with its question and the one short answer."""

    frames: npt.NDArray[np.uint8]  # (F, height, width, 3)
    rate: float  # frames a second
    question: str
    reply: str
    scene: Scene
    shown: tuple[tuple[Object, ...], ...]  # frame by frame
    asked: Object
    other_end: tuple[str, str] | None = None  # of an ordered film: what came last if the question asks for the first
    bounced: tuple[int | None, ...] = ()  # of a bouncing one: how often until each frame, None while it happens
    changed: tuple[Object | None, ...] = ()  # of an ordered one: what has come or gone in each frame


def draw_film(kind: FilmKind, language: Language, rng: random.Random, noise: np.random.Generator) -> Film:
    """Plan and draw a film of a kind, and ask about it."""
    return {"direction": _direction, "order": _order, "colour_change": _colour_change, "bounces": _bounces}[kind](
        language, rng, noise
    )


def _direction(language: Language, rng: random.Random, noise: np.random.Generator) -> Film:
    direction: Direction = rng.choice(tuple(_STEPS))
    (across, down), count = _STEPS[direction], _num_frames(rng)
    radius = rng.uniform(0.1, 0.2)
    reach = rng.uniform(0.18, 0.5 - radius)  # from the middle, a share of the side
    lane = rng.uniform(radius, 1 - radius)
    still = [_thing(rng, place=_beside(lane, across != 0, rng), radius=0.09)] if rng.random() < 0.4 else []
    scene = plan_scene([_thing(rng, radius=radius), *still], (SIDE, SIDE), rng)
    mover = scene.objects[0]
    frames = []
    for n in range(count):
        share = 0.5 + (2 * n / (count - 1) - 1) * reach * (across + down)
        x, y = (share, lane) if across else (lane, share)
        frames.append([*scene.objects[1:], replace(mover, x=x * SIDE, y=y * SIDE)])
    return _film("direction", scene, frames, mover, _DIRECTIONS[language][direction], language, rng, noise)


def _order(language: Language, rng: random.Random, noise: np.random.Generator) -> Film:
    number, count = rng.choice((2, 2, 3)), _num_frames(rng)
    names = zip(rng.sample(shapes.SHAPE_NAMES, number), rng.sample(colours.COLOUR_NAMES, number), strict=True)
    scene = plan_scene([Wanted(shape=s, colour=c, radius=0.16) for s, c in names], (SIDE, SIDE), rng)
    moments = sorted(rng.sample(range(1, count), number))  # from the second frame on: before it, nothing has happened
    kind = rng.choice(("appear", "disappear"))
    ordered = list(zip(scene.objects, moments, strict=True))
    frames = [[thing for thing, at in ordered if (n >= at) == (kind == "appear")] for n in range(count)]
    end = rng.choice(("first", "last"))
    thing = scene.objects[0 if end == "first" else -1]
    reply = asks.both_words(thing.colour, thing.shape, language)
    film = _film(f"{kind}_{end}", scene, frames, thing, reply, language, rng, noise)
    other, end = (scene.objects[-1], "last") if end == "first" else (scene.objects[0], "first")
    question = rng.choice(_QUESTIONS[f"{kind}_{end}"][language])
    changed = tuple(next((thing for thing, at in ordered if at == n), None) for n in range(count))
    return replace(film, other_end=(question, asks.both_words(other.colour, other.shape, language)), changed=changed)


def _colour_change(language: Language, rng: random.Random, noise: np.random.Generator) -> Film:
    count = _num_frames(rng)
    others = [_thing(rng, radius=0.1)] if rng.random() < 0.3 else []
    scene = plan_scene([_thing(rng, radius=rng.uniform(0.14, 0.3)), *others], (SIDE, SIDE), rng)
    before = scene.objects[0]
    new = rng.choice([name for name in colours.COLOUR_NAMES if name != before.colour])
    after = replace(before, colour=new, rgb=colours.sample_rgb(colours.BY_NAME[new], rng))
    if after.stroke is None and colours.distance(after.rgb, scene.base) < MIN_CONTRAST:
        after = replace(after, stroke=(0, 0, 0) if sum(scene.base) > 384 else (255, 255, 255), stroke_width=1.5)
    at = rng.randint(1, count - 1)
    frames = [[*scene.objects[1:], after if n >= at else before] for n in range(count)]
    kind, colour = ("colour_after", new) if rng.random() < 0.7 else ("colour_before", before.colour)
    return _film(kind, scene, frames, before, asks.colour_word(colour, language), language, rng, noise)


def _bounces(language: Language, rng: random.Random, noise: np.random.Generator) -> Film:
    bounces = rng.randint(1, MAX_BOUNCES)
    width, height = size = rng.choice(BOUNCING_SIZES)
    radius = rng.uniform(0.09, 0.15)
    scene = plan_scene([_thing(rng, radius=radius)], size, rng)
    ball = scene.objects[0]
    across, down = ball.radius / width, ball.radius / height
    ground = rng.uniform(0.84, 0.92)
    heights, bounced = (_staged_heights if rng.random() < STAGED_SHARE else _arc_heights)(bounces, rng)
    start, stop = rng.sample((across, 1 - across), 2) if rng.random() < 0.6 else (0.5, 0.5)
    frames = []
    for n, above in enumerate(heights):
        x = start + (stop - start) * n / (len(heights) - 1)
        y = ground - down - above * (ground - 2 * down)
        frames.append([replace(ball, x=x * width, y=y * height)])
    line = ground if rng.random() < 0.7 else None
    film = _film("bounces", scene, frames, ball, str(bounces), language, rng, noise, ground=line)
    return replace(film, bounced=tuple(bounced))


def _staged_heights(bounces: int, rng: random.Random) -> tuple[list[float], list[int | None]]:
    """Return a height from 0 to 1 for each frame: on the ground once for each bounce, anywhere in the air between.

    And how often it has bounced by then.
    """
    count = rng.randint(max(NUM_FRAMES[0], 2 * bounces), NUM_FRAMES[1])
    # Frames on the ground have one in the air before and between them, so that each contact is one bounce.
    slack = rng.sample(range(count - bounces), bounces)
    contacts = {1 + n + at for n, at in enumerate(sorted(slack))}
    heights = [0.0 if n in contacts else rng.uniform(0.45, 1.0) for n in range(count)]
    return heights, [sum(contact <= n for contact in contacts) for n in range(count)]


def _arc_heights(bounces: int, rng: random.Random) -> tuple[list[float], list[int | None]]:
    """Return heights of a ball that is let fall, or thrown up, and looked at in even steps; it may lose height.

    And how often it has bounced by then, None where it is near the ground.
    """
    count = max(NUM_FRAMES[0], min(MANY_FRAMES[1], round(bounces * rng.uniform(*FRAMES_PER_ARC)) + 1))
    is_thrown = rng.random() < 0.4  # it begins on the ground and comes back to it `bounces` times
    kept = rng.choice((1.0, 1.0, rng.uniform(0.65, 0.95)))  # of the height, at each bounce
    top, sharpness = rng.uniform(0.7, 1.0), rng.choice((1.0, 1.0, 2.0))  # |sin|, or sin^2, which is slow at the ground
    uneven = UNEVEN if rng.random() < UNEVEN_SHARE else 0.0
    heights: list[float] = []
    bounced: list[int | None] = []
    for n in range(count):
        moment = n + (rng.uniform(-uneven, uneven) if 0 < n < count - 1 else 0.0)
        turns = bounces * moment / (count - 1) + (0.0 if is_thrown else 0.5)  # whole where it is on the ground
        heights.append(top * kept ** math.floor(turns) * abs(math.sin(math.pi * turns)) ** sharpness)
        is_clear = NEAR_GROUND < turns % 1 < 1 - NEAR_GROUND
        bounced.append(math.floor(turns) if is_clear else None)
    return heights, bounced


def _num_frames(rng: random.Random) -> int:
    return rng.randint(*(MANY_FRAMES if rng.random() < MANY_SHARE else NUM_FRAMES))


# Drawing ----------------------------------------------------------------------------------------------------
def _film(
    kind: str,
    scene: Scene,
    frames: Sequence[Sequence[Object]],
    asked: Object,
    reply: str,
    language: Language,
    rng: random.Random,
    noise: np.random.Generator,
    ground: float | None = None,
) -> Film:
    """Draw all frames over one background, and put the question."""
    width, height = scene.size
    background = backgrounds.draw_background(scene.size, scene.base, rng, noise)
    if ground is not None:
        line = (0, 0, 0) if sum(scene.base) > 384 else (255, 255, 255)
        top = round(ground * height)
        ImageDraw.Draw(background).rectangle((0, top, width, top + 2), fill=line)
    factor, faults = rng.choice((1, 2, 2)), rng.getrandbits(32)
    drawn = []
    for objects in frames:
        image = background.resize((width * factor, height * factor), Image.Resampling.NEAREST)
        paint(image, objects, factor)
        image = image.reduce(factor) if factor > 1 else image
        drawn.append(np.asarray(degrade(image, random.Random(faults), noise).convert("RGB")))
    question = rng.choice(_QUESTIONS[kind][language]).format(
        shape=asks.shape_word(asked.shape, language), colour=asks.colour_word(asked.colour, language)
    )
    rate = rng.choice(RATES) if len(drawn) <= NUM_FRAMES[1] else RATE_OF_MANY
    shown = tuple(tuple(objects) for objects in frames)
    return Film(
        frames=np.stack(drawn), rate=rate, question=question, reply=reply, scene=scene, shown=shown, asked=asked
    )


def _thing(rng: random.Random, place: tuple[float, float] | None = None, radius: float | None = None) -> Wanted:
    return Wanted(
        shape=rng.choice(shapes.SHAPE_NAMES), colour=rng.choice(colours.COLOUR_NAMES), place=place, radius=radius
    )


def _beside(lane: float, is_row: bool, rng: random.Random) -> tuple[float, float]:
    """Return a place away from the lane in which something moves."""
    other = 0.12 if lane > 0.5 else 0.88
    along = rng.uniform(0.12, 0.88)
    return (along, other) if is_row else (other, along)
