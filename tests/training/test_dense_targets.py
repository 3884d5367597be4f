"""The dense loss of the resampler's queries: every cell named, and as many of each thing in all as there are."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from embedded_model.towers import CELL_SLOTS, DenseHeads
from embedded_model.train import load_tree
from torch import nn

from tianquan.checkpoint import find_folder

NUM_CELLS = 16
SURE = 20.0


class Said(nn.Module):
    """A head that says what it was told to, whatever the features are."""

    def __init__(self, classes, num_classes):
        super().__init__()
        self.register_buffer("logits", SURE * nn.functional.one_hot(torch.as_tensor(classes), num_classes).float())

    def forward(self, features):
        return self.logits[: len(features)]


@pytest.fixture(scope="module")
def heads():
    _, model, _ = load_tree(find_folder("embedded"))
    return DenseHeads(model, 3, 3)


def loss_of(heads, said, targets):
    """Return the whole loss and that of the numbers, where the heads are sure of what is said."""
    sizes = [head.out_features for head in heads.cells]
    other = DenseHeads.__new__(DenseHeads)
    nn.Module.__init__(other)
    other.cells = nn.ModuleList([Said(classes, size) for classes, size in zip(said, sizes, strict=True)])
    features = torch.zeros(len(targets[0]), 1)
    whole = other.cell_loss(features, tuple(targets)).total.item()
    return whole, other._count_loss(features, tuple(targets)).item()


def blank(num_slices=1):
    return np.zeros((8, num_slices * NUM_CELLS), np.int64)  # of each slot


def test_what_is_right_costs_nothing(heads):
    targets = blank()
    targets[0, [1, 5]], targets[1, [1, 5]], targets[2, 7] = 3, 4, 9
    assert loss_of(heads, targets, targets) == pytest.approx((0, 0), abs=1e-3)


def test_an_object_in_the_next_cell_is_still_one(heads):
    targets, said = blank(), blank()
    targets[0, 1], said[0, 2] = 3, 3
    whole, of_numbers = loss_of(heads, said, targets)
    assert whole > 1
    assert of_numbers == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize(("slot", "other"), [(0, 6), (1, 7), (2, 5)])
def test_slots_of_a_cell_count_together(heads, slot, other):
    assert any({slot, other} <= set(slots) for slots in CELL_SLOTS)
    targets, said = blank(), blank()
    targets[slot, 1], said[other, 1] = 3, 3
    assert loss_of(heads, said, targets)[1] == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("slot", range(8))
def test_an_object_claimed_twice_costs(heads, slot):
    targets = blank()
    targets[slot, 1] = 3
    said = targets.copy()
    said[slot, 2] = 3
    assert loss_of(heads, said, targets)[1] == pytest.approx(0.75, abs=1e-2)  # one too many
    assert loss_of(heads, blank(), targets)[1] == pytest.approx(0.75, abs=1e-2)  # one too few


def test_slices_are_counted_each_by_itself(heads):
    targets, said = blank(2), blank(2)
    targets[0, 1], said[0, NUM_CELLS + 1] = 3, 3
    assert loss_of(heads, said, targets)[1] == pytest.approx(1.5, abs=2e-2)
