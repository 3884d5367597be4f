"""The dense loss of the resampler's queries and of patches.

Every cell is named, there are as many of each thing in all as there are, and all patches of a thing name one cell.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from embedded_model.cell_targets import cell_labels
from embedded_model.label_map import Thing
from embedded_model.towers import OWNER_WEIGHT, DenseHeads, SliceThings, _count_loss
from embedded_model.train import load_tree
from torch import nn

from tianquan.checkpoint import find_folder

SIDE, NUM_CELLS = 4, 16
SURE = 20.0


class Said(nn.Module):
    """A head that says what it was told to, whatever the features are."""

    def __init__(self, classes, num_classes):
        super().__init__()
        self.register_buffer(
            "logits", SURE * nn.functional.one_hot(torch.as_tensor(classes, dtype=torch.long), num_classes).float()
        )

    def forward(self, features):
        return self.logits[: len(features)]


@pytest.fixture(scope="module")
def heads():
    _, model, _ = load_tree(find_folder("embedded"))
    return DenseHeads(model, 3, 3)


def said_by(heads, *labels):
    """Return heads that say these labels of successive slices whatever they see."""
    sizes = [head.out_features for head in heads.cells]
    other = DenseHeads.__new__(DenseHeads)
    nn.Module.__init__(other)
    said = [np.concatenate(kind) for kind in zip(*labels, strict=True)]
    other.cells = nn.ModuleList([Said(classes, size) for classes, size in zip(said, sizes, strict=True)])
    other.owner = Said([], NUM_CELLS + 1)
    return other


def in_slice(things, owners=()):
    return SliceThings(tuple(things), np.array(owners, np.int64))


def loss_of(heads, said, things):
    """Return the whole loss of slices with these things, where the heads are sure of other things, slice by slice."""
    other = said_by(heads, *(cell_labels(slice_things, SIDE) for slice_things in said))
    queries, patches = torch.zeros(len(things) * NUM_CELLS, 1), torch.zeros(0, 1)
    cells, owners = other.things_loss(patches, queries, [in_slice(own) for own in things])
    assert (owners.total.item(), owners.num_shown) == (0, 0)
    return cells.total.item()


def owners_named(heads, named, said, slices):
    """Return the loss of patches that name these cells, where the cells say these things."""
    other = said_by(heads, *(cell_labels(own, SIDE) for own in said))
    other.owner = Said(named, NUM_CELLS + 1)
    _, owners = other.things_loss(torch.zeros(len(named), 1), torch.zeros(len(slices) * NUM_CELLS, 1), slices)
    return owners


def of_numbers(heads, said, things):
    labels = [cell_labels(slice_things, SIDE) for slice_things in said]
    likely = [head(torch.zeros(len(said) * NUM_CELLS, 1)).softmax(-1) for head in said_by(heads, *labels).cells]
    true = tuple(np.concatenate(k) for k in zip(*(cell_labels(own, SIDE) for own in things), strict=True))
    return _count_loss([head.unflatten(0, (len(said), -1)) for head in likely], true).item()


CIRCLE = Thing(1.5, 1.5, shape=3, colour=4)
FIGURE = Thing(2.5, 1.5, character=9)
MOVED = CIRCLE._replace(x=2.5)


def test_what_is_right_costs_nothing(heads):
    assert loss_of(heads, [[CIRCLE, FIGURE]], [(CIRCLE, FIGURE)]) == pytest.approx(0, abs=1e-3)
    assert loss_of(heads, [[], [CIRCLE]], [(), (CIRCLE,)]) == pytest.approx(0, abs=1e-3)


def test_an_object_in_the_next_cell_is_wrong_but_of_the_right_number(heads):
    assert loss_of(heads, [[MOVED]], [(CIRCLE,)]) > 4
    assert of_numbers(heads, [[MOVED]], [(CIRCLE,)]) == pytest.approx(0, abs=1e-3)


def test_at_a_border_either_cell_is_right(heads):
    for x in (1.9, 2.1):
        for told in (CIRCLE, MOVED):
            assert loss_of(heads, [[told]], [(CIRCLE._replace(x=x),)]) == pytest.approx(0, abs=1e-3)
        assert loss_of(heads, [[CIRCLE, MOVED]], [(CIRCLE._replace(x=x),)]) > 4  # but not both
        assert loss_of(heads, [[]], [(CIRCLE._replace(x=x),)]) > 4


def test_an_object_claimed_twice_or_never_costs(heads):
    for told in ([CIRCLE, MOVED], []):
        assert of_numbers(heads, [told], [(CIRCLE,)]) == pytest.approx(2 * 0.75, abs=1e-2)  # of its shape, its colour
        assert of_numbers(heads, [[*told, FIGURE]], [(CIRCLE, FIGURE)]) == pytest.approx(2 * 0.75, abs=1e-2)
    assert of_numbers(heads, [[]], [(FIGURE,)]) == pytest.approx(0.75, abs=1e-2)


def test_slots_of_a_cell_count_together(heads):
    other = CIRCLE._replace(shape=1, colour=1)
    assert of_numbers(heads, [[other, CIRCLE]], [(CIRCLE, other)]) == pytest.approx(0, abs=1e-3)


def test_slices_are_counted_each_by_itself(heads):
    assert of_numbers(heads, [[], [CIRCLE]], [(CIRCLE,), ()]) == pytest.approx(4 * 0.75, abs=2e-2)


def test_patches_name_the_cell_of_their_thing(heads):
    two = [in_slice([CIRCLE, FIGURE], [0, 1, 1, 2, -1]), in_slice([FIGURE], [1, 0])]
    own, of_figure, none = 5, 6, NUM_CELLS
    loss = owners_named(heads, [3, own, own, of_figure, none, of_figure, 0], [[CIRCLE, FIGURE], [FIGURE]], two)
    assert loss.total.item() == pytest.approx(0, abs=1e-3)  # what the background names does not matter
    assert (loss.num_right, loss.num_shown) == (5, 5)
    loss = owners_named(heads, [3, own, 7, of_figure, none, of_figure, 0], [[CIRCLE, FIGURE], [FIGURE]], two)
    assert loss.total.item() == pytest.approx(OWNER_WEIGHT * SURE, rel=1e-3)
    assert (loss.num_right, loss.num_shown) == (4, 5)


def test_at_a_border_patches_are_to_agree_with_most_of_them(heads):
    thing = in_slice([CIRCLE._replace(x=1.9)], [1, 1, 1])
    for named, missed in (([5, 5, 5], 0), ([6, 6, 6], 0), ([6, 6, 5], 1), ([6, 5, 5], 1)):
        loss = owners_named(heads, named, [[]], [thing])  # the cells say nothing yet
        assert loss.num_right == 3 - missed, named
