"""Quality and speed of each `image_detail`: `PYTHONPATH=. python benchmarks/image_detail.py MODEL --output STEM`.

Three tables, one command:

    ordinary tasks       held-out pictures of embedded_model, MODEL as it is
    pages, screenshots   documents.py, with as many slices as MODEL was made for, whatever it does unasked
    official size        the same pages for slices of 448 pixels, synthetic weights: time and tokens, no answers

Each question is asked greedily of a cold cache, once for each value of the option, one value after the other for each
picture, so that a shared machine slows all of them alike. The change of accuracy is paired: the interval is of the
difference between answers to the same questions (95 %, normal). It needs embedded_model's fonts.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import tempfile
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, get_args

from embedded_model.samples import SampleStream
from PIL import Image

import documents
from tianquan import LLM, __version__, load
from tianquan.benchmark.run import machine_name
from tianquan.benchmark.synthetic import write_synthetic_folder
from tianquan.evaluation.metrics import is_exact
from tianquan.quantization.recipes import find_recipe
from tianquan.request import ImageDetail, ImagePolicy, MediaPolicy, SamplingParams

DETAILS: tuple[ImageDetail, ...] = get_args(ImageDetail)
GREEDY = SamplingParams(temperature=0.0, max_tokens=64)
FIRST_TOKEN = SamplingParams(temperature=0.0, max_tokens=1)
TASKS = ("colour", "shape", "colour_shape", "count", "position", "read_digits", "read_text")
OFFICIAL_SLICE = 448

Question = tuple[Any, str, str | None]  # picture, question, answer


def ask(
    llm: LLM, question: Question, detail: ImageDetail, sampling: SamplingParams = GREEDY, max_slices: int | None = None
) -> dict[str, Any]:
    """Return how one question is answered; a salt of its own keeps what is cached from helping."""
    picture, text, expected = question
    policy = MediaPolicy(image=ImagePolicy(image_detail=detail, max_slices=max_slices))
    prompt = llm.processor([{"role": "user", "content": {"text": text, "image": picture}}], policy)
    answer = llm.answer(prompt, sampling, salt=uuid.uuid4().hex)
    completion = next(piece.completion for piece in answer if piece.completion is not None)
    return {
        "right": expected is not None and is_exact(expected, completion.text),
        "tokens": completion.usage.image_tokens,
        "ttft_ms": completion.timings.ttft_ms,
    }


def measure(
    llm: LLM, questions: Iterable[Question], sampling: SamplingParams = GREEDY, max_slices: int | None = None
) -> dict[str, Any]:
    """Return the row of one task; `max_slices` None cuts pictures as the model does unasked."""
    rows: dict[str, list[dict[str, Any]]] = {detail: [] for detail in DETAILS}
    for n, question in enumerate(questions):
        if n == 0:
            ask(llm, question, "full", FIRST_TOKEN, max_slices)  # loads the tower
        for detail in DETAILS[n % len(DETAILS) :] + DETAILS[: n % len(DETAILS)]:
            rows[detail].append(ask(llm, question, detail, sampling, max_slices))
    return {"questions": len(rows["full"]), **{detail: summary(rows[detail], rows["full"]) for detail in DETAILS}}


def summary(rows: Sequence[dict[str, Any]], full: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Return percent right and its change from `full`, mean tokens, median time and the median of its ratios."""
    changes = [100.0 * (row["right"] - other["right"]) for row, other in zip(rows, full, strict=True)]
    return {
        "right_percent": 100 * statistics.fmean(row["right"] for row in rows),
        "change_points": statistics.fmean(changes),
        "change_half_interval": 1.96 * statistics.pstdev(changes) / len(changes) ** 0.5,
        "image_tokens": statistics.fmean(row["tokens"] for row in rows),
        "ttft_ms": statistics.median(row["ttft_ms"] for row in rows),
        "ttft_ratio": statistics.median(r["ttft_ms"] / o["ttft_ms"] for r, o in zip(rows, full, strict=True)),
    }


def ordinary(task: str, count: int) -> Iterable[Question]:
    """Yield held-out questions of a task of embedded_model."""
    stream = SampleStream("heldout")
    for n in range(count):
        question, reply = stream.sample(n, {task: 1.0}).conversation[:2]
        yield question["content"]["image"], question["content"]["text"], reply["content"]["text"]


def pages(kind: str, count: int, unit: int) -> Iterable[Question]:
    """Yield pages of a kind."""
    for n in range(count):
        page = documents.draw(kind, n, unit)
        yield page.image, page.question, page.answer


def official(folder: Path, count: int, threads: int | None) -> dict[str, Any]:
    """Return time and tokens at the official size."""
    write_synthetic_folder(folder, find_recipe("int4"))
    llm = load(str(folder), threads=threads)
    ask(llm, (Image.new("RGB", (OFFICIAL_SLICE, OFFICIAL_SLICE)), "?", None), "full", FIRST_TOKEN)
    return {kind: measure(llm, pages(kind, count, OFFICIAL_SLICE), FIRST_TOKEN) for kind in documents.PAGES}


def table(rows: dict[str, Any], with_answers: bool) -> list[str]:
    """Return the lines of one table."""
    lines = ["| task | questions | " + " | ".join(DETAILS) + " |", "|---" * (2 + len(DETAILS)) + "|"]
    for task, row in rows.items():
        cells = []
        for detail in DETAILS:
            found = row[detail]
            cell = f"{found['image_tokens']:.0f} tokens, {found['ttft_ms']:.0f} ms"
            if detail != "full":
                cell += f" ({100 * found['ttft_ratio']:.0f} %)"
            if with_answers:
                change = f" ({found['change_points']:+.1f} ± {found['change_half_interval']:.1f})"
                cell = f"{found['right_percent']:.1f} %{'' if detail == 'full' else change}, {cell}"
            cells.append(cell)
        lines.append(f"| {task} | {row['questions']} | " + " | ".join(cells) + " |")
    return lines


def main() -> None:
    """Measure and write STEM.json and STEM.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="folder of a trained checkpoint, or `embedded`")
    parser.add_argument("--output", type=Path, required=True, metavar="STEM")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--count", type=int, default=200, help="questions of each task")
    parser.add_argument(
        "--official", type=int, default=3, metavar="N", help="pages a kind at the official size; 0 = none"
    )
    arguments = parser.parse_args()
    report: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "version": __version__,
        "machine": machine_name(),
        "model": Path(arguments.model).name,
        "precision": arguments.precision,
    }
    with tempfile.TemporaryDirectory(prefix="tianquan-bench-") as temporary:
        llm = load(arguments.model, precision=arguments.precision, threads=arguments.threads)
        report["ordinary"] = {task: measure(llm, ordinary(task, arguments.count)) for task in TASKS}
        settings = llm.processor.settings.image
        unit, most = settings.scale_resolution, settings.max_slices
        report["pages"] = {
            kind: measure(llm, pages(kind, arguments.count, unit), max_slices=most) for kind in documents.PAGES
        }
        del llm
        if arguments.official:
            report["official"] = official(Path(temporary) / "official", arguments.official, arguments.threads)
    lines = [
        "Right answers (change from `full`, points), picture tokens, time to the first token (share of `full`'s).",
        "",
    ]
    lines += ["As the model is shipped:", "", *table(report["ordinary"], True)]
    lines += ["", f"With up to {most} slices:", "", *table(report["pages"], True)]
    if "official" in report:
        lines += ["", "Official size, int4, synthetic weights:", "", *table(report["official"], False)]
    arguments.output.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    arguments.output.with_suffix(".md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
