"""The training loop: accelerate for the device, AdamW or Muon, accumulation, loss scaling, saved states.

Precision goes through torch.amp, not through accelerate, whose float16 needs a GPU: here it can be tried on any
machine. The weights stay float32; the forward pass is cast.

Step s sees the batch number s and random numbers seeded by s, so a run that was killed and resumed is the run that was
not.

Started several times by `torchrun` (or `accelerate launch`), the processes share each micro-batch and average their
gradients. On two cores two processes of one thread train faster than one process of two: between the products of
matrices there is much that one thread does alone.
"""

from __future__ import annotations

import gc
import math
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, PartialState
from accelerate.utils import gather_object
from torch import nn
from torch.utils.data import DataLoader, Dataset

from tianquan.errors import TianquanError
from tianquan.training.log import TrainingLog
from tianquan.training.muon import Muon
from tianquan.training.objective import Item, Objective, StepLoss
from tianquan.training.plan import TrainingPlan
from tianquan.training.state import load_state, only_run, restore, save_state, saved_states

_AUTOCAST = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
_FIRST_SCALE = 2.0**12  # of a float16 loss; the scaler finds its own from there
_GROWTH_INTERVAL = 200  # steps without overflow before the scale doubles
_LOOK_SECONDS = 1.0  # between a worker's looks at whether its parent is there
_WORKER_NICENESS = 5  # a third of the training threads' share of a core they both want
_ENDING_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)  # SIGHUP: the terminal was closed; not on Windows
_MAX_OVERFLOWS = 40  # in a row: 2**-40 of the first scale is no scale any more


class TrainingError(TianquanError):
    """Training cannot go on; the message names the record and what to do."""


ItemOut = TypeVar("ItemOut", covariant=True)


class Steps(Protocol[ItemOut]):
    """The data of a run: element i is what this process trains on in step i, micro-batches of items."""

    def __getitem__(self, step: int) -> Sequence[Sequence[ItemOut]]:
        """Return the micro-batches of a step."""
        ...


class Trainer(Generic[Item]):
    """One training run, new or resumed.

    Args:
        objective: the loss; its parameters that require gradients are trained.
        steps: the data of each step.
        plan: the numbers.
        run: folder of states, metrics and plot. A run that was interrupted goes on where its last state is.
        num_workers: processes that prepare data; 0 prepares it between steps.
        log_interval: steps of one row of metrics.
        stop_after: seconds after which the run saves its state and returns, to be resumed later.
    """

    def __init__(
        self,
        objective: Objective[Item],
        steps: Steps[Item],
        plan: TrainingPlan,
        run: Path,
        *,
        num_workers: int = 0,
        log_interval: int = 10,
        stop_after: float = math.inf,
    ) -> None:
        self.plan = plan
        self._objective = objective
        self._steps = steps
        self._run = run
        self._num_workers = num_workers
        self._log_interval = log_interval
        self._stop_after = stop_after
        self._parameters = {name: p for name, p in objective.named_parameters() if p.requires_grad}
        if not self._parameters:
            raise TrainingError("nothing is trained: every part of the model is frozen")
        device = next(iter(self._parameters.values())).device
        # A micro-batch without sound leaves the audio encoder without a gradient.
        unused = DistributedDataParallelKwargs(find_unused_parameters=True)
        self._accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision="no", kwargs_handlers=[unused])
        self._device = device
        self._autocast_dtype = _AUTOCAST[plan.precision]
        self._scaler = torch.amp.GradScaler(
            device.type, init_scale=_FIRST_SCALE, growth_interval=_GROWTH_INTERVAL, enabled=plan.precision == "float16"
        )
        self._optimizers = _make_optimizers(objective, self._parameters, plan)
        self._overflows = 0
        self.step = 0  # finished steps
        self._saved_step: int | None = None

    def train(self) -> int:
        """Train to the end of the plan, or until interrupted; return the finished steps.

        Raises:
            TrainingError: a record whose loss is not a number, or endless overflow.
            StateError: the saved state is broken or of another plan.
        KeyboardInterrupt: asked by Ctrl-C, SIGTERM or SIGHUP; the step was finished and the state saved.
        """
        with only_run(self._run) if self._accelerator.is_main_process else nullcontext():
            self._resume()
            return self._train() if self.step < self.plan.num_steps else self.step

    def _train(self) -> int:
        # The weights lie where the backend put them; accelerate knows the kind of device only.
        model = self._accelerator.prepare(self._objective, device_placement=[False])
        model.train()
        is_main = self._accelerator.is_main_process
        log = TrainingLog(self._run, self.plan.num_steps, self.step, self._log_interval) if is_main else None
        clock = _Clock(self.plan.save_seconds, self._stop_after)
        was_interrupted = False
        try:
            with _Interruption() as interruption:
                for micro_batches in self._batches():
                    done = self._train_step(model, micro_batches, lambda: (interruption.asked, clock.time_to_stop()))
                    if log is not None:
                        log.add(self.step, **done.row)
                    was_interrupted = done.was_interrupted
                    if done.is_last:
                        break
                    if clock.time_to_save():
                        self._save(log)
                self._save(log)
                was_interrupted |= interruption.asked  # meanwhile
        finally:
            self._accelerator.free_memory()  # what shares gradients holds on to the group of processes
            if log is not None:
                log.close()
        if was_interrupted:
            raise KeyboardInterrupt
        return self.step

    def _batches(self) -> Iterator[Sequence[Sequence[Item]]]:
        """Yield the data of the steps that are left."""
        loader: DataLoader[Any] = DataLoader(
            _StepDataset(self._steps),
            sampler=range(self.step, self.plan.num_steps),
            batch_size=None,
            num_workers=self._num_workers,
            prefetch_factor=4 if self._num_workers else None,
            worker_init_fn=_prepare_worker,
        )
        try:
            for batch in loader:
                if isinstance(batch, TianquanError):
                    raise batch
                yield batch
        except BaseException as error:
            # A traceback that somebody keeps would keep the loader, and so its workers, who mind no signal: they
            # would be waited for at the end of the process, for ever.
            traceback.clear_frames(error.__traceback__)
            if isinstance(error, RuntimeError) and "DataLoader worker" in str(error):  # it has no type of its own
                raise TrainingError(
                    f"step {self.step + 1}: a worker that reads records was killed, perhaps for want of memory; use "
                    "fewer workers; the states saved before are good"
                ) from error
            raise

    def _train_step(
        self, model: Any, micro_batches: Sequence[Sequence[Item]], stop: Callable[[], tuple[bool, bool]]
    ) -> _FinishedStep:
        """Train on one batch; `stop` says whether this process was interrupted, and whether its time is over."""
        torch.manual_seed(self.plan.seed * 1_000_003 + self.step)
        rate = self.plan.rate_at(self.step)
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
        own_terms = sum(self._objective.num_terms(items) for items in micro_batches)
        num_terms = sum(self._share(own_terms))
        # Processes average their gradients; the loss is the mean over the terms of all of them.
        scale = self._accelerator.num_processes / max(1, num_terms)
        losses = []
        for n, items in enumerate(micro_batches, 1):
            last = n == len(micro_batches)
            with nullcontext() if last else self._accelerator.no_sync(model):
                loss = self._loss(model, items)
                if loss.total.requires_grad:
                    self._accelerator.backward(self._scaler.scale(loss.total * scale))
                elif self._accelerator.num_processes > 1:  # the others would wait for its gradients
                    raise TrainingError(f"step {self.step + 1}: a process has a batch that nothing trained is used for")
            losses.append((loss.total.item(), loss.num_tokens, loss.correct))
        norm, skipped = self._update(micro_batches)
        self.step += 1
        shares = self._share((losses, *stop()))
        losses = [loss for share in shares for loss in share[0]]
        row = {
            "loss": 0.0 if skipped else sum(total for total, _, _ in losses),
            "num_terms": 0 if skipped else num_terms,
            "num_tokens": sum(tokens for _, tokens, _ in losses),
            "learning_rate": rate,
            "gradient_norm": 0.0 if skipped else norm,
            "skipped": skipped,
            "correct": _sum_counts([correct for _, _, correct in losses]),
        }
        interrupted, over = (any(share[n] for share in shares) for n in (1, 2))
        return _FinishedStep(row, interrupted, interrupted or over)

    def _share(self, own: Any) -> list[Any]:
        """Return what each process has, in their order."""
        return gather_object([own]) if self._accelerator.num_processes > 1 else [own]

    def _loss(self, model: Any, items: Sequence[Item]) -> StepLoss:
        with torch.autocast(self._device.type, self._autocast_dtype, enabled=self._autocast_dtype is not None):
            loss: StepLoss = model(items)
        if not torch.isfinite(loss.total):
            self._blame(items)
        return loss

    def _blame(self, items: Sequence[Item]) -> None:
        """Raise for the records whose loss is not finite in float32. In float16 it may be a mere overflow."""
        broken = []
        with torch.no_grad():
            for item in items:
                loss: StepLoss = self._objective([item])
                if not torch.isfinite(loss.total):
                    broken.append(self._objective.source(item))
        if broken or not self._scaler.is_enabled():
            names = ", ".join(broken or [self._objective.source(item) for item in items][:8])
            raise TrainingError(
                f"step {self.step + 1}: the loss is not a number for {names}; look at the record, or lower the "
                "learning rate; the states saved before are good"
            )

    def _update(self, micro_batches: Sequence[Sequence[Item]]) -> tuple[float, bool]:
        """Update the weights; return the gradients' norm and whether an overflow made the step void.

        A batch without pictures has no gradient for a vision encoder that is trained alone: then nothing happens.
        """
        updated = [optimizer for optimizer in self._optimizers if _has_gradients(optimizer)]
        if not updated:
            return 0.0, False
        for optimizer in updated:
            self._scaler.unscale_(optimizer)
        norm = float(torch.nn.utils.clip_grad_norm_(self._parameters.values(), self.plan.max_grad_norm))
        overflow = not math.isfinite(norm)
        if overflow and not self._scaler.is_enabled():
            for items in micro_batches:
                self._blame(items)
            raise TrainingError(f"step {self.step + 1}: the gradients are not finite; lower the learning rate")
        self._overflows = self._overflows + 1 if overflow else 0
        if self._overflows > _MAX_OVERFLOWS:
            raise TrainingError(
                f"step {self.step + 1}: {self._overflows} overflows of float16 in a row; use bfloat16 or float32"
            )
        if not overflow:
            for optimizer in updated:
                self._scaler.step(optimizer)
        self._scaler.update()
        for optimizer in self._optimizers:
            optimizer.zero_grad(set_to_none=True)
        return norm, overflow

    def _resume(self) -> None:
        states = saved_states(self._run)
        if not states:
            return
        state = load_state(states[-1], self.plan)
        restore(state, self._parameters, self._optimizers)
        if self._scaler.is_enabled():
            self._scaler.load_state_dict(state.scaler)
        self.step = self._saved_step = state.step

    def _save(self, log: TrainingLog | None) -> None:
        if not self._accelerator.is_main_process or self.step == self._saved_step:
            return
        if log is not None:
            log.finish_row()  # what is resumed from here begins a row of its own
        scaler = self._scaler.state_dict()
        save_state(self._run, self.step, self.plan, self._parameters, self._optimizers, scaler)
        self._saved_step = self.step


def end_processes() -> None:
    """Leave the group of processes; the last thing each of them does with it.

    One that leaves while another saves makes that one abort, and a group that is still held when the interpreter is
    taken apart aborts by itself: its threads run on.
    """
    processes = PartialState()
    processes.wait_for_everyone()
    gc.collect()
    processes.destroy_process_group()


class _FinishedStep(NamedTuple):
    """What a step leaves: a row of metrics, and whether training was interrupted or is over."""

    row: dict[str, Any]
    was_interrupted: bool
    is_last: bool


def _sum_counts(counts: Sequence[dict[str, tuple[int, int]]]) -> dict[str, tuple[int, int]]:
    """Add up right answers and answers, group by group."""
    total: dict[str, tuple[int, int]] = {}
    for groups in counts:
        for group, (right, all_) in groups.items():
            before = total.get(group, (0, 0))
            total[group] = (before[0] + right, before[1] + all_)
    return total


class _StepDataset(Dataset[Any]):
    """The steps' data in PyTorch's form; an error of ours comes as a value: a worker that throws it buries its line."""

    def __init__(self, steps: Steps[Any]) -> None:
        self._steps = steps

    def __getitem__(self, step: int) -> Any:
        try:
            return self._steps[step]
        except TianquanError as error:
            return error


class _Clock:
    """When to save and when to stop."""

    def __init__(self, save_seconds: float, stop_after: float) -> None:
        self._now = time.monotonic
        self._save_seconds = save_seconds
        self._saved_at = self._now()
        self._stop_at = self._now() + stop_after

    def time_to_stop(self) -> bool:
        return self._now() >= self._stop_at

    def time_to_save(self) -> bool:
        if self._now() - self._saved_at < self._save_seconds:
            return False
        self._saved_at = self._now()
        return True


def _make_optimizers(
    objective: Objective[Any], parameters: dict[str, Any], plan: TrainingPlan
) -> list[torch.optim.Optimizer]:
    """Return AdamW, or Muon for the matrices of inner layers and AdamW for tables, output layers and vectors."""
    optimizers: list[torch.optim.Optimizer] = []
    rest = dict(parameters)
    if plan.optimizer == "muon":
        inner = [
            rest.pop(f"{name}.weight")
            for name, module in objective.named_modules()
            if isinstance(module, nn.Linear)
            and f"{name}.weight" in rest
            and not name.startswith(objective.output_layers)
        ]
        if inner:
            optimizers.append(Muon(inner, learning_rate=0.0, weight_decay=plan.weight_decay))
    matrices = [p for p in rest.values() if p.dim() > 1]
    vectors = [p for p in rest.values() if p.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": plan.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    if groups:
        optimizers.append(torch.optim.AdamW(groups, lr=0.0, betas=plan.betas, fused=True))
    return optimizers


def _has_gradients(optimizer: torch.optim.Optimizer) -> bool:
    return any(p.grad is not None for group in optimizer.param_groups for p in group["params"])


class _Interruption:
    """Ctrl-C and other signals ask for an end after the current step; asked again, they end it at once, unsaved."""

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> _Interruption:
        for number in _ENDING_SIGNALS:
            try:
                self._before[number] = signal.signal(number, self._ask)
            except ValueError:  # not the main thread: whoever owns it decides
                break
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, *_: object) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


def _end_with(parent: int) -> None:
    """End this process when its parent has: killed, that leaves workers waiting to hand over a batch, for ever."""
    while os.getppid() == parent:
        time.sleep(_LOOK_SECONDS)
    os._exit(1)


def _prepare_worker(_: int) -> None:
    """Leave signals that are sent to all processes to the one that trains; when it ends, so do the workers.

    Workers give way: a training thread that loses its core to one makes all the others wait at their barrier.
    """
    for number in _ENDING_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    if hasattr(os, "nice"):
        os.nice(_WORKER_NICENESS)
