"""What each storage format costs in accuracy on the conformance checkpoint: relative RMSE against float32.

    python benchmarks/format_quality.py [--output benchmarks/results/NAME]

Features and logits over all conformance cases, on the native backend. The checkpoint's weights are random, so no
error is damped; a trained model is gentler.
"""

from __future__ import annotations

import argparse
import datetime
import json
from pathlib import Path

import numpy as np

import tianquan
from tianquan.checkpoint.tensor_list import needed_weights
from tianquan.quantization.recipes import RECIPES

CONFORMANCE = Path(__file__).parents[1] / "tests" / "conformance"


def squares(got: np.ndarray, expected: np.ndarray) -> tuple[float, float]:
    return float(((got - expected).astype(np.float64) ** 2).sum()), float((expected.astype(np.float64) ** 2).sum())


def traces(llm: tianquan.LLM, cases: list[dict]) -> list[dict[str, np.ndarray]]:
    return [llm.trace(case["messages"], media_root=CONFORMANCE / "media").to_arrays() for case in cases]


def compare(got: list[dict[str, np.ndarray]], expected: list[dict[str, np.ndarray]]) -> dict[str, float]:
    totals: dict[str, list[float]] = {}
    top1 = []
    for one, reference in zip(got, expected, strict=True):
        for name in reference:
            key = "image" if "image" in name else "audio" if "audio" in name else name
            if key != "prompt_token_ids":
                error, size = squares(one[name], reference[name])
                total = totals.setdefault(key, [0.0, 0.0])
                total[0] += error
                total[1] += size
        top1.append(np.mean(one["logits"].argmax(1) == reference["logits"].argmax(1)))
    rmse = {f"{key}_relative_rmse": float(np.sqrt(error / size)) for key, (error, size) in totals.items()}
    return {**rmse, "top1_agreement": float(np.mean(top1))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path)
    output = parser.parse_args().output
    cases = [json.loads(path.read_text()) for path in sorted((CONFORMANCE / "cases").glob("*.json"))]
    folder = CONFORMANCE / "checkpoint"
    expected = traces(tianquan.load(folder, precision="float32", backend="reference"), cases)
    rows = {}
    print("| recipe | image features | audio features | logits | top-1 agreement |\n|---|---|---|---|---|")
    for recipe in RECIPES:
        llm = tianquan.load(folder, precision=recipe)
        row = compare(traces(llm, cases), expected)
        row["weight_bytes"] = sum(w.nbytes(llm.recipe) for w in needed_weights(llm.model.config))
        rows[recipe] = row
        errors = [f"{row[f'{key}_relative_rmse']:.1e}" for key in ("image", "audio", "logits")]
        print(f"| {recipe} | {' | '.join(errors)} | {row['top1_agreement']:.1%} |")
    if output is not None:
        report = {"date": datetime.date.today().isoformat(), "checkpoint": "tests/conformance", "recipes": rows}
        output.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
