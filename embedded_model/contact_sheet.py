"""One PNG to look at: a grid of samples, with questions and answers beneath.

    python -m embedded_model.contact_sheet sheet.png [--split train] [--tasks count position] [--count 48]

Clips are shown as spectrograms with their transcript. With --labels the patch labels are drawn over the pictures.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from embedded_model import colours, fonts, speech
from embedded_model.fonts import Split
from embedded_model.label_map import LabelMap
from embedded_model.samples import WEIGHTS, Sample, SampleStream
from embedded_model.shapes import SHAPE_NAMES
from embedded_model.words import CHARACTERS

CELL = (230, 324)  # pixels
PICTURE_SIDE = 176
SOUND_HEIGHT = 60
TEXT_FONT = "NotoSansCJK-Regular.ttc"  # has both scripts
TEXT_SIZE, LINE_PITCH = 12, 16
PAPER, QUESTION, ANSWER, FAINT = (250, 250, 250), (20, 20, 20), (0, 90, 170), (130, 130, 130)


def draw_sheet(samples: list[Sample], columns: int, *, with_labels: bool = False) -> Image.Image:
    """Return a picture of all samples, `columns` in a row."""
    rows = -(-len(samples) // columns)
    sheet = Image.new("RGB", (columns * CELL[0], rows * CELL[1]), PAPER)
    for n, sample in enumerate(samples):
        sheet.paste(_draw_cell(sample, with_labels), (n % columns * CELL[0], n // columns * CELL[1]))
    return sheet


def _draw_cell(sample: Sample, with_labels: bool) -> Image.Image:
    cell = Image.new("RGB", CELL, PAPER)
    canvas = ImageDraw.Draw(cell)
    small = fonts.load_font(TEXT_FONT, 10)
    font = fonts.load_font(TEXT_FONT, TEXT_SIZE)
    sizes = " ".join(f"{p.image.width}x{p.image.height}" for p in sample.pictures)
    canvas.text((6, 2), f"{sample.index} {sample.task} {sample.language} {sizes}", fill=FAINT, font=small)
    y = 16
    if sample.pictures:
        room = (CELL[0] - 12) // len(sample.pictures) - 4
        for n, picture in enumerate(sample.pictures):
            shown = _labelled(picture.image, picture.labels) if with_labels else picture.image
            shown.thumbnail((min(room, PICTURE_SIDE), PICTURE_SIDE - SOUND_HEIGHT * bool(sample.sounds)))
            cell.paste(shown, (6 + n * (room + 4), y))
        y += PICTURE_SIDE + 3 - SOUND_HEIGHT * bool(sample.sounds)
    for sound in sample.sounds:
        cell.paste(_spectrogram(sound.samples, CELL[0] - 12), (6, y))
        y += SOUND_HEIGHT + 2
        canvas.text((6, y), f"“{sound.clip.phrase.text}” {sound.clip.voice}", fill=FAINT, font=small)
        y += LINE_PITCH - 2
    for message in sample.conversation:
        ink = QUESTION if message["role"] == "user" else ANSWER
        for line in _wrapped(message["content"].get("text", ""), font, CELL[0] - 12):
            canvas.text((6, y), line, fill=ink, font=font)
            y += LINE_PITCH
    canvas.rectangle((0, 0, CELL[0] - 1, CELL[1] - 1), outline=(215, 215, 215))
    return cell


def _labelled(image: Image.Image, labels: LabelMap) -> Image.Image:
    """Write the class of each patch into the middle of the patch."""
    image = image.resize((image.width * 2, image.height * 2))
    canvas = ImageDraw.Draw(image)
    font = fonts.load_font(TEXT_FONT, 14)
    patches = labels.patches()
    rows, cols = patches.shape.shape
    for row in range(rows):
        for col in range(cols):
            place = ((col + 0.5) * image.width / cols, (row + 0.5) * image.height / rows)
            shape, colour, character = (int(labels[row, col]) for labels in patches[:3])
            name = SHAPE_NAMES[shape - 1][:2] if shape else CHARACTERS[character - 1] if character else ""
            ink = colours.COLOURS[colour - 1].anchors[0] if colour else (0, 0, 0)
            around = (0, 0, 0) if sum(ink) > 380 else (255, 255, 255)
            if patches.centre[row, col]:
                name = name.upper() + "*"
            canvas.text(place, name, fill=ink, font=font, anchor="mm", stroke_width=2, stroke_fill=around)
    return image


def _spectrogram(samples: npt.NDArray[np.int16], width: int) -> Image.Image:
    frames = np.lib.stride_tricks.sliding_window_view(samples.astype(np.float32), 400)[::160]
    power = np.abs(np.fft.rfft(frames * np.hanning(400).astype(np.float32), axis=1)) ** 2
    level = np.log10(power[:, :160].T + 1e3)[::-1]
    scaled = (level - level.min()) / max(1e-6, float(np.ptp(level))) * 255
    return Image.fromarray(scaled.astype(np.uint8)).convert("RGB").resize((width, SOUND_HEIGHT))


def _wrapped(text: str, font: fonts.Font, width: int) -> list[str]:
    """Break a text into lines that fit: between words if possible, anywhere in Chinese."""
    lines: list[str] = []
    for paragraph in text.split("\n"):
        line = ""
        for character in paragraph:
            if font.getlength(line + character) > width:
                head, space, tail = line.rpartition(" ")
                lines.append(head if space else line)
                line = tail if space else ""
            line += character
        lines.append(line)
    return [line for line in lines if line]


def main() -> None:
    """Write the sheet."""
    parser = argparse.ArgumentParser(description="Draw a sheet of samples with their questions and answers.")
    parser.add_argument("path", type=Path)
    parser.add_argument("--split", choices=get_args(Split), default="train")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=48)
    parser.add_argument("--columns", type=int, default=8)
    parser.add_argument("--tasks", nargs="+", default=list(WEIGHTS), choices=list(WEIGHTS), metavar="TASK")
    parser.add_argument("--max-side", type=int, default=224)
    parser.add_argument("--bank", type=Path, default=speech.DEFAULT_FOLDER)
    parser.add_argument("--labels", action="store_true", help="write patch labels over the pictures")
    arguments = parser.parse_args()
    try:
        stream = SampleStream(
            arguments.split, seed=arguments.seed, bank_folder=arguments.bank, max_side=arguments.max_side
        )
        samples = [
            stream.sample(arguments.first + n, {arguments.tasks[n % len(arguments.tasks)]: 1.0})
            for n in range(arguments.count)
        ]
    except (fonts.MissingFontsError, speech.BankMissingError) as error:
        sys.exit(f"{parser.prog}: {error}")
    draw_sheet(samples, arguments.columns, with_labels=arguments.labels).save(arguments.path)
    print(arguments.path)


if __name__ == "__main__":
    main()
