"""Answers and dense targets in one loss: a model that learns to answer goes on naming what it sees and hears.

An answer is a handful of tokens; the patches of its picture are 64 targets more, for the price of a few small heads,
and the resampler's queries 16: each is to tell which object has its middle in its cell of the picture, so that an
object is one token to the language model. The features are those of the same forward pass.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from embedded_model.blueprint import PATCH_SIZE
from embedded_model.samples import Sample
from embedded_model.speech import ClipBank
from embedded_model.towers import (
    DenseHeads,
    SliceThings,
    Targets,
    join_targets,
    picture_targets,
    slice_things,
    sound_targets,
    tokens_of,
)
from tianquan.models.omni_model import OmniModel, frames_of
from tianquan.processing.image import patchify
from tianquan.request import AudioInput, ImageInput
from tianquan.training.examples import Example
from tianquan.training.module_tree import ModuleTree
from tianquan.training.objective import AnswerObjective, StepLoss


@dataclass(frozen=True, kw_only=True)
class GroundedExample(Example):
    """An example with its patches' classes and the things to be seen, slice by slice, and its sounds' classes."""

    patches: tuple[Targets, ...]
    things: tuple[SliceThings, ...]
    tokens: tuple[Targets, ...]


def ground(example: Example, sample: Sample, bank: ClipBank) -> GroundedExample:
    """Return the example with what the generator knows of its media."""
    patches, things = [], []
    pictures = [image for image in example.prompt.images if not image.num_video_frames]  # films have no labels
    for image, picture in zip(pictures, sample.pictures, strict=True):
        width, height = picture.image.size
        overview, *slices = image.slices
        patches.append(picture_targets(picture.labels, *_grid(overview)))
        things.append(slice_things(picture.labels, *_grid(overview)))
        kept = range(len(slices)) if image.is_kept is None else np.flatnonzero(image.is_kept).tolist()
        for n, pixels in zip(kept, slices, strict=True):
            row, col = divmod(n, image.grid.cols)
            left, top = width * col / image.grid.cols, height * row / image.grid.rows
            box = (left, top, left + width / image.grid.cols, top + height / image.grid.rows)
            patches.append(picture_targets(picture.labels, *_grid(pixels), box))
            things.append(slice_things(picture.labels, *_grid(pixels), box))
    clips = zip(example.prompt.audios, sample.sounds, strict=True)
    return GroundedExample(
        **vars(example),
        patches=tuple(patches),
        things=tuple(things),
        tokens=tuple(sound_targets(sound, bank, clip.num_tokens) for clip, sound in clips),
    )


def _of_pictures(images: Sequence[ImageInput]) -> npt.NDArray[np.bool_]:
    """Return which slices (S,) belong to pictures; the frames of films have no labels."""
    return np.array([image.num_video_frames == 0 for image in images for _ in frames_of([image])])


def _grid(pixels: npt.NDArray[np.uint8]) -> tuple[int, int]:
    return pixels.shape[0] // PATCH_SIZE, pixels.shape[1] // PATCH_SIZE


class GroundedObjective(AnswerObjective):
    """The answers' cross-entropy, plus `share` times the mean of the dense heads'.

    Args:
        model: loaded through `tree`, on the torch backend.
        tree: its weights.
        heads: of the dense targets.
        share: of the dense loss.
    """

    output_layers: tuple[str, ...] = (*AnswerObjective.output_layers, "heads")

    def __init__(self, model: OmniModel, tree: ModuleTree, heads: DenseHeads, share: float) -> None:
        super().__init__(model, tree)
        self.heads = heads
        self._share = share
        self._patch_features: Tensor | None = None
        self._query_features: Tensor | None = None
        self._sound_features: Tensor | None = None

    def forward(self, items: Sequence[Example]) -> StepLoss:
        """See `Objective.forward`."""
        self._patch_features = self._query_features = self._sound_features = None
        loss = super().forward(items)
        grounded = [item for item in items if isinstance(item, GroundedExample)]
        assert len(grounded) == len(items)
        dense = loss.total.new_zeros(())
        if self._patch_features is not None:
            targets = join_targets([targets for item in grounded for targets in item.patches])
            dense = dense + self.heads.picture_loss(self._patch_features, targets).total / len(targets[0])
        if self._query_features is not None:
            assert self._patch_features is not None
            slices = [things for item in grounded for things in item.things]
            cells, owners = self.heads.things_loss(self._patch_features, self._query_features, slices)
            dense = dense + cells.total / len(self._query_features) + owners.total / len(self._patch_features)
        if self._sound_features is not None:
            targets = join_targets([targets for item in grounded for targets in item.tokens])
            dense = dense + self.heads.sound_loss(self._sound_features, targets).total / len(targets[0])
        self._patch_features = self._query_features = self._sound_features = None
        return replace(loss, total=loss.total + self._share * loss.num_terms * dense)

    def encode_images(self, images: Sequence[ImageInput]) -> Tensor:
        """See `AnswerObjective.encode_images`."""
        encoder, resampler = self._model.load_vision()
        slices = frames_of(images)
        grids = [_grid(pixels) for pixels in slices]
        features: Tensor = encoder([patchify(pixels, PATCH_SIZE) for pixels in slices], grids)
        queries = resampler(features, grids)  # (S, Q, C)
        of_pictures = _of_pictures(images)
        if of_pictures.any():
            of_patches = torch.from_numpy(np.repeat(of_pictures, [math.prod(grid) for grid in grids]))
            self._patch_features = features if of_pictures.all() else features[of_patches]
            self._query_features = queries[torch.from_numpy(of_pictures)].flatten(0, 1)
        return self._model.join_frames(queries, images).flatten(0, 1)

    def encode_clips(self, clips: Sequence[AudioInput]) -> Tensor:
        """See `AnswerObjective.encode_clips`."""
        features = super().encode_clips(clips)
        self._sound_features = features[tokens_of(clips)]
        return features
