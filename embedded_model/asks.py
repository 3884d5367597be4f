"""Questions about a drawn scene: their wordings in English and Chinese, and the answers derived from the plan.

An `Ask` is a question without words. `word` puts it into words, `answer` derives the one short answer, or None
where people could disagree (two objects of the shape asked for, sizes too close, a place between two places).
"""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass
from typing import Literal, get_args

from embedded_model import colours, shapes
from embedded_model.pictures import Object, Scene

Language = Literal["en", "zh"]
AskKind = Literal[
    "colour_of_shape",
    "shape_of_colour",
    "only_colour",
    "only_shape",
    "only_both",
    "count_all",
    "count_shape",
    "count_colour",
    "count_both",
    "exists_shape",
    "exists_colour",
    "exists_both",
    "is_colour",
    "where_shape",
    "where_both",
    "bigger_shape",
    "smaller_shape",
    "bigger_colour",
    "left_of",
    "right_of",
    "above",
    "below",
    "describe",
]
LANGUAGES: tuple[Language, ...] = get_args(Language)
ASK_KINDS: tuple[AskKind, ...] = get_args(AskKind)

SIZE_RATIO = 1.6  # areas closer than this are "about the same"
LOW, MIDDLE_LOW, MIDDLE_HIGH, HIGH = 0.35, 0.41, 0.59, 0.65  # shares of the canvas; between them a place has no name
CLEAR_GAP = 0.15  # share of the canvas by which one object must be left of (above) another
MAX_DESCRIBED = 3

YES_NO = {"en": ("yes", "no"), "zh": ("是", "不是")}
HAVE = {"en": ("yes", "no"), "zh": ("有", "没有")}
NONE = {"en": "none", "zh": "没有"}
PLACES: dict[str, tuple[tuple[str, ...], ...]] = {  # [row][column]
    "en": (("top left", "top", "top right"), ("left", "center", "right"), ("bottom left", "bottom", "bottom right")),
    "zh": (("左上角", "上方", "右上角"), ("左边", "中间", "右边"), ("左下角", "下方", "右下角")),
}


@dataclass(frozen=True, kw_only=True)
class Ask:
    """A question without words."""

    kind: AskKind
    shape: str = ""
    colour: str = ""
    other: str = ""  # a second shape, or a second colour in bigger_colour


# Answers ----------------------------------------------------------------------------------------------------
def answer(ask: Ask, scene: Scene, language: Language) -> str | None:
    """Return the short canonical answer, or None if the scene leaves it open."""
    kind = ask.kind
    matching = [thing for thing in scene.objects if _matches(thing, ask)]
    if kind.startswith("count"):
        return str(len(scene.objects) if kind == "count_all" else len(matching))
    if kind.startswith("exists"):
        return HAVE[language][0 if matching else 1]
    if kind.startswith("only") or kind == "describe":
        return _describe(ask, scene, language)
    if kind in ("bigger_shape", "smaller_shape", "bigger_colour", "left_of", "right_of", "above", "below"):
        return _compare(ask, scene, language)
    if kind == "is_colour":
        same = [thing for thing in scene.objects if thing.shape == ask.shape]
        return YES_NO[language][0 if same[0].colour == ask.colour else 1] if len(same) == 1 else None
    if not matching:
        return NONE[language]
    if len(matching) > 1:
        return None
    thing = matching[0]
    if kind == "colour_of_shape":
        return colour_word(thing.colour, language)
    if kind == "shape_of_colour":
        return shape_word(thing.shape, language)
    return place(thing, scene, language)


def _matches(thing: Object, ask: Ask) -> bool:
    by_shape = ask.kind.endswith("_shape") or ask.kind.endswith("_both")
    by_colour = ask.kind.endswith("_colour") or ask.kind.endswith("_both")
    if ask.kind == "shape_of_colour":
        by_shape, by_colour = False, True
    return (not by_shape or thing.shape == ask.shape) and (not by_colour or thing.colour == ask.colour)


def _describe(ask: Ask, scene: Scene, language: Language) -> str | None:
    if ask.kind != "describe" and len(scene.objects) != 1:
        return None
    if len(scene.objects) > MAX_DESCRIBED:
        return None
    ordered = sorted(scene.objects, key=lambda thing: thing.x)
    if any(b.x - a.x < CLEAR_GAP * scene.size[0] for a, b in itertools.pairwise(ordered)):
        return None
    if ask.kind == "only_colour":
        return colour_word(ordered[0].colour, language)
    if ask.kind == "only_shape":
        return shape_word(ordered[0].shape, language)
    named = [both_words(thing.colour, thing.shape, language) for thing in ordered]
    return joined(named, language)


def _compare(ask: Ask, scene: Scene, language: Language) -> str | None:
    by_colour = ask.kind == "bigger_colour"
    first_name = ask.colour if by_colour else ask.shape
    names = [thing.colour if by_colour else thing.shape for thing in scene.objects]
    if names.count(first_name) != 1 or names.count(ask.other) != 1:
        return None
    first, other = scene.objects[names.index(first_name)], scene.objects[names.index(ask.other)]
    if ask.kind in ("bigger_shape", "smaller_shape", "bigger_colour"):
        if max(first.area, other.area) < SIZE_RATIO * min(first.area, other.area):
            return None
        wins = (first.area > other.area) == (ask.kind != "smaller_shape")
        name = first_name if wins else ask.other
        return colour_word(name, language) if by_colour else shape_word(name, language)
    across = ask.kind in ("left_of", "right_of")
    gap = (other.x - first.x) / scene.size[0] if across else (other.y - first.y) / scene.size[1]
    if abs(gap) < CLEAR_GAP:
        return None
    return YES_NO[language][0 if (gap > 0) == (ask.kind in ("left_of", "above")) else 1]


def place(thing: Object, scene: Scene, language: Language) -> str | None:
    """Return the name of an object's place on a 3 x 3 grid, or None near a border of it."""
    steps = []
    for share in (thing.y / scene.size[1], thing.x / scene.size[0]):
        step = 0 if share < LOW else 1 if MIDDLE_LOW < share < MIDDLE_HIGH else 2 if share > HIGH else None
        if step is None:
            return None
        steps.append(step)
    return PLACES[language][steps[0]][steps[1]]


# Words ------------------------------------------------------------------------------------------------------
def colour_word(name: str, language: Language) -> str:
    """Return the canonical word for a colour."""
    return name if language == "en" else colours.BY_NAME[name].chinese


def shape_word(name: str, language: Language) -> str:
    """Return the canonical word for a shape."""
    return name if language == "en" else shapes.BY_NAME[name].chinese


def both_words(colour: str, shape: str, language: Language) -> str:
    """Return "a red circle", "an orange star", "红色的圆形"."""
    if language == "zh":
        return f"{colour_word(colour, language)}的{shape_word(shape, language)}"
    return f"{'an' if colour[0] in 'aeiou' else 'a'} {colour} {shape}"


def joined(items: list[str], language: Language) -> str:
    """Return a list in words: "a, b and c", "a、b和c"."""
    comma, conjunction = (", ", " and ") if language == "en" else ("、", "和")
    return items[0] if len(items) == 1 else comma.join(items[:-1]) + conjunction + items[-1]


def random_ask(kind: AskKind, rng: random.Random, shape: str | None = None, colour: str | None = None) -> Ask:
    """Return an ask of a kind with random slots, of which only those the kind uses are filled."""
    shape = shape or rng.choice(shapes.SHAPE_NAMES)
    colour = colour or rng.choice(colours.COLOUR_NAMES)
    if kind == "bigger_colour":
        other = rng.choice([name for name in colours.COLOUR_NAMES if name != colour])
        return Ask(kind=kind, colour=colour, other=other)
    if kind in ("bigger_shape", "smaller_shape", "left_of", "right_of", "above", "below"):
        return Ask(kind=kind, shape=shape, other=rng.choice([name for name in shapes.SHAPE_NAMES if name != shape]))
    uses_shape = kind in ("colour_of_shape", "is_colour") or (kind.endswith(("_shape", "_both")) and kind[:4] != "only")
    uses_colour = kind in ("shape_of_colour", "is_colour") or (
        kind.endswith(("_colour", "_both")) and kind[:4] != "only"
    )
    if kind == "colour_of_shape":
        uses_colour = False
    return Ask(kind=kind, shape=shape if uses_shape else "", colour=colour if uses_colour else "")


def as_record(ask: Ask) -> dict[str, str]:
    """Return an ask as JSON values."""
    return {"kind": ask.kind, "shape": ask.shape, "colour": ask.colour, "other": ask.other}


def from_record(record: dict[str, str]) -> Ask:
    """Return the ask that `as_record` wrote."""
    assert record["kind"] in ASK_KINDS, f"ask kind is one of {ASK_KINDS}, got {record['kind']!r}"
    return Ask(kind=record["kind"], shape=record["shape"], colour=record["colour"], other=record["other"])
