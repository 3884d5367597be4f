"""What a model takes in memory while it answers, measured in a process of its own.

Its arguments: '{"model": ..., "precision": ..., "backend": ..., "kinds": ["image", "audio"]}'
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from tianquan.benchmark.fresh_process import run_fresh
from tianquan.benchmark.measure import resident_bytes
from tianquan.llm import GREEDY
from tianquan.loading import load

_PICTURE = (448, 448, 3)  # one slice
_SAMPLE_RATE = 16000
_SECONDS = 2


def measure_memory(
    folder: Path,
    precision: str | None,
    backend: str,
    threads: int | None,
    kinds: Sequence[str],
    adapter: Path | None = None,
    kv_format: str | None = None,
    device: str = "cpu",
) -> int:
    """Return the resident bytes of a fresh process that has loaded a model and answered once.

    Args:
        folder: the model's.
        precision: a recipe's name, or None.
        backend: native or reference.
        threads: of the native backend.
        kinds: media of the question: image, audio, both or none. A tower nobody uses is never loaded.
        adapter: a folder to add, or None.
        kv_format: of keys and values, the precision's by default.
        device: of the torch backend; what lies on a GPU is not resident here.

    Raises:
        TianquanError: the process ends by an error, such as too little memory.
    """
    arguments = {
        "model": str(folder),
        "precision": precision,
        "backend": backend,
        "threads": threads,
        "kinds": list(kinds),
        "adapter": None if adapter is None else str(adapter),
        "kv_format": kv_format,
        "device": device,
    }
    return int(run_fresh("tianquan.evaluation.memory", json.dumps(arguments)))


def main() -> None:
    """Load, answer once, and print the resident bytes."""
    arguments = json.loads(sys.argv[2])
    kinds = arguments.pop("kinds")
    llm = load(arguments.pop("model"), **arguments)
    content: dict[str, object] = {"text": "Hello"}
    if "image" in kinds:
        content["image"] = np.zeros(_PICTURE, np.uint8)
    if "audio" in kinds:
        content["audio"] = (np.zeros(_SECONDS * _SAMPLE_RATE, np.float32), _SAMPLE_RATE)
    llm.chat([{"role": "user", "content": content}], sampling=replace(GREEDY, max_tokens=8, ignore_eos=True))
    print(resident_bytes())
