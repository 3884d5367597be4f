"""Resident memory over 1000 mixed requests: `python benchmarks/engine_memory.py OUTPUT.json`.

The tests' small checkpoint with caches small enough to be full soon: what grows after that is a leak. Texts, pictures
and sound of random sizes from 6 threads, one answer in ten left early. After 500 requests of warm-up the median of the
last 200 may be at most 2 % above that of the first 200 of the 1000.
"""

from __future__ import annotations

import datetime
import io
import json
import random
import re
import statistics
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tianquan.benchmark.run import machine_name
from tianquan.engine.interface import EngineOptions
from tianquan.engine.scheduler import SchedulerLimits
from tianquan.llm import LLM
from tianquan.loading import load
from tianquan.request import SamplingParams

MODEL = Path(__file__).parents[1] / "tests" / "conformance" / "checkpoint"
OPTIONS = EngineOptions(kv_cache_bytes=16 * 2**20, encoder_cache_bytes=4 * 2**20, limits=SchedulerLimits(max_running=6))
NUM_WARM_UP, NUM_REQUESTS, NUM_COMPARED = 500, 1000, 200
MAX_GROWTH = 0.02


def resident_mib() -> float:
    """Return what this process has in memory now."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024  # type: ignore[index]


def random_content(rng: random.Random) -> dict[str, Any]:
    """Return a question: words alone, or about a picture or a recording."""
    content: dict[str, Any] = {"text": " ".join(str(rng.randrange(10**6)) for _ in range(rng.randrange(3, 60)))}
    noise = np.random.default_rng(rng.getrandbits(32))
    kind = rng.choices(("text", "image", "audio"), (3, 1, 1))[0]
    if kind == "image":
        size = (rng.randrange(60, 700), rng.randrange(60, 700))
        picture = Image.fromarray(noise.integers(0, 256, (40, 40, 3), np.uint8)).resize(size)
        file = io.BytesIO()
        picture.save(file, rng.choice(("PNG", "JPEG")))
        content["image"] = file.getvalue()
    elif kind == "audio":
        seconds = rng.uniform(0.5, 8)
        content["audio"] = (noise.normal(0, 0.1, int(44_100 * seconds)).astype(np.float32), 44_100)
    return content


def ask(llm: LLM, seed: int) -> float:
    """Let one request be answered, or leave it early; return the resident memory after it."""
    rng = random.Random(seed)
    sampling = SamplingParams(max_tokens=rng.randrange(4, 60), seed=seed)
    answer = llm.stream_chat([{"role": "user", "content": random_content(rng)}], sampling=sampling)
    leaves_early = rng.random() < 0.1
    for _ in answer:
        if leaves_early:
            break
    answer.close()
    return resident_mib()


def main() -> None:
    """Write the report."""
    llm = load(MODEL, precision="float32", threads=1, engine=OPTIONS)
    with ThreadPoolExecutor(6) as threads:
        samples = list(threads.map(lambda seed: ask(llm, seed), range(NUM_WARM_UP + NUM_REQUESTS)))
    measured = samples[NUM_WARM_UP:]
    first, last = statistics.median(measured[:NUM_COMPARED]), statistics.median(measured[-NUM_COMPARED:])
    growth = last / first - 1
    engine = llm.statistics()
    report = {
        "date": datetime.date.today().isoformat(),
        "machine": machine_name(),
        "command": "python benchmarks/engine_memory.py",
        "requests": NUM_REQUESTS,
        "warm_up": NUM_WARM_UP,
        "ended": engine.ended,
        "prefix_evictions": engine.prefix_evictions,
        "resident_mib": [round(value, 1) for value in samples[::25]],
        "growth": round(growth, 4),
        "passed": growth <= MAX_GROWTH,
    }
    Path(sys.argv[1]).write_text(json.dumps(report) + "\n", encoding="utf-8")
    print("passed" if report["passed"] else "failed", file=sys.stderr)


if __name__ == "__main__":
    main()
