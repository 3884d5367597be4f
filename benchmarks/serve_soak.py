"""Hours of mixed load on a server, and what is left of it: `python benchmarks/serve_soak.py OUTPUT.json --minutes 30`.

The server runs in a process of its own on a folder (the tests' small checkpoint by default: many requests, many
blocks). Texts, pictures and sound come from 6 clients, and one more begins answers and goes away. At the end nothing
may run, wait or hold a block, and resident memory of the last third may be at most 2 % above that of the third before.
"""

from __future__ import annotations

import argparse
import datetime
import http.client
import json
import random
import re
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tianquan.benchmark.run import machine_name
from tianquan.benchmark.serve_load import LoadPlan, make_body, run_load

MAX_GROWTH = 0.02
# full within a minute, so that growth after it is no cache that fills
SMALL_CACHES = ("--max-num-seqs", "8", "--kv-cache-bytes", "16M", "--encoder-cache-bytes", str(8 * 2**20))
SAMPLE_SECONDS = 5.0
ROUND_SECONDS = 60.0
DEFAULT_MODEL = Path(__file__).parents[1] / "tests" / "conformance" / "checkpoint"


class Soak:
    """A server under load."""

    def __init__(self, model: Path, seconds: float, mix: tuple[float, float, float]) -> None:
        command = [sys.executable, "-m", "tianquan", "serve", str(model), "--port", "0", *SMALL_CACHES]
        self.server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self.server.stderr is not None
        self.port = int(re.search(r":(\d+),", self.server.stderr.readline())[1])  # type: ignore[index]
        threading.Thread(target=self._count_log, daemon=True).start()
        self.end = time.monotonic() + seconds
        self.mix = mix
        self.statuses: Counter[int] = Counter()
        self.resident_mib: list[float] = []
        self.num_left = 0

    def _count_log(self) -> None:
        assert self.server.stderr is not None
        for line in self.server.stderr:
            if line.startswith("{"):
                self.statuses[json.loads(line)["status"]] += 1

    def get(self, path: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request("GET", path)
        response = connection.getresponse()
        text = response.read().decode()
        connection.close()
        return response.status, text

    def gauge(self, name: str) -> float:
        return float(re.search(rf"^tianquan:{name} (\S+)$", self.get("/metrics")[1], re.MULTILINE)[1])  # type: ignore[index]

    def sample_memory(self) -> None:
        while time.monotonic() < self.end:
            status = Path(f"/proc/{self.server.pid}/status").read_text()
            self.resident_mib.append(int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024)  # type: ignore[index]
            time.sleep(SAMPLE_SECONDS)

    def go_away(self) -> None:
        """Begin answers and leave: at once, after an event or after some."""
        rng = random.Random(0)
        plan = LoadPlan(url="http://x", mix=self.mix, answer_tokens=(200, 800), image_sides=(100, 600))
        while time.monotonic() < self.end:
            _, body = make_body(plan, "checkpoint", rng.getrandbits(40))
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
            connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
            num_lines = rng.choice((0, 1, 30))
            if num_lines:
                response = connection.getresponse()
                for _ in range(num_lines):
                    response.readline()
                response.close()
            connection.close()
            self.num_left += 1
            time.sleep(rng.uniform(0, 0.5))

    def run(self) -> dict[str, Any]:
        while self.get("/health")[0] != 200:
            time.sleep(0.2)
        others = [threading.Thread(target=target) for target in (self.sample_memory, self.go_away)]
        for thread in others:
            thread.start()
        rounds = []
        url = f"http://127.0.0.1:{self.port}"
        while (left := self.end - time.monotonic()) > 0:
            plan = LoadPlan(
                url=url, num_requests=10**6, seconds=min(left, ROUND_SECONDS), concurrency=6, mix=self.mix,
                answer_tokens=(4, 200), seed=len(rounds), image_sides=(60, 900), audio_seconds=(1, 12),
            )  # fmt: skip
            rounds.append(run_load(plan)["all"])
            print(f"round {len(rounds)}: {rounds[-1]['requests']} requests", file=sys.stderr, flush=True)
        for thread in others:
            thread.join()
        time.sleep(5)
        left_over = {
            name: self.gauge(name) for name in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
        }
        return self.report(rounds, left_over)

    def report(self, rounds: list[dict[str, Any]], left_over: dict[str, float]) -> dict[str, Any]:
        third = len(self.resident_mib) // 3
        before, last = (
            statistics.median(part) for part in (self.resident_mib[third:-third], self.resident_mib[-third:])
        )
        errors = sum((Counter(round_["errors"]) for round_ in rounds), Counter[str]())
        growth = last / before - 1
        return {
            "requests": sum(round_["requests"] for round_ in rounds),
            "errors": dict(errors),
            "clients_that_left": self.num_left,
            "responses": {str(status): count for status, count in sorted(self.statuses.items())},
            "left_over": left_over,
            "resident_mib": [round(value, 1) for value in self.resident_mib],
            "growth_of_last_third": round(growth, 4),
            "passed": not errors and not any(left_over.values()) and growth <= MAX_GROWTH,
        }


def main() -> None:
    """Write the report."""
    parser = argparse.ArgumentParser()
    parser.add_argument("output", type=Path)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL)
    parser.add_argument("--mix", type=float, nargs=3, default=(3.0, 1.0, 1.0), help="weights of text, image, audio")
    arguments = parser.parse_args()
    soak = Soak(arguments.model, 60 * arguments.minutes, tuple(arguments.mix))
    try:
        report = soak.run()
    finally:
        soak.server.terminate()
        code = soak.server.wait(60)
    report = {
        "date": datetime.date.today().isoformat(),
        "machine": machine_name(),
        "command": f"python benchmarks/serve_soak.py --minutes {arguments.minutes:g}",
        "mix": list(arguments.mix),
        "model": arguments.model.name,
        "exit_code": code,
        **report,
    }
    arguments.output.write_text(json.dumps(report) + "\n", encoding="utf-8")
    print("passed" if report["passed"] and code == 0 else "failed", file=sys.stderr)


if __name__ == "__main__":
    main()
