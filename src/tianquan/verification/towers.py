"""The first layers of each tower, run by one backend and compared with another's: what a whole model would not fit for.

Every tower is given the same input, the one the reference's towers before it computed, so an error shows where it is
made. At the official size two layers of each take under 4 GB in float32, most of it the language model's embedding and
head.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from tianquan.backends.kv_cache import SequenceBatch
from tianquan.backends.ops import Ops
from tianquan.checkpoint import Checkpoint
from tianquan.checkpoint.tensor_list import NeededWeight, needed_weights
from tianquan.config import ModelConfig
from tianquan.models.audio_encoder import AudioEncoder
from tianquan.models.omni_model import OmniModel
from tianquan.models.resampler import Resampler
from tianquan.models.vision_encoder import VisionEncoder
from tianquan.processing.image import patchify
from tianquan.quantization.adapted import to_float32
from tianquan.quantization.recipes import Recipe, find_recipe
from tianquan.request import Prompt
from tianquan.verification.outcome import Outcome, judge

TOWERS = ("vision", "resampler", "audio", "language_model")
_VALUES_AT_ONCE = 1 << 22  # of a weight, in float64

# Relative root mean square errors that a sound checkpoint stays far below. Weights: rounding of normal values gives
# 0.2 % (bfloat16), 1.2 % (int8, 7 bits), 8 to 10 % (int4); outputs of two random layers, at which nothing is damped,
# at most 8 % (int8) and 33 % (int4).
_WEIGHT_LIMITS = {"float32": 0.0, "bfloat16": 4e-3, "float16": 4e-3, "int8": 3e-2, "int4": 2e-1}
_WORST_MATRIX = 2.0  # of the limit of its tower; it may be a small one that disappears among the others
_OUTPUT_LIMITS = {"float32": 1e-4, "bfloat16": 1e-2, "float16": 1e-2, "int8": 2e-1, "int4": 6e-1}

Float32 = npt.NDArray[np.float32]
OnWeight = Callable[[int, int], None]  # (weights done, of how many)


def relative_error(got: npt.NDArray[np.floating], expected: npt.NDArray[np.floating]) -> float:
    """Return the root mean square of the difference over that of the expected values."""
    assert got.shape == expected.shape, (got.shape, expected.shape)
    difference, size = _squares(got, expected)
    return math.sqrt(difference / size) if size else math.sqrt(difference)


def _squares(got: npt.NDArray[np.floating], expected: npt.NDArray[np.floating]) -> tuple[float, float]:
    difference = size = 0.0
    flat_got, flat_expected = got.reshape(-1), expected.reshape(-1)
    for start in range(0, flat_got.size, _VALUES_AT_ONCE):
        piece = slice(start, start + _VALUES_AT_ONCE)
        expected64 = flat_expected[piece].astype(np.float64)
        difference += float(((flat_got[piece] - expected64) ** 2).sum())
        size += float((expected64**2).sum())
    return difference, size


def first_layers(config: ModelConfig, num_layers: int) -> ModelConfig:
    """Return the configuration of a model that ends after the first layers of each tower."""
    return ModelConfig(
        language=replace(config.language, num_layers=min(num_layers, config.language.num_layers)),
        vision=replace(config.vision, num_layers=min(num_layers, config.vision.num_layers)),
        resampler=config.resampler,
        audio=replace(config.audio, num_layers=min(num_layers, config.audio.num_layers)),
    )


@dataclass(frozen=True)
class TowerOutputs:
    """What each tower made of a prompt."""

    vision: Float32  # (patches of all slices, C_vision)
    resampler: Float32  # (slices, Q, C)
    audio: Float32  # (spans of all clips, C)
    language_model: Float32  # (T, vocab)

    def errors(self, reference: TowerOutputs) -> dict[str, float]:
        """Return the relative error of each tower's output."""
        return {tower: relative_error(getattr(self, tower), getattr(reference, tower)) for tower in TOWERS}


def run_towers(
    checkpoint: Checkpoint, config: ModelConfig, recipe: Recipe, ops: Ops, prompt: Prompt, given: TowerOutputs | None
) -> TowerOutputs:
    """Run each tower, one in memory at a time.

    Args:
        checkpoint: where the weights are.
        config: how many layers, see `first_layers`.
        recipe: the formats to run them in.
        ops: the backend.
        prompt: with pictures and sounds.
        given: the inputs of the towers; None takes what the towers before computed.
    """
    weights = checkpoint.weights(recipe, ops)
    size = config.vision.patch_size
    slices = [pixels for image in prompt.images for pixels in image.slices]
    grids = [(pixels.shape[0] // size, pixels.shape[1] // size) for pixels in slices]
    patches = [patchify(pixels, size) for pixels in slices]
    vision = ops.to_numpy(VisionEncoder(config.vision, weights, ops)(patches, grids))
    vision_input = ops.array(vision if given is None else given.vision)
    resampled = ops.to_numpy(Resampler(config.resampler, weights, ops)(vision_input, grids))
    audio = ops.to_numpy(AudioEncoder(config.audio, weights, ops).encode(prompt.audios))
    model = OmniModel(config, weights, ops)
    images = resampled if given is None else given.resampler
    sounds = audio if given is None else given.audio
    ends = np.cumsum([clip.span for clip in prompt.audios])
    hidden = model.embed(prompt, ops.array(images), [ops.array(part) for part in np.split(sounds, ends[:-1])])
    cache = model.language_model.make_kv_cache(len(hidden))
    logits = model.forward(hidden, cache, SequenceBatch.alone(len(hidden), 0, cache), all_rows=True)
    return TowerOutputs(vision, resampled, audio, ops.to_numpy(logits))


def check_counts(prompt: Prompt, unknown_id: int, outputs: TowerOutputs) -> Outcome:
    """Compare placeholder tokens, spans and rows of features, which are counted in three different places."""
    placeholders = int((prompt.token_ids == unknown_id).sum())
    spans = sum(span.length for span in prompt.spans)
    image_rows = outputs.resampler.shape[0] * outputs.resampler.shape[1]
    audio_rows = len(outputs.audio)
    holds = (
        placeholders == spans
        and image_rows == prompt.num_image_tokens
        and audio_rows == prompt.num_audio_tokens
        and all(bool((prompt.token_ids[s.start : s.start + s.length] == unknown_id).all()) for s in prompt.spans)
    )
    return judge(
        "tokens equal features",
        holds,
        f"{placeholders} placeholders, {spans} in {len(prompt.spans)} spans; {len(prompt.images)} pictures "
        f"{prompt.num_image_tokens} tokens, {image_rows} features; {len(prompt.audios)} sounds "
        f"{prompt.num_audio_tokens} tokens, {audio_rows} features",
    )


def output_limit(weights: list[NeededWeight], tower: str, recipe: Recipe) -> float:
    """Return the largest error a tower's output may have in a recipe, by its coarsest format."""
    return max(_OUTPUT_LIMITS[name] for name in _format_names(weights, tower, recipe))


def _format_names(weights: list[NeededWeight], tower: str, recipe: Recipe) -> set[str]:
    """Return the keys of the tables of limits for a tower's matrices."""
    formats = {str(w.format(recipe)) for w in weights if w.component == tower and w.is_matrix}
    return {name.partition("-")[0] for name in formats}


def check_weights(checkpoint: Checkpoint, recipe: Recipe, ops: Ops, on_weight: OnWeight) -> Iterator[Outcome]:
    """Read every weight, which must be finite, and compare it with what the recipe makes of it.

    Raises:
        CheckpointError: NaN, infinity, or values that the recipe cannot hold.
    """
    weights = needed_weights(checkpoint.config)
    exact, chosen = checkpoint.weights(find_recipe("float32"), ops), checkpoint.weights(recipe, ops)
    errors = {tower: _TowerError() for tower in TOWERS}
    for n, weight in enumerate(weights, start=1):
        if weight.is_matrix:
            out_features, in_features = weight.shape
            expected = to_float32(exact.weight(weight.name, in_features, out_features))
            found = _squares(to_float32(chosen.weight(weight.name, in_features, out_features)), expected)
            errors[weight.component].add(weight.name, *found)
        else:
            exact.vector(weight.name)
        if weight.bias_size:
            exact.bias(weight.name)
        on_weight(n, len(weights))
    for tower, error in errors.items():
        limit = max(_WEIGHT_LIMITS[name] for name in _format_names(weights, tower, recipe))
        yield judge(
            f"{tower.replace('_', ' ')} weights in {recipe.name}",
            error.size > 0 and error.whole <= limit and error.worst <= _WORST_MATRIX * limit,
            f"all finite, relative error {error.whole:.2e}, at most {limit:.0e}; of one matrix {error.worst:.2e} "
            f"({error.worst_name}), at most {_WORST_MATRIX * limit:.0e}"
            if error.size
            else "all weights are zero",
        )


@dataclass
class _TowerError:
    """What a recipe makes of a tower's matrices, and of the one it holds worst."""

    difference: float = 0.0  # sums of squares
    size: float = 0.0
    worst: float = 0.0
    worst_name: str = "none"

    @property
    def whole(self) -> float:
        return math.sqrt(self.difference / self.size)

    def add(self, name: str, difference: float, size: float) -> None:
        self.difference, self.size = self.difference + difference, self.size + size
        error = math.sqrt(difference / size) if size else 0.0
        if error > self.worst:
            self.worst, self.worst_name = error, name
