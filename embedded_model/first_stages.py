"""The first stages: encoders that see and hear, then answers, then drills of what was not learned by the way."""

from __future__ import annotations

from dataclasses import replace

from embedded_model.samples import WEIGHTS
from embedded_model.stage import Stage
from tianquan.training.plan import TrainingPlan

# Long answers about a whole picture teach more than one word does; reading and listening take longest to learn.
SEEING = {
    **WEIGHTS,
    "describe": 12,
    "follow_up": 12,
    "count": 14,
    "read_digits": 16,
    "read_text": 8,
    "transcribe": 16,
    "spoken_digits": 8,
    "spoken_question": 12,
    "text": 4,
}

MUON = TrainingPlan(
    num_steps=1000,  # of each stage its own
    learning_rate=1e-3,
    optimizer="muon",
    schedule="constant",
    warmup_steps=50,
    weight_decay=0.02,
    precision="bfloat16",
)
# Once colours and transcripts come, the questions of where and how many are asked more often.
COUNTING = {
    **SEEING,
    "colour": 4,
    "shape": 5,
    "colour_shape": 5,
    "describe": 10,
    "count": 18,
    "exists": 8,
    "position": 9,
    "compare": 5,
    "relation": 5,
    "read_digits": 20,
    "read_text": 4,
    "transcribe": 12,
    "spoken_digits": 5,
    "spoken_question": 14,
}
# A picture is looked at once and asked about five times, which costs twice a single question.
INTERVIEWS = {
    "interview": 40,
    "spoken_interview": 11,
    "spoken_question": 3,
    "colour": 1,
    "shape": 1,
    "colour_shape": 3,
    "describe": 2,
    "count": 4,
    "exists": 1,
    "position": 1.5,
    "compare": 3,
    "relation": 1.5,
    "read_digits": 18,
    "read_text": 2,
    "two_images": 5,
    "follow_up": 3,
    "transcribe": 10,
    "spoken_digits": 5,
    "spoken_chat": 2,
    "text": 2,
    "film_direction": 2,
    "film_order": 2,
    "film_colour": 1,
    "film_bounces": 2,
}
WHOLE = Stage(plan=MUON, batch_size=96, after="answers", weights=COUNTING, max_side=448, max_slices=1)
# On the processor of these stages products are slower in bfloat16 than in float32.
FLOAT32 = replace(MUON, precision="float32")
LATER = replace(WHOLE, batch_size=128, weights=INTERVIEWS, dense_share=0.5)
# Nothing but one kind of question, for what follows the encoders.
DRILL = replace(LATER, parts=("language_model", "resampler"), dense_share=0.0)
FIRST_STAGES: dict[str, Stage] = {
    "towers": Stage(
        plan=replace(MUON, optimizer="adamw", num_steps=923, warmup_steps=200, seed=1),
        batch_size=64,
        after=None,
        parts=("vision", "audio"),
    ),
    "shapes": Stage(
        plan=replace(MUON, num_steps=1426, learning_rate=3e-3, warmup_steps=20, seed=6),
        batch_size=64,
        after="towers",
        inherits=("audio.",),
        parts=("vision", "audio"),
        sound_every=8,
        max_objects=2,
        large=True,
    ),
    "answers": Stage(plan=replace(MUON, num_steps=761, seed=2), batch_size=96, after="shapes", weights=SEEING),
    "grounded": replace(WHOLE, plan=replace(MUON, num_steps=669, warmup_steps=30, seed=3), dense_share=0.5),
    # By then the encoders name what is there; what is made of it lags behind.
    "reader": replace(
        WHOLE,
        plan=replace(MUON, num_steps=482, warmup_steps=30, seed=5),
        after="grounded",
        parts=("language_model", "resampler", "audio.projection", "audio.begin_end"),
        weights={**COUNTING, "read_text": 1},
    ),
    "finish": replace(
        WHOLE,
        plan=replace(MUON, num_steps=400, schedule="linear", warmup_steps=20, seed=4),
        after="reader",
        dense_share=0.25,
    ),
    # The dense heads are not shipped: on the shipped model they are learned again before they may pull at the encoders.
    "heads": replace(
        WHOLE,
        plan=replace(MUON, num_steps=80, learning_rate=3e-3, warmup_steps=10, precision="float32", seed=8),
        after="finish",
        parts=(),
        dense_share=1.0,
    ),
    "interviews": replace(
        LATER,
        plan=replace(FLOAT32, num_steps=274, learning_rate=5e-4, seed=9),
        after="heads",
        dense_share=0.25,
    ),
    # Asked by colour the model found an object among four, asked by shape it did not: its tokens were to be clearer.
    "cells": replace(
        LATER,
        plan=replace(FLOAT32, num_steps=116, learning_rate=5e-4, seed=11),
        after="interviews",
    ),
    "finding": replace(
        LATER,
        plan=replace(FLOAT32, num_steps=180, learning_rate=9e-4, seed=12),
        after="cells",
    ),
    "by_shape": replace(
        DRILL,
        plan=replace(FLOAT32, num_steps=121, learning_rate=1e-3, seed=13),
        after="finding",
        weights={"find_by_shape": 1},
    ),
    "drill": replace(
        DRILL,
        plan=replace(FLOAT32, num_steps=95, learning_rate=1e-3, seed=14),
        after="by_shape",
        weights={"find_by_shape": 3, "count_each": 6, "relate": 3},
    ),
    "settle": replace(
        LATER,
        plan=replace(FLOAT32, num_steps=400, schedule="linear", seed=10),
        after="drill",
        weights={**INTERVIEWS, "interview": 26, "find_by_shape": 8, "relate": 5, "count_each": 14},
        dense_share=0.35,
    ),
    # Left of, above: at chance, and slow to move.
    "relating": replace(
        DRILL,
        plan=replace(FLOAT32, num_steps=120, learning_rate=1e-3, seed=15),
        after="settle",
        weights={"relate": 1},
    ),
    # Of one colour or one shape among others the model counted 40 % right, of everything 79 %.
    "counting": replace(
        DRILL,
        plan=replace(FLOAT32, num_steps=160, learning_rate=1e-3, seed=16),
        after="relating",
        weights={"count_each": 8, "relate": 1},
    ),
    # Everything again, as in "settle".
    "rounding": replace(
        LATER,
        plan=replace(FLOAT32, num_steps=230, schedule="linear", warmup_steps=10, seed=18),
        after="counting",
        weights={
            **INTERVIEWS,
            "interview": 24,
            "find_by_shape": 6,
            "relate": 6,
            "count_each": 12,
            "spoken_question": 6,
            "film_direction": 4,
            "film_order": 3,
            "film_bounces": 3,
        },
        dense_share=0.35,
    ),
}
