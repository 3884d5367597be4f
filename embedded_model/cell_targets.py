"""What the resampler's queries are to tell: the things in a slice, each in one cell of a coarse grid.

A thing belongs to the cell its middle lies in. How near a border that is cannot be seen to the pixel, and whether both
cells claim it or none does is worse than which of the two has it: near a border it belongs to the cell that its patches
name already or, where they are undecided, that tells it best, so that a model is only asked to agree with itself. All
patches of a thing are to name its cell: what they have agreed on before the queries look is one answer for both. Of two
objects in a cell one belongs to an empty cell beside it, if there is one near.

Legend: Q cells, row by row; K classes.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from embedded_model.label_map import Classes, Thing

BORDER = 0.2  # of a cell: as near to it, a thing may belong to either side
SHARED_BORDER = 0.35  # the same for objects that would share a cell
VOTES = 4.0  # how much more the patches say than the cells

Likely = npt.NDArray[np.float32]  # (Q, K) of a head, what it holds for likely


class CellLabels(NamedTuple):
    """Classes per cell, each (Q,); 0 is nothing. A head of the dense loss has one of them to tell."""

    shape: Classes  # of the leftmost object of the cell
    colour: Classes
    first_character: Classes  # of the cell's, in the order they are read
    second_character: Classes
    third_character: Classes
    fourth_character: Classes  # small figures stand four to a cell
    second_shape: Classes  # of the next object: of five two often share a cell
    second_colour: Classes


SHAPES, COLOURS, CHARACTERS = (0, 6), (1, 7), (2, 3, 4, 5)  # which of them hold what


def places(
    things: Sequence[Thing], side: int, likely: Sequence[Likely] | None = None, votes: Likely | None = None
) -> list[int]:
    """Return the cell of a `side` x `side` grid that each of the things belongs to.

    Args:
        things: of the slice.
        side: of the grid, in cells.
        likely: of each head of the cells; None: a thing belongs where its middle is.
        votes: (things, Q), how surely the patches of a thing hold it for each cell's.
    """
    if likely is None:
        return [int(thing.y) * side + int(thing.x) for thing in things]
    fits = [_fits(thing, side, likely, None if votes is None else votes[n]) for n, thing in enumerate(things)]
    cells = [
        max(_near_cells(thing, side, BORDER), key=fit.__getitem__) for thing, fit in zip(things, fits, strict=True)
    ]
    objects = [n for n, thing in enumerate(things) if not thing.character]
    while moves := list(_moves(objects, cells, fits)):
        _, n, cell = max(moves)
        cells[n] = cell
    return cells


def _fits(thing: Thing, side: int, likely: Sequence[Likely], votes: Likely | None) -> dict[int, float]:
    """Return how well a thing fits in each of the cells it may belong to."""
    return {
        cell: _told(thing, cell, likely) + (0 if votes is None else VOTES * float(votes[cell])) - away
        for cell, away in _near_cells(thing, side, SHARED_BORDER).items()
    }


def _moves(
    objects: Sequence[int], cells: Sequence[int], fits: Sequence[dict[int, float]]
) -> Iterator[tuple[float, int, int]]:
    """Yield what an object that shares its cell gains in an empty one, the object and that cell."""
    held = Counter(cells[n] for n in objects)
    for n in objects:
        if held[cells[n]] > 1:
            yield from ((fit - fits[n][cells[n]], n, cell) for cell, fit in fits[n].items() if not held[cell])


def cell_labels(things: Sequence[Thing], side: int, cells: Sequence[int] | None = None) -> CellLabels:
    """Return what each cell of a `side` x `side` grid is to tell.

    Args:
        things: of the slice; those of one cell are told in this order, what is more than fits is left out.
        side: of the grid, in cells.
        cells: of the things; None: where their middles are.
    """
    labels = CellLabels(*(np.zeros(side * side, np.int64) for _ in CellLabels._fields))
    for thing, cell in zip(things, places(things, side) if cells is None else cells, strict=True):
        if thing.character:
            _put(labels, cell, CHARACTERS, thing.character)
        else:
            _put(labels, cell, SHAPES, thing.shape)
            _put(labels, cell, COLOURS, thing.colour)
    return labels


def _put(labels: CellLabels, cell: int, slots: tuple[int, ...], value: int) -> None:
    """Write a value into the first of the slots that is empty."""
    for slot in slots:
        if labels[slot][cell] == 0:
            labels[slot][cell] = value
            return


def _near_cells(thing: Thing, side: int, border: float) -> dict[int, float]:
    """Return the cells a thing may belong to, and how far outside of each its middle is."""
    near = itertools.product(_near(thing.y, side, border), _near(thing.x, side, border))
    return {row * side + col: math.hypot(down, across) for (row, down), (col, across) in near}


def _near(place: float, side: int, border: float) -> Iterator[tuple[int, float]]:
    """Yield the rows or columns that are as near as `border`, and how far away they are."""
    first, last = math.floor(place - border), math.floor(place + border)
    return ((n, max(n - place, place - n - 1, 0.0)) for n in range(first, last + 1) if 0 <= n < side)


def _told(thing: Thing, cell: int, likely: Sequence[Likely]) -> float:
    """Return how surely a cell tells of a thing, from 0 to about 1."""
    if thing.character:
        return float(sum(likely[slot][cell, thing.character] for slot in CHARACTERS))
    of_shape = sum(likely[slot][cell, thing.shape] for slot in SHAPES)
    of_colour = sum(likely[slot][cell, thing.colour] for slot in COLOURS)
    return float(of_shape + of_colour) / 2
