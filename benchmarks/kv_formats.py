"""What keeping keys and values in float16 or int8 costs a trained model: answers, and distance from float32 ones.

    python -m embedded_model.write_records held --split heldout --count 40
    python benchmarks/kv_formats.py held [--limit N] [--output benchmarks/results/embedded-model/DATE-kv-formats]

Each precision is compared with itself over a float32 cache, so that the figures are those of the cache alone. This is
`tianquan evaluate --kv-format ...` once for each precision, with one table of both.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from tianquan.cli.progress import WorkProgress
from tianquan.evaluation import report
from tianquan.evaluation.run import Evaluation, EvaluationPlan, RecordSet
from tianquan.training.records import read_records

PRECISIONS = ("float32", "int4")
COLUMNS = ("weights", "keys and values", "right (95 %)", "KL", "KL of pictures", "top-1", "perplexity")


def evaluate(model: str, precision: str, files: list[Path], limit: int | None) -> dict[str, Any]:
    plan = EvaluationPlan(
        model=model,
        precisions=(precision,),
        kv_formats=("float32", "float16", "int8"),
        record_sets=tuple(RecordSet(tuple(read_records(path, limit)), path.parent) for path in files),
        reference=(model, precision),
        sensitivity=False,
    )
    with WorkProgress("evaluating") as progress:
        evaluation = Evaluation(plan, progress.begin, progress.advance_to)
        evaluation.run()
    return report.to_dict(evaluation, [path.name for path in files])


def row(precision: str, result: dict[str, Any]) -> list[str]:
    score, total = result["score"], result["divergence"]["all"]
    low, high = score["interval_95"]
    picture = result["divergence"].get("image")
    return [
        precision,
        result["kv_format"],
        f"{score['accuracy']:.1%} ({100 * low:.0f}-{100 * high:.0f})",
        f"{total['kl']:.1e}",
        "" if picture is None else f"{picture['kl']:.1e}",
        f"{total['top1_agreement']:.2%}",
        f"x {total['perplexity_ratio']:.4f}",
    ]


def to_markdown(reports: dict[str, dict[str, Any]]) -> str:
    first = next(iter(reports.values()))
    tokens = first["results"][0]["divergence"]["all"]["tokens"]
    rows = [row(precision, result) for precision, found in reports.items() for result in found["results"]]
    lines = [
        f"{first['model']}, {first['records']} records, {tokens} answer tokens, {first['machine']}, {first['date']}; "
        "each row beside the same weights over float32 keys and values",
        "",
        *(f"| {' | '.join(cells)} |" for cells in (COLUMNS, ["---"] * len(COLUMNS), *rows)),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", type=Path, help="folder of *.jsonl")
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--limit", type=int, help="only the first N records of each file")
    parser.add_argument("--output", type=Path, help="also write OUTPUT.json and OUTPUT.md")
    options = parser.parse_args()
    files = sorted(options.records.glob("*.jsonl"))
    if not files:
        sys.exit(f"{options.records} has no *.jsonl; write some with python -m embedded_model.write_records")
    reports = {precision: evaluate(options.model, precision, files, options.limit) for precision in PRECISIONS}
    markdown = to_markdown(reports)
    if options.output is not None:
        for found in reports.values():
            for result in found["results"]:
                del result["answers"]  # thousands of lines; `tianquan evaluate --json` has them
        options.output.with_suffix(".json").write_text(json.dumps(reports, ensure_ascii=False, indent=1) + "\n")
        options.output.with_suffix(".md").write_text(markdown, encoding="utf-8")
    print(markdown)


if __name__ == "__main__":
    main()
