"""Draw large sheets that are mostly blank, with one small thing on them: what slices are for.

A sheet is a grid of squares of the size of a slice; the thing lies inside one of them, too small to be read in the
overview. Some sheets have a rule across, or a plain panel at the side and lines that repeat, as a window has.
"""

from __future__ import annotations

import random

import numpy as np
from PIL import Image, ImageDraw

from embedded_model.colours import any_rgb
from embedded_model.label_map import LabelMap
from embedded_model.pictures import Picture

UNIT = 112  # pixels: the side of a slice
GRIDS = ((2, 2), (3, 2), (2, 3), (3, 3), (4, 2), (2, 4))  # squares across and down
EDGE = 4  # pixels between the thing and the border of its square
PANEL_SHARE = 0.35  # of sheets
RULE_SHARE = 0.3


def draw_sheet(thing: Picture, rng: random.Random) -> Picture:
    """Return a sheet with a drawn picture somewhere on it, of the colour of that picture's corner."""
    cols, rows = rng.choice(GRIDS)
    paper = thing.image.convert("RGB").getpixel((0, 0))
    image = Image.new("RGB", (cols * UNIT, rows * UNIT), paper)
    panel = rng.random() < PANEL_SHARE
    col, row = rng.randrange(1 if panel else 0, cols), rng.randrange(rows)
    canvas = ImageDraw.Draw(image)
    if panel:
        _draw_window(canvas, image.size, rows, rng)
    elif rng.random() < RULE_SHARE:
        y = (rng.choice([r for r in range(rows) if r != row]) + rng.uniform(0.2, 0.8)) * UNIT
        canvas.line((8, y, image.width - 8, y), fill=(120, 120, 120), width=rng.choice((1, 2)))
    x, y = (
        at * UNIT + EDGE + rng.randint(0, max(0, UNIT - 2 * EDGE - side))
        for at, side in zip((col, row), thing.image.size, strict=True)
    )
    image.paste(thing.image, (x, y))
    index = np.zeros((image.height, image.width), np.uint8)
    index[y : y + thing.image.height, x : x + thing.image.width] = thing.labels.index
    labels = LabelMap(
        index=index,
        shapes=thing.labels.shapes,
        colours=thing.labels.colours,
        characters=thing.labels.characters,
        centres=tuple((x + centre_x, y + centre_y) for centre_x, centre_y in thing.labels.centres),
    )
    return Picture(image=image, labels=labels, lines=thing.lines)


def _draw_window(canvas: ImageDraw.ImageDraw, size: tuple[int, int], rows: int, rng: random.Random) -> None:
    """Draw a panel over the first column of squares, a bar on top, and the lines of a list."""
    width, height = size
    pitch, shade = rng.choice((UNIT // 2, UNIT)), rng.randint(205, 240)
    for n in range(1, rows * UNIT // pitch):
        canvas.line((UNIT, n * pitch, width, n * pitch), fill=(shade, shade, shade))
    panel = any_rgb(rng)
    canvas.rectangle((0, 0, UNIT - 1, height), fill=panel)
    canvas.rectangle((0, 0, width, rng.randint(0, EDGE)), fill=panel)
