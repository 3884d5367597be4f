"""The named colours: the words for each, and the range of RGB values that people mean by the word.

A colour is a set of anchors (CSS, common plotting palettes, flat design palettes). A sample is a mix of two
anchors plus jitter. Values on which people disagree (dark red or brown, gold or orange, indigo, teal) are left
out on purpose: a label that is a coin toss teaches nothing.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

RGB = tuple[int, int, int]

JITTER = 9  # per channel: less than half the smallest distance between two colours' anchors


@dataclass(frozen=True, kw_only=True)
class Colour:
    """One named colour."""

    name: str  # canonical English word
    chinese: str  # canonical Chinese word
    anchors: tuple[RGB, ...]
    also: tuple[str, ...] = ()  # other English words used in questions
    also_chinese: tuple[str, ...] = ()


COLOURS: tuple[Colour, ...] = (
    Colour(
        name="red",
        chinese="红色",
        anchors=((255, 0, 0), (220, 20, 40), (205, 30, 30), (229, 57, 53), (214, 39, 40), (200, 0, 0), (231, 60, 60)),
        also_chinese=("红",),
    ),
    Colour(
        name="green",
        chinese="绿色",
        anchors=(
            *((0, 128, 0), (0, 255, 0), (0, 200, 0), (34, 139, 34), (50, 205, 50), (46, 204, 80)),
            *((76, 175, 80), (44, 160, 44), (0, 100, 0), (60, 180, 75), (0, 160, 60)),
        ),
        also_chinese=("绿",),
    ),
    Colour(
        name="blue",
        chinese="蓝色",
        anchors=(
            *((0, 0, 255), (30, 60, 220), (65, 105, 225), (31, 119, 180), (33, 130, 243), (30, 130, 255)),
            *((0, 0, 180), (41, 98, 255), (50, 90, 200), (52, 140, 219), (0, 0, 139)),
        ),
        also_chinese=("蓝",),
    ),
    Colour(
        name="yellow",
        chinese="黄色",
        anchors=((255, 255, 0), (255, 225, 25), (255, 235, 59), (255, 220, 0), (250, 230, 50), (241, 215, 15)),
        also_chinese=("黄",),
    ),
    Colour(
        name="orange",
        chinese="橙色",
        anchors=((255, 165, 0), (255, 140, 0), (255, 127, 14), (251, 140, 0), (243, 146, 18), (245, 130, 48)),
        also_chinese=("橙", "橘色"),
    ),
    Colour(
        name="purple",
        chinese="紫色",
        anchors=(
            *((128, 0, 128), (160, 32, 240), (138, 43, 226), (148, 93, 189), (156, 39, 176), (142, 68, 173)),
            *((128, 0, 160), (120, 40, 160)),
        ),
        also=("violet",),
        also_chinese=("紫",),
    ),
    Colour(
        name="pink",
        chinese="粉色",
        anchors=(
            *((255, 192, 203), (255, 105, 180), (255, 182, 193), (247, 129, 191), (255, 150, 200)),
            *((255, 20, 147), (240, 120, 180)),
        ),
        also_chinese=("粉红色",),
    ),
    Colour(
        name="brown",
        chinese="棕色",
        anchors=(
            (139, 69, 19),
            (165, 42, 42),
            (121, 75, 52),
            (150, 75, 0),
            (101, 67, 33),
            (140, 86, 65),
            (160, 82, 45),
        ),
        also_chinese=("褐色",),
    ),
    Colour(
        name="black",
        chinese="黑色",
        anchors=((0, 0, 0), (20, 20, 20), (33, 33, 33), (10, 10, 15), (0, 0, 0)),
        also_chinese=("黑",),
    ),
    Colour(
        name="white",
        chinese="白色",
        anchors=((255, 255, 255), (248, 248, 248), (255, 255, 250), (245, 245, 245), (255, 255, 255)),
        also_chinese=("白",),
    ),
    Colour(
        name="gray",
        chinese="灰色",
        anchors=((128, 128, 128), (169, 169, 169), (105, 105, 105), (158, 158, 158), (140, 140, 145), (120, 120, 120)),
        also=("grey",),
        also_chinese=("灰",),
    ),
    Colour(
        name="cyan",
        chinese="青色",
        anchors=((0, 255, 255), (0, 225, 225), (64, 224, 208), (0, 200, 212), (23, 190, 207), (70, 240, 240)),
    ),
)

COLOUR_NAMES = tuple(colour.name for colour in COLOURS)
BY_NAME = {colour.name: colour for colour in COLOURS}
COLOUR_CLASS = {name: n + 1 for n, name in enumerate(COLOUR_NAMES)}  # 0 is the background


def sample_rgb(colour: Colour, rng: random.Random) -> RGB:
    """Return one RGB value that people would call `colour`: half the time an anchor itself, exactly."""
    first = rng.choice(colour.anchors)
    if rng.random() < 0.5:
        return first
    second = min(rng.sample(colour.anchors, 2), key=lambda anchor: distance(anchor, first))
    mix = rng.random()
    jitter = JITTER if colour.name not in ("black", "white") else 5
    red, green, blue = (
        min(255, max(0, round(a + (b - a) * mix) + rng.randint(-jitter, jitter)))
        for a, b in zip(first, second, strict=True)
    )
    if colour.name == "gray":  # a tinted gray is another colour: keep the three channels together
        middle = (red + green + blue) // 3
        red, green, blue = (min(middle + 5, max(middle - 5, channel)) for channel in (red, green, blue))
    return red, green, blue


def distance(a: RGB, b: RGB) -> float:
    """Return how far apart two RGB values look: the "redmean" weighting of the Euclidean distance."""
    mean = (a[0] + b[0]) / 2
    red, green, blue = a[0] - b[0], a[1] - b[1], a[2] - b[2]
    return float(((2 + mean / 256) * red**2 + 4 * green**2 + (2 + (255 - mean) / 256) * blue**2) ** 0.5)


def any_rgb(rng: random.Random) -> RGB:
    """Return any RGB value, more often pale or dark than a uniform draw would."""
    kind = rng.random()
    if kind < 0.25:
        return rng.choice(((255, 255, 255), (255, 255, 255), (0, 0, 0), (240, 240, 240), (128, 128, 128)))
    if kind < 0.55:
        low = rng.randint(170, 235)
        return rng.randint(low, 255), rng.randint(low, 255), rng.randint(low, 255)
    if kind < 0.75:
        high = rng.randint(20, 90)
        return rng.randint(0, high), rng.randint(0, high), rng.randint(0, high)
    return rng.randint(0, 255), rng.randint(0, 255), rng.randint(0, 255)
