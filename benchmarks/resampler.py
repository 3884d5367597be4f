"""The resampler folded and as defined, side by side: `python benchmarks/resampler.py --output STEM`.

The official sizes with random weights: 64 queries, slices of 32 x 32 patches. Both run on the native kernels,
alternately; a ratio is the median over pairs of neighbours, so a machine that is shared slows both. Memory is what a
call allocates on top of the weights (numpy's arrays, by tracemalloc) and the bytes of the weights themselves.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import time
import tracemalloc
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from tianquan import __version__
from tianquan.backends.native import NativeLinear, NativeOps
from tianquan.backends.ops import Array, Weight
from tianquan.benchmark.run import machine_name
from tianquan.config import ResamplerConfig
from tianquan.models.resampler import Resampler
from tianquan.quantization.dense import DenseTensor
from tianquan.quantization.recipes import find_recipe

OFFICIAL = ResamplerConfig(num_queries=64, hidden_size=2560, vision_size=1152, num_heads=20, layer_norm_eps=1e-6)
GRID = (32, 32)
SLICES = (1, 4, 10)  # an overview alone, a common picture, the most


class DefinedOps(NativeOps):
    """Native kernels that run the resampler as it is written."""

    def constant_weight(self, linear: NativeLinear) -> Weight | None:
        """Return None: nothing is folded."""
        return None


@cache
def draw(name: str, *shape: int) -> Any:
    """Return the numbers of a name, drawn once: drawing takes longer than folding."""
    return np.random.default_rng(sum(map(ord, name))).standard_normal(shape, np.float32)


class RandomWeights:
    """A weight source for the resampler alone; both ways get the same numbers."""

    def __init__(self, ops: NativeOps, precision: str) -> None:
        self._ops, self._recipe = ops, find_recipe(precision)

    def parameter(self, name: str, shape: tuple[int, ...]) -> Array:
        """See `WeightSource.parameter`."""
        return self._ops.array(draw(name, *shape))

    def norm(self, name: str, size: int) -> tuple[Array, Array]:
        """See `WeightSource.norm`."""
        return self._ops.array(1 + 0.1 * draw(name, size)), self._ops.array(0.1 * draw(name + "b", size))

    def linear(self, name: str, in_features: int, out_features: int, bias: bool = False) -> NativeLinear:
        """See `WeightSource.linear`."""
        matrix = draw(name, out_features, in_features) / np.float32(in_features**0.5)
        format = self._recipe.format_of(name)
        weight: Weight = DenseTensor(matrix, "float32")
        weight = weight.cast(format) if isinstance(format, str) else self._ops.quantize(matrix, format)
        return self._ops.make_linear(weight, DenseTensor(draw(name, out_features), "float32") if bias else None)

    linear_group = embedding = None  # the resampler has neither


def timed(work: Callable[[], Any]) -> float:
    """Return the milliseconds of one call."""
    began = time.perf_counter()
    work()
    return 1000 * (time.perf_counter() - began)


def peak_bytes(work: Callable[[], Any]) -> int:
    """Return the most bytes of arrays a call holds at once."""
    tracemalloc.start()
    work()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak


def measure(precision: str, threads: int, repeats: int) -> dict[str, Any]:
    """Return times and memory of one recipe."""

    def build(ops: NativeOps) -> Resampler:
        return Resampler(OFFICIAL, RandomWeights(ops, precision), ops)  # type: ignore[arg-type]

    kinds = {"defined": DefinedOps(threads), "folded": NativeOps(threads)}
    held, seconds = {}, {}
    for name, ops in kinds.items():
        build(ops)
        seconds[name] = timed(lambda: build(ops)) / 1000  # noqa: B023
        tracemalloc.start()
        kept = build(ops)
        held[name] = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        del kept
    defined, folded = build(kinds["defined"]), build(kinds["folded"])
    result: dict[str, Any] = {
        "weight_bytes": held,
        "folding_seconds": seconds["folded"] - seconds["defined"],
        "slices": {},
    }
    for count in SLICES:
        shape = (count * GRID[0] * GRID[1], OFFICIAL.vision_size)
        patches, grids = np.random.default_rng(0).standard_normal(shape, np.float32), [GRID] * count
        expected, got = defined(patches, grids), folded(patches, grids)
        pairs = [
            (timed(lambda: defined(patches, grids)), timed(lambda: folded(patches, grids)))  # noqa: B023
            for _ in range(repeats)
        ]
        result["slices"][count] = {
            "defined_ms": statistics.median(a for a, _ in pairs),
            "folded_ms": statistics.median(b for _, b in pairs),
            "ratio": statistics.median(a / b for a, b in pairs),
            "relative_rmse": float(np.sqrt(np.mean((got - expected) ** 2) / np.mean(expected**2))),
            "largest_difference": float(np.abs(got - expected).max() / np.abs(expected).max()),
            "defined_peak_bytes": peak_bytes(lambda: defined(patches, grids)),  # noqa: B023
            "folded_peak_bytes": peak_bytes(lambda: folded(patches, grids)),  # noqa: B023
        }
    return result


def main() -> None:
    """Measure and write STEM.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True, metavar="STEM")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--precisions", nargs="+", default=["float32", "bfloat16", "int8"])
    arguments = parser.parse_args()
    report = {
        "date": datetime.date.today().isoformat(),
        "version": __version__,
        "machine": machine_name(),
        "threads": arguments.threads,
        "isa": NativeOps(arguments.threads).isa,
        "precisions": {p: measure(p, arguments.threads, arguments.repeats) for p in arguments.precisions},
    }
    arguments.output.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    for precision, result in report["precisions"].items():
        print(precision, json.dumps({k: v for k, v in result.items() if k != "slices"}))
        for count, row in result["slices"].items():
            print(f"  {count} slices: {json.dumps(row)}")


if __name__ == "__main__":
    main()
