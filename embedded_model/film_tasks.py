"""Tasks about films: what happens, what is there at a moment, what is said meanwhile."""

from __future__ import annotations

import itertools

from embedded_model import prompts
from embedded_model.asks import Language
from embedded_model.films import FILM_KINDS, FilmKind, draw_film
from embedded_model.moments import ask_moments
from embedded_model.studio import Draft, Studio

MOMENT_WEIGHTS = (1, 4, 1, 6)  # of the kinds of films
MOST_MOMENTS = 6


def watch(studio: Studio, language: Language, kind: FilmKind) -> Draft:
    """One question about what happens in a film."""
    film = draw_film(kind, language, studio.rng, studio.noise)
    return Draft().ask(film.question, film.reply, film=film)


def film_ends(studio: Studio, language: Language) -> Draft:
    """What appears or disappears first and last, asked one after the other."""
    film = draw_film("order", language, studio.rng, studio.noise)
    assert film.other_end is not None, "an ordered film has two ends"
    return Draft().ask(film.question, film.reply, film=film).ask(*film.other_end)


def film_moments(studio: Studio, language: Language) -> Draft:
    """What happens in a film, and what is to be seen at some of its moments."""
    rng = studio.rng
    film = draw_film(rng.choices(FILM_KINDS, MOMENT_WEIGHTS)[0], language, rng, studio.noise)
    questions = (
        [(film.question, film.reply)] if film.other_end is None else [(film.question, film.reply), film.other_end]
    )
    moments = list(itertools.islice(ask_moments(film, language, rng), MOST_MOMENTS))
    questions = [*questions, *moments] if rng.random() < 0.6 else [*moments, *questions]
    draft = Draft().ask(*questions[0], film=film)
    for question, reply in questions[1:]:
        draft.ask(question, reply)
    return draft


def film_speech(studio: Studio, language: Language) -> Draft:
    """A film with a word spoken meanwhile: what is said, or what happens."""
    rng = studio.rng
    film = draw_film(rng.choice(FILM_KINDS), language, rng, studio.noise)
    clip = studio.bank().sample_clip(language, ("digits", "name", "command"), rng)
    sound = studio.sound(clip)
    if rng.random() < 0.3:
        return Draft().ask(film.question, film.reply, sound=sound, film=film)
    return Draft().ask(rng.choice(prompts.SAID_IN_FILM[language]), clip.phrase.text, sound=sound, film=film)
