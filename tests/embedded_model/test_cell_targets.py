"""In which cell a thing is to be told: where its middle is or, near a border, where it is told already."""

from __future__ import annotations

import numpy as np
import pytest
from embedded_model.cell_targets import CHARACTERS, COLOURS, SHAPES, CellLabels, cell_labels, places
from embedded_model.label_map import Thing

SIDE = 4
FIELDS = CellLabels._fields


def likely(*told):
    """Return what heads hold for likely: nothing but the things told, each (slots, cell, class)."""
    heads = [np.zeros((SIDE * SIDE, 12), np.float32) for _ in FIELDS]
    for slots, cell, kind in told:
        heads[slots[-1]][cell, kind] = 1.0
    return heads


def test_slots_are_named_after_what_they_hold():
    for slots, kind in ((SHAPES, "shape"), (COLOURS, "colour"), (CHARACTERS, "character")):
        assert [n for n, name in enumerate(FIELDS) if name.endswith(kind)] == list(slots)


@pytest.mark.parametrize(
    ("x", "y", "told_in", "cell"),
    [
        (1.9, 0.5, 2, 2),  # just left of the border: told to its right
        (2.1, 0.5, 1, 1),
        (1.5, 0.5, 2, 1),  # too far from it
        (1.9, 0.5, 0, 1),  # told elsewhere
        (1.9, 0.9, 6, 6),  # near a corner, in the cell opposite
        (0.1, 0.1, 3, 0),  # there is none beside it
        (3.99, 3.99, 0, 15),
    ],
)
def test_near_a_border_a_thing_belongs_where_it_is_told(x, y, told_in, cell):
    for thing, told in (
        (Thing(x, y, shape=3, colour=4), ((SHAPES, told_in, 3), (COLOURS, told_in, 4))),
        (Thing(x, y, character=5), ((CHARACTERS, told_in, 5),)),
    ):
        labels = cell_labels([thing], SIDE, places([thing], SIDE, likely(*told)))
        shown = {int(n) for kind in labels for n in np.flatnonzero(kind)}
        assert shown == {cell}
        own = cell_labels([thing], SIDE)
        assert {int(n) for kind in own for n in np.flatnonzero(kind)} == {int(y) * SIDE + int(x)}


def test_told_nowhere_it_belongs_where_it_is():
    things = [Thing(x, 0.5, character=5) for x in np.linspace(0, 3.99, 50)]
    for thing in things:
        assert places([thing], SIDE, likely()) == [int(thing.x)]


def test_patches_have_a_say():
    thing = Thing(1.9, 0.5, shape=3, colour=4)
    votes = np.zeros((1, SIDE * SIDE), np.float32)
    told = likely((SHAPES, 1, 3))  # half of what its own cell may tell
    assert places([thing], SIDE, told, votes) == [1]
    votes[0, 2] = 0.9
    assert places([thing], SIDE, told, votes) == [2]
    assert places([thing._replace(x=1.5)], SIDE, told, votes) == [1]  # the middle is out of doubt


def test_of_two_in_a_cell_one_goes_to_an_empty_one_that_is_near():
    near, far = Thing(1.75, 0.5, shape=3, colour=4), Thing(1.45, 0.5, shape=5, colour=4)
    assert places([near, far], SIDE, likely()) == [2, 1]
    assert places([near._replace(x=1.6), far], SIDE, likely()) == [1, 1]  # there is none near
    assert places([near, far, Thing(2.5, 0.5, shape=1, colour=1)], SIDE, likely()) == [1, 1, 2]  # not an empty one
    votes = np.zeros((2, SIDE * SIDE), np.float32)
    votes[0, 1] = votes[1, 1] = 0.5
    assert places([near, far._replace(x=1.3)], SIDE, likely(), votes) == [2, 1]  # the nearer border
    votes[1, 0] = 0.4
    assert places([near, far._replace(x=1.25)], SIDE, likely(), votes) == [1, 0]  # patches are ready to go
    assert places([Thing(1.75, 0.5, character=3), Thing(1.45, 0.5, character=4)], SIDE, likely()) == [1, 1]


def test_what_is_more_than_a_cell_holds_is_left_out():
    things = [Thing(0.5, 0.5, shape=n, colour=n) for n in (1, 2, 3)]
    things += [Thing(0.5, 0.5, character=n) for n in (1, 2, 3, 4, 5)]
    labels = cell_labels(things, SIDE)
    assert [int(kind[0]) for kind in labels] == [1, 1, 1, 2, 3, 4, 2, 2]
    assert not any(kind[1:].any() for kind in labels)
