"""What the server costs on top of the engine: `python benchmarks/serve_overhead.py OUTPUT.json [--model FOLDER]`.

Synthetic int4 weights of the official size (or a folder), one process with the model. In turns, the same requests go
in through Python and, from a second process, through HTTP: one at a time for the time to the first token, then 16
streams for the throughput. Bars: 10 ms + 2 % of the first token's time, 5 % of the throughput.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from tianquan.benchmark.run import machine_name
from tianquan.benchmark.serve_load import LoadPlan, Sample, make_body, summarize
from tianquan.benchmark.synthetic import write_synthetic_folder
from tianquan.llm import LLM
from tianquan.loading import load
from tianquan.quantization.recipes import find_recipe
from tianquan.request import SamplingParams
from tianquan.serving.config import ServeConfig
from tianquan.serving.server import RunningServer

NUM_STREAMS = 16
NUM_TOKENS = 32
NUM_WORDS = 48


def in_process(llm: LLM, plan: LoadPlan) -> dict[str, Any]:
    """Run a plan through Python."""

    def ask(n: int) -> Sample:
        kind, data = make_body(plan, "model", n)
        body = json.loads(data)
        sampling = SamplingParams(temperature=0, max_tokens=body["max_tokens"], ignore_eos=True)
        sample, began = Sample(kind), time.perf_counter()
        prompt = llm.checkpoint.processor(body["messages"])
        for piece in llm.answer(prompt, sampling, salt="in process"):
            now = time.perf_counter() - began
            if piece.text:
                sample.first = sample.first or now
                sample.last = now
            if piece.completion is not None:
                sample.num_tokens = piece.completion.usage.completion_tokens
        return sample

    began = time.perf_counter()
    with ThreadPoolExecutor(plan.concurrency) as pool:
        samples = list(pool.map(ask, range(plan.num_requests)))
    return summarize(plan, samples, time.perf_counter() - began)["all"]


def over_http(plan: LoadPlan) -> dict[str, Any]:
    """Run a plan from a second process."""
    command = [
        *(sys.executable, "-m", "tianquan", "bench", "serve", plan.url, "--json", "--seed", str(plan.seed)),
        *("--requests", str(plan.num_requests), "--concurrency", str(plan.concurrency)),
        *("--prompt-words", *map(str, plan.prompt_words), "--answer-tokens", *map(str, plan.answer_tokens)),
    ]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    report: dict[str, Any] = json.loads(output)["all"]
    assert not report["errors"], report["errors"]
    return report


def measure(llm: LLM, url: str, rounds: int) -> dict[str, Any]:
    """Return both sides of each round."""
    plan = LoadPlan(
        url=url, prompt_words=(NUM_WORDS, NUM_WORDS), answer_tokens=(NUM_TOKENS, NUM_TOKENS), num_requests=1
    )
    results: dict[str, list[dict[str, Any]]] = {"one": [], "streams": []}
    for n in range(rounds):
        one = replace(plan, seed=2 * n, concurrency=1, num_requests=6, answer_tokens=(4, 4))
        many = replace(plan, seed=2 * n + 1, concurrency=NUM_STREAMS, num_requests=NUM_STREAMS)
        for name, chosen in (("one", one), ("streams", many)):
            results[name].append({"in_process": in_process(llm, chosen), "http": over_http(chosen)})
            print(f"round {n + 1} of {rounds}: {name}", file=sys.stderr, flush=True)
    first = [(r["in_process"]["ttft_ms"]["p50"], r["http"]["ttft_ms"]["p50"]) for r in results["one"]]
    speed = [
        (r["in_process"]["answer_tokens_per_second"], r["http"]["answer_tokens_per_second"]) for r in results["streams"]
    ]
    return {
        "ttft_ms": {"in_process": [a for a, _ in first], "http": [b for _, b in first]},
        "ttft_overhead_ms": round(statistics.median(b - a for a, b in first), 2),
        "ttft_bar_ms": round(10 + 0.02 * statistics.median(a for a, _ in first), 2),
        "streams": NUM_STREAMS,
        "tokens_per_second": {"in_process": [a for a, _ in speed], "http": [b for _, b in speed]},
        "throughput_cost": round(1 - statistics.median(b / a for a, b in speed), 4),
        "throughput_bar": 0.05,
    }


def main() -> None:
    """Write the report."""
    parser = argparse.ArgumentParser()
    parser.add_argument("output", type=Path)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tianquan-bench-") as temporary:
        folder = arguments.model or Path(temporary) / "synthetic"
        if arguments.model is None:
            write_synthetic_folder(folder, find_recipe("int4"))
        llm = load(folder)
        server = RunningServer(ServeConfig(port=0, model=str(folder), preload=False), lambda: llm)
        thread = threading.Thread(target=server.run)
        thread.start()
        while not server.service.is_ready:
            time.sleep(0.05)
        try:
            report = measure(llm, f"http://127.0.0.1:{server.port}", arguments.rounds)
        finally:
            server.stop()
            thread.join()
    report = {
        "date": datetime.date.today().isoformat(),
        "machine": machine_name(),
        "threads": llm.model.ops.threads,
        "model": "synthetic int4 of the official size" if arguments.model is None else arguments.model.name,
        "command": "python benchmarks/serve_overhead.py",
        **report,
    }
    arguments.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
