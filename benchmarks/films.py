"""What a model sees over time, frames alone and merged: `PYTHONPATH=. python benchmarks/films.py MODEL --output STEM`.

Held-out films of embedded_model, written as MP4 and read as anybody's. Each question is asked greedily in three ways:

    alone      the default policy; no film here is long enough for it to merge frames
    merged     the smallest budget into which merging alone brings all frames: neighbours of little change share
               tokens, four at the most (docs/video.md says what little is)
    halved     a budget of half the frames that `alone` showed: merged as far as it goes, the others left out evenly

The change from `alone` is paired, with its 95 % interval (normal). `frames` counts what the encoder saw.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from embedded_model.samples import SampleStream
from embedded_model.write_records import write_records

from tianquan import LLM, __version__, load
from tianquan.answer import last
from tianquan.benchmark.run import machine_name
from tianquan.evaluation.metrics import is_exact, wilson_interval
from tianquan.llm import GREEDY
from tianquan.processing.frames import frame_cost
from tianquan.request import MediaPolicy, Usage, VideoPolicy
from tianquan.training.records import Record, read_records

TASKS = ("film_direction", "film_order", "film_colour", "film_bounces")
WAYS = ("alone", "merged", "halved")


def ask(llm: LLM, record: Record, root: Path, video: VideoPolicy) -> tuple[str, Usage]:
    """Return the answer to a record and what it cost."""
    turns = record.turns[:-1]
    prompt = llm.processor.assemble(turns, llm.processor.load_media(turns, MediaPolicy(video=video), root))
    completion = last(llm.answer(prompt, GREEDY))
    return completion.text, completion.usage


def budgets(llm: LLM, record: Record, root: Path) -> dict[str, int]:
    """Return the tokens a film may take, by way."""
    cost, turns = frame_cost(llm.processor.settings.image), record.turns[:-1]

    def groups(max_tokens: int) -> list[int]:
        media = llm.processor.load_media(turns, MediaPolicy(video=VideoPolicy(max_tokens=max_tokens)), root)
        return [image.num_video_frames for image in media.videos[0].frames]

    num_frames = sum(groups(VideoPolicy.max_tokens))
    merged = next(n for n in range(1, num_frames + 1) if sum(groups(n * cost)) == num_frames)
    return {"alone": VideoPolicy.max_tokens, "merged": merged * cost, "halved": -(-num_frames // 2) * cost}


def ask_all_ways(llm: LLM, record: Record, root: Path) -> dict[str, dict[str, Any]]:
    """Return the answers to one film."""
    row = {}
    for way, max_tokens in budgets(llm, record, root).items():
        text, usage = ask(llm, record, root, VideoPolicy(max_tokens=max_tokens))
        row[way] = {
            "expected": record.answer,
            "got": text,
            "right": is_exact(record.answer, text),
            "frames": usage.video_frames,
            "tokens": usage.video_tokens,
        }
    return row


def summary(rows: list[dict[str, Any]], alone: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the figures of one way."""
    right = sum(row["right"] for row in rows)
    changes = [100.0 * (row["right"] - other["right"]) for row, other in zip(rows, alone, strict=True)]
    return {
        "right": right,
        "percent": 100 * right / len(rows),
        "interval": [100 * bound for bound in wilson_interval(right, len(rows))],
        "change_points": statistics.fmean(changes),
        "change_half_interval": 1.96 * statistics.pstdev(changes) / len(changes) ** 0.5,
        "frames": statistics.fmean(row["frames"] for row in rows),
        "tokens": statistics.fmean(row["tokens"] for row in rows),
    }


def table(tasks: dict[str, Any]) -> str:
    """Return the report as Markdown."""
    lines = ["| task | films | " + " | ".join(WAYS) + " |", "|---" * (2 + len(WAYS)) + "|"]
    for task, row in tasks.items():
        cells = []
        for way in WAYS:
            found = row[way]
            low, high = found["interval"]
            change = f", {found['change_points']:+.1f} ± {found['change_half_interval']:.1f} points"
            cells.append(
                f"{found['percent']:.1f} % ({low:.0f} to {high:.0f}{'' if way == 'alone' else change}), "
                f"{found['frames']:.1f} frames, {found['tokens']:.0f} tokens"
            )
        lines.append(f"| {task} | {row['films']} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Draw, ask, and write STEM.json and STEM.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="folder of a trained checkpoint, or `embedded`")
    parser.add_argument("--output", type=Path, required=True, metavar="STEM")
    parser.add_argument("--count", type=int, default=200, help="films of each task")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--threads", type=int, default=None)
    arguments = parser.parse_args()
    llm = load(arguments.model, precision=arguments.precision, threads=arguments.threads)
    stream, tasks, answers = SampleStream("heldout"), {}, {}
    with tempfile.TemporaryDirectory(prefix="tianquan-bench-") as folder:
        for task in TASKS:
            samples = (stream.sample(n, {task: 1.0}) for n in range(arguments.count))
            path = write_records(samples, Path(folder), task)
            found = [ask_all_ways(llm, record, path.parent) for record in read_records(path)]
            alone = [row["alone"] for row in found]
            tasks[task] = {"films": len(found), **{way: summary([row[way] for row in found], alone) for way in WAYS}}
            answers[task] = found
    report: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "version": __version__,
        "machine": machine_name(),
        "model": Path(arguments.model).name,
        "precision": llm.recipe.name,
        "tasks": tasks,
        "answers": answers,
    }
    text = json.dumps(report, indent=1, ensure_ascii=False)
    arguments.output.with_suffix(".json").write_text(text + "\n", encoding="utf-8")
    arguments.output.with_suffix(".md").write_text(table(tasks), encoding="utf-8")
    print(table(tasks))


if __name__ == "__main__":
    main()
