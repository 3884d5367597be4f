"""What reading a long video takes: `python benchmarks/long_video.py --output STEM`.

A file of 30 minutes at 1920 x 1080 (10 frames a second, a key frame every 25 s) is made with PyAV, then read
with the default policy in a process of its own. Memory is the process's peak over what it had with everything loaded.
Without `--model` the frames never meet a model. With it (a folder, `embedded`, or `synthetic`: int4 weights of the
official size), one question about a picture comes first, so that the towers are there, and then one about the video.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from tianquan import __version__, load
from tianquan.benchmark.run import machine_name
from tianquan.benchmark.synthetic import write_synthetic_folder
from tianquan.processing.image import ImageSettings
from tianquan.processing.video_input import load_video
from tianquan.quantization.recipes import find_recipe
from tianquan.request import MediaPolicy, SamplingParams, VideoPolicy

OFFICIAL = ImageSettings(scale_resolution=448, patch_size=14, max_slices=9, slice_mode=True, tokens_per_slice=64)
SIZE, RATE, KEY_FRAME_EVERY = (1920, 1080), 10, 250
MAX_CLIP_SAMPLES = 480_000


def write_video(path: Path, minutes: float) -> None:
    """Write a video in which a bar crosses the picture once a minute, over a ground that changes every ten seconds."""
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=RATE, options={"preset": "ultrafast", "crf": "30"})
        stream.width, stream.height = SIZE
        stream.pix_fmt, stream.gop_size = "yuv420p", KEY_FRAME_EVERY
        rng = np.random.default_rng(0)
        grey = np.zeros((SIZE[1] * 3 // 2, SIZE[0]), np.uint8)
        grey[SIZE[1] :] = 128
        for n in range(round(minutes * 60 * RATE)):
            if n % (10 * RATE) == 0:
                ground = np.kron(rng.integers(40, 160, (9, 16)), np.ones((120, 120))).astype(np.uint8)
            grey[: SIZE[1]] = ground
            left = round(n % (60 * RATE) / (60 * RATE) * (SIZE[0] - 100))
            grey[300:700, left : left + 100] = 240
            frame = av.VideoFrame.from_ndarray(grey, format="yuv420p")
            frame.pts, frame.time_base = n, Fraction(1, RATE)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())


def memory_bytes(field: str) -> int:
    """Return a line of this process's memory: VmRSS now, VmHWM at its highest."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def ask(path: Path, model: str) -> dict[str, Any]:
    """Return time and memory of one question about the video, in this process."""
    llm = load(model)
    picture = Image.new("RGB", (OFFICIAL.scale_resolution,) * 2, "gray")
    once = SamplingParams(temperature=0.0, max_tokens=1)
    llm.chat([{"role": "user", "content": {"text": "What is it?", "image": picture}}], sampling=once)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before, began = memory_bytes("VmRSS"), time.perf_counter()
    completion = llm.chat([{"role": "user", "content": {"text": "What is it?", "video": str(path)}}], sampling=once)
    return {
        "model": Path(model).name,
        "model_bytes": before,
        "seconds": time.perf_counter() - began,
        "peak_bytes_above_start": memory_bytes("VmHWM") - before,
        "usage": vars(completion.usage),
    }


def read(path: Path) -> dict[str, Any]:
    """Return time and memory of one reading, in this process."""
    load_video((np.zeros((2, 64, 64, 3), np.uint8), 1.0), MediaPolicy(), OFFICIAL, MAX_CLIP_SAMPLES, "warm-up")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak counts from here on
    before = memory_bytes("VmRSS")
    updates = 0

    def count(done: float, total: float | None) -> None:
        nonlocal updates
        updates += 1

    began = time.perf_counter()
    policy = MediaPolicy(video=VideoPolicy())
    video = load_video(path, policy, OFFICIAL, MAX_CLIP_SAMPLES, path.name, count)
    return {
        "seconds": time.perf_counter() - began,
        "peak_bytes_above_start": memory_bytes("VmHWM") - before,
        "frames": sum(image.num_video_frames for image in video.frames),
        "groups": len(video.frames),
        "times": [round(t, 1) for t in video.times],
        "progress_updates": updates,
    }


def main() -> None:
    """Write the video, read it in a fresh process, and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, metavar="STEM")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--file", type=Path, help="write the video here, or read it if it is there already")
    parser.add_argument("--model", help="ask this one about the video; by default the file is only read")
    parser.add_argument("--read", type=Path, help="read this file and print the measurement (what the child does)")
    arguments = parser.parse_args()
    if arguments.read is not None:
        done = read(arguments.read) if arguments.model is None else ask(arguments.read, arguments.model)
        print(json.dumps(done))
        return
    with tempfile.TemporaryDirectory(prefix="tianquan-bench-") as folder:
        path = arguments.file or Path(folder) / "long.mp4"
        if not path.exists():
            write_video(path, arguments.minutes)
        model = arguments.model
        if model == "synthetic":
            model = str(Path(folder) / "synthetic")
            write_synthetic_folder(Path(model), find_recipe("int4"))
        command = [sys.executable, __file__, "--read", str(path), *(["--model", model] if model else [])]
        child = subprocess.run(command, check=True, capture_output=True, text=True)
        report = {
            "date": datetime.date.today().isoformat(),
            "version": __version__,
            "machine": machine_name(),
            "minutes": arguments.minutes,
            "file_bytes": path.stat().st_size,
            **json.loads(child.stdout),
        }
    text = json.dumps(report, indent=1)
    print(text)
    if arguments.output is not None:
        arguments.output.with_suffix(".json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
