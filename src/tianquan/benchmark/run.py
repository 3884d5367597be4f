"""One benchmark run from nothing to a report.

The report (JSON) has these keys; times in seconds, sizes in bytes, rates as named:

    tianquan, date, machine, threads, isa, recipe, command
    ceilings.read_bandwidth_gb_s, ceilings.fma_gflop_s              medians of samples taken beside each stage;
                                                                    a stage's share is of the samples beside it
    decode.depth_D.{tokens_per_second, weights_gb_s, share_of_bandwidth}
    prefill.N.{tokens_per_second, gop_s, share_of_fma_peak}
    vision.SIZE.{seconds, preprocess_seconds, num_slices}           all slices, encoder and resampler
    audio.SECONDS.{seconds, preprocess_seconds}
    first_turn, second_turn.{prompt_tokens, preprocess_seconds, vision_seconds, prefill_seconds, seconds}
                                                                    (not in a quick run)
    engine.{concurrency, second_turn, speculation}                  see `engine_stages` (not in a quick run)
    memory.{text_only_bytes, all_bytes, weights_bytes}              resident, in a fresh process
    load.seconds                                                    from a saved low-bit folder to ready
    wall_seconds
"""

from __future__ import annotations

import datetime
import json
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tianquan import __version__
from tianquan.backends.native import NativeOps
from tianquan.benchmark.engine_stages import EnginePlan, measure_engine
from tianquan.benchmark.fresh_process import run_fresh
from tianquan.benchmark.measure import Ceilings, OnStage, Plan, measure_model
from tianquan.benchmark.synthetic import write_synthetic_folder
from tianquan.checkpoint.tensor_list import needed_weights
from tianquan.llm import LLM
from tianquan.loading import load
from tianquan.quantization.recipes import Recipe


def run_benchmark(
    recipe: Recipe,
    plan: Plan,
    threads: int | None,
    on_stage: OnStage,
    config: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the report of one run on synthetic weights of the official size (or of `config`)."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="tianquan-bench-") as temporary:
        folder = Path(temporary) / "synthetic"
        on_stage("making synthetic weights")
        write_synthetic_folder(folder, recipe, config)
        on_stage("a fresh process, text only")
        text_only = run_child(folder, threads, "text")
        on_stage("a fresh process, all inputs")
        everything = run_child(folder, threads, "all")
        llm = load(folder, threads=threads)
        ops = llm.model.ops
        assert isinstance(ops, NativeOps)
        ceilings = Ceilings(ops.library)
        report = measure_model(llm, decode_bytes(llm), ceilings, plan, on_stage)
        if plan.turns:
            report["engine"] = measure_engine(llm, EnginePlan(repeats=plan.repeats), on_stage)
    return {
        "tianquan": __version__,
        "date": datetime.date.today().isoformat(),
        "machine": machine_name(),
        "threads": ops.threads,
        "isa": ops.isa,
        "recipe": recipe.name,
        "ceilings": ceilings.medians(),
        **report,
        "memory": {
            "text_only_bytes": text_only["resident_bytes"],
            "all_bytes": everything["resident_bytes"],
            "weights_bytes": sum(w.nbytes(recipe) for w in needed_weights(llm.model.config)),
        },
        "load": {"seconds": min(text_only["load_seconds"], everything["load_seconds"])},
        "wall_seconds": time.perf_counter() - start,
    }


def run_child(folder: Path, threads: int | None, inputs: str) -> dict[str, Any]:
    """Return what a fresh process reports; see `memory_child`."""
    return json.loads(run_fresh("tianquan.benchmark.memory_child", str(folder), str(threads or 0), inputs))


def decode_bytes(llm: LLM) -> int:
    """Return the bytes of weights one decode step reads: the language model without its embedding table."""
    return sum(
        weight.nbytes(llm.recipe)
        for weight in needed_weights(llm.model.config)
        if weight.component == "language_model" and weight.name != "language_model.embedding"
    )


def machine_name() -> str:
    """Return the processor's name where the system tells it."""
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
