"""What a training step minimises: the cross-entropy of the assistant's tokens, over packed examples.

Legend: T tokens of all examples, C channels, N counted tokens.

The loss of a micro-batch is a sum; the trainer divides by the terms of the whole step, so that accumulation over
micro-batches of different sizes is exact.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from tianquan.models.omni_model import OmniModel
from tianquan.models.vision_encoder import segment_offsets
from tianquan.request import AudioInput, ImageInput
from tianquan.training.examples import Example
from tianquan.training.module_tree import ModuleTree

Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True)
class StepLoss:
    """The loss of one micro-batch."""

    total: Tensor  # sum over the counted terms
    num_terms: int
    num_tokens: int  # all that were computed, for tokens a second
    correct: dict[str, tuple[int, int]] = field(default_factory=dict)  # by group: right answers, answers


class Objective(nn.Module, ABC, Generic[Item]):
    """What the trainer needs to know of a loss over items of one kind. Its parameters are what can be trained."""

    output_layers: tuple[str, ...] = ()  # how the names of the modules that end in classes begin

    @abstractmethod
    def forward(self, items: Sequence[Item]) -> StepLoss:
        """Return the loss of a micro-batch."""

    @abstractmethod
    def num_terms(self, items: Sequence[Item]) -> int:
        """Return how many terms the loss of a micro-batch will have, without computing it."""

    @abstractmethod
    def source(self, item: Item) -> str:
        """Return what to call an item in an error."""


class AnswerObjective(Objective[Example]):
    """Cross-entropy of the tokens that `Example.loss_mask` counts.

    Args:
        model: loaded through `tree`, on the torch backend.
        tree: its weights.
    """

    output_layers: tuple[str, ...] = ("tree.llm.lm_head",)

    def __init__(self, model: OmniModel, tree: ModuleTree) -> None:
        super().__init__()
        self.tree = tree
        self._model = model

    def forward(self, items: Sequence[Example]) -> StepLoss:
        """See `Objective.forward`. An answer is right when each of its tokens is the likeliest."""
        model, ops, examples = self._model, self._model.ops, items
        offsets = segment_offsets([len(example.prompt.token_ids) for example in examples])
        token_ids = np.concatenate([example.prompt.token_ids for example in examples])
        mask = np.concatenate([_without_first(example) for example in examples])
        rows = np.flatnonzero(mask) - 1  # the token before predicts
        hidden = self._place_features(model.language_model.embed(token_ids), examples, offsets)
        logits = model.language_model.forward_whole(hidden, offsets, rows)  # (N, vocab)
        wanted = np.concatenate([example.targets for example in examples])[mask]
        targets = torch.as_tensor(wanted, dtype=torch.long, device=logits.device)
        total = functional.cross_entropy(logits.float(), targets, reduction="sum")
        hits = ops.to_numpy(logits.argmax(-1) == targets).astype(bool)
        return StepLoss(
            total=total,
            num_terms=len(rows),
            num_tokens=len(token_ids),
            correct=_right_answers(examples, offsets, rows, hits),
        )

    def num_terms(self, items: Sequence[Example]) -> int:
        """See `Objective.num_terms`."""
        return sum(int(_without_first(example).sum()) for example in items)

    def source(self, item: Example) -> str:
        """See `Objective.source`."""
        return item.source

    def encode_images(self, images: Sequence[ImageInput]) -> Tensor:
        """Return the features of all slices of all pictures, one after the other, (rows, C)."""
        return self._model.encode_images(images).flatten(0, 1)

    def encode_clips(self, clips: Sequence[AudioInput]) -> Tensor:
        """Return the features of all clips, one after the other, (rows, C)."""
        return self._model.load_audio().encode(clips)

    def _place_features(self, hidden: Tensor, examples: Sequence[Example], offsets: Any) -> Tensor:
        """Return hidden (T, C) with the features of all pictures and clips in their places, in one step each."""
        images = [image for example in examples for image in example.prompt.images]
        clips = [clip for example in examples for clip in example.prompt.audios]
        for kind, features in (
            ("image", self.encode_images(images) if images else None),
            ("audio", self.encode_clips(clips) if clips else None),
        ):
            if features is None:
                continue
            spans = [
                (offset + span.start, span.length)
                for example, offset in zip(examples, offsets[:-1], strict=True)
                for span in example.prompt.spans
                if span.kind == kind
            ]
            places = np.concatenate([np.arange(start, start + length) for start, length in spans])
            assert len(places) == len(features), f"{kind}: {len(places)} places, {len(features)} feature rows"
            index = torch.as_tensor(places, dtype=torch.long, device=hidden.device)
            hidden = hidden.index_copy(0, index, features.to(hidden.dtype))
        return hidden


def _without_first(example: Example) -> Any:
    """The mask of an example; its first token is predicted by none."""
    mask = example.loss_mask.copy()
    mask[0] = False
    return mask


def _right_answers(examples: Sequence[Example], offsets: Any, rows: Any, hits: Any) -> dict[str, tuple[int, int]]:
    """Count conversations of which every counted token was right, by the examples' group."""
    counts: dict[str, tuple[int, int]] = {}
    for example, start, stop in zip(examples, offsets[:-1], offsets[1:], strict=True):
        right, all_ = counts.get(example.group, (0, 0))
        own = hits[np.searchsorted(rows, start) : np.searchsorted(rows, stop)]
        counts[example.group] = (right + bool(own.all()), all_ + 1)
    return counts
