"""The tables of docs/scaling.md: from measured rates to machines for a million requests a day, and to GPU ceilings.

    python benchmarks/scaling_arithmetic.py

Nothing is measured here. Rates are those of `tianquan bench` and `engine.py` on two threads, read from their result
files; sizes follow from the official configuration. Prices and the GPU are examples, and are named below.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tianquan.benchmark.synthetic import OFFICIAL_CONFIG
from tianquan.checkpoint.config_files import JsonFile, parse_config
from tianquan.checkpoint.tensor_list import needed_weights

RESULTS = Path(__file__).parent / "results"
RATES = "2026-11-22-epyc-2-cores-int4.json"
ENGINE = "2026-11-22-engine.json"
NUM_THREADS = 2  # of both runs
SIDE_BY_SIDE = "4"  # answers, where the engine's run was fastest

REQUESTS_A_DAY = 1_000_000
PEAK = 3  # times the mean
THREAD_HOUR = 0.02  # an example
# An example GPU: what it reads and computes a second, the share of that which prompts reach, answers side by side.
GPU_BYTES, GPU_FLOP, GPU_SHARE, GPU_ANSWERS = 2e12, 300e12, 0.5, 64
SLICE_PATCHES = 1024
BITS = {"bfloat16": 16.0, "int4": 4.5}  # of a weight, scales included


@dataclass(frozen=True)
class Request:
    """Seconds of the unit of two threads that a request takes."""

    name: str
    prompt: float
    media: float
    answer: float

    @property
    def thread_seconds(self) -> float:
        return NUM_THREADS * (self.prompt + self.media + self.answer)


def requests() -> list[Request]:
    rates, engine = load(RATES), load(ENGINE)
    prompt = rates["prefill"]["512"]["tokens_per_second"]
    answer = engine["concurrency"][SIDE_BY_SIDE]["tokens_per_second"]
    second = engine["second_turn"]["second_ttft_seconds"]
    picture, speech = rates["vision"]["512"]["seconds"], rates["audio"]["30"]["seconds"]
    return [
        Request("chat: 300 + 150", 300 / prompt, 0, 150 / answer),
        Request("the same, the beginning cached (a second turn)", second, 0, 150 / answer),
        Request("a 512 x 512 picture: 300 + 100", 300 / prompt, picture, 100 / answer),
        Request("30 s of speech: 780 + 100", 780 / prompt, speech, 100 / answer),
    ]


def load(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / name).read_text())
    return found


def rounded(value: float, digits: int = 2) -> str:
    """Return a number with so many digits that mean something."""
    return f"{float(f'{value:.{digits}g}'):,.10g}".replace(",", " ")


def table(*rows: list[str]) -> str:
    lines = [f"| {' | '.join(row)} |".replace("|  |", "| |") for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def request_table() -> str:
    head = ["a request (prompt + answer tokens)", "prompt", "pictures, sound", "answer", "thread-seconds"]
    rows = [
        [
            request.name,
            f"{request.prompt:.1f} s",
            f"{request.media:.1f} s" if request.media else "",
            f"{request.answer:.1f} s",
            f"{request.thread_seconds:.0f}",
        ]
        for request in requests()
    ]
    return table(head, *rows)


def million_table() -> str:
    a_second = REQUESTS_A_DAY / 86_400
    head = ["kind", "threads at the mean", "at peaks", f"per 1000 requests at {THREAD_HOUR} a thread-hour"]
    rows = [
        [
            kind,
            rounded(request.thread_seconds * a_second),
            rounded(PEAK * request.thread_seconds * a_second),
            f"{request.thread_seconds * 1000 / 3600 * THREAD_HOUR:.2f}",
        ]
        for kind, request in zip(("chat", "second turns", "picture", "speech"), requests(), strict=True)
    ]
    return table(head, *rows)


def gpu_table() -> str:
    config = parse_config(JsonFile("config.json", OFFICIAL_CONFIG))
    weights = [weight for weight in needed_weights(config) if weight.is_matrix]
    read = sum(
        weight.num_parameters
        for weight in weights
        if weight.component == "language_model" and not weight.name.endswith("embedding")
    )
    vision = sum(weight.num_parameters for weight in weights if weight.component == "vision")
    size = config.vision.hidden_size * config.vision.num_layers
    flop = 2 * vision * SLICE_PATCHES + 4 * SLICE_PATCHES**2 * size  # matrices; scores and sums of attention
    usable = GPU_FLOP * GPU_SHARE
    sizes = {name: read * bits / 8 for name, bits in BITS.items()}
    return table(
        ["GPU ceiling (computed, not measured)", *sizes],
        ["weights a decode step reads", *(f"{nbytes / 1e9:.1f} GB" for nbytes in sizes.values())],
        [f"steps a second at {GPU_BYTES / 1e12:.0f} TB/s", *(rounded(GPU_BYTES / nbytes) for nbytes in sizes.values())],
        [
            f"tokens a second, {GPU_ANSWERS} answers side by side",
            *(rounded(GPU_ANSWERS * GPU_BYTES / nbytes) for nbytes in sizes.values()),
        ],
        [
            f"prompt tokens a second at {usable / 1e12:.0f} TFLOP/s ({2 * read / 1e9:.1f} GFLOP each)",
            *[rounded(usable / (2 * read))] * len(sizes),
        ],
        [
            f"slices of {SLICE_PATCHES} patches a second ({flop / 1e12:.1f} TFLOP each)",
            *[rounded(usable / flop)] * len(sizes),
        ],
    )


def cache_table() -> str:
    language = parse_config(JsonFile("config.json", OFFICIAL_CONFIG)).language
    values = 2 * language.num_layers * language.num_kv_heads * language.head_dim  # of a token: a key and a value
    queries = OFFICIAL_CONFIG["query_num"]
    counts = {
        "a token": 1,
        "a picture slice (64 tokens)": queries,
        "a window of 4096 tokens": language.max_position_embeddings,
    }
    rows = [
        [name, *(f"{rounded(count * values * width / unit)} {word}" for width in (2, 1))]
        for name, count in counts.items()
        for unit, word in [(2**20, "MiB") if count * values >= 2**20 else (2**10, "KiB")]
    ]
    tokens = [2**30 // (values * width) for width in (2, 1)]
    return table(
        ["keys and values", "float16", "8 bits"],
        *rows,
        ["tokens in a gibibyte, the default", *(rounded(count, 3) for count in tokens)],
        ["that is, conversations of 500 tokens", *(f"{count // 500}" for count in tokens)],
    )


def tables() -> list[str]:
    return [request_table(), million_table(), gpu_table(), cache_table()]


if __name__ == "__main__":
    print("\n\n".join(tables()))
