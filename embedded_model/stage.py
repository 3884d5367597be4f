"""What a stage of the embedded model's training is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from embedded_model import scene_plans
from embedded_model.blueprint import MAX_SLICES
from embedded_model.deepen import Depth
from embedded_model.samples import DENSE_DIGITS_SHARE, DENSE_TEXT_SHARE
from tianquan.training.plan import TrainingPlan

BLUEPRINT_DEPTH = Depth(language=4, vision=5)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage: what it trains on and how."""

    plan: TrainingPlan
    batch_size: int  # conversations, pictures or sounds of a micro-batch
    after: str | None  # the stage it goes on from; None: the blueprint
    inherits: tuple[str, ...] = ("",)  # which weights of the stages before: how their names begin
    parts: tuple[str, ...] = ("language_model", "vision", "resampler", "audio")  # what is trained
    weights: Mapping[str, float] | None = None  # task shares; None = dense targets of the encoders
    chinese: Mapping[str, float] | None = None  # share of a task's samples that are; half if not named
    max_side: int = 112  # pixels of the largest picture
    max_slices: int = MAX_SLICES  # of a picture; 1 shows it whole, however large it is
    sound_every: int | None = 2  # of a dense stage: which steps are sounds
    max_objects: int = scene_plans.MAX_OBJECTS  # of a dense stage's pictures
    large: bool = False  # whether its objects are large
    text_share: float = DENSE_TEXT_SHARE  # of its pictures that are digits or text
    digits_share: float = DENSE_DIGITS_SHARE  # of these
    dense_share: float = 0.0  # of a stage of answers: weight of the dense loss beside that of the answers
    rounded: str | None = None  # of a stage of answers: the recipe as which weights are rounded in the forward pass
    depth: Depth = BLUEPRINT_DEPTH  # the first stage with more layers begins with ones that change nothing
