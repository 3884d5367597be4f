"""Quality and speed of each `image_detail`: `python benchmarks/image_detail.py MODEL RECORDS... --output STEM`.

RECORDS are files of records with pictures, one task each (embedded_model.write_records makes them, for held-out
pictures); media paths start from a file's folder. The last answer of each record is asked for, greedily, once for each
value of the option, one value after the other for each record, so that a shared machine slows all of them alike. Every
question is asked of a cold cache. Tables: exact answers in percent, tokens of pictures, time to the first token.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from tianquan import __version__
from tianquan.benchmark.run import machine_name
from tianquan.llm import LLM, load
from tianquan.request import ImageDetail, ImagePolicy, MediaPolicy, SamplingParams
from tianquan.training.records import Record, read_records

DETAILS: tuple[ImageDetail, ...] = get_args(ImageDetail)
GREEDY = SamplingParams(temperature=0.0, max_tokens=64)


def ask(llm: LLM, record: Record, root: Path, detail: ImageDetail) -> dict[str, Any]:
    """Return how one record is answered; a salt of its own keeps what is cached from helping."""
    policy = MediaPolicy(image=ImagePolicy(image_detail=detail))
    turns = record.turns[:-1]
    media = llm.processor.load_media(turns, policy, root)
    answer = llm.answer(llm.processor.assemble(turns, media), GREEDY, salt=uuid.uuid4().hex)
    completion = next(piece.completion for piece in answer if piece.completion is not None)
    return {
        "right": completion.text.strip() == record.answer.strip(),
        "tokens": completion.usage.image_tokens,
        "ttft_ms": completion.timings.ttft_ms,
    }


def measure(llm: LLM, path: Path, limit: int) -> dict[str, Any]:
    """Return the row of one task."""
    records = [record for record in read_records(path) if any(turn.images for turn in record.turns)][:limit]
    if not records:
        sys.exit(f"{path}: no record has a picture")
    ask(llm, records[0], path.parent, "full")  # loads the towers
    answers: dict[str, list[dict[str, Any]]] = {detail: [] for detail in DETAILS}
    for n, record in enumerate(records):
        for detail in DETAILS[n % len(DETAILS) :] + DETAILS[: n % len(DETAILS)]:
            answers[detail].append(ask(llm, record, path.parent, detail))
    return {"records": len(records), **{detail: summary(rows) for detail, rows in answers.items()}}


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Return percent right, mean tokens and median time."""
    return {
        "exact_percent": 100 * statistics.fmean(row["right"] for row in rows),
        "image_tokens": statistics.fmean(row["tokens"] for row in rows),
        "ttft_ms": statistics.median(row["ttft_ms"] for row in rows),
    }


def table(tasks: dict[str, Any]) -> str:
    """Return the rows as Markdown."""
    names = ("exact_percent", "image_tokens", "ttft_ms")
    lines = ["| task | records | " + " | ".join(f"{d}: % right, tokens, ms" for d in DETAILS) + " |"]
    lines.append("|---" * (2 + len(DETAILS)) + "|")
    for task, row in tasks.items():
        cells = [", ".join(f"{row[detail][name]:.1f}" for name in names) for detail in DETAILS]
        lines.append(f"| {task} | {row['records']} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure and write STEM.json and STEM.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="folder of a trained checkpoint")
    parser.add_argument("records", type=Path, nargs="+")
    parser.add_argument("--output", type=Path, required=True, metavar="STEM")
    parser.add_argument("--precision", default=None)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--limit", type=int, default=200, help="records of each file")
    arguments = parser.parse_args()
    llm = load(arguments.model, precision=arguments.precision, threads=arguments.threads)
    report: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "version": __version__,
        "machine": machine_name(),
        "model": Path(arguments.model).name,
        "precision": llm.recipe.name,
        "tasks": {path.stem: measure(llm, path, arguments.limit) for path in arguments.records},
    }
    arguments.output.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    arguments.output.with_suffix(".md").write_text(table(report["tasks"]), encoding="utf-8")
    print(table(report["tasks"]))


if __name__ == "__main__":
    main()
