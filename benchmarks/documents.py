"""Draws what `image_detail` is for: pages that are mostly blank, and screenshots with plain and repeated panels.

Everything is in units of a slice's side, so that the same page can be drawn for a model whose slices are 112 pixels
and for the official one with 448. On each there is one thing to find, inside one slice: a number of one to four digits,
or a coloured shape. Digits are 0.16 to 0.3 of a slice high: clear in their slice, 6 to 16 pixels in the overview of the
small model.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

GRIDS = ((3, 3), (2, 3), (3, 2), (2, 2), (2, 4), (4, 2))  # slices across and down
WINDOWS = ((3, 3), (4, 2), (3, 2))
COLOURS = {"red": (220, 30, 30), "green": (30, 150, 50), "blue": (30, 70, 220), "orange": (255, 140, 0)}
SHAPES = ("circle", "square", "triangle")
PAPERS = ((255, 255, 255), (255, 255, 255), (250, 248, 240), (245, 245, 245))
PANELS = ((30, 40, 60), (60, 60, 65), (225, 230, 240), (200, 215, 235))


class Page(NamedTuple):
    """A picture with its question and the answer."""

    image: Image.Image
    question: str
    answer: str


def _put_number(
    image: Image.Image, box: tuple[float, float, float, float], unit: int, rng: random.Random
) -> tuple[str, str]:
    """Write a number inside a box; return question and answer."""
    digits = "".join(rng.choice("0123456789") for _ in range(rng.randint(1, 4)))
    font = ImageFont.load_default(round(unit * rng.uniform(0.22, 0.42)))  # digits are 0.72 of it high
    canvas = ImageDraw.Draw(image)
    left, top, right, bottom = canvas.textbbox((0, 0), digits, font=font)
    x, y = _free(box, right - left, bottom - top, rng)
    canvas.text((x - left, y - top), digits, font=font, fill=(15, 15, 20))
    return "What number is shown?", digits


def _put_shape(
    image: Image.Image, box: tuple[float, float, float, float], unit: int, rng: random.Random
) -> tuple[str, str]:
    """Draw a shape inside a box; return question and answer."""
    shape, colour, size = rng.choice(SHAPES), rng.choice(tuple(COLOURS)), unit * rng.uniform(0.2, 0.4)
    x, y = _free(box, size, size, rng)
    canvas, corners = ImageDraw.Draw(image), (x, y, x + size, y + size)
    if shape == "circle":
        canvas.ellipse(corners, fill=COLOURS[colour])
    elif shape == "square":
        canvas.rectangle(corners, fill=COLOURS[colour])
    else:
        canvas.polygon([(x + size / 2, y), (x + size, y + size), (x, y + size)], fill=COLOURS[colour])
    return "What is in the picture?", f"{'an' if colour[0] in 'aeiou' else 'a'} {colour} {shape}"


def _free(
    box: tuple[float, float, float, float], width: float, height: float, rng: random.Random
) -> tuple[float, float]:
    left, top, right, bottom = box
    return rng.uniform(left, max(left, right - width)), rng.uniform(top, max(top, bottom - height))


Put = Callable[[Image.Image, tuple[float, float, float, float], int, random.Random], tuple[str, str]]


def _cell(col: int, row: int, unit: int) -> tuple[float, float, float, float]:
    edge = 0.06 * unit
    return col * unit + edge, row * unit + edge, (col + 1) * unit - edge, (row + 1) * unit - edge


def draw_page(rng: random.Random, unit: int, put: Put) -> Page:
    """Return a sheet with one thing on it, and perhaps a rule across."""
    cols, rows = rng.choice(GRIDS)
    image = Image.new("RGB", (cols * unit, rows * unit), rng.choice(PAPERS))
    row = rng.randrange(rows)
    if rng.random() < 0.4:
        y = (rng.choice([r for r in range(rows) if r != row]) + 0.5) * unit
        ImageDraw.Draw(image).line(
            (0.1 * unit, y, (cols - 0.1) * unit, y), fill=(120, 120, 120), width=max(1, unit // 80)
        )
    return Page(image, *put(image, _cell(rng.randrange(cols), row, unit), unit, rng))


def draw_screenshot(rng: random.Random, unit: int, put: Put) -> Page:
    """Return a window: a bar on top, a plain panel at the side, empty rows that repeat, one thing in the content."""
    cols, rows = rng.choice(WINDOWS)
    panel = rng.choice(PANELS)
    image = Image.new("RGB", (cols * unit, rows * unit), (255, 255, 255))
    canvas = ImageDraw.Draw(image)
    canvas.rectangle((0, 0, unit - 1, rows * unit), fill=panel)  # the side panel is one column of slices
    canvas.rectangle((0, 0, cols * unit, 0.14 * unit), fill=tuple(max(0, level - 25) for level in panel))
    for n in range(1, 2 * rows):  # a line between rows of the list, the same in each slice
        y = n * unit / 2
        canvas.line((unit, y, cols * unit, y), fill=(225, 225, 225), width=max(1, unit // 100))
    left, top, right, bottom = _cell(rng.randrange(1, cols), rng.randrange(rows), unit)
    half = unit / 2
    top = max(top, (top // half) * half + 0.18 * unit)
    return Page(image, *put(image, (left, top, right, bottom), unit, rng))


PAGES: dict[str, Callable[[random.Random, int], Page]] = {
    "page_number": lambda rng, unit: draw_page(rng, unit, _put_number),
    "page_shape": lambda rng, unit: draw_page(rng, unit, _put_shape),
    "screen_number": lambda rng, unit: draw_screenshot(rng, unit, _put_number),
    "screen_shape": lambda rng, unit: draw_screenshot(rng, unit, _put_shape),
}


def draw(kind: str, number: int, unit: int) -> Page:
    """Return page `number` of a kind for slices of `unit` pixels; equal numbers give equal layouts."""
    return PAGES[kind](random.Random(f"{kind}/{number}"), unit)
