"""A benchmark report as a Markdown table and as a picture."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tianquan.benchmark import engine_stages
from tianquan.errors import BackendError


def to_markdown(report: dict[str, Any]) -> str:
    """Return the report as Markdown."""
    ceilings = report["ceilings"]
    lines = [
        f"{report['machine']}, {report['threads']} threads, {report['isa']}, recipe {report['recipe']}, "
        f"{report['date']}; measured in the same run: read {ceilings['read_bandwidth_gb_s']:.1f} GB/s, "
        f"float32 multiply-add {ceilings['fma_gflop_s']:.0f} GFLOP/s",
        "",
        "| stage | result | against the ceiling |",
        "|---|---|---|",
    ]
    for depth, row in report["decode"].items():
        share = f"{row['share_of_bandwidth']:.0%} of read bandwidth"
        lines.append(f"| decode, {depth.replace('_', ' ')} | {row['tokens_per_second']:.1f} tokens/s | {share} |")
    for length, row in report["prefill"].items():
        share = f"{row['share_of_fma_peak']:.2f} x float32 peak"
        lines.append(f"| prefill, {length} tokens | {row['tokens_per_second']:.1f} tokens/s | {share} |")
    for size, row in report["vision"].items():
        lines.append(f"| picture {size} ({row['num_slices']} slices) | {row['seconds']:.2f} s | |")
    for seconds, row in report["audio"].items():
        lines.append(f"| sound, {seconds} s | {row['seconds']:.2f} s | |")
    for turn in ("first_turn", "second_turn"):
        if turn not in report:  # a quick run
            continue
        row = report[turn]
        name = turn.replace("_", " ")
        lines.append(f"| {name}, 512x512 picture, {row['prompt_tokens']} tokens | {row['seconds']:.2f} s | |")
    if "engine" in report:
        lines += engine_stages.to_rows(report["engine"])
    memory = report["memory"]
    lines.append(f"| start from a low-bit folder | {report['load']['seconds']:.2f} s | |")
    lines.append(f"| resident memory, text only | {memory['text_only_bytes'] / 1e9:.2f} GB | |")
    lines.append(f"| resident memory, all inputs | {memory['all_bytes'] / 1e9:.2f} GB | |")
    return "\n".join(lines) + "\n"


def require_matplotlib() -> None:
    """Refuse before anything is measured what could not be drawn afterwards.

    Raises:
        BackendError: matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        raise BackendError("a plot needs matplotlib: pip install 'tianquan[bench]'")


def plot(report: dict[str, Any], path: Path) -> None:
    """Write a picture (PNG) of the report; see `require_matplotlib`."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
    shares = {f"decode, {k.replace('_', ' ')}": v["share_of_bandwidth"] for k, v in report["decode"].items()}
    axes[0].barh(list(shares), list(shares.values()), color="#2a6fbb")
    axes[0].axvline(1.0, color="#555", linestyle=":")
    axes[0].set_title(f"share of {report['ceilings']['read_bandwidth_gb_s']:.1f} GB/s read bandwidth")
    rates = {f"prefill {k}": v["tokens_per_second"] for k, v in report["prefill"].items()}
    rates |= {f"decode, {k.replace('_', ' ')}": v["tokens_per_second"] for k, v in report["decode"].items()}
    axes[1].barh(list(rates), list(rates.values()), color="#2f8f4e")
    axes[1].set_title("tokens per second")
    times = {f"picture {k}": v["seconds"] for k, v in report["vision"].items()}
    times |= {f"sound {k} s": v["seconds"] for k, v in report["audio"].items()}
    axes[2].barh(list(times), list(times.values()), color="#e9b32a")
    axes[2].set_title("seconds to encode")
    for axis in axes:
        axis.invert_yaxis()
        axis.spines[["top", "right"]].set_visible(False)
        for container in axis.containers:
            axis.bar_label(container, fmt="%.2f", padding=3)
        axis.margins(x=0.15)
    figure.suptitle(f"{report['recipe']} on {report['machine']}, {report['threads']} threads, {report['date']}")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
