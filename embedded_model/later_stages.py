"""The later stages: what still goes wrong is trained alone, then everything together again."""

from __future__ import annotations

from dataclasses import replace

from embedded_model.first_stages import DRILL, FLOAT32, INTERVIEWS, LATER
from embedded_model.stage import Stage

LATER_STAGES: dict[str, Stage] = {
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
}
