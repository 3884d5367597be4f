"""Pictures, clips and speech as someone else would make them: `python benchmarks/foreign_media.py MODEL --output STEM`.

The media come from foreign_makers.py and share nothing with embedded_model: other canvases, plain grounds, thick
outlines, clips of 8 to 60 frames at 8 to 30 a second in MP4, WebM and GIF with smooth movement, voices and fonts most
of which were not trained on. Only the words are shared: colours, shapes, counts to five, numbers of one to four
digits, nine places, what happens in a clip. Answers are asked for as `tianquan chat` asks, greedily; the report has a
row for each task and one for each trait (ground, canvas, container, length ...).
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from foreign_makers import FONT_PACKAGES, TASKS, Case, make
from tianquan import LLM, __version__, load
from tianquan.benchmark.run import machine_name
from tianquan.errors import TianquanError
from tianquan.evaluation.metrics import wilson_interval, words
from tianquan.llm import GREEDY
from tianquan.request import MediaPolicy, VideoPolicy


def is_right(expected: str, got: str) -> bool:
    """Return whether an answer is the expected one; an article more or less is no fault."""
    return [w for w in words(got) if w not in ("a", "an", "the")] == words(expected)


def ask(llm: LLM, case: Case, folder: Path, policy: MediaPolicy) -> dict[str, Any]:
    """Return the answer to a case and what it cost."""
    content: dict[str, Any] = {kind: str(folder / name) for kind, name in case.media.items()}
    if case.question is not None:
        content["text"] = case.question
    row: dict[str, Any] = dict(vars(case))
    try:
        completion = llm.chat([{"role": "user", "content": content}], sampling=GREEDY, media=policy)
    except TianquanError as error:
        return {**row, "got": f"({error})", "right": False}
    frames = completion.usage.video_frames
    return {**row, "got": completion.text, "right": is_right(case.answer, completion.text), "frames": frames}


def shares(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return how many are right, with the interval, by language and by trait."""
    right = sum(row["right"] for row in rows)
    groups: dict[str, list[bool]] = defaultdict(list)
    for row in rows:
        for trait, value in {"language": row["language"], **row["traits"]}.items():
            groups[f"{trait} {value}"].append(row["right"])
        if row.get("frames"):
            groups[f"frames {4 * (row['frames'] // 4)} to {4 * (row['frames'] // 4) + 3}"].append(row["right"])
    traits = {name: [sum(found), len(found)] for name, found in sorted(groups.items())}
    return {"right": right, "of": len(rows), "interval": wilson_interval(right, len(rows)), "traits": traits}


def table(tasks: dict[str, dict[str, Any]]) -> str:
    """Return the shares as Markdown."""
    lines = ["| task | right | of | % | 95 % interval |", "|---|---|---|---|---|"]
    for task, row in tasks.items():
        low, high = (100 * bound for bound in row["interval"])
        percent = 100 * row["right"] / row["of"]
        lines.append(f"| {task} | {row['right']} | {row['of']} | {percent:.1f} | {low:.0f} to {high:.0f} |")
    lines += ["", "| task | trait | right | of |", "|---|---|---|---|"]
    for task, row in tasks.items():
        lines += [f"| {task} | {trait} | {right} | {of} |" for trait, (right, of) in row["traits"].items()]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Make the media, ask, and write STEM.json and STEM.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="folder of a trained checkpoint, or `embedded`")
    parser.add_argument("--output", type=Path, required=True, metavar="STEM")
    parser.add_argument("--count", type=int, default=100, help="cases of each task")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument(
        "--video-rate", type=float, default=None, help="frames a second; as the policy has it by default"
    )
    parser.add_argument("--video-frames", type=int, default=VideoPolicy.max_frames, help="most frames of a clip")
    parser.add_argument("--keep", type=Path, help="folder for the media; thrown away by default")
    arguments = parser.parse_args()
    llm = load(arguments.model, precision=arguments.precision, threads=arguments.threads)
    video = VideoPolicy(frames_per_second=arguments.video_rate, max_frames=arguments.video_frames)
    policy = MediaPolicy(video=video)
    rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.keep or Path(temporary)
        try:
            for case in make(arguments.tasks, arguments.count, arguments.seed, folder):
                rows[case.task].append(ask(llm, case, folder, policy))
        except OSError as error:  # a font or the program is missing
            sys.exit(f"{parser.prog}: {error}; on Debian: apt-get install espeak-ng {FONT_PACKAGES}")
    report = {
        "date": datetime.date.today().isoformat(),
        "version": __version__,
        "machine": machine_name(),
        "model": Path(arguments.model).name,
        "precision": llm.recipe.name,
        "seed": arguments.seed,
        "video": {"rate": arguments.video_rate, "frames": arguments.video_frames},
        "tasks": {task: shares(found) for task, found in rows.items()},
        "answers": {
            task: [{key: row[key] for key in ("media", "question", "answer", "got")} for row in found]
            for task, found in rows.items()
        },
    }
    arguments.output.with_suffix(".json").write_text(
        json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    arguments.output.with_suffix(".md").write_text(table(report["tasks"]), encoding="utf-8")
    print(table(report["tasks"]))


if __name__ == "__main__":
    main()
