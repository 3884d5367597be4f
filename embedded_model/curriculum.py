"""The stages in which the embedded model was trained: on what, from which weights, how long and how fast.

The lengths are those of the runs that were made; a stage with a constant rate ended when it stopped paying.
"""

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
DEEPER = replace(LATER, num_layers=6)
SHIPPED = "tell"  # the stage whose weights the package has
STAGES: dict[str, Stage] = {
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
    # It writes a spoken question down without a fault, and answers another one.
    "listening": replace(
        DRILL,
        plan=replace(FLOAT32, num_steps=150, learning_rate=1e-3, warmup_steps=20, seed=19),
        batch_size=64,
        after="rounding",
        parts=("language_model", "resampler", "audio.projection", "audio.begin_end"),
        weights={"spoken_each": 1},
    ),
    # Of five objects one in four was misnamed, and a query in four claimed one that was not in its cell. Dense targets
    # alone cost a tenth of a conversation.
    "sharper": replace(
        LATER,
        plan=replace(FLOAT32, num_steps=1000, schedule="linear", warmup_steps=20, seed=20),
        after="listening",
        parts=("vision", "resampler"),
        weights=None,
        sound_every=None,
    ),
    # Of five objects two often have their middles in one cell: it tells of both.
    "pairs": replace(
        LATER,
        plan=replace(FLOAT32, num_steps=420, learning_rate=8e-4, schedule="linear", warmup_steps=20, seed=24),
        after="sharper",
        parts=("vision", "resampler"),
        weights=None,
        sound_every=None,
    ),
    # What follows the encoders learns to read the sharper tokens where the answers were worst.
    "practice": replace(
        DRILL,
        plan=replace(FLOAT32, num_steps=160, learning_rate=1e-3, warmup_steps=20, seed=21),
        after="pairs",
        parts=("language_model", "resampler", "audio.projection", "audio.begin_end"),
        weights={
            "count_each": 6,
            "find_by_shape": 2,
            "spoken_each": 4,
            "read_digits": 4,
            "sheet_number": 2,
            "sheet_shape": 1,
            "interview": 2,
            "two_images": 2,
        },
    ),
    "ends": replace(
        DRILL,
        plan=replace(FLOAT32, num_steps=170, learning_rate=1e-3, warmup_steps=10, seed=22),
        batch_size=64,
        after="practice",
        weights={"film_ends": 4, "film_direction": 1, "film_bounces": 2},
    ),
    # It counted everything and answered with that, or with one, whatever was asked for: of several groups in a picture
    # neither is right.
    "groups": replace(
        DRILL,
        plan=replace(FLOAT32, num_steps=260, learning_rate=1e-3, warmup_steps=10, seed=25),
        after="ends",
        weights={"count_groups": 1},
    ),
    "polish": replace(
        LATER,
        plan=replace(FLOAT32, num_steps=260, schedule="linear", warmup_steps=10, seed=23),
        after="groups",
        weights={
            **INTERVIEWS,
            "interview": 20,
            "find_by_shape": 4,
            "relate": 2,
            "count": 6,
            "count_each": 8,
            "count_groups": 12,
            "spoken_interview": 8,
            "spoken_question": 6,
            "spoken_each": 6,
            "sheet_number": 3,
            "sheet_shape": 1,
            "film_direction": 4,
            "film_ends": 4,
            "film_bounces": 4,
            "text": 3,
        },
        dense_share=0.35,
    ),
    # Small talk and transcripts had been forgotten in the drills, and had too small a share to come back.
    "recall": replace(
        LATER,
        plan=replace(FLOAT32, num_steps=150, learning_rate=6e-4, schedule="linear", warmup_steps=10, seed=26),
        after="polish",
        weights={
            "text": 14,
            "spoken_chat": 12,
            "transcribe": 20,
            "spoken_digits": 7,
            "spoken_question": 9,
            "spoken_interview": 5,
            "read_digits": 16,
            "interview": 16,
            "count": 5,
            "count_each": 6,
            "count_groups": 4,
            "colour_shape": 2,
            "describe": 2,
            "compare": 2,
            "relation": 2,
            "two_images": 3,
            "follow_up": 3,
            "film_direction": 2,
            "film_ends": 4,
            "film_colour": 1,
            "film_bounces": 3,
            "sheet_number": 2,
        },
        dense_share=0.35,
    ),
    # The patches of "sharper" were still getting better when it ended; more digits, and sounds in every eighth step.
    "sharpest": replace(
        LATER,
        plan=replace(FLOAT32, num_steps=1200, schedule="linear", warmup_steps=20, seed=27),
        after="recall",
        parts=("vision", "resampler", "audio"),
        weights=None,
        sound_every=8,
        text_share=0.5,
    ),
    # A third of the misread numbers had a digit too few or too many: small ones stand several to a cell, whose quarters
    # named what lay under four points. It names the characters whose middle it has, in order.
    "figures": replace(
        LATER,
        plan=replace(FLOAT32, num_steps=420, learning_rate=1e-3, schedule="linear", warmup_steps=20, seed=29),
        after="sharpest",
        parts=("vision", "resampler"),
        weights=None,
        sound_every=None,
        text_share=0.7,
        digits_share=0.75,
    ),
    # To count some things among others, or how often a ball turns, is several steps: find, compare, add up. Four layers
    # were few for that.
    "deeper": replace(
        DEEPER,
        plan=replace(FLOAT32, num_steps=205, learning_rate=1e-3, warmup_steps=20, seed=28),
        after="figures",
        parts=("language_model", "resampler", "audio.projection", "audio.begin_end"),
        weights={
            "film_moments": 8,
            "film_bounces": 2,
            "count_groups": 8,
            "count_each": 3,
            "relate": 4,
            "spoken_each": 5,
            "read_digits": 5,
            "two_images": 2,
            "two_images_each": 4,
            "interview": 3,
            "sheet_number": 1,
        },
        dense_share=0.0,
    ),
    # Asked for single moments the model did not find the frame by its time, and learned nothing for the count.
    "frames": replace(
        DEEPER,
        plan=replace(FLOAT32, num_steps=150, learning_rate=1e-3, warmup_steps=10, seed=31),
        batch_size=64,
        after="deeper",
        parts=("language_model", "resampler"),
        weights={"film_bounces": 1},
        dense_share=0.0,
    ),
    # Everything again, as in "recall", with the drills in it.
    "gather": replace(
        DEEPER,
        plan=replace(FLOAT32, num_steps=240, schedule="linear", warmup_steps=10, seed=30),
        after="frames",
        weights={
            "interview": 20,
            "describe": 2,
            "colour_shape": 3,
            "compare": 3,
            "relation": 2,
            "relate": 3,
            "two_images": 5,
            "two_images_each": 3,
            "follow_up": 3,
            "find_by_shape": 2,
            "count": 8,
            "count_each": 6,
            "count_groups": 8,
            "read_digits": 18,
            "sheet_number": 3,
            "sheet_shape": 4,
            "transcribe": 16,
            "spoken_digits": 8,
            "spoken_question": 8,
            "spoken_each": 6,
            "spoken_interview": 5,
            "spoken_chat": 10,
            "text": 12,
            "film_direction": 2,
            "film_ends": 6,
            "film_colour": 2,
            "film_bounces": 7,
        },
        dense_share=0.35,
    ),
    # Of three things in a picture it told the second by the name of a neighbour: describing had 1 % of the samples.
    "tell": replace(
        DEEPER,
        plan=replace(FLOAT32, num_steps=120, learning_rate=6e-4, schedule="linear", warmup_steps=5, seed=32),
        after="gather",
        weights={
            "describe": 24,
            "interview": 16,
            "follow_up": 4,
            "two_images": 5,
            "count": 6,
            "count_each": 4,
            "count_groups": 3,
            "read_digits": 14,
            "sheet_number": 2,
            "sheet_shape": 2,
            "transcribe": 12,
            "spoken_digits": 6,
            "spoken_question": 9,
            "spoken_interview": 4,
            "spoken_chat": 8,
            "text": 9,
            "film_direction": 2,
            "film_ends": 5,
            "film_colour": 2,
            "film_bounces": 5,
        },
        dense_share=0.35,
    ),
    # Of large objects alone, the cells' sum was the right number for two pictures of three; and of voices never heard
    # the model understood some always and some hardly ever.
    "census": replace(
        DEEPER,
        plan=replace(FLOAT32, num_steps=1200, schedule="linear", warmup_steps=20, seed=33),
        after="tell",
        parts=("vision", "resampler", "audio"),
        weights=None,
        sound_every=4,
        text_share=0.4,
        digits_share=0.65,
    ),
}


def stages_before(name: str) -> tuple[str, ...]:
    """Return the stages whose weights a stage starts from, the first one first: each saves what it trained alone."""
    before = STAGES[name].after
    return () if before is None else (*stages_before(before), before)
