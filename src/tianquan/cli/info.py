"""`info`: what a model folder holds and what running it takes."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict
from typing import Annotated, Any

import typer

from tianquan.backends import Backend
from tianquan.cli import options


def info(
    model: options.ModelArgument,
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    precision: options.Precision = None,
    backend: options.BackendOption = "native",
    device: options.Device = "cpu",
    threads: options.Threads = None,
    revision: options.Revision = None,
) -> None:
    """Show a model's sizes, parameters per component, formats, and the memory its weights will take."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    report = collect(model, precision, backend, device, threads, revision)
    if json_output:
        print(json.dumps(report))
        return
    console = Console(highlight=False, markup=False)
    table = Table(title=Text(report["model"]), title_justify="left")
    for column in ("component", "parameters", "in the files", "formats", "in memory"):
        table.add_column(column, justify="left" if column in ("component", "formats") else "right")
    for name, part in report["components"].items():
        table.add_row(
            name.replace("_", " "),
            f"{part['parameters']:,}",
            f"{part['file_bytes'] / 1e6:,.1f} MB",
            ", ".join(part["formats"]),
            f"{part['memory_bytes'] / 1e6:,.1f} MB",
        )
    total = report["total"]
    table.add_section()
    table.add_row(
        "all",
        f"{total['parameters']:,}",
        f"{total['file_bytes'] / 1e6:,.1f} MB",
        "",
        f"{total['memory_bytes'] / 1e6:,.1f} MB",
    )
    console.print(table)
    records = report["calibration_records"]
    left = report["not_calibrated"]
    fitted = "" if records is None else f" (calibrated on {records} records{f', but {left} matrices' if left else ''})"
    console.print(
        f"recipe {report['recipe']}{fitted}, backend {report['backend']} ({report['isa']}), {report['machine']}"
    )
    console.print(f"context window {report['config']['language']['max_position_embeddings']} tokens")


def collect(
    model: str,
    precision: str | None,
    backend: Backend,
    device: str,
    threads: int | None,
    revision: str | None,
) -> dict[str, Any]:
    """Return the documented JSON form of `info`."""
    from tianquan.backends import make_ops
    from tianquan.checkpoint import find_folder, open_checkpoint
    from tianquan.checkpoint.low_bit import LowBitFolder
    from tianquan.checkpoint.tensor_list import needed_weights

    checkpoint = open_checkpoint(find_folder(model, revision))
    recipe = checkpoint.recipe(precision)
    ops = make_ops(backend, device, threads)
    components: dict[str, dict[str, Any]] = {}
    for weight in needed_weights(checkpoint.config):
        empty: dict[str, Any] = {"parameters": 0, "memory_bytes": 0, "formats": []}
        part = components.setdefault(weight.component, empty)
        part["parameters"] += weight.num_parameters
        part["memory_bytes"] += weight.nbytes(recipe)
        if weight.is_matrix and (format := str(weight.format(recipe))) not in part["formats"]:
            part["formats"].append(format)
    for name, num_bytes in checkpoint.files.component_bytes().items():
        components[name]["file_bytes"] = num_bytes
    keys, files = ("parameters", "file_bytes", "memory_bytes"), checkpoint.files
    return {
        "model": str(model),
        "components": components,
        "total": {key: sum(part[key] for part in components.values()) for key in keys},
        "recipe": recipe.name,
        "calibration_records": files.num_calibration_records if isinstance(files, LowBitFolder) else None,
        "not_calibrated": files.num_not_calibrated if isinstance(files, LowBitFolder) else 0,
        "backend": ops.name,
        "isa": ops.isa,
        "machine": platform.machine(),
        "config": asdict(checkpoint.config),
    }
