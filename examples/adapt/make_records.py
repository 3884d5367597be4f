"""Make records of a task the embedded model has never seen: reading the three lamps of a machine.

    python examples/adapt/make_records.py lamps --train 400 --held-out 100

A picture shows three lamps in a row. The answer is a status no one told the model about: `fault` if a lamp is red, else
`attention` if one is yellow, else `running` if one is green, else `off` (all lamps gray).
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

from PIL import Image, ImageDraw

LAMPS = {
    "red": (205, 35, 30),
    "yellow": (240, 210, 40),
    "green": (30, 150, 60),
    "gray": (128, 128, 128),
}
STATUS = (("red", "fault"), ("yellow", "attention"), ("green", "running"), ("gray", "off"))
QUESTIONS = ("What is the status of the machine?", "Machine status?", "机器状态？")
SIZE = 112
SCALE = 4  # drawn larger and reduced, for smooth edges


def status_of(colours: list[str]) -> str:
    """Return the status three lamps mean."""
    return next(status for colour, status in STATUS if colour in colours)


def draw_panel(colours: list[str], rng: random.Random) -> Image.Image:
    """Draw the lamps on a panel, at a random place, size and brightness."""
    side = SIZE * SCALE
    shade = rng.randint(200, 250)
    image = Image.new("RGB", (side, side), (shade, shade, shade - 6))
    draw = ImageDraw.Draw(image)
    radius = rng.uniform(0.08, 0.105) * side
    step = rng.uniform(2.3, 2.7) * radius
    x, y = side / 2 + rng.uniform(-0.04, 0.04) * side, side / 2 + rng.uniform(-0.3, 0.3) * side
    margin = 1.35 * radius
    box = (x - step - margin, y - margin, x + step + margin, y + margin)
    draw.rounded_rectangle(box, radius / 2, fill=(60, 62, 66))
    for n, colour in enumerate(colours):
        centre = x + (n - 1) * step
        light = rng.uniform(0.9, 1.1)
        fill = tuple(min(255, round(value * light)) for value in LAMPS[colour])
        draw.ellipse((centre - radius, y - radius, centre + radius, y + radius), fill=fill)
    return image.resize((SIZE, SIZE), Image.Resampling.LANCZOS)


def sample_lamps(rng: random.Random) -> list[str]:
    """Return three colours; every status is about as frequent as the others."""
    highest = rng.randrange(len(STATUS))
    allowed = [colour for colour, _ in STATUS[highest:]]
    colours = [allowed[0], rng.choice(allowed), rng.choice(allowed)]
    rng.shuffle(colours)
    return colours


def write_records(folder: Path, name: str, count: int, rng: random.Random) -> None:
    """Write `count` records with their pictures."""
    media = folder / name
    media.mkdir(parents=True, exist_ok=True)
    with (folder / f"{name}.jsonl").open("w", encoding="utf-8") as file:
        for n in range(count):
            colours = sample_lamps(rng)
            draw_panel(colours, rng).save(media / f"{n:04d}.png")
            question = {"text": rng.choice(QUESTIONS), "image": f"{name}/{n:04d}.png"}
            turns = [
                {"role": "user", "content": question},
                {"role": "assistant", "content": status_of(colours)},
            ]
            line = {"conversations": turns, "task": status_of(colours)}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def main() -> None:
    """Write the training and the held-out records."""
    parser = argparse.ArgumentParser(description="Records of machine lamps.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--train", type=int, default=400)
    parser.add_argument("--held-out", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    write_records(arguments.folder, "train", arguments.train, rng)
    write_records(arguments.folder, "held_out", arguments.held_out, rng)


if __name__ == "__main__":
    main()
