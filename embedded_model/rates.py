"""Measure how many samples a second one core makes, per task.

python -m embedded_model.rates [--max-side 168]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

from embedded_model import speech
from embedded_model.samples import WEIGHTS, SampleStream

WARM_UP = 100  # numbers: fonts and shards are read on first use


def rate(make: Callable[[int], object], count: int) -> float:
    """Return calls a second of processor time."""
    for n in range(WARM_UP):
        make(count + n)
    started = time.process_time()
    for n in range(count):
        make(n)
    return count / (time.process_time() - started)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Samples a second on one core.")
    parser.add_argument("--max-side", type=int, default=168)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--bank", type=Path, default=speech.DEFAULT_FOLDER)
    arguments = parser.parse_args()
    stream = SampleStream("train", bank_folder=arguments.bank, max_side=arguments.max_side)
    for task in WEIGHTS:
        print(f"{task:16} {rate(lambda n, task=task: stream.sample(n, {task: 1.0}), arguments.count):8.0f}")  # type: ignore[misc]
    side = (arguments.max_side, arguments.max_side)
    print(f"{'all, mixed':16} {rate(stream.sample, arguments.count):8.0f}")
    print(f"{'dense picture':16} {rate(lambda n: stream.picture(n, side).labels.patches(), arguments.count):8.0f}")
    print(f"{'dense sound':16} {rate(stream.sound, arguments.count):8.0f}")


if __name__ == "__main__":
    main()
