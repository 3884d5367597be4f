"""The tasks by name: each builds a conversation in the vendor's form, with media in memory.

A task takes a `Studio` (randomness, split, clips) and a language and returns a `Draft`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from embedded_model import film_tasks, interviews, picture_tasks, small_talk, spoken_tasks
from embedded_model.asks import Language
from embedded_model.picture_tasks import about_scene
from embedded_model.studio import Draft, Studio


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
    "read_digits": picture_tasks.read_digits,
    "read_text": picture_tasks.read_text,
    "sheet_number": picture_tasks.sheet_number,
    "sheet_shape": picture_tasks.sheet_shape,
    "two_images": picture_tasks.two_images,
    "two_images_each": picture_tasks.two_images_each,
    "follow_up": picture_tasks.follow_up,
    "find_by_shape": interviews.find_by_shape,
    "relate": interviews.relate,
    "count_each": interviews.count_each,
    "count_groups": interviews.count_groups,
    "tally": interviews.tally,
    "interview": interviews.interview,
    "transcribe": spoken_tasks.transcribe,
    "spoken_digits": spoken_tasks.spoken_digits,
    "spoken_question": spoken_tasks.spoken_question,
    "spoken_interview": spoken_tasks.spoken_interview,
    "spoken_each": spoken_tasks.spoken_each,
    "spoken_counts": spoken_tasks.spoken_counts,
    "spoken_chat": spoken_tasks.spoken_chat,
    "text": text,
    "film_direction": partial(film_tasks.watch, kind="direction"),
    "film_order": partial(film_tasks.watch, kind="order"),
    "film_ends": film_tasks.film_ends,
    "film_colour": partial(film_tasks.watch, kind="colour_change"),
    "film_bounces": partial(film_tasks.watch, kind="bounces"),
    "film_moments": film_tasks.film_moments,
    "film_speech": film_tasks.film_speech,
}
SHEET_TASKS = frozenset({"sheet_number", "sheet_shape"})  # need slices
RELATION_TASKS = frozenset({"relation", "relate"})  # of two objects: what is where
SPEECH_TASKS = frozenset(
    {
        *("transcribe", "spoken_digits", "spoken_question", "spoken_each", "spoken_interview", "spoken_chat"),
        *("spoken_counts", "film_speech"),
    }
)
