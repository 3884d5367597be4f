"""Write samples as the vendor's records: a jsonl file beside a folder of PNG, WAV and MP4 files.

    python -m embedded_model.write_records FOLDER --split heldout --count 200            # FOLDER/TASK.jsonl, each task
    python -m embedded_model.write_records FOLDER --split train --count 5000 --mixed     # FOLDER/records.jsonl

A record is {"conversations": [...], "task": ..., "language": ..., "id": ...}; paths are relative to FOLDER. The
same arguments, fonts and clip bank give the same files.
"""

from __future__ import annotations

import argparse
import json
import sys
import wave
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any, get_args

import av
import numpy as np
import numpy.typing as npt
from PIL import Image

from embedded_model import espeak, fonts, speech
from embedded_model.acoustics import SAMPLE_RATE
from embedded_model.fonts import Split
from embedded_model.samples import WEIGHTS, Sample, SampleStream

MEDIA = "media"


def as_record(sample: Sample, folder: Path, name: str) -> dict[str, Any]:
    """Write the media of a sample into `folder`/media and return its record."""
    (folder / MEDIA).mkdir(parents=True, exist_ok=True)
    conversations = []
    num_written = 0
    for message in sample.conversation:
        content = dict(message["content"])
        for key in ("image", "audio", "video"):
            if key not in content:
                continue
            is_list = isinstance(content[key], list)
            paths = []
            for medium in content[key] if is_list else [content[key]]:
                paths.append(_write_medium(key, medium, folder, f"{MEDIA}/{name}-{num_written}"))
                num_written += 1
            content[key] = paths if is_list else paths[0]
        conversations.append({"role": message["role"], "content": content})
    return {"conversations": conversations, "task": sample.task, "language": sample.language, "id": name}


def _write_medium(key: str, medium: Any, folder: Path, stem: str) -> str:
    if isinstance(medium, Image.Image):
        medium.save(folder / f"{stem}.png")
        return f"{stem}.png"
    if key == "video":
        frames, frame_rate = medium
        _write_film(frames, frame_rate, folder / f"{stem}.mp4")
        return f"{stem}.mp4"
    samples, rate = medium
    assert rate == SAMPLE_RATE, f"clips are {SAMPLE_RATE} Hz, got {rate}"
    with wave.open(str(folder / f"{stem}.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.astype("<i2").tobytes())
    return f"{stem}.wav"


def _write_film(frames: npt.NDArray[np.uint8], rate: float, path: Path) -> None:
    """Write frames as H.264, fine enough that the codec's faults are smaller than the camera's."""
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=Fraction(rate), options={"crf": "12", "threads": "1"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for n, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = n, 1 / Fraction(rate)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())


def write_records(samples: Iterable[Sample], folder: Path, name: str) -> Path:
    """Write `folder`/`name`.jsonl and the media it names; return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for sample in samples:
            record = as_record(sample, folder, f"{name}-{sample.index:06d}")
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
    return path


def main() -> None:
    """Write the files that the command line asks for."""
    parser = argparse.ArgumentParser(description="Write generated samples as records.jsonl with media files.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--split", choices=get_args(Split), default="heldout")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first sample")
    parser.add_argument("--count", type=int, default=100, help="samples per file")
    parser.add_argument("--tasks", nargs="+", default=list(WEIGHTS), choices=list(WEIGHTS), metavar="TASK")
    parser.add_argument("--mixed", action="store_true", help="one file with all tasks by their training weights")
    parser.add_argument("--max-side", type=int, default=448, help="largest canvas side, pixels")
    parser.add_argument("--bank", type=Path, default=speech.DEFAULT_FOLDER, help="folder of the clip bank")
    arguments = parser.parse_args()
    numbers = range(arguments.first, arguments.first + arguments.count)
    try:
        stream = SampleStream(
            arguments.split, seed=arguments.seed, bank_folder=arguments.bank, max_side=arguments.max_side
        )
        if arguments.mixed:
            mixed = {task: WEIGHTS[task] for task in arguments.tasks}
            print(write_records((stream.sample(n, mixed) for n in numbers), arguments.folder, "records"))
            return
        for task in arguments.tasks:
            print(write_records((stream.sample(n, {task: 1.0}) for n in numbers), arguments.folder, task))
    except (fonts.MissingFontsError, speech.BankMissingError, espeak.EspeakError) as error:
        sys.exit(f"{parser.prog}: {error}")


if __name__ == "__main__":
    main()
