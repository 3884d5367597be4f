"""The tensors of each stage against those another implementation wrote for the same conversation.

A trace is a safetensors file: `prompt_token_ids` (T,), `image_features` (slices, Q, C), `audio_features.N` (span, C),
`logits` (T, vocab), as `tianquan trace` writes it and the script of docs/verify.md makes it from the official code.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tianquan.checkpoint import Checkpoint
from tianquan.checkpoint.loader import TensorFiles
from tianquan.checkpoint.names import is_ignored
from tianquan.checkpoint.safetensors_file import SafetensorsFile
from tianquan.llm import Trace
from tianquan.quantization.dense import DenseFormat, DenseTensor
from tianquan.quantization.recipes import Recipe
from tianquan.verification.outcome import Outcome, judge
from tianquan.verification.towers import relative_error

# Relative errors allowed. Both in float32, only the order of sums differs; a trace stored in 16 bits was computed in
# them, and each layer rounds; our own low-bit weights are another model nearby.
_EXACT, _HALF, _LOW_BIT = 1e-3, 5e-2, 6e-1
_DENSE: dict[str, DenseFormat] = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


class TraceFile:
    """A trace another implementation wrote.

    Raises:
        CheckpointError: the file is missing or damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = SafetensorsFile(path)

    def __contains__(self, name: str) -> bool:
        return name in self._file.tensors

    @property
    def names(self) -> list[str]:
        """Names of the tensors."""
        return sorted(self._file.tensors)

    def dtype(self, name: str) -> str:
        """Return the stored type of a tensor, as safetensors calls it."""
        return self._file.tensors[name].dtype

    def read(self, name: str) -> npt.NDArray[Any]:
        """Return a tensor; one in 16 bits as float32."""
        data = self._file.read(name)
        dense = _DENSE.get(self.dtype(name))
        return data if dense is None else DenseTensor(data, dense).to_float32()


def stored_recipe(checkpoint: Checkpoint) -> Recipe:
    """Return the recipe that keeps a checkpoint's weights as they are stored, and computes in float32 throughout."""
    if not isinstance(checkpoint.files, TensorFiles):
        return checkpoint.files.recipe
    dtypes = {tensor.dtype for name, tensor in checkpoint.files.tensors.items() if not is_ignored(name)}
    format = _DENSE[dtypes.pop()] if len(dtypes) == 1 else "float32"
    return Recipe(f"{format} as stored", (("*", format),), "float32")


def compare_trace(trace: Trace, expected: TraceFile, is_dense: bool, tolerance: float | None) -> Iterator[Outcome]:
    """Compare each stage.

    Args:
        trace: ours.
        expected: the other implementation's.
        is_dense: whether our weights are those of the original, not rounded to low bits.
        tolerance: relative error allowed; None goes by what the trace is stored in.
    """
    ours = trace.to_arrays()
    names = set(expected.names)
    missing, unknown = sorted(set(ours) - names), sorted(names - set(ours))
    same = not missing and not unknown
    detail = f"{len(names)} tensors of {expected.path.name}"
    detail += f"; it lacks {', '.join(missing[:5])}" if missing else ""
    detail += f"; it has {', '.join(unknown[:5])}, which this conversation has not" if unknown else ""
    yield judge("trace", same, detail)
    if "prompt_token_ids" in expected:
        yield _compare_token_ids(trace.prompt_token_ids, expected.read("prompt_token_ids"))
    for name in sorted(set(ours) & names - {"prompt_token_ids"}):
        allowed = _allowed(expected.dtype(name), is_dense) if tolerance is None else tolerance
        yield _compare_tensor(name, ours[name], expected.read(name), allowed)


def _allowed(dtype: str, is_dense: bool) -> float:
    if not is_dense:
        return _LOW_BIT
    return _EXACT if dtype == "F32" else _HALF


def _compare_token_ids(ours: npt.NDArray[np.int32], theirs: npt.NDArray[Any]) -> Outcome:
    theirs = theirs.reshape(-1)
    if np.array_equal(ours, theirs):
        return judge("trace, prompt_token_ids", True, f"{len(ours)} token ids equal")
    shorter = min(len(ours), len(theirs))
    differing = np.flatnonzero(ours[:shorter] != theirs[:shorter])
    first = int(differing[0]) if len(differing) else shorter
    window = slice(max(0, first - 2), first + 3)
    return judge(
        "trace, prompt_token_ids",
        False,
        f"{len(ours)} token ids, the trace has {len(theirs)}; they part at number {first}: "
        f"{ours[window].tolist()}, the trace {theirs[window].tolist()}; is it the same conversation?",
    )


def _compare_tensor(name: str, ours: npt.NDArray[Any], theirs: npt.NDArray[Any], allowed: float) -> Outcome:
    label = f"trace, {name}"
    if theirs.shape != ours.shape:
        return judge(label, False, f"shape {list(ours.shape)}, the trace has {list(theirs.shape)}")
    if not np.issubdtype(theirs.dtype, np.floating) or not np.isfinite(theirs).all():
        return judge(label, False, f"the trace holds {theirs.dtype} or values that are not finite; expected floats")
    error = relative_error(ours, theirs)
    detail = f"{list(ours.shape)}, relative error {error:.2e}, at most {allowed:.0e}"
    if name == "logits":
        agreement = float((ours.argmax(-1) == theirs.argmax(-1)).mean())
        detail += f", likeliest token equal at {agreement:.1%}"
    if error > allowed:
        by_row = [relative_error(one, other) for one, other in zip(ours, theirs, strict=True)]
        detail += f"; worst at row {int(np.argmax(by_row))} ({max(by_row):.1e}), first over at row " + str(
            next((n for n, row in enumerate(by_row) if row > allowed), "none")
        )
    return judge(label, error <= allowed, detail)
