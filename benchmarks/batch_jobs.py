"""Batch jobs: what is lost when they are killed, whether two runs agree, and what Ray's workers cost.

    python benchmarks/batch_jobs.py [--rows 1000] [--kills 5] [--ray] [--output FILE]
    python benchmarks/batch_jobs.py --cost-only [--pairs 5] [--output FILE]     # on an otherwise idle machine

The job: mixed rows (text, pictures, sound, both, completions), ten of them broken in different ways, on the small
conformance checkpoint in float32. It is run twice, and once more with kills at random moments (SIGKILL) and the same
command again. With --ray (ray installed in this environment) the same job runs on two Ray workers, one of which is
killed on the way, and a job whose time is the model's compares one process of two threads with two workers of one:
alternating, so that what else the machine does hits both; --cost-only does nothing else. Times are the job's own,
without starting and loading but for Ray's workers, which take some ten seconds: the job is to be longer than that.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from batch.rows_of_jobs import answers, chat_row, image_part, write_job  # noqa: E402

CONFORMANCE = ROOT / "tests" / "conformance"
SMALL = ["--model", str(CONFORMANCE / "checkpoint"), "--precision", "float32"]
ON_RAY = ["--ray", "local", "--workers", "2", "--threads", "1"]


def command(input: Path, output: Path, *options: str) -> list[str]:
    media = ["--media-root", str(CONFORMANCE / "media")]
    return [sys.executable, "-m", "tianquan", "batch", str(input), str(output), *media, *options]


def run(*arguments: Any) -> dict[str, float]:
    result = subprocess.run(command(*arguments), capture_output=True, text=True)
    if result.returncode:
        sys.exit(result.stderr)
    return read_tally(result.stdout)


def read_tally(text: str) -> dict[str, float]:
    found = re.search(r"(\d+) answers, (\d+) errors in ([\d.]+) s", text)
    assert found is not None, text
    return {"answers": int(found[1]), "errors": int(found[2]), "seconds": float(found[3])}


def run_with_kills(input: Path, output: Path, num_kills: int, seconds: float, *options: str) -> list[int]:
    """Return how many rows were in the output at each kill, which comes at a random moment of the run."""
    rng = random.Random()
    rows_at_kill = []
    while len(rows_at_kill) < num_kills:
        process = subprocess.Popen(command(input, output, *options), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        time.sleep(rng.uniform(0.5, 1 + 1.6 * seconds / num_kills))
        if process.poll() is not None:
            sys.exit(f"the job ended before kill {len(rows_at_kill) + 1}; give more --rows")
        process.kill()
        process.communicate()
        rows_at_kill.append(output.read_bytes().count(b"\n") if output.exists() else 0)
    run(input, output, *options)
    return rows_at_kill


def check_kills(folder: Path, num_rows: int, num_kills: int) -> tuple[dict[str, Any], Path]:
    input = folder / "in.jsonl"
    codes = write_job(input, num_rows)
    first = run(input, folder / "first.jsonl", *SMALL)
    second = run(input, folder / "second.jsonl", *SMALL)
    kills = run_with_kills(input, folder / "killed.jsonl", num_kills, first["seconds"], *SMALL)
    expected = answers(folder / "first.jsonl")
    errors = {n: row["error"]["code"] for n, row in enumerate(expected) if row["error"]}
    return {
        "rows": num_rows,
        "first_run": first,
        "second_run": second,
        "errors_as_expected": errors == codes,
        "second_run_is_the_same": answers(folder / "second.jsonl") == expected,
        "rows_at_each_kill": kills,
        "killed_run_is_the_same": answers(folder / "killed.jsonl") == expected,
    }, input


# Ray --------------------------------------------------------------------------------------------------------
def worker_pids() -> list[int]:
    """Return the processes that Ray runs our actors in."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                title = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if title.startswith(b"ray::") and b"RowWorker" in title:
                found.append(int(entry.name))
    return found


def check_ray(folder: Path, input: Path) -> dict[str, Any]:
    """Run on two workers, kill one when a fifth of the rows is there, and compare with the run without Ray."""
    output = folder / "ray.jsonl"
    process = subprocess.Popen(
        command(input, output, *SMALL, *ON_RAY), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    fifth = len(answers(folder / "first.jsonl")) // 5
    while not (output.exists() and output.read_bytes().count(b"\n") >= fifth):
        if process.poll() is not None:
            sys.exit(process.communicate()[1])
        time.sleep(0.01)
    lost = worker_pids()[0]
    os.kill(lost, signal.SIGKILL)
    text, errors = process.communicate()
    if process.returncode:
        sys.exit(errors)
    same = answers(output) == answers(folder / "first.jsonl")
    return {"run_with_a_lost_worker": read_tally(text), "rows_when_it_was_killed": fifth, "is_the_same": same}


def write_model(folder: Path) -> None:
    """A fifth of the official widths: large enough that its arithmetic is what takes the time."""
    from tianquan.benchmark.synthetic import OFFICIAL_CONFIG, write_synthetic_folder
    from tianquan.quantization.recipes import find_recipe

    language = {"hidden_size": 1280, "num_attention_heads": 20, "num_key_value_heads": 5, "intermediate_size": 3584}
    config = {
        **OFFICIAL_CONFIG,
        **language,
        "num_hidden_layers": 12,
        "vision_config": {**OFFICIAL_CONFIG["vision_config"], "num_hidden_layers": 6},
        "audio_config": {**OFFICIAL_CONFIG["audio_config"], "n_layer": 4, "output_dim": 1280},
    }
    write_synthetic_folder(folder, find_recipe("int4"), config)


def compare_cost(folder: Path, num_rows: int, num_pairs: int) -> dict[str, Any]:
    model = ["--model", str(folder / "model")]
    write_model(folder / "model")
    rng = random.Random(0)
    with open(folder / "cost.jsonl", "w") as file:
        for n in range(num_rows):
            text = f"question {n} " + "and more " * rng.randrange(40)
            content: Any = text
            if n % 8 == 0:
                content = [image_part("crop_448x448.png"), {"type": "text", "text": text}]
            file.write(json.dumps(chat_row(f"c{n}", content, max_tokens=24, ignore_eos=True)) + "\n")
    pairs = []
    for n in range(num_pairs):
        alone = run(folder / "cost.jsonl", folder / f"alone-{n}.jsonl", *model, "--threads", "2")
        on_ray = run(folder / "cost.jsonl", folder / f"ray-{n}.jsonl", *model, *ON_RAY)
        pairs.append({"one_process_two_threads": alone["seconds"], "two_ray_workers": on_ray["seconds"]})
    ratio = statistics.median(pair["two_ray_workers"] / pair["one_process_two_threads"] for pair in pairs)
    return {"rows": num_rows, "pairs": pairs, "median_ratio": ratio}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--ray", action="store_true")
    parser.add_argument("--cost-only", action="store_true")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--cost-rows", type=int, default=384)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    found: dict[str, Any] = {"date": datetime.now(timezone.utc).isoformat(timespec="seconds")}
    found["cores"] = os.cpu_count()

    def note(stage: str, result: dict[str, Any]) -> None:
        """Keep what is known so far: the next stage may fail."""
        found[stage] = {"load_average": round(os.getloadavg()[0], 1), **result}
        if arguments.output is not None:
            arguments.output.write_text(json.dumps(found, indent=1) + "\n")

    with tempfile.TemporaryDirectory(prefix="tianquan-batch-") as name:
        folder = Path(name)
        if not arguments.cost_only:
            result, input = check_kills(folder, arguments.rows, arguments.kills)
            note("kills", result)
            if arguments.ray:
                note("ray", check_ray(folder, input))
        if arguments.ray or arguments.cost_only:
            note("cost_of_ray", compare_cost(folder, arguments.cost_rows, arguments.pairs))
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
