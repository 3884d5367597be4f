"""The numbers of a training run, and the learning rate they give at each step."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from tianquan.errors import ParameterError

Schedule = Literal["constant", "linear", "cosine"]
Optimizer = Literal["adamw", "muon"]
TrainingPrecision = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """How a run goes. Frozen and saved with its state: a run is resumed under the plan it began with.

    num_steps: optimizer steps in all.
    accumulation: micro-batches of one step.
    learning_rate: the highest; reached after `warmup_steps`, then held or lowered to 0 by `schedule`.
    optimizer: adamw for all weights, or muon for the matrices of layers (their updates are made orthogonal, so that
        weak directions learn as fast as strong ones) and adamw for the rest. Source: Jordan et al. 2024 (Muon).
    betas: of AdamW. weight_decay: of both; it spares vectors (norms and biases).
    max_grad_norm: gradients are scaled down to this norm.
    precision: arithmetic of the forward pass; weights and optimizer state are float32 in any case.
    fingerprint: of the data and options beyond these, by name; a run is not resumed on other data.
    save_seconds: how often the state is saved; it is also saved at the end and when the run is interrupted.
    """

    num_steps: int
    accumulation: int = 1
    learning_rate: float = 1e-4
    schedule: Schedule = "cosine"
    warmup_steps: int = 0
    optimizer: Optimizer = "adamw"
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    precision: TrainingPrecision = "float32"
    seed: int = 0
    fingerprint: dict[str, str] = field(default_factory=dict)
    save_seconds: float = 300.0

    def __post_init__(self) -> None:
        bounds = (
            ("num_steps", self.num_steps, 1, 10**9),
            ("accumulation", self.accumulation, 1, 10**6),
            ("learning_rate", self.learning_rate, 0.0, 10.0),
            ("warmup_steps", self.warmup_steps, 0, self.num_steps),
            ("weight_decay", self.weight_decay, 0.0, 10.0),
            ("max_grad_norm", self.max_grad_norm, 1e-6, 1e9),
            ("seed", self.seed, 0, 2**32 - 1),
            ("save_seconds", self.save_seconds, 0.0, math.inf),
        )
        for name, value, low, high in bounds:
            if not low <= value <= high:  # NaN fails too
                raise ParameterError(f"{name} is {value}; expected {low:g} to {high:g}")

    def rate_at(self, step: int) -> float:
        """Return the learning rate of step `step`, counted from 0."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        progress = (step - self.warmup_steps) / max(1, self.num_steps - self.warmup_steps)
        if self.schedule == "linear":
            return self.learning_rate * (1 - progress)
        if self.schedule == "cosine":
            return self.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))
        return self.learning_rate
