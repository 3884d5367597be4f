"""`verify`: a self-check of a checkpoint, one line for each thing checked."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tianquan.cli import options
from tianquan.cli.generate import read_messages
from tianquan.cli.output import terminal_safe
from tianquan.cli.progress import WorkProgress

if TYPE_CHECKING:
    from tianquan.verification.run import TraceRequest


def verify(
    model: options.ModelArgument,
    precision: options.Precision = None,
    layers: Annotated[
        int, typer.Option(help="Layers of each tower that both backends run; more take more memory.", min=1)
    ] = 2,
    whole_model: Annotated[bool, typer.Option(help="Also load the whole model and show its answers.")] = True,
    reference_trace: Annotated[
        Path | None, typer.Option(help="Trace of another implementation (safetensors), see docs/verify.md.")
    ] = None,
    messages: Annotated[str | None, typer.Option(help="With --reference-trace: its conversation, a JSON file.")] = None,
    media_root: options.MediaRoot = None,
    tolerance: Annotated[
        float | None, typer.Option(help="Relative error of the trace's tensors that is allowed.", min=0.0)
    ] = None,
    threads: options.Threads = None,
    revision: options.Revision = None,
) -> None:
    """Check a checkpoint: tensors, tokens, template, both backends, the recipe's error, another one's trace."""
    from tianquan.checkpoint import find_folder
    from tianquan.verification.run import Verification, VerificationPlan

    plan = VerificationPlan(
        folder=find_folder(model, revision),
        precision=precision,
        num_layers=layers,
        whole_model=whole_model,
        threads=threads,
        trace=_trace_request(reference_trace, messages, media_root, tolerance),
    )
    counts = {"ok": 0, "FAILED": 0, "skipped": 0}
    interrupted = False
    with WorkProgress("checking") as progress:
        verification = Verification(plan, progress.begin, progress.advance_to)
        try:
            for outcome in verification.outcomes():
                counts[outcome.status] += 1
                progress.show(terminal_safe(str(outcome)))
        except KeyboardInterrupt:
            interrupted = True
    print(", ".join(f"{number} {status}" for status, number in counts.items()) + (", stopped" if interrupted else ""))
    if interrupted:
        raise typer.Exit(130)
    if counts["FAILED"]:
        raise typer.Exit(1)


def _trace_request(
    path: Path | None, messages: str | None, media_root: Path | None, tolerance: float | None
) -> TraceRequest | None:
    from tianquan.errors import ParameterError
    from tianquan.verification.run import TraceRequest
    from tianquan.verification.trace_comparison import TraceFile

    if path is None:
        if any(option is not None for option in (messages, media_root, tolerance)):
            raise ParameterError(
                "--messages, --media-root and --tolerance go with --reference-trace; give the trace's file too"
            )
        return None
    if messages is None:
        raise ParameterError("--reference-trace needs --messages FILE: the conversation the trace was made of")
    return TraceRequest(
        file=TraceFile(path), messages=read_messages(messages), media_root=media_root, tolerance=tolerance
    )
