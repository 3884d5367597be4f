"""Draw text pictures: digits, words and short lines, each character known to the patch labels."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from embedded_model import colours, fonts, words
from embedded_model.backgrounds import draw_background
from embedded_model.colours import RGB
from embedded_model.fonts import Font, Script, Split
from embedded_model.label_map import LabelMap
from embedded_model.pictures import Picture, degrade

SIZES = (10, 12, 14, 16, 18, 20, 24, 28, 32, 36, 42, 48, 56, 64, 76, 90, 110, 130, 160, 190, 230, 280)  # pixels
MIN_INK_CONTRAST = 200.0  # redmean distance: thin strokes need more than a filled shape
MIN_LUMA_CONTRAST = 55.0  # of 255: yellow on lavender differs in colour and still cannot be read
MARGIN = 3
TALL_TEXT_RATIO = 1.25  # line pitch / font size


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How lines are set: font, place and ink."""

    lines: tuple[str, ...]
    font: Font
    x: float
    y: float
    pitch: int  # pixels from line to line
    ink: RGB
    ink_class: int  # colour class of the ink, 0 if it has no name
    turn: float  # degrees


def draw_text(
    lines: tuple[str, ...], size: tuple[int, int], split: Split, rng: random.Random, noise: np.random.Generator
) -> Picture:
    """Draw lines of text on a canvas of `size` (width, height), in a font of the split."""
    base, ink, ink_class = _paper_and_ink(rng)
    setting = _set(lines, size, split, rng, ink, ink_class)
    kind = "plain" if rng.random() < 0.5 else None
    image = draw_background(size, base, rng, noise, kind)
    mask = Image.new("L", size)
    index = Image.new("L", size)
    classes = _draw_lines(mask, index, setting, hard=rng.random() < 0.1)
    if setting.turn:
        mask = mask.rotate(setting.turn, Image.Resampling.BILINEAR)
        index = index.rotate(setting.turn, Image.Resampling.NEAREST)
    image.paste(ink, (0, 0), mask)
    labels = LabelMap(
        index=np.asarray(index),
        characters=(0, *classes),
        colours=(0, *(ink_class for _ in classes)),
    )
    return Picture(image=degrade(image, rng, noise), labels=labels, lines=lines)


def _paper_and_ink(rng: random.Random) -> tuple[RGB, RGB, int]:
    """Return the colours of paper and ink and the class of the ink; black on white comes often."""
    if rng.random() < 0.35:
        return (255, 255, 255), (0, 0, 0), colours.COLOUR_CLASS["black"]
    for _ in range(20):
        base = colours.any_rgb(rng)
        colour = rng.choice(colours.COLOURS)
        ink = colours.sample_rgb(colour, rng)
        if colours.distance(base, ink) >= MIN_INK_CONTRAST and abs(_luma(base) - _luma(ink)) >= MIN_LUMA_CONTRAST:
            return base, ink, colours.COLOUR_CLASS[colour.name]
    return (0, 0, 0), (255, 255, 255), colours.COLOUR_CLASS["white"]


def _luma(rgb: RGB) -> float:
    return 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2]


def _set(
    lines: tuple[str, ...], size: tuple[int, int], split: Split, rng: random.Random, ink: RGB, ink_class: int
) -> Setting:
    """Choose font, size and place so that all lines lie inside the canvas."""
    width, height = size
    is_chinese = any(ord(character) > 0x2E80 for line in lines for character in line)
    script: Script = "chinese" if is_chinese or rng.random() < fonts.LATIN_OF_CHINESE else "latin"
    name = rng.choice(fonts.font_names(split, script, latin=not is_chinese))
    turn = 0.0 if rng.random() < 0.7 else rng.uniform(-6, 6)
    usable = 0.86 if turn else 1.0
    reference = fonts.load_font(name, 32)
    longest = max(reference.getlength(line) for line in lines) / 32
    fits = min((width - 2 * MARGIN) * usable / longest, (height - 2 * MARGIN) * usable / (len(lines) * TALL_TEXT_RATIO))
    floor = 15 if is_chinese else 12
    wanted = fits * rng.uniform(0.3, 1.0) if rng.random() < 0.75 else fits
    wanted = max(wanted, floor)
    pixels = max((s for s in SIZES if s <= min(wanted, fits)), default=SIZES[0])
    font = fonts.load_font(name, pixels)
    text_width = max(font.getlength(line) for line in lines)
    pitch = round(font.getbbox("Ag")[3] * 1.2) if name == fonts.PILLOW_BITMAP else round(pixels * TALL_TEXT_RATIO)
    spare_x, spare_y = max(0.0, width - 2 * MARGIN - text_width), max(0.0, height - 2 * MARGIN - pitch * len(lines))
    where_x, where_y = (0.5, 0.5) if rng.random() < 0.35 or turn else (rng.random(), rng.random())
    return Setting(
        lines=lines,
        font=font,
        x=round(MARGIN + spare_x * where_x),
        y=round(MARGIN + spare_y * where_y),
        pitch=pitch,
        ink=ink,
        ink_class=ink_class,
        turn=turn,
    )


def _draw_lines(mask: Image.Image, index: Image.Image, setting: Setting, *, hard: bool) -> list[int]:
    """Draw the lines into `mask` and a cell per character into `index`; return the cells' character classes."""
    canvas, cells = ImageDraw.Draw(mask), ImageDraw.Draw(index)
    canvas.fontmode = "1" if hard else "L"
    classes: list[int] = []
    for row, line in enumerate(setting.lines):
        y = setting.y + row * setting.pitch
        _, top, _, bottom = setting.font.getbbox(line)
        if isinstance(setting.font, ImageFont.FreeTypeFont):  # its glyphs start below the origin: centre them
            y_text = y + (setting.pitch - (bottom - top)) / 2 - top
        else:
            y_text = float(y)
        canvas.text((setting.x, y_text), line, fill=255, font=setting.font)
        left = 0.0
        for n, character in enumerate(line):
            right = setting.font.getlength(line[: n + 1])
            if character in words.CHARACTER_CLASS and len(classes) < 255:
                classes.append(words.CHARACTER_CLASS[character])
                box = (setting.x + left, y_text + top - 1, setting.x + right - 1, y_text + bottom)
                cells.rectangle(box, fill=len(classes))
            left = right
    return classes
