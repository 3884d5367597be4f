"""What lies behind the objects: plain colours, gradients, stripes, checks, dots, noise, textures like a photo's.

Pixels are uint8 (height, width, 3). The colours of a background are drawn around one base colour, so that
`pictures` can choose object colours that stand out from it.
"""

from __future__ import annotations

import random

import numpy as np
import numpy.typing as npt
from PIL import Image

from embedded_model.colours import RGB

Pixels = npt.NDArray[np.uint8]  # (height, width, 3)

KINDS = ("plain", "gradient", "radial", "stripes", "checks", "dots", "noise", "texture")
WEIGHTS = (0.46, 0.16, 0.06, 0.07, 0.05, 0.04, 0.06, 0.10)


def draw_background(
    size: tuple[int, int], base: RGB, rng: random.Random, noise: np.random.Generator, kind: str | None = None
) -> Image.Image:
    """Return a background of `size` (width, height) whose colours stay near `base`."""
    kind = kind or rng.choices(KINDS, WEIGHTS)[0]
    if kind == "plain":
        return Image.new("RGB", size, base)
    other = _near(base, rng, rng.randint(20, 60))
    if kind in ("gradient", "radial"):
        mask = _ramp(size, rng) if kind == "gradient" else _radial(size, rng)
        return Image.composite(Image.new("RGB", size, other), Image.new("RGB", size, base), mask)
    if kind in ("stripes", "checks", "dots"):
        mask = _pattern(kind, size, rng)
        other = _near(base, rng, rng.randint(12, 34))  # weaker: a strong pattern would be a scene of its own
        return Image.composite(Image.new("RGB", size, other), Image.new("RGB", size, base), mask)
    if kind == "noise":
        grain = noise.standard_normal((size[1], size[0], 1), dtype=np.float32) * rng.uniform(4, 16)
        return Image.fromarray(np.clip(np.asarray(base, np.float32) + grain, 0, 255).astype(np.uint8))
    return _texture(size, base, rng, noise)


def _near(base: RGB, rng: random.Random, reach: int) -> RGB:
    red, green, blue = (min(255, max(0, channel + rng.randint(-reach, reach))) for channel in base)
    return red, green, blue


def _ramp(size: tuple[int, int], rng: random.Random) -> Image.Image:
    x = np.linspace(0, 1, size[0], dtype=np.float32)[None]
    y = np.linspace(0, 1, size[1], dtype=np.float32)[:, None]
    slope = rng.choice((0.0, 1.0, rng.random()))
    ramp = slope * x + (1 - slope) * y
    if rng.random() < 0.5:
        ramp = 1 - ramp
    return Image.fromarray((ramp * 255).astype(np.uint8))


def _radial(size: tuple[int, int], rng: random.Random) -> Image.Image:
    x = np.linspace(-1, 1, size[0], dtype=np.float32)[None] - rng.uniform(-0.5, 0.5)
    y = np.linspace(-1, 1, size[1], dtype=np.float32)[:, None] - rng.uniform(-0.5, 0.5)
    return Image.fromarray(np.clip((x * x + y * y) * 128, 0, 255).astype(np.uint8))


def _pattern(kind: str, size: tuple[int, int], rng: random.Random) -> Image.Image:
    x = np.arange(size[0], dtype=np.float32)[None]
    y = np.arange(size[1], dtype=np.float32)[:, None]
    period = rng.uniform(6, max(size) / 4)
    if kind == "stripes":
        slope = rng.choice((0.0, 1.0, rng.uniform(-1, 1)))
        on = ((slope * x + (1 - abs(slope)) * y) % period) < period / 2
    elif kind == "checks":
        on = ((x // (period / 2)) + (y // (period / 2))) % 2 == 0
    else:
        radius = period * 0.2
        on = (x % period - period / 2) ** 2 + (y % period - period / 2) ** 2 < radius**2
    return Image.fromarray(on.astype(np.uint8) * 255)


def _texture(size: tuple[int, int], base: RGB, rng: random.Random, noise: np.random.Generator) -> Image.Image:
    """Smooth noise on two scales, the coarse one coloured: like a wall, grass or a sky out of focus."""
    coarse = noise.integers(0, 256, (rng.randint(2, 5), rng.randint(2, 5), 3), dtype=np.uint8)
    fine = noise.integers(0, 256, (rng.randint(8, 40), rng.randint(8, 40)), dtype=np.uint8)
    blurred = np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC), np.float32) - 128
    grain = np.asarray(Image.fromarray(fine).resize(size, Image.Resampling.BILINEAR), np.float32) - 128
    pixels = blurred * np.float32(rng.uniform(0.05, 0.25)) + np.asarray(base, np.float32)
    pixels += grain[..., None] * np.float32(rng.uniform(0.02, 0.2))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
