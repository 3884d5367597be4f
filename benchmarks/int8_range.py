"""The error of a product of int8 weights and rounded activations, for the integer ranges AVX2 could use.

    python benchmarks/int8_range.py [--output benchmarks/results/NAME]

Normal weights (1024, 2304) and activations (64, 2304), groups of 64, exact integer sums; errors are relative RMSE
against float64.
"""

from __future__ import annotations

import argparse
import datetime
import json
from pathlib import Path

import numpy as np

GROUP = 64
RANGES = ((127, 32767), (127, 127), (64, 127), (64, 63))  # largest weight code, largest activation code


def rounded(values: np.ndarray, largest: int) -> np.ndarray:
    groups = values.reshape(len(values), -1, GROUP)
    scale = np.abs(groups).max(axis=-1, keepdims=True) / largest
    return (np.rint(groups / scale) * scale).reshape(values.shape)


def relative(got: np.ndarray, expected: np.ndarray) -> float:
    return float(np.sqrt(np.mean((got - expected) ** 2) / np.mean(expected**2)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path)
    output = parser.parse_args().output
    rng = np.random.default_rng(0)
    weight, x = rng.normal(size=(1024, 2304)), rng.normal(size=(64, 2304))
    rows = []
    print("| weights | activations | error of a weight | error of a product |\n|---|---|---|---|")
    for weight_max, x_max in RANGES:
        coarse = rounded(weight, weight_max)
        row = {
            "weight_max": weight_max,
            "activation_max": x_max,
            "weight_error": relative(coarse, weight),
            "product_error": relative(rounded(x, x_max) @ coarse.T, x @ weight.T),
        }
        rows.append(row)
        print(f"| +-{weight_max} | +-{x_max} | {row['weight_error']:.2%} | {row['product_error']:.2%} |")
    if output is not None:
        report = {"date": datetime.date.today().isoformat(), "ranges": rows}
        output.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
