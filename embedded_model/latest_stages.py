"""The latest stages: encoders by dense targets alone, then what stands behind them, the encoders left as they are."""

from __future__ import annotations

from dataclasses import replace

from embedded_model.deeper_stages import DEEPEST, ENCODERS, READING, SCENES
from embedded_model.first_stages import FLOAT32
from embedded_model.stage import Stage

# How often each task is asked where all are: of `rely`, and what later stages ask otherwise.
EVERYTHING: dict[str, float] = {
    "interview": 16,
    "tally": 8,
    "describe": 5,
    "colour_shape": 2,
    "compare": 7,
    "relation": 6,
    "relate": 10,
    "two_images": 8,
    "two_images_each": 5,
    "follow_up": 3,
    "count": 18,
    "count_each": 5,
    "count_groups": 7,
    "read_digits": 16,
    "sheet_number": 6,
    "sheet_shape": 3,
    "transcribe": 10,
    "spoken_digits": 7,
    "spoken_question": 18,
    "spoken_each": 5,
    "spoken_counts": 0,
    "spoken_interview": 5,
    "spoken_chat": 6,
    "text": 7,
    "film_direction": 2,
    "film_ends": 6,
    "film_colour": 2,
    "film_bounces": 5,
    "film_speech": 3,
}
FLUENT = EVERYTHING | {
    "interview": 15,
    "relation": 4,
    "relate": 7,
    "count": 20,
    "count_each": 6,
    "read_digits": 19,
    "spoken_question": 22,
    "spoken_each": 7,
    "spoken_chat": 7,
    "film_ends": 5,
}
CONCUR = FLUENT | {
    "compare": 6,
    "relation": 3,
    "count": 21,
    "spoken_each": 8,
    "spoken_counts": 9,
    "text": 6,
    "film_direction": 1.5,
}

LATEST_STAGES: dict[str, Stage] = {
    # The dense heads alone, on the model that was shipped: those of the stages before were lost.
    "name_again": replace(
        ENCODERS,
        plan=replace(FLOAT32, num_steps=200, learning_rate=3e-3, schedule="linear", warmup_steps=10, seed=45),
        after="steady",
        depth=DEEPEST,
        parts=(),
    ),
    # What was unlearned together with the answers is learned again, and this time left alone afterwards.
    "discern": replace(
        SCENES,
        plan=replace(FLOAT32, num_steps=1000, schedule="linear", warmup_steps=20, seed=46),
        after="name_again",
    ),
    "rely": replace(
        READING,
        plan=replace(FLOAT32, num_steps=360, schedule="linear", warmup_steps=10, seed=47),
        after="discern",
        weights=EVERYTHING,
        chinese={"relation": 0.75, "relate": 0.75, "two_images": 0.6, "two_images_each": 0.6, "count": 0.55},
        rounded="int4",
    ),
    # Right answers were still becoming more when the rate of `rely` reached zero: the same, for longer.
    "fluent": replace(
        READING,
        plan=replace(FLOAT32, num_steps=680, schedule="linear", warmup_steps=10, seed=48),
        after="rely",
        weights=FLUENT,
        chinese={"relation": 0.7, "relate": 0.7, "two_images": 0.6, "two_images_each": 0.6, "count": 0.55},
        rounded="int4",
    ),
    # Counts were right as often as the cells they are read from; and English questions that are heard less often than
    # those in Chinese.
    "refine": replace(
        SCENES,
        plan=replace(FLOAT32, num_steps=900, learning_rate=8e-4, schedule="linear", warmup_steps=20, seed=49),
        after="fluent",
        sound_every=6,
    ),
    # Behind a name that was heard the number was right for 67 of 100, behind the same one written for 83; and what was
    # heard was written down rightly for 97.
    "concur": replace(
        READING,
        plan=replace(FLOAT32, num_steps=500, schedule="linear", warmup_steps=10, seed=50),
        after="refine",
        weights=CONCUR,
        chinese={"relation": 0.6, "relate": 0.55, "two_images": 0.55, "two_images_each": 0.55, "spoken_question": 0.4},
        rounded="int4",
    ),
    # Encoders that had moved took what the language model gained: it was no better after `concur` than before `refine`.
    "affirm": replace(
        READING,
        plan=replace(FLOAT32, num_steps=640, schedule="linear", warmup_steps=10, seed=51),
        after="concur",
        weights=CONCUR
        | {"describe": 4, "relate": 6, "count": 22, "read_digits": 24, "spoken_question": 26, "spoken_counts": 7},
        chinese={"relation": 0.6, "relate": 0.5, "two_images": 0.55, "two_images_each": 0.55, "count": 0.55},
        rounded="int4",
    ),
    # Questions that are heard were the last to be right less often than asked for, and still gained with every step.
    "assure": replace(
        READING,
        plan=replace(FLOAT32, num_steps=560, schedule="linear", warmup_steps=10, seed=52),
        after="affirm",
        weights=CONCUR
        | {"interview": 13, "tally": 7, "describe": 4, "relate": 5, "two_images": 6, "count": 23}
        | {"read_digits": 26, "transcribe": 8, "spoken_question": 38, "spoken_each": 6, "spoken_counts": 7},
        chinese={"relation": 0.6, "relate": 0.5, "two_images": 0.55, "two_images_each": 0.55, "count": 0.55},
        rounded="int4",
    ),
}
