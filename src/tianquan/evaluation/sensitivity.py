"""Recipes that differ from the reference in one tower: which part of the model a format costs most in."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from tianquan.checkpoint.tensor_list import NeededWeight
from tianquan.quantization.recipes import Recipe


def one_tower_recipe(weights: Sequence[NeededWeight], tower: str, recipe: Recipe, others: Recipe) -> Recipe:
    """Return a recipe that gives one component the formats of `recipe` and all else those of `others`.

    Args:
        weights: every weight of the model.
        tower: language_model, vision, resampler or audio. Keys and values belong to the language model.
        recipe: of the tower.
        others: of the rest.
    """
    # Weight by weight: a pattern of `recipe` may span towers ("*"), and one of `others` must not win within this one.
    rules = tuple(
        (weight.name, recipe.format_of(weight.name))
        for weight in weights
        if weight.component == tower and weight.is_matrix
    )
    kv_format = recipe.kv_format if tower == "language_model" else others.kv_format
    return Recipe(f"{others.name}, {tower} {recipe.name}", rules + others.rules, kv_format)


def towers_of(media_kinds: Collection[str]) -> tuple[str, ...]:
    """Return the components that prompts with these media (image, audio) pass through."""
    vision = ("vision", "resampler") if "image" in media_kinds else ()
    return ("language_model", *vision, *(("audio",) if "audio" in media_kinds else ()))
