"""The named shapes: the words for each, and an outline that fits into the unit circle.

An outline is a closed polygon in units of the object's radius; round shapes are polygons of many sides, so that
one routine turns, scales, fills and strokes every shape. A square is never turned as far as a diamond, a
rectangle never as short as a square, an ellipse never as round as a circle.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

Point = tuple[float, float]  # x to the right, y down

ROUND_SIDES = 40
HEART_TIP = 0.95


@dataclass(frozen=True, kw_only=True)
class Shape:
    """One named shape."""

    name: str  # canonical English word
    plural: str
    chinese: str  # canonical Chinese word
    also: tuple[tuple[str, str], ...] = ()  # other English words (singular, plural) used in questions
    also_chinese: tuple[str, ...] = ()
    turn: float  # largest rotation from upright, degrees
    outline: Callable[[float], list[Point]]  # of the aspect (long side / short side)
    aspect: tuple[float, float] = (1.0, 1.0)


def _regular(sides: int, start: float = -90.0) -> list[Point]:
    angles = (math.radians(start + 360 * n / sides) for n in range(sides))
    return [(math.cos(angle), math.sin(angle)) for angle in angles]


def _round(aspect: float) -> list[Point]:
    return [(x, y / aspect) for x, y in _regular(ROUND_SIDES)]


def _box(aspect: float) -> list[Point]:
    scale = 1 / math.hypot(aspect, 1)
    return [(x * aspect * scale, y * scale) for x, y in ((-1, -1), (1, -1), (1, 1), (-1, 1))]


def _diamond(aspect: float) -> list[Point]:
    return [(0, -1), (1 / aspect, 0), (0, 1), (-1 / aspect, 0)]


def _triangle(aspect: float) -> list[Point]:
    return [(0, -1), (0.87 / aspect, 0.6), (-0.87 / aspect, 0.6)]


def _star(aspect: float) -> list[Point]:
    inner = 0.42 / aspect
    points = _regular(10)
    return [(x, y) if n % 2 == 0 else (x * inner, y * inner) for n, (x, y) in enumerate(points)]


def _cross(aspect: float) -> list[Point]:
    arm = 0.32 / aspect
    quarter = [(-arm, -0.95), (arm, -0.95), (arm, -arm)]
    return [_quarter_turns(point, turns) for turns in range(4) for point in quarter]


def _quarter_turns(point: Point, turns: int) -> Point:
    x, y = point
    for _ in range(turns):
        x, y = -y, x
    return x, y


def _heart(aspect: float) -> list[Point]:
    points = []
    for n in range(ROUND_SIDES):
        t = 2 * math.pi * n / ROUND_SIDES
        x = 16 * math.sin(t) ** 3
        y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        points.append((x / 17.5 * HEART_TIP, -(y + 2.5) / 15.0 * HEART_TIP / aspect))
    return points


SHAPES: tuple[Shape, ...] = (
    Shape(
        name="circle",
        plural="circles",
        chinese="圆形",
        also=(("disc", "discs"), ("dot", "dots")),
        also_chinese=("圆",),
        turn=0,
        outline=_round,
    ),
    Shape(name="square", plural="squares", chinese="正方形", also_chinese=("方块",), turn=18, outline=_box),
    Shape(
        name="triangle",
        plural="triangles",
        chinese="三角形",
        turn=180,
        outline=_triangle,
        aspect=(0.9, 1.35),
    ),
    Shape(name="star", plural="stars", chinese="星形", also_chinese=("五角星", "星星"), turn=180, outline=_star),
    Shape(
        name="rectangle",
        plural="rectangles",
        chinese="长方形",
        also_chinese=("矩形",),
        turn=180,
        outline=_box,
        aspect=(1.55, 2.6),
    ),
    Shape(
        name="cross",
        plural="crosses",
        chinese="十字形",
        also=(("plus sign", "plus signs"), ("plus", "pluses")),
        also_chinese=("十字", "加号"),
        turn=20,
        outline=_cross,
        aspect=(0.9, 1.5),
    ),
    Shape(
        name="heart",
        plural="hearts",
        chinese="心形",
        also_chinese=("爱心",),
        turn=30,
        outline=_heart,
        aspect=(0.95, 1.1),
    ),
    Shape(
        name="ring",
        plural="rings",
        chinese="圆环",
        also=(("donut", "donuts"),),
        also_chinese=("环形",),
        turn=0,
        outline=_round,
    ),
    Shape(
        name="diamond",
        plural="diamonds",
        chinese="菱形",
        also=(("rhombus", "rhombuses"),),
        turn=10,
        outline=_diamond,
        aspect=(1.0, 1.6),
    ),
    Shape(
        name="ellipse",
        plural="ellipses",
        chinese="椭圆形",
        also=(("oval", "ovals"),),
        also_chinese=("椭圆",),
        turn=180,
        outline=_round,
        aspect=(1.5, 2.3),
    ),
    Shape(name="pentagon", plural="pentagons", chinese="五边形", turn=12, outline=lambda _: _regular(5)),
    Shape(name="hexagon", plural="hexagons", chinese="六边形", turn=30, outline=lambda _: _regular(6)),
)

SHAPE_NAMES = tuple(shape.name for shape in SHAPES)
BY_NAME = {shape.name: shape for shape in SHAPES}
SHAPE_CLASS = {name: n + 1 for n, name in enumerate(SHAPE_NAMES)}  # 0 is the background


def sample_outline(shape: Shape, rng: random.Random, *, upright: bool) -> list[Point]:
    """Return an outline of `shape` with a random aspect and, unless `upright`, a random rotation."""
    points = shape.outline(rng.uniform(*shape.aspect))
    reach = max(math.hypot(x, y) for x, y in points)
    if reach > 1:  # a flat triangle or a wide heart
        points = [(x / reach, y / reach) for x, y in points]
    turn = 0.0 if upright else rng.uniform(-shape.turn, shape.turn)
    if upright and shape.name in ("rectangle", "ellipse", "triangle") and rng.random() < 0.3:
        turn = 180.0 if shape.name == "triangle" else 90.0
    if turn == 0.0:
        return points
    cosine, sine = math.cos(math.radians(turn)), math.sin(math.radians(turn))
    return [(x * cosine - y * sine, x * sine + y * cosine) for x, y in points]


def area(points: list[Point]) -> float:
    """Return the area of a polygon (the shoelace formula)."""
    pairs = zip(points, points[1:] + points[:1], strict=True)
    return abs(sum(a[0] * b[1] - b[0] * a[1] for a, b in pairs)) / 2
