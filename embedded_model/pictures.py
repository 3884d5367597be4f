"""Draw scenes: 1 to 8 named shapes in named colours, with the patch labels that go with them.

A scene is planned first (what, where, how large), then drawn; questions are answered from the plan. Objects do
not overlap, and stand out from the background or carry an outline that does.
"""

from __future__ import annotations

import io
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from embedded_model import backgrounds, colours, shapes
from embedded_model.colours import RGB
from embedded_model.label_map import LabelMap
from embedded_model.shapes import Point

MIN_CONTRAST = 130.0  # redmean distance (0..765): pale pink on white passes, white on light gray does not
MIN_RADIUS = 6.5  # pixels: below, pentagon, hexagon and circle are one blob
PLACEMENT_TRIES = 40
RING_HOLE = (0.4, 0.68)  # inner radius / outer radius
CANVASES = (112, 126, 140, 154, 168, 196, 224, 256, 280, 336, 392, 448)
CANVAS_WEIGHTS = (14, 6, 8, 8, 14, 8, 18, 6, 4, 7, 3, 4)


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a question asks to be drawn; None leaves a choice to chance."""

    shape: str
    colour: str
    place: Point | None = None  # of the middle, as a share of width and height
    radius: float | None = None  # as a share of the shorter side


def any_thing(rng: random.Random) -> Wanted:
    """Return a wish for any shape of any colour."""
    return Wanted(shape=rng.choice(shapes.SHAPE_NAMES), colour=rng.choice(colours.COLOUR_NAMES))


@dataclass(frozen=True, kw_only=True)
class Object:
    """One drawn shape. Pixels of the canvas; `points` is its outline around the centre."""

    shape: str
    colour: str
    rgb: RGB
    x: float
    y: float
    radius: float
    points: tuple[Point, ...]
    hole: float = 0.0  # inner radius of a ring / outer radius
    stroke: RGB | None = None
    stroke_width: float = 0.0

    @property
    def area(self) -> float:
        """Pixels covered, the hole of a ring included: people compare the extent."""
        return shapes.area(list(self.points)) * self.radius**2


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A planned picture."""

    size: tuple[int, int]  # width, height
    base: RGB  # the colour around which the background varies
    objects: tuple[Object, ...]


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A drawn picture, its dense target, and what it shows: a scene, or lines of text."""

    image: Image.Image
    labels: LabelMap
    scene: Scene | None = None
    lines: tuple[str, ...] = ()


def sample_size(rng: random.Random, max_side: int = CANVASES[-1]) -> tuple[int, int]:
    """Return a canvas size (width, height): mostly square, sides of 112 to `max_side` pixels."""
    side = min(max_side, rng.choices(CANVASES, CANVAS_WEIGHTS)[0])
    kind = rng.random()
    if kind < 0.75:
        return side, side
    other = min(max_side, max(96, round(side * rng.uniform(0.6, 1.0))))
    return (side, other) if kind < 0.88 else (other, side)


def plan_scene(wanted: Sequence[Wanted], size: tuple[int, int], rng: random.Random) -> Scene:
    """Place the wanted objects on a canvas without overlap, and choose their exact colours and the background."""
    side = min(size)
    upright = rng.random() < 0.5
    largest = min(0.44, 0.42 / len(wanted) ** 0.5)
    low = rng.uniform(0.055, largest)  # one range per scene: some scenes are all small, some mixed
    radii = [max(MIN_RADIUS, (want.radius or rng.uniform(low, min(largest, 2.5 * low))) * side) for want in wanted]
    places = _place(wanted, radii, size, rng)
    scale = places[1]
    fixed = {colour: colours.sample_rgb(colours.BY_NAME[colour], rng) for colour in {want.colour: 0 for want in wanted}}
    exact = [
        fixed[want.colour] if rng.random() < 0.7 else colours.sample_rgb(colours.BY_NAME[want.colour], rng)
        for want in wanted
    ]
    base = _background_colour(exact, rng)
    all_stroked = rng.random() < 0.15
    stroke = rng.choice(((0, 0, 0), (0, 0, 0), (255, 255, 255), (70, 70, 70)))
    objects = []
    for want, rgb, radius, (x, y) in zip(wanted, exact, radii, places[0], strict=True):
        outline = shapes.sample_outline(shapes.BY_NAME[want.shape], rng, upright=upright)
        edge = stroke if all_stroked else None
        if colours.distance(rgb, base) < MIN_CONTRAST:
            edge = max(((0, 0, 0), (255, 255, 255), (90, 90, 90)), key=lambda c: _least_distance(c, (rgb, base)))
        objects.append(
            Object(
                shape=want.shape,
                colour=want.colour,
                rgb=rgb,
                x=x,
                y=y,
                radius=radius * scale,
                points=tuple(outline),
                hole=rng.uniform(*RING_HOLE) if want.shape == "ring" else 0.0,
                stroke=edge,
                stroke_width=max(1.0, rng.uniform(0.03, 0.09) * radius * scale) if edge else 0.0,
            )
        )
    return Scene(size=size, base=base, objects=tuple(objects))


def _place(
    wanted: Sequence[Wanted], radii: Sequence[float], size: tuple[int, int], rng: random.Random
) -> tuple[list[Point], float]:
    """Return a middle for each object and the factor by which all radii had to shrink to fit."""
    width, height = size
    scale = 1.0
    order = sorted(range(len(wanted)), key=lambda n: (wanted[n].place is None, -radii[n]))
    while True:
        placed: dict[int, Point] = {}
        for n in order:
            radius = radii[n] * scale
            margin = radius + 1.5
            for _ in range(PLACEMENT_TRIES):
                place = wanted[n].place
                x = place[0] * width if place else rng.uniform(margin, width - margin)
                y = place[1] * height if place else rng.uniform(margin, height - margin)
                x, y = min(max(x, margin), width - margin), min(max(y, margin), height - margin)
                if all(
                    (x - other_x) ** 2 + (y - other_y) ** 2 > (radius + radii[m] * scale + 3) ** 2
                    for m, (other_x, other_y) in placed.items()
                ):
                    placed[n] = (x, y)
                    break
            else:
                break
        if len(placed) == len(wanted):
            return [placed[n] for n in range(len(wanted))], scale
        scale *= 0.88


def _background_colour(exact: Sequence[RGB], rng: random.Random) -> RGB:
    """Return the first of a few background colours that every object stands out from, else the best of them."""
    tries = [colours.any_rgb(rng) for _ in range(6)]
    for base in tries:
        if _least_distance(base, exact) >= MIN_CONTRAST:
            return base
    return max(tries, key=lambda base: _least_distance(base, exact)) if rng.random() < 0.5 else tries[0]


def _least_distance(colour: RGB, others: Sequence[RGB]) -> float:
    return min(colours.distance(colour, other) for other in others)


# Drawing ----------------------------------------------------------------------------------------------------
def draw_scene(scene: Scene, rng: random.Random, noise: np.random.Generator) -> Picture:
    """Draw a scene: background, objects (antialiased or not), then the faults of a camera or an encoder."""
    image = backgrounds.draw_background(scene.size, scene.base, rng, noise)
    factor = 1 if rng.random() < 0.25 else 2  # 1: hard edges, as ImageDraw leaves them
    if factor > 1:
        image = image.resize((scene.size[0] * factor, scene.size[1] * factor), Image.Resampling.NEAREST)
    paint(image, scene.objects, factor)
    index = Image.new("L", scene.size)
    mask = ImageDraw.Draw(index)
    for n, thing in enumerate(scene.objects):
        _draw_shape(mask, thing, 1, n + 1)
    if factor > 1:
        image = image.reduce(factor)
    labels = LabelMap(
        index=np.asarray(index),
        shapes=(0, *(shapes.SHAPE_CLASS[thing.shape] for thing in scene.objects)),
        colours=(0, *(colours.COLOUR_CLASS[thing.colour] for thing in scene.objects)),
        centres=tuple((thing.x, thing.y) for thing in scene.objects),
    )
    return Picture(image=degrade(image, rng, noise), labels=labels, scene=scene)


def paint(image: Image.Image, objects: Sequence[Object], factor: int) -> None:
    """Draw objects onto an image that is `factor` times as large as their canvas."""
    canvas = ImageDraw.Draw(image)
    for thing in objects:
        _draw_object(canvas, thing, factor)


def _draw_object(canvas: ImageDraw.ImageDraw, thing: Object, factor: int) -> None:
    _draw_shape(canvas, thing, factor, thing.rgb)
    if thing.stroke is None:
        return
    x, y, radius = thing.x * factor, thing.y * factor, thing.radius * factor
    width = max(1, round(thing.stroke_width * factor))
    if thing.hole:
        hole = radius * thing.hole
        canvas.ellipse((x - radius, y - radius, x + radius, y + radius), outline=thing.stroke, width=width)
        canvas.ellipse((x - hole, y - hole, x + hole, y + hole), outline=thing.stroke, width=width)
        return
    inside = radius - width / 2  # the line lies on the rim, not outside it
    points = [(x + px * inside, y + py * inside) for px, py in thing.points]
    canvas.line([*points, points[0]], fill=thing.stroke, width=width, joint="curve")


def _draw_shape(canvas: ImageDraw.ImageDraw, thing: Object, factor: int, fill: RGB | int) -> None:
    """Fill the outline, in units of the canvas / `factor`."""
    x, y, radius = thing.x * factor, thing.y * factor, thing.radius * factor
    if thing.hole:
        box = (x - radius, y - radius, x + radius, y + radius)
        canvas.ellipse(box, outline=fill, width=max(2, round(radius * (1 - thing.hole))))
        return
    canvas.polygon([(x + px * radius, y + py * radius) for px, py in thing.points], fill=fill)


def degrade(image: Image.Image, rng: random.Random, noise: np.random.Generator) -> Image.Image:
    """Return the picture as a camera or an encoder might leave it: light, blur, grain, JPEG; half stay clean."""
    if rng.random() < 0.5:
        return image
    if rng.random() < 0.3:
        gain = rng.uniform(0.9, 1.06)
        image = image.point([min(255, round(level * gain)) for level in range(256)] * 3)
    if rng.random() < 0.35:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 0.9) * min(image.size) / 168))
    if rng.random() < 0.4:
        pixels = np.asarray(image).astype(np.int16)
        grain = (noise.standard_normal(pixels.shape, dtype=np.float32) * rng.uniform(2, 12)).astype(np.int16)
        image = Image.fromarray(np.clip(pixels + grain, 0, 255).astype(np.uint8))
    if rng.random() < 0.4:
        encoded = io.BytesIO()
        image.save(encoded, "JPEG", quality=rng.randint(45, 95))
        image = Image.open(encoded).convert("RGB")
    return image
