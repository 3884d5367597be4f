"""Questions about single moments of a film: what is there, where it is, how often it has bounced until then.

What happens in a film is answered with one word, from which a small model learns slowly what to look at. To say how
often a ball has bounced by 1.5 s, and by 2.5 s, it has to follow the ball. Times are those written before the frames.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

from embedded_model import asks
from embedded_model.asks import Ask, Language
from embedded_model.films import Film
from tianquan.processing.frames import time_text

MomentKind = Literal["bounced", "there", "how_many", "where", "colour"]

_WORDINGS: dict[MomentKind, dict[Language, tuple[str, ...]]] = {
    "bounced": {
        "en": ("How many times has it bounced by {time}?", "How many bounces are there until {time}?"),
        "zh": ("到{time}弹了几次？", "{time}之前弹了几次？"),
    },
    "there": {
        "en": ("What is there at {time}?", "What can be seen at {time}?"),
        "zh": ("{time}时有什么？", "{time}的时候能看到什么？"),
    },
    "how_many": {
        "en": ("How many things are there at {time}?", "How many shapes are there at {time}?"),
        "zh": ("{time}时有几个图形？", "{time}的时候有多少个图形？"),
    },
    "where": {
        "en": ("Where is the {shape} at {time}?", "Where is it at {time}?"),
        "zh": ("{time}时{shape}在哪里？", "{time}的时候它在哪里？"),
    },
    "colour": {
        "en": ("What color is the {shape} at {time}?", "What color is it at {time}?"),
        "zh": ("{time}时{shape}是什么颜色？", "{time}的时候它是什么颜色？"),
    },
}


def ask_moments(film: Film, language: Language, rng: random.Random) -> Iterator[tuple[str, str]]:
    """Yield questions and answers about moments of a film in random order.

    Only what every observer would answer alike: nothing on a bounce that is happening, no place between two places.
    """
    asked = [(kind, n) for kind in _kinds(film) for n in range(len(film.shown))]
    for kind, n in rng.sample(asked, len(asked)):
        reply = _reply(kind, film, n, language)
        if reply is not None:
            wording = rng.choice(_WORDINGS[kind][language])
            shape = asks.shape_word(film.asked.shape, language)
            yield wording.format(time=time_text(n / film.rate), shape=shape), reply


def _kinds(film: Film) -> tuple[MomentKind, ...]:
    if film.bounced:
        return ("bounced", "where")
    is_constant = all(len(shown) == len(film.shown[0]) for shown in film.shown)
    return ("where", "colour") if is_constant else ("there", "how_many")


def _reply(kind: MomentKind, film: Film, n: int, language: Language) -> str | None:
    shown = film.shown[n]
    if kind == "bounced":
        number = film.bounced[n]
        return None if number is None else str(number)
    if kind == "how_many":
        return str(len(shown))
    if kind == "there":
        scene = replace(film.scene, objects=shown)
        return asks.answer(Ask(kind="describe"), scene, language) if shown else asks.NONE[language]
    thing = next((thing for thing in shown if thing.shape == film.asked.shape), None)
    if thing is None or sum(other.shape == thing.shape for other in shown) > 1:
        return None
    return asks.place(thing, film.scene, language) if kind == "where" else asks.colour_word(thing.colour, language)
