"""Make the files of examples/: a drawn picture, and a question about it spoken by espeak-ng (Debian package).

python scripts/example_media.py examples
"""

from __future__ import annotations

import argparse
import subprocess
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

QUESTION = "How many circles are in the picture?"


def draw_shapes() -> Image.Image:
    """Three circles, a square and a word on a table: a picture a small model can be asked about."""
    scale = 4  # drawn large and reduced, for smooth edges
    image = Image.new("RGB", (512 * scale, 384 * scale), "#f3efe6")
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 270 * scale, 512 * scale, 384 * scale), fill="#b98d62")
    for x, y, radius, colour in ((110, 190, 62, "#d5382c"), (262, 215, 46, "#2a6fbb"), (430, 120, 34, "#e9b32a")):
        box = tuple(value * scale for value in (x - radius, y - radius, x + radius, y + radius))
        draw.ellipse(box, fill=colour)
    draw.rectangle(tuple(value * scale for value in (345, 190, 455, 300)), fill="#2f8f4e")
    draw.text((30 * scale, 318 * scale), "TIANQUAN 42", fill="#33261a", font=ImageFont.load_default(36 * scale))
    return image.resize((512, 384), Image.Resampling.LANCZOS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(exist_ok=True)
    draw_shapes().save(folder / "shapes.png", optimize=True)
    wav = folder / "question.wav"
    subprocess.run(["espeak-ng", "-v", "en-us", "-s", "150", "-w", str(wav), QUESTION], check=True)


if __name__ == "__main__":
    main()
