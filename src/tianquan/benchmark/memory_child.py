"""Run in a process of its own by the benchmark: what a fresh start costs in time and memory.

Its arguments: FOLDER THREADS text|all
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace

import numpy as np
from PIL import Image

from tianquan.benchmark.measure import resident_bytes
from tianquan.llm import GREEDY
from tianquan.loading import load


def main() -> None:
    """Load, answer once with text only or with all inputs, and print seconds and bytes as JSON."""
    folder, threads, inputs = sys.argv[2:]
    start = time.perf_counter()
    llm = load(folder, threads=int(threads) or None)
    seconds = time.perf_counter() - start
    content: dict[str, object] = {"text": "Hello " * 32}
    if inputs == "all":
        content["image"] = Image.fromarray(np.zeros((512, 512, 3), np.uint8))
        content["audio"] = (np.zeros(5 * 16000, np.float32), 16000)
    llm.chat([{"role": "user", "content": content}], sampling=replace(GREEDY, max_tokens=8, ignore_eos=True))
    print(json.dumps({"load_seconds": seconds, "resident_bytes": resident_bytes()}))
