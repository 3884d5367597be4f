"""Make the files of examples/: two drawn pictures, and recordings spoken by espeak-ng (Debian package).

python scripts/example_media.py examples
"""

from __future__ import annotations

import argparse
import subprocess
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

SPEECH = {
    "question.wav": ("en-us+m3", "How many shapes are there?"),
    "question_zh.wav": ("cmn-latn-pinyin+f4", "一共有几个图形？"),
    "command.wav": ("en-us+f4", "Turn on the light."),
}
SCALE = 4  # drawn larger and reduced, for smooth edges


def draw_shapes() -> Image.Image:
    """Return a red circle, a blue square and a yellow triangle."""
    image = Image.new("RGB", (448 * SCALE, 448 * SCALE), "#ece8df")
    draw = ImageDraw.Draw(image)
    draw.ellipse(_scaled(33, 170, 173, 310), fill="#cf2f26")
    draw.rectangle(_scaled(255, 252, 399, 396), fill="#2456c4")
    draw.polygon(_scaled(204, 35, 286, 174, 122, 174), fill="#eac81f")
    return image.resize((448, 448), Image.Resampling.LANCZOS)


def draw_number() -> Image.Image:
    """Return a number on paper."""
    image = Image.new("RGB", (336 * SCALE, 336 * SCALE), "#f4f2ea")
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(118 * SCALE)
    draw.text((168 * SCALE, 168 * SCALE), "358", fill="#1f2a44", font=font, anchor="mm")
    return image.resize((336, 336), Image.Resampling.LANCZOS)


def _scaled(*coordinates: float) -> tuple[float, ...]:
    return tuple(value * SCALE for value in coordinates)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(exist_ok=True)
    draw_shapes().save(folder / "shapes.png", optimize=True)
    draw_number().save(folder / "number.png", optimize=True)
    for name, (voice, text) in SPEECH.items():
        subprocess.run(["espeak-ng", "-v", voice, "-s", "150", "-w", str(folder / name), text], check=True)


if __name__ == "__main__":
    main()
