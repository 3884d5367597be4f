"""The dense target of a picture: what covers the centre of each patch.

A map holds one index per pixel and, per index, the classes. It is sampled for any patch grid, because the
processor resizes and slices a picture before the model cuts it into 14x14 patches.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

PATCH_SIZE = 14

Classes = npt.NDArray[np.int64]


class PatchLabels(NamedTuple):
    """Classes per patch, each (rows, cols); 0 is background."""

    shape: Classes  # `shapes.SHAPE_CLASS`
    colour: Classes  # `colours.COLOUR_CLASS`, of the shape or of the ink
    character: Classes  # `writing.CHARACTER_CLASS`; a character owns the cell it is set in
    centre: Classes  # 1 where the middle of an object lies in the patch: counting starts here


class CellLabels(NamedTuple):
    """Classes per cell of a coarse grid, each (rows, cols); 0 is background. Every object is in one cell only."""

    shape: Classes  # of the object whose middle lies in the cell, the leftmost if there are several
    colour: Classes
    first_character: Classes  # of those whose middle lies in the cell, in the order they are read
    second_character: Classes
    third_character: Classes
    fourth_character: Classes  # small figures stand four to a cell
    second_shape: Classes  # of the next object whose middle lies there: of five objects two often share a cell
    second_colour: Classes


@dataclass(frozen=True, kw_only=True)
class LabelMap:
    """Classes per pixel: `index` points into the tuples, whose entry 0 is the background."""

    index: npt.NDArray[np.uint8]  # (height, width)
    shapes: tuple[int, ...] = (0,)
    colours: tuple[int, ...] = (0,)
    characters: tuple[int, ...] = (0,)
    centres: tuple[tuple[float, float], ...] = field(default=())  # (x, y) of each object, pixels

    def patches(
        self, rows: int | None = None, cols: int | None = None, box: tuple[float, float, float, float] | None = None
    ) -> PatchLabels:
        """Return the labels of a `rows` x `cols` grid laid over `box` (left, top, right, bottom; pixels).

        Without `box` the grid covers the picture; without `rows` and `cols` it is that of 14x14 pixels.
        """
        height, width = self.index.shape
        left, top, right, bottom = box or (0.0, 0.0, float(width), float(height))
        rows = rows or max(1, round((bottom - top) / PATCH_SIZE))
        cols = cols or max(1, round((right - left) / PATCH_SIZE))
        y = np.clip((top + (np.arange(rows) + 0.5) * (bottom - top) / rows).astype(np.int64), 0, height - 1)
        x = np.clip((left + (np.arange(cols) + 0.5) * (right - left) / cols).astype(np.int64), 0, width - 1)
        index = self.index[y[:, None], x[None]]  # (rows, cols)
        centre = np.zeros((rows, cols), np.int64)
        for centre_x, centre_y in self.centres:
            row = math.floor((centre_y - top) / (bottom - top) * rows)
            col = math.floor((centre_x - left) / (right - left) * cols)
            if 0 <= row < rows and 0 <= col < cols:
                centre[row, col] = 1
        shape, colour, character = (_classes(table, index) for table in (self.shapes, self.colours, self.characters))
        return PatchLabels(shape, colour, character, centre)

    def cells(self, side: int, box: tuple[float, float, float, float] | None = None) -> CellLabels:
        """Return what a `side` x `side` grid over `box` is to tell: objects whose middle lies there, letters."""
        height, width = self.index.shape
        grid = _Grid(side, box or (0.0, 0.0, float(width), float(height)))
        shape, colour = np.zeros((2, side, side), np.int64), np.zeros((2, side, side), np.int64)
        for n, (x, y) in sorted(enumerate(self.centres, 1), key=lambda item: item[1]):
            grid.put(x, y, (shape, self.shapes[n]), (colour, self.colours[n]))
        characters = np.zeros((4, side, side), np.int64)
        for x, y, character in self._characters():
            grid.put(x, y, (characters, character))
        first, second = zip(shape, colour, strict=True)
        return CellLabels(*first, characters[0], characters[1], characters[2], characters[3], *second)

    def _characters(self) -> list[tuple[float, float, int]]:
        """Return the middle (x, y; pixels) and the class of each character, in the order they are read."""
        if len(self.characters) == 1:
            return []
        flat = self.index.ravel()
        rows, columns = np.divmod(np.arange(flat.size), self.index.shape[1])
        areas, across, down = (
            np.bincount(flat, weights, len(self.characters)) for weights in (None, columns + 0.5, rows + 0.5)
        )
        seen = [n for n in range(1, len(self.characters)) if areas[n]]
        return [(across[n] / areas[n], down[n] / areas[n], self.characters[n]) for n in seen]


@dataclass(frozen=True)
class _Grid:
    """A coarse grid laid over a part of the picture."""

    side: int
    box: tuple[float, float, float, float]  # left, top, right, bottom; pixels

    def put(self, x: float, y: float, *values: tuple[Classes, int]) -> None:
        """Write each value into the first of its layers (N, side, side) that is empty where (x, y) lies."""
        left, top, right, bottom = self.box
        row = math.floor((y - top) / (bottom - top) * self.side)
        col = math.floor((x - left) / (right - left) * self.side)
        if 0 <= row < self.side and 0 <= col < self.side:
            for layers, value in values:
                empty = np.flatnonzero(layers[:, row, col] == 0)
                if empty.size:
                    layers[empty[0], row, col] = value


def _classes(table: tuple[int, ...], index: npt.NDArray[np.uint8]) -> Classes:
    """Look classes up; a picture without shapes (or characters) has an empty table."""
    if len(table) == 1:
        return np.zeros(index.shape, np.int64)
    return np.asarray(table, np.int64)[index]
