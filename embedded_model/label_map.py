"""The dense target of a picture: what covers the centre of each patch, or has its middle there and covers no centre.

A map holds one index per pixel and, per index, the classes. It is sampled for any patch grid, because the
processor resizes and slices a picture before the model cuts it into 14x14 patches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

PATCH_SIZE = 14

Classes = npt.NDArray[np.int64]
Box = tuple[float, float, float, float]  # left, top, right, bottom; pixels


class PatchLabels(NamedTuple):
    """Classes per patch, each (rows, cols); 0 is background."""

    shape: Classes  # `shapes.SHAPE_CLASS`
    colour: Classes  # `colours.COLOUR_CLASS`, of the shape or of the ink
    character: Classes  # `writing.CHARACTER_CLASS`; a character owns the cell it is set in
    centre: Classes  # 1 where the middle of an object lies in the patch: counting starts here


class Thing(NamedTuple):
    """An object or a character whose middle lies in a slice."""

    x: float  # columns of a coarse grid, from the left side of the slice
    y: float  # rows
    shape: int = 0
    colour: int = 0
    character: int = 0
    entry: int = 0  # in the tables of the map


@dataclass(frozen=True, kw_only=True)
class LabelMap:
    """Classes per pixel: `index` points into the tuples, whose entry 0 is the background."""

    index: npt.NDArray[np.uint8]  # (height, width)
    shapes: tuple[int, ...] = (0,)
    colours: tuple[int, ...] = (0,)
    characters: tuple[int, ...] = (0,)
    centres: tuple[tuple[float, float], ...] = field(default=())  # (x, y) of each object, pixels

    def patches(self, rows: int | None = None, cols: int | None = None, box: Box | None = None) -> PatchLabels:
        """Return the labels of a `rows` x `cols` grid laid over `box` (left, top, right, bottom; pixels).

        Without `box` the grid covers the picture; without `rows` and `cols` it is that of 14x14 pixels.
        """
        height, width = self.index.shape
        left, top, right, bottom = box or (0.0, 0.0, float(width), float(height))
        rows = rows or max(1, round((bottom - top) / PATCH_SIZE))
        cols = cols or max(1, round((right - left) / PATCH_SIZE))
        index = self._at_patches(rows, cols, (left, top, right, bottom))
        centre = np.zeros((rows, cols), np.int64)
        for centre_x, centre_y in self.centres:
            row = math.floor((centre_y - top) / (bottom - top) * rows)
            col = math.floor((centre_x - left) / (right - left) * cols)
            if 0 <= row < rows and 0 <= col < cols:
                centre[row, col] = 1
        shape, colour, character = (_classes(table, index) for table in self._tables())
        return PatchLabels(shape, colour, character, centre)

    def owners(self, rows: int, cols: int, things: Sequence[Thing], box: Box | None = None) -> Classes:
        """Return which of the things each patch shows, (rows, cols): 1 + its number.

        0 is background, -1 what is not among the things: its middle is outside the box.
        """
        height, width = self.index.shape
        numbers = np.full(max(1, *(len(table) for table in self._tables())), -1)
        numbers[0] = 0
        for n, thing in enumerate(things):
            numbers[thing.entry] = 1 + n
        owners: Classes = numbers[self._at_patches(rows, cols, box or (0.0, 0.0, float(width), float(height)))]
        return owners

    def _tables(self) -> tuple[tuple[int, ...], ...]:
        return self.shapes, self.colours, self.characters

    def _at_patches(self, rows: int, cols: int, box: Box) -> npt.NDArray[np.uint8]:
        """Return the index of what each patch shows, (rows, cols)."""
        height, width = self.index.shape
        left, top, right, bottom = box
        y = np.clip((top + (np.arange(rows) + 0.5) * (bottom - top) / rows).astype(np.int64), 0, height - 1)
        x = np.clip((left + (np.arange(cols) + 0.5) * (right - left) / cols).astype(np.int64), 0, width - 1)
        shown = self.index[y[:, None], x[None]]
        under_centres = set(shown.ravel().tolist())
        for middle_x, middle_y, n in self._middles():
            row = math.floor((middle_y - top) / (bottom - top) * rows)
            col = math.floor((middle_x - left) / (right - left) * cols)
            if n not in under_centres and 0 <= row < rows and 0 <= col < cols and shown[row, col] == 0:
                shown[row, col] = n
        return shown

    def _middles(self) -> list[tuple[float, float, int]]:
        """Return the middle (x, y; pixels) and the index of each object or character."""
        return [(x, y, n) for n, (x, y) in enumerate(self.centres, 1)] + self._characters

    def things(self, side: int, box: Box | None = None) -> tuple[Thing, ...]:
        """Return what has its middle in `box`: objects from left to right, then characters in the order they are read.

        Their places are those on a `side` x `side` grid over the box.
        """
        height, width = self.index.shape
        left, top, right, bottom = box or (0.0, 0.0, float(width), float(height))

        def place(x: float, y: float) -> tuple[float, float]:
            return (x - left) / (right - left) * side, (y - top) / (bottom - top) * side

        objects = sorted(enumerate(self.centres, 1), key=lambda item: item[1])
        found = [Thing(*place(x, y), self.shapes[n], self.colours[n], entry=n) for n, (x, y) in objects]
        found += [Thing(*place(x, y), character=self.characters[n], entry=n) for x, y, n in self._characters]
        return tuple(thing for thing in found if 0 <= thing.x < side and 0 <= thing.y < side)

    @cached_property
    def _characters(self) -> list[tuple[float, float, int]]:
        """Return the middle (x, y; pixels) and the index of each character, in the order they are read."""
        if len(self.characters) == 1:
            return []
        flat = self.index.ravel()
        rows, columns = np.divmod(np.arange(flat.size), self.index.shape[1])
        areas, across, down = (
            np.bincount(flat, weights, len(self.characters)) for weights in (None, columns + 0.5, rows + 0.5)
        )
        seen = [n for n in range(1, len(self.characters)) if areas[n]]
        return [(across[n] / areas[n], down[n] / areas[n], n) for n in seen]


def _classes(table: tuple[int, ...], index: npt.NDArray[np.uint8]) -> Classes:
    """Look classes up; a picture without shapes (or characters) has an empty table."""
    if len(table) == 1:
        return np.zeros(index.shape, np.int64)
    return np.asarray(table, np.int64)[index]
