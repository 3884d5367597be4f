"""Dense training of the encoders: every patch names the shape, colour and character in it, every 40 ms of sound its
phonemes and word, and, where the resampler is trained too, each of its queries the object in its cell of the picture.
Added up over its cells, a slice is also to have as many of each shape, colour and character as there are: an object on
the border of two is claimed by one of them, which one matters less.

Trained from nothing on answers alone, a model of this size learns colours and stays at chance for shapes and counts for
100,000 samples and more; an encoder that was made to see first does not. The heads are thrown away afterwards.

Legend: P patches, F audio tokens (40 ms), S slices, Q queries, C channels.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from accelerate import PartialState
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from embedded_model import colours, shapes, words
from embedded_model.blueprint import NUM_MELS, PATCH_SIZE, QUERY_GRID
from embedded_model.cell_targets import CHARACTERS, COLOURS, SHAPES, Likely, cell_labels, places
from embedded_model.label_map import Box, Classes, LabelMap, Thing
from embedded_model.samples import SampleStream
from embedded_model.speech import ClipBank
from embedded_model.stage import Stage
from embedded_model.studio import Sound
from tianquan.models.omni_model import OmniModel
from tianquan.processing.audio import S16_SCALE, prepare_audio
from tianquan.processing.image import patchify
from tianquan.request import AudioInput
from tianquan.training.module_tree import ModuleTree
from tianquan.training.objective import Objective, StepLoss

GRIDS = (
    (8, 8),
    (8, 8),
    (8, 8),
    (9, 7),
    (7, 9),
    (10, 6),
    (6, 10),
    (12, 5),
    (5, 12),
)  # columns, rows of about 64 patches
ZOOMS = (1.0, 1.0, 1.0, 1.5, 2.0)  # how much larger than the slice a picture is drawn
CROPPED = 0.5  # share of the pictures drawn at twice the size that are seen through a quarter, as slices are
BACKGROUND_WEIGHT = 0.15  # most patches are background; 1 for the others
OWNER_WEIGHT = 1.0  # of the cell a patch's thing belongs to, beside the mean of the patch's other heads
COUNT_TOLERANCE = 0.5  # up to which a sum that is not the number costs less
SILENCE_WEIGHT = 0.5


Targets = tuple[npt.NDArray[np.int64], ...]  # of each head, (P,) or (F,)


class SliceThings(NamedTuple):
    """What is in a slice."""

    things: tuple[Thing, ...]
    owners: Classes  # (P,) which of them a patch shows, from 1; 0 background, -1 one whose middle is not in the slice


@dataclass(frozen=True, kw_only=True)
class DenseItem:
    """One slice with its patches' classes, or one clip with its frames'."""

    index: int
    patches: npt.NDArray[np.uint8] | None = None  # (P, 588)
    grid: tuple[int, int] = (0, 0)  # rows, columns
    clip: AudioInput | None = None
    targets: Targets = ()
    things: SliceThings | None = None  # of a slice


class DenseLoss(NamedTuple):
    """Cross-entropy, the mean over heads and the sum over patches or tokens; how many of those that show something."""

    total: Tensor
    num_right: int  # under every head
    num_shown: int


class DenseSteps:
    """Step s: a stage's next numbered pictures or, in every `sound_every`-th step, sounds; shared by the processes."""

    def __init__(self, stream: SampleStream, stage: Stage) -> None:
        self._stream, self._stage = stream, stage
        processes = PartialState()
        self._first, self._every = processes.process_index, processes.num_processes

    def __getitem__(self, step: int) -> list[list[DenseItem]]:
        """Return one micro-batch."""
        size, every = self._stage.batch_size, self._stage.sound_every
        make = self._sound if every is not None and step % every == every - 1 else self._picture
        return [[make(step * size + n) for n in range(self._first, size, self._every)]]

    def _picture(self, index: int) -> DenseItem:
        rng = random.Random(f"dense/{index}")
        cols, rows = rng.choice(GRIDS)
        zoom = rng.choice(ZOOMS)
        width, height = cols * PATCH_SIZE, rows * PATCH_SIZE
        size = (round(width * zoom), round(height * zoom))
        stage = self._stage
        picture = self._stream.picture(
            index, size, stage.text_share, stage.max_objects, stage.large, stage.digits_share
        )
        image, box = picture.image, None
        if zoom == 2.0 and rng.random() < CROPPED:
            left, top = rng.choice((0, width)), rng.choice((0, height))
            box = (left, top, left + width, top + height)
            image = image.crop(box)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
        patches = patchify(np.asarray(image.convert("RGB")), PATCH_SIZE)
        targets = picture_targets(picture.labels, rows, cols, box)
        things = slice_things(picture.labels, rows, cols, box)
        return DenseItem(index=index, patches=patches, grid=(rows, cols), targets=targets, things=things)

    def _sound(self, index: int) -> DenseItem:
        sound = self._stream.sound(index)
        clip = prepare_audio([sound.samples.astype(np.float32) / np.float32(S16_SCALE)], NUM_MELS)[0]
        return DenseItem(index=index, clip=clip, targets=sound_targets(sound, self._stream.bank(), clip.num_tokens))


class DenseHeads(nn.Module):
    """Linear heads over the encoders' features, thrown away after training."""

    def __init__(self, model: OmniModel, num_phonemes: int, num_words: int) -> None:
        super().__init__()
        characters = 1 + max(words.CHARACTER_CLASS.values())
        picture_sizes = (1 + len(shapes.SHAPE_CLASS), 1 + len(colours.COLOUR_CLASS), characters, 2)
        sound_sizes = (1 + num_phonemes, 1 + num_phonemes, 1 + num_words)
        self.picture = _linears(model.config.vision.hidden_size, picture_sizes)
        self.sound = _linears(model.config.audio.output_size, sound_sizes)
        things = picture_sizes[:2]
        cell_sizes = (*things, *[characters] * 4, *things)
        self.cells = _linears(model.config.language.hidden_size, cell_sizes)
        self.owner = nn.Linear(model.config.vision.hidden_size, QUERY_GRID**2 + 1)  # the last: of no cell

    def picture_loss(self, features: Tensor, targets: Targets) -> DenseLoss:
        """Return the loss of patches (P, C)."""
        return _dense_loss(_logits(self.picture, features), targets, BACKGROUND_WEIGHT)

    def things_loss(
        self, features: Tensor, queries: Tensor, slices: Sequence[SliceThings]
    ) -> tuple[DenseLoss, DenseLoss]:
        """Return the loss of the resampler's queries, each of which tells of one cell of its slice, and of patches.

        Added to the first is how far the sums over the cells of a slice are from the numbers of its things. Patches
        are to name the cell of the thing they show.

        Args:
            features: of the patches of all slices (P, C).
            queries: of all slices (S * Q, C).
            slices: what is in each.
        """
        logits = _logits(self.cells, queries)
        owner = self.owner(features).float()
        likely = [head.softmax(-1).unflatten(0, (len(slices), -1)) for head in logits]  # each (S, Q, classes)
        seen = [head.detach().cpu().numpy() for head in likely]
        votes = np.split(owner.detach().softmax(-1).cpu().numpy(), np.cumsum([len(own.owners) for own in slices])[:-1])
        cells = [
            places(own.things, QUERY_GRID, [head[n] for head in seen], _votes(vote, own))
            for n, (own, vote) in enumerate(zip(slices, votes, strict=True))
        ]
        targets = join_targets([cell_labels(own.things, QUERY_GRID, of) for own, of in zip(slices, cells, strict=True)])
        loss = _dense_loss(logits, targets, 1.0)
        loss = loss._replace(total=loss.total + _count_loss(likely, targets))
        return loss, _owner_loss(owner, slices, cells)

    def sound_loss(self, features: Tensor, targets: Targets) -> DenseLoss:
        """Return the loss of audio tokens (F, C)."""
        return _dense_loss(_logits(self.sound, features), targets, SILENCE_WEIGHT)


def _linears(size: int, num_classes: Sequence[int]) -> nn.ModuleList:
    return nn.ModuleList([nn.Linear(size, number) for number in num_classes])


def _logits(heads: nn.ModuleList, features: Tensor) -> list[Tensor]:
    return [head(features).float() for head in heads]


def _dense_loss(logits: Sequence[Tensor], targets: Targets, rest_weight: float) -> DenseLoss:
    """Return the loss of some heads' logits, each (rows, classes); `rest_weight` is that of rows without a thing."""
    first = logits[0]
    total = first.new_zeros(())
    right = torch.ones(len(first), dtype=torch.bool, device=first.device)
    shown = torch.zeros_like(right)
    for head, classes in zip(logits, targets, strict=True):
        target = torch.as_tensor(classes, device=first.device)
        weight = torch.where(target == 0, rest_weight, 1.0)
        total = total + (functional.cross_entropy(head, target, reduction="none") * weight).sum() / len(logits)
        right &= head.argmax(-1) == target
        shown |= target > 0
    return DenseLoss(total, int((right & shown).sum()), int(shown.sum()))


def _count_loss(likely: Sequence[Tensor], targets: Targets) -> Tensor:
    """Return how far the sums over the cells (S, Q, classes) of a slice are from the numbers there are, added up."""
    total = likely[0].new_zeros(())
    for slots in (SHAPES, COLOURS, CHARACTERS):
        number: Tensor = sum((likely[slot].sum(1) for slot in slots), total.new_zeros(()))  # (S, classes)
        true = torch.zeros_like(number)
        for slot in slots:
            target = torch.as_tensor(targets[slot], device=true.device).unflatten(0, (len(true), -1))
            true = true.scatter_add(1, target, torch.ones_like(target, dtype=true.dtype))
        total = total + functional.smooth_l1_loss(number[:, 1:], true[:, 1:], reduction="sum", beta=COUNT_TOLERANCE)
    return total


def _votes(vote: Likely, own: SliceThings) -> Likely:
    """Return how surely the patches of each thing hold it for each cell's, (things, Q): the mean, 0 without patches."""
    votes = np.zeros((len(own.things), vote.shape[1]), np.float32)
    for n in range(len(own.things)):
        of_thing = own.owners == 1 + n
        if of_thing.any():
            votes[n] = vote[of_thing].mean(axis=0)
    return votes


def _owner_loss(logits: Tensor, slices: Sequence[SliceThings], cells: Sequence[Sequence[int]]) -> DenseLoss:
    """Return the loss of the cells that patches (P, Q + 1) name; those of the background name none."""
    none = logits.shape[1] - 1
    tables = [np.array([-1, *of, none]) for of in cells]  # by owner; -1 is the last entry
    named = np.concatenate([table[own.owners] for table, own in zip(tables, slices, strict=True)])
    target = torch.as_tensor(named, device=logits.device)
    total = functional.cross_entropy(logits, target, reduction="sum", ignore_index=-1)
    right = (logits.argmax(-1) == target).sum()
    return DenseLoss(OWNER_WEIGHT * total, int(right), int((target >= 0).sum()))


def join_targets(targets: Sequence[Targets]) -> Targets:
    """Return the classes of several pictures or sounds, head by head."""
    return tuple(np.concatenate(parts) for parts in zip(*targets, strict=True))


def sound_targets(sound: Sound, bank: ClipBank, num_tokens: int) -> Targets:
    """Return the classes of the tokens of a clip: the phonemes of both frames, and the word."""
    phonemes = sound.frame_classes(sound.phonemes, bank.phoneme_class)
    spoken = sound.frame_classes(sound.words, bank.word_class)
    pairs = phonemes[: 2 * num_tokens].reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1], spoken[: 2 * num_tokens : 2]


def picture_targets(labels: LabelMap, rows: int, cols: int, box: Box | None = None) -> Targets:
    """Return the classes of the patches of a slice that shows `box` of a picture."""
    return tuple(kind.reshape(-1) for kind in labels.patches(rows, cols, box))


def slice_things(labels: LabelMap, rows: int, cols: int, box: Box | None = None) -> SliceThings:
    """Return what is in a slice that shows `box` of a picture."""
    things = labels.things(QUERY_GRID, box)
    return SliceThings(things, labels.owners(rows, cols, things, box).reshape(-1))


class DenseObjective(Objective[DenseItem]):
    """Mean cross-entropy of all heads, per patch or audio token, and of pictures the same per query.

    Args:
        model: loaded through `tree`, on the torch backend.
        tree: its weights.
        heads: of the dense targets.
        has_cells: whether the queries have targets too.
    """

    output_layers = ("heads",)

    def __init__(self, model: OmniModel, tree: ModuleTree, heads: DenseHeads, *, has_cells: bool = False) -> None:
        super().__init__()
        self.tree = tree
        self.heads = heads
        self._vision, self._resampler = model.load_vision()
        self._audio = model.load_audio()
        self._has_cells = has_cells

    def forward(self, items: Sequence[DenseItem]) -> StepLoss:
        """See `Objective.forward`. A patch, query or token is right when every head is."""
        targets = join_targets([item.targets for item in items])
        correct = {}
        if items[0].patches is not None:
            grids = [item.grid for item in items]
            features = self._vision([item.patches for item in items if item.patches is not None], grids)
            loss = self.heads.picture_loss(features, targets)
            correct["patches"] = (loss.num_right, loss.num_shown)
            total = loss.total
            if self._has_cells:
                queries = self._resampler(features, grids).flatten(0, 1)  # (Q of all slices, C)
                slices = [item.things for item in items if item.things is not None]
                cells, owners = self.heads.things_loss(features, queries, slices)
                correct["cells"] = (cells.num_right, cells.num_shown)
                correct["owners"] = (owners.num_right, owners.num_shown)
                total = total + cells.total * (len(features) / len(queries)) + owners.total
        else:
            clips = [item.clip for item in items if item.clip is not None]
            features = self._audio.encode(clips)[tokens_of(clips)]
            loss = self.heads.sound_loss(features, targets)
            correct["frames"] = (loss.num_right, loss.num_shown)
            total = loss.total
        return StepLoss(total=total, num_terms=len(features), num_tokens=len(features), correct=correct)

    def num_terms(self, items: Sequence[DenseItem]) -> int:
        """See `Objective.num_terms`."""
        return sum(len(item.targets[0]) for item in items)

    def source(self, item: DenseItem) -> str:
        """See `Objective.source`."""
        return f"{'picture' if item.clip is None else 'sound'} {item.index}"


def tokens_of(clips: Sequence[AudioInput]) -> npt.NDArray[np.int64]:
    """Return which rows of the features of clips are sound, not the begin and end embeddings."""
    return np.flatnonzero(np.concatenate([[False, *[True] * clip.num_tokens, False] for clip in clips]))
