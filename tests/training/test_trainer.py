"""The loop: loss falls, a resumed run is the run that was not interrupted, overflow and NaN."""

from __future__ import annotations

import fcntl
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from torch import nn

from tianquan.errors import CheckpointError, ParameterError
from tianquan.training import trainer
from tianquan.training.log import read_metrics
from tianquan.training.objective import Objective, StepLoss
from tianquan.training.plan import TrainingPlan
from tianquan.training.records import RecordError
from tianquan.training.state import StateError, load_state, only_run, saved_states
from tianquan.training.trainer import Trainer, TrainingError

PLAN = TrainingPlan(num_steps=12, learning_rate=0.05, warmup_steps=2, weight_decay=0.01, seed=3)


class Regression(Objective):
    """y = W x for random x; an item is a number that gives x."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trained = nn.Linear(4, 3)
        self.frozen = nn.Linear(4, 3).requires_grad_(False)
        self.dropout = nn.Dropout(0.2)
        self.broken: dict[int, float] = {}

    def forward(self, items):
        x = torch.stack([torch.sin(torch.arange(1.0, 5.0) * (1 + item)) for item in items])
        x = x * torch.tensor([self.broken.get(item, 1.0) for item in items])[:, None]
        error = self.trained(self.dropout(x)) - self.frozen(x)
        return StepLoss(total=(error.float() ** 2).sum(), num_terms=len(items), num_tokens=len(items))

    def num_terms(self, items):
        return len(items)

    def source(self, item):
        return f"item {item}"


class Numbers:
    def __init__(self, sizes=(5, 2)) -> None:
        self.sizes = sizes

    def __getitem__(self, step):
        return [[step * 10 + n for n in range(size)] for size in self.sizes]


def run(folder, plan=PLAN, *, stop_after=math.inf, broken=None, steps=None, interval=1):
    objective = Regression()
    objective.broken = broken or {}
    trainer = Trainer(objective, steps or Numbers(), plan, folder, log_interval=interval, stop_after=stop_after)
    trainer.train()
    return objective, trainer


def weights(objective):
    return objective.trained.weight.detach().numpy().copy()


def test_the_loss_falls_and_frozen_weights_stay(tmp_path):
    before = Regression().frozen.weight.detach().numpy().copy()
    objective, _ = run(tmp_path, replace(PLAN, num_steps=60, schedule="cosine"))
    losses = [float(row["loss"]) for row in read_metrics(tmp_path)]
    assert losses[-1] < 0.2 * losses[0]
    np.testing.assert_array_equal(objective.frozen.weight.detach().numpy(), before)
    assert (tmp_path / "metrics.csv").is_file()


def test_micro_batches_of_other_sizes_give_the_same_gradients(tmp_path):
    np.testing.assert_allclose(
        _undropped(tmp_path / "c", Numbers((6,))), _undropped(tmp_path / "d", _Split()), rtol=1e-5
    )


class _Split:
    def __getitem__(self, step):
        items = [step * 10 + n for n in range(6)]
        return [items[:4], items[4:]]


def _undropped(folder, steps):
    objective = Regression()
    objective.dropout.p = 0.0
    Trainer(objective, steps, replace(PLAN, num_steps=3), folder).train()
    return weights(objective)


@pytest.mark.parametrize("change", [{}, {"optimizer": "muon"}, {"precision": "float16"}, {"precision": "bfloat16"}])
def test_resumed_is_uninterrupted(tmp_path, change):
    plan = replace(PLAN, **change)
    whole, _ = run(tmp_path / "whole", plan)
    _, first = run(tmp_path / "parts", plan, stop_after=0)  # one step each time
    assert first.step == 1
    for _ in range(20):
        _, trainer = run(tmp_path / "parts", plan, stop_after=0)
    assert trainer.step == PLAN.num_steps
    parts = load_state(saved_states(tmp_path / "parts")[-1], plan).weights["trained.weight"]
    np.testing.assert_array_equal(parts.numpy(), weights(whole))
    steps = [int(row["step"]) for row in read_metrics(tmp_path / "parts")]
    assert steps == list(range(1, PLAN.num_steps + 1))


class TwoTowers(Regression):
    """Every third item needs a second tower, the others leave it without a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.second = nn.Linear(3, 3)

    def forward(self, items):
        loss = super().forward(items)
        if items[0] % 3:
            return loss
        seen = self.second(torch.ones(3))
        return StepLoss(total=loss.total + (seen**2).sum(), num_terms=loss.num_terms, num_tokens=loss.num_tokens)


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_each_weight_resumes_with_the_updates_it_had(tmp_path, precision):
    plan = replace(PLAN, precision=precision)
    whole = TwoTowers()
    Trainer(whole, Numbers((5,)), plan, tmp_path / "whole").train()
    for _ in range(plan.num_steps):
        parts = TwoTowers()
        Trainer(parts, Numbers((5,)), plan, tmp_path / "parts", stop_after=0).train()
    for name, weight in whole.named_parameters():
        np.testing.assert_array_equal(weight.detach().numpy(), parts.get_parameter(name).detach().numpy(), err_msg=name)


@pytest.mark.parametrize("precision", ["float32", "float16"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_batch_without_gradients_changes_nothing(tmp_path, precision, optimizer):
    """As pictures' encoders trained alone have them of batches of texts."""
    objective = TwoTowers()
    objective.trained.requires_grad_(False)
    plan = replace(PLAN, precision=precision, optimizer=optimizer, num_steps=4)
    before = objective.second.weight.detach().clone()
    Trainer(objective, Numbers((5,)), plan, tmp_path, log_interval=1).train()
    norms = [float(row["gradient_norm"]) for row in read_metrics(tmp_path)]
    assert [norm > 0 for norm in norms] == [True, False, False, True]  # of items 0, 10, 20, 30
    assert not torch.equal(objective.second.weight, before)


def test_how_often_it_is_saved_may_change(tmp_path):
    run(tmp_path, stop_after=0)
    _, trainer = run(tmp_path, replace(PLAN, save_seconds=7.0))
    assert trainer.step == PLAN.num_steps


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_record_that_breaks_on_the_way_is_named(tmp_path, num_workers):
    class Breaking(Numbers):
        def __getitem__(self, step):
            if step == 5:
                raise RecordError("records.jsonl:17: picture.png cannot be read")
            return super().__getitem__(step)

    trainer = Trainer(Regression(), Breaking(), PLAN, tmp_path, num_workers=num_workers)
    with pytest.raises(RecordError) as error:
        trainer.train()
    assert str(error.value) == "records.jsonl:17: picture.png cannot be read"


def test_states_are_two_and_hold_no_pickle(tmp_path):
    run(tmp_path, replace(PLAN, save_seconds=0.0))
    states = saved_states(tmp_path)
    assert len(states) == 2
    assert {path.name for path in states[-1].iterdir()} == {
        "weights.safetensors",
        "optimizer.safetensors",
        "state.json",
    }


def test_the_last_step_is_saved_once(tmp_path, monkeypatch):
    steps = []
    save = trainer.save_state
    monkeypatch.setattr(trainer, "save_state", lambda run, step, *rest: (steps.append(step), save(run, step, *rest)))
    run(tmp_path, replace(PLAN, num_steps=3, save_seconds=0.0))
    assert steps == [1, 2, 3]


def test_a_signal_while_the_last_state_is_saved_is_heard(tmp_path, monkeypatch):
    save = trainer.save_state

    def stopped(run, step, *rest):
        os.kill(os.getpid(), signal.SIGTERM)
        return save(run, step, *rest)

    monkeypatch.setattr(trainer, "save_state", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    assert load_state(saved_states(tmp_path)[-1], PLAN).step == PLAN.num_steps


def test_two_runs_do_not_share_a_folder(tmp_path):
    with only_run(tmp_path), pytest.raises(StateError, match="another training runs in it"):
        run(tmp_path)
    run(tmp_path)
    with pytest.raises(CheckpointError, match="cannot be written"):
        run(tmp_path / "metrics.csv" / "run")


def test_what_a_kill_left_of_a_state_goes_with_the_next(tmp_path):
    stale, written = (tmp_path / f".state-0000077{n}.partial-{n:08x}" for n in (7, 8))
    for folder in (stale, written):
        folder.mkdir(parents=True)
    held = os.open(written, os.O_RDONLY)  # by a process that writes it
    fcntl.flock(held, fcntl.LOCK_EX)
    run(tmp_path)
    os.close(held)
    assert not stale.exists()
    assert written.exists()


def test_a_state_needs_the_room_it_takes(tmp_path, monkeypatch):
    run(tmp_path / "small")
    size = sum(path.stat().st_size for path in saved_states(tmp_path / "small")[-1].iterdir())
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=size))
    run(tmp_path / "fits")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=size // 10))
    with pytest.raises(CheckpointError, match="needed"):
        run(tmp_path / "full")


def test_another_plan_is_not_resumed(tmp_path):
    run(tmp_path, stop_after=0)
    with pytest.raises(StateError, match="learning_rate"):
        run(tmp_path, replace(PLAN, learning_rate=0.04))


@pytest.mark.parametrize("damage", ["cut", "missing", "json"])
def test_a_damaged_state_is_refused(tmp_path, damage):
    run(tmp_path, stop_after=0)
    state = saved_states(tmp_path)[-1]
    if damage == "cut":
        data = (state / "weights.safetensors").read_bytes()
        (state / "weights.safetensors").write_bytes(data[:-4] + b"abcd")
    elif damage == "missing":
        (state / "optimizer.safetensors").unlink()
    else:
        (state / "state.json").write_text("{")
    with pytest.raises(StateError, match="state"):
        load_state(state, PLAN)


def test_a_full_disk_leaves_the_last_state(tmp_path, monkeypatch):
    run(tmp_path, stop_after=0)
    before = saved_states(tmp_path)[-1]

    def fail(*_, **__):
        raise SafetensorError("I/O error: No space left on device (os error 28)")  # what the library throws, no OSError

    monkeypatch.setattr("tianquan.training.tensor_file.save_file", fail)
    with pytest.raises(CheckpointError, match="No space left"):
        run(tmp_path, stop_after=0)
    monkeypatch.undo()
    assert saved_states(tmp_path) == [before]
    assert load_state(before, PLAN).step == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_save_and_end(tmp_path, number):
    class Interrupting(Numbers):
        def __getitem__(self, step):
            if step == 3:
                os.kill(os.getpid(), number)
            return super().__getitem__(step)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, steps=Interrupting())
    assert load_state(saved_states(tmp_path)[-1], PLAN).step == 4
    parts, _ = run(tmp_path)
    whole, _ = run(tmp_path / "whole", steps=Numbers())
    np.testing.assert_array_equal(weights(parts), weights(whole))


def test_not_a_number_names_the_record(tmp_path):
    with pytest.raises(TrainingError, match=r"item 31\b"):
        run(tmp_path, broken={31: math.nan})
    assert not math.isnan(float(read_metrics(tmp_path)[-1]["loss"]))


def test_overflow_of_float16_is_skipped_and_recovered(tmp_path):
    plan = replace(PLAN, num_steps=40, precision="float16", learning_rate=0.02)
    objective, trainer = run(tmp_path, plan, broken={30: 3e4})  # finite in float32, infinite as a scaled gradient
    rows = read_metrics(tmp_path)
    assert rows[3]["skipped"] == "1"
    assert [row["skipped"] for row in rows].count("1") < 8
    assert np.isfinite(weights(objective)).all()
    assert trainer._scaler.get_scale() < 2.0**12
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"])


def test_endless_overflow_stops(tmp_path):
    class Huge(Regression):
        def forward(self, items):
            return replace(super().forward(items), total=super().forward(items).total * 1e36)

    trainer = Trainer(Huge(), Numbers(), replace(PLAN, num_steps=100, precision="float16"), tmp_path)
    with pytest.raises(TrainingError, match="overflows of float16 in a row"):
        trainer.train()


def test_nothing_to_train(tmp_path):
    objective = Regression()
    objective.requires_grad_(False)
    with pytest.raises(TrainingError, match="nothing is trained"):
        Trainer(objective, Numbers(), PLAN, tmp_path)


@pytest.mark.parametrize(
    "change",
    [{"num_steps": 0}, {"learning_rate": math.nan}, {"learning_rate": -1.0}, {"warmup_steps": 13}, {"seed": -1}],
)
def test_absurd_plans(change):
    with pytest.raises(ParameterError, match=next(iter(change))):
        replace(PLAN, **change)


def test_schedules():
    plan = replace(PLAN, num_steps=10, warmup_steps=2, learning_rate=1.0)
    assert [plan.rate_at(step) for step in (0, 1)] == [0.5, 1.0]
    assert replace(plan, schedule="constant").rate_at(9) == 1.0
    assert replace(plan, schedule="linear").rate_at(6) == pytest.approx(0.5)
    assert plan.rate_at(6) == pytest.approx(0.5)
    assert json.loads(json.dumps(plan.betas)) == list(plan.betas)


def test_workers_end_when_their_parent_was_killed(tmp_path):
    """With a batch that nobody takes any more they would wait for ever, and hold the run's lock."""
    script = f"""
import os, signal, time
from pathlib import Path
from tianquan.training.trainer import _prepare_worker

path = Path({str(tmp_path / "worker")!r})
if os.fork() == 0:
    _prepare_worker(0)
    path.with_suffix(".new").write_text(str(os.getpid()))
    path.with_suffix(".new").rename(path)
    time.sleep(600)
while not path.exists():
    time.sleep(0.01)
os.kill(os.getpid(), signal.SIGKILL)
"""
    # Its streams would be held by the worker.
    assert subprocess.run([sys.executable, "-c", script], timeout=300).returncode == -signal.SIGKILL
    worker, end = int((tmp_path / "worker").read_text()), time.monotonic() + 60
    while Path(f"/proc/{worker}").exists() and "Z" not in Path(f"/proc/{worker}/stat").read_text().split(")")[1][:3]:
        assert time.monotonic() < end, "the worker is still there"
        time.sleep(0.1)


def test_a_row_is_finished_where_a_run_was_stopped(tmp_path):
    """The steps and the time before it are in the metrics, whatever interval rows have."""
    run(tmp_path / "whole", interval=1)
    run(tmp_path / "parts", interval=1000, stop_after=0)
    (first,) = read_metrics(tmp_path / "parts")
    run(tmp_path / "parts", interval=1000)
    one, two = read_metrics(tmp_path / "parts")
    assert one == first
    assert float(two["seconds"]) >= float(one["seconds"])
    whole = read_metrics(tmp_path / "whole")
    assert one["loss"] == whole[0]["loss"]
    assert int(two["step"]) == len(whole)


@pytest.mark.parametrize("failing", ["data", "loss"])
def test_a_process_that_fails_ends_with_its_workers(tmp_path, failing):
    """An error nobody catches: the interpreter keeps its traceback, and waits for the workers at its end."""
    script = f"""
import sys
from pathlib import Path
from test_trainer import PLAN, Numbers, Regression
from tianquan.training.trainer import Trainer

class Failing(Numbers):
    def __getitem__(self, step):
        if {failing == "data"} and step == 5:
            raise ValueError("no such record")
        return super().__getitem__(step)

objective = Regression()
objective.broken = {{51: float("nan")}} if {failing == "loss"} else {{}}
Trainer(objective, Failing(), PLAN, Path(sys.argv[1]), num_workers=1).train()
"""
    command = [sys.executable, "-c", script, str(tmp_path)]
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert ("no such record" if failing == "data" else "item 51") in done.stderr
