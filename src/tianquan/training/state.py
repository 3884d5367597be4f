"""The state of a training run on disk: everything a killed run needs to go on as if it had not been.

    RUN/state-00001200/weights.safetensors      the trained parameters, float32
                       optimizer.safetensors    what the optimizer remembers of each (AdamW: two moments, its step)
                       state.json               step, plan, loss scale, checksums

A state appears whole or not at all (written beside its place, then renamed), and the one before it stays until then,
so that a full disk or a kill leaves the last good one. No pickle: tensors are safetensors, the rest is JSON.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from tianquan.checkpoint.new_folder import check_new_folder, new_folder
from tianquan.checkpoint.partial_output import remove_stale
from tianquan.errors import CheckpointError, TianquanError
from tianquan.training.plan import TrainingPlan
from tianquan.training.tensor_file import save_tensors

_FOLDER = re.compile(r"state-(\d{8})")
_KEPT_STATES = 2
_PARTS = ("weights.safetensors", "optimizer.safetensors")


class StateError(TianquanError):
    """A saved state is broken or belongs to another run."""


@dataclass(frozen=True)
class TrainingState:
    """What was read back."""

    step: int
    weights: dict[str, Tensor]
    moments: dict[str, Tensor]  # "NAME/exp_avg", "NAME/exp_avg_sq", "NAME/step" (how often NAME was updated), ...
    scaler: dict[str, Any]


def save_state(
    run: Path,
    step: int,
    plan: TrainingPlan,
    parameters: Mapping[str, Tensor],
    optimizers: Sequence[torch.optim.Optimizer],
    scaler: Mapping[str, Any],
) -> Path:
    """Save the state after `step` steps and drop all but the last two.

    Raises:
        CheckpointError: the folder cannot be written; the states before are as they were.
    """
    weights = {name: parameter.detach().to("cpu", torch.float32).contiguous() for name, parameter in parameters.items()}
    memory = {parameter: values for optimizer in optimizers for parameter, values in optimizer.state.items()}
    moments = {
        f"{name}/{moment}": value.detach().to("cpu").contiguous()
        for name, parameter in parameters.items()
        for moment, value in memory.get(parameter, {}).items()
    }
    folder = run / f"state-{step:08d}"
    assert not folder.exists(), f"{folder}: a step is saved once"
    for stale in run.glob(".state-*.partial-*"):  # of steps that a run does not come to again
        remove_stale(run / stale.name.removeprefix(".").partition(".partial-")[0])
    size = sum(tensor.nbytes for tensors in (weights, moments) for tensor in tensors.values())
    with new_folder(check_new_folder(folder), size) as temporary:
        save_tensors(weights, temporary / "weights.safetensors")
        save_tensors(moments, temporary / "optimizer.safetensors")
        files = {path.name: _digest(path) for path in sorted(temporary.glob("*.safetensors"))}
        content = {
            "step": step,
            "plan": asdict(plan),
            "scaler": dict(scaler),
            "sha256": files,
        }
        (temporary / "state.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
    for old in saved_states(run)[:-_KEPT_STATES]:
        shutil.rmtree(old)
    return folder


@contextmanager
def only_run(run: Path) -> Iterator[None]:
    """Hold a run's folder: two runs in one would remove each other's states.

    Raises:
        StateError: another process holds it.
        CheckpointError: it cannot be written.
    """
    path = run / "lock"
    try:
        run.mkdir(parents=True, exist_ok=True)
        file = path.open("w")
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written ({error.strerror}); name another output") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StateError(f"{run}: another training runs in it; wait, or name another output") from None
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be locked ({error.strerror}); name another output") from error
        yield


def saved_states(run: Path) -> list[Path]:
    """Return the folders of a run's states, the oldest first."""
    if not run.is_dir():
        return []
    return sorted(path for path in run.iterdir() if _FOLDER.fullmatch(path.name) and path.is_dir())


def check_plan(folder: Path, plan: TrainingPlan) -> None:
    """Check that a saved state is of a plan; its weights are not read.

    Raises:
        StateError: it is of another plan, or broken.
    """
    saved, current = _flat(_read_content(folder)["plan"]), _flat(json.loads(json.dumps(asdict(plan))))
    changed = [key for key in sorted({*current, *saved} - {"save_seconds"}) if current.get(key) != saved.get(key)]
    if changed:  # how often it is saved may change
        was = ", ".join(f"{key} {saved.get(key, 'unknown')}, now {current.get(key, 'unknown')}" for key in changed)
        raise StateError(f"{folder}: was saved under another plan ({was}); resume with the same options and data")


def _flat(plan: dict[str, Any]) -> dict[str, Any]:
    fingerprint = plan.get("fingerprint", {})
    return {**plan, "fingerprint": None, **(fingerprint if isinstance(fingerprint, dict) else {"data": fingerprint})}


def _read_content(folder: Path) -> dict[str, Any]:
    """Return what state.json says, with the types it must have."""
    try:
        content = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        return {
            "step": int(content["step"]),
            "plan": dict(content["plan"]),
            "scaler": dict(content["scaler"]),
            "sha256": {part: str(content["sha256"][part]) for part in _PARTS},
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StateError(f"{folder}: not a whole training state; delete it to use the one before") from error


def load_state(folder: Path, plan: TrainingPlan | None) -> TrainingState:
    """Read a state back.

    Args:
        folder: one of `saved_states`.
        plan: what the run goes on with; None takes any. It must be the plan the state was saved under.

    Raises:
        StateError: a file is missing or changed, or the plan is another.
    """
    if plan is not None:
        check_plan(folder, plan)
    content = _read_content(folder)
    for name, digest in content["sha256"].items():
        if not (folder / name).is_file() or _digest(folder / name) != digest:
            raise StateError(f"{folder / name}: changed since it was saved; delete this state to use the one before")
    step, scaler = content["step"], content["scaler"]
    weights, moments = (load_file(folder / f"{part}.safetensors") for part in ("weights", "optimizer"))
    return TrainingState(step, weights, moments, scaler)


def restore(
    state: TrainingState, parameters: Mapping[str, Tensor], optimizers: Sequence[torch.optim.Optimizer]
) -> None:
    """Put weights and the optimizers' memory back.

    Raises:
        StateError: the state is of other parameters, or of a version before each had a step of its own.
    """
    shapes = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    saved = {name: tuple(tensor.shape) for name, tensor in state.weights.items()}
    if shapes != saved:
        other = sorted(set(shapes.items()) ^ set(saved.items()))[0][0]
        raise StateError(f"the saved state trains other weights (first difference: {other}); use the same options")
    owners = {p: optimizer for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(state.weights[name])
    for key, value in state.moments.items():
        name, _, moment = key.rpartition("/")
        if moment == "exp_avg" and f"{name}/step" not in state.moments:
            raise StateError("the state was saved by an earlier version, without the steps of AdamW; train anew")
        memory = owners[parameters[name]].state[parameters[name]]
        memory[moment] = value.to(parameters[name].device)  # the step as well: fused AdamW counts it on the device


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
