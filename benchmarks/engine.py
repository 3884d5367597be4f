"""Measure the engine on synthetic int4 weights of the official size: python benchmarks/engine.py OUTPUT.json"""

from __future__ import annotations

import datetime
import json
import sys
import tempfile
from pathlib import Path

from tianquan.benchmark.engine_stages import EnginePlan, measure_engine
from tianquan.benchmark.run import machine_name
from tianquan.benchmark.synthetic import write_synthetic_folder
from tianquan.loading import load
from tianquan.quantization.recipes import find_recipe


def main() -> None:
    """Write the report."""
    with tempfile.TemporaryDirectory(prefix="tianquan-bench-") as temporary:
        folder = Path(temporary) / "synthetic"
        write_synthetic_folder(folder, find_recipe("int4"))
        llm = load(folder)
        report = measure_engine(
            llm, EnginePlan(repeats=3, passes=7), lambda stage: print(stage, file=sys.stderr, flush=True)
        )
    report = {
        "date": datetime.date.today().isoformat(),
        "machine": machine_name(),
        "threads": llm.model.ops.threads,
        "instructions": llm.model.ops.isa,
        "recipe": "int4",
        "command": "python benchmarks/engine.py",
        **report,
    }
    Path(sys.argv[1]).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
