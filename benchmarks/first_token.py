"""Time to the first token beside the original's path in one run: `python benchmarks/first_token.py --output STEM`.

A 512 x 512 picture (3 slices) and about 64 tokens of text on weights of the official size: ours in the recipe `int4`
before and after each run of transformers, twice in float32 and once in bfloat16, which takes minutes. A share is the
mean of our two neighbours over the run between them. Each run of ours stands beside the multiply-add rate right
before it: where that rate, or our own time, moves between runs, the machine was shared and the shares say little. It
needs torch and transformers in the same environment.

Both sides have all their weights in memory when the clock starts. Ours loads a tower on first use: mapping it, its
checksum and folding the resampler take the better part of a second, which stands in a column of its own.

`--instructions avx2` keeps both sides from AVX-512, and PyTorch from bfloat16 arithmetic, so that both are what a
machine with AVX2 runs; `best` lets both use whatever this machine has.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tianquan import __version__
from tianquan.benchmark.baselines import measure_first_turn
from tianquan.benchmark.measure import measure_turns
from tianquan.benchmark.run import machine_name
from tianquan.benchmark.synthetic import write_synthetic_folder
from tianquan.kernels.library import KernelLibrary
from tianquan.loading import load
from tianquan.quantization.recipes import find_recipe

NUM_SLICES = 3
PRECISIONS = ("float32", "float32", "bfloat16")
BARS = {"float32": 0.45, "bfloat16": 0.08}
# What PyTorch's own kernels, oneDNN, MKL and ours look at; set before torch is imported.
AVX2_ONLY = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "TIANQUAN_ISA": "avx2",
}


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def first_turn(folder: Path, threads: int) -> dict[str, Any]:
    """Return our first turn in a freshly loaded model, which knows no beginnings yet."""
    say("tianquan, first turn")
    library = KernelLibrary(threads)
    rate = library.measure_fma_gflop_s()
    llm = load(folder, threads=threads)
    began = time.perf_counter()
    llm.model.load_vision()
    loading = time.perf_counter() - began
    turn = measure_turns(llm)["first_turn"]
    return {**turn, "vision_load_seconds": loading, "fma_gflop_s": rate, "isa": library.isa}


def run(threads: int, instructions: str) -> dict[str, Any]:
    """Return the report of one run."""
    with tempfile.TemporaryDirectory(prefix="tianquan-bench-") as temporary:
        folder = Path(temporary) / "synthetic"
        say("writing synthetic weights")
        write_synthetic_folder(folder, find_recipe("int4"))
        ours, original = [first_turn(folder, threads)], []
        for precision in PRECISIONS:
            original.append(measure_first_turn(threads, precision, NUM_SLICES, ours[0]["prompt_tokens"], say))
            ours.append(first_turn(folder, threads))
    shares: dict[str, list[float]] = {name: [] for name in BARS}
    for before, turn, after in zip(ours, original, ours[1:], strict=False):
        shares[turn["precision"]].append((before["seconds"] + after["seconds"]) / 2 / turn["seconds"])
    return {
        "date": datetime.date.today().isoformat(),
        "machine": machine_name(),
        "threads": threads,
        "instructions": instructions,
        "command": f"python benchmarks/{Path(__file__).name} --threads {threads} --instructions {instructions}",
        "tianquan": __version__,
        "ours": ours,
        "transformers": original,
        "shares": shares,
        "share_of": {name: statistics.mean(values) for name, values in shares.items()},
    }


def to_markdown(report: dict[str, Any]) -> str:
    """Return the report as a table."""
    original = report["transformers"]
    lines = [
        f"{report['machine']}, {report['threads']} threads, {report['date']}; 512x512 picture, "
        f"{report['ours'][0]['prompt_tokens']} prompt tokens; ours {report['ours'][0]['isa']}; "
        f"torch {original[0]['torch']} ({original[0]['instructions']}), "
        f"transformers {original[0]['transformers']}; in the order measured",
        "",
        "| | vision tower loaded before, s | vision, s | prefill, s | first token, s | multiply-adds before, GFLOP/s |",
        "|---|---|---|---|---|---|",
    ]

    def add(name: str, turn: dict[str, Any]) -> None:
        keys = ("vision_load_seconds", "vision_seconds", "prefill_seconds", "seconds")
        cells = [f"{turn[key]:.2f}" if key in turn else "" for key in keys]
        cells.append(f"{turn['fma_gflop_s']:.0f}" if "fma_gflop_s" in turn else "")
        lines.append(f"| {name} | {' | '.join(cells)} |")

    for ours, theirs in zip(report["ours"], [*original, None], strict=True):
        add("Tianquan int4", ours)
        if theirs is not None:
            add(f"transformers {theirs['precision']}", theirs)
    lines.append("")
    for name, share in report["share_of"].items():
        lines.append(f"Ours takes {share:.0%} of the time of {name} (the bar is {BARS[name]:.0%}).")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--instructions", choices=("avx2", "best"), default="avx2")
    parser.add_argument("--output", type=Path, help="also write OUTPUT.json and OUTPUT.md")
    options = parser.parse_args()
    if options.instructions == "avx2":
        os.environ.update(AVX2_ONLY)
    report = run(options.threads, options.instructions)
    markdown = to_markdown(report)
    if options.output is not None:
        options.output.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        options.output.with_suffix(".md").write_text(markdown, encoding="utf-8")
    print(markdown)


if __name__ == "__main__":
    main()
