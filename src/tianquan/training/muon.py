"""Muon with updates made orthogonal in float32 where the processor computes.

PyTorch's rounds them to bfloat16 first. Few processors multiply that: on one with AVX2 alone such products are several
times slower than float32 ones, and an update took longer than the forward and backward pass of the embedded model.
Source: Jordan et al. 2024 (Muon); the learning rate is scaled as in Liu et al. 2025 (arXiv 2502.16982).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_RMS = 0.2  # of an update's elements: about that of AdamW's


class Muon(torch.optim.Muon):
    """`torch.optim.Muon` with `match_rms_adamw`; the same state.

    Args:
        parameters: matrices.
        learning_rate: as for AdamW.
        weight_decay: decoupled.
    """

    def __init__(self, parameters: list[Any], *, learning_rate: float, weight_decay: float) -> None:
        super().__init__(parameters, lr=learning_rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update the matrices that have gradients."""
        if any(matrix.device.type != "cpu" for group in self.param_groups for matrix in group["params"]):
            loss: float | None = super().step(closure)
            return loss
        assert closure is None, "a closure is not called"
        with torch.no_grad():
            for group in self.param_groups:
                for matrix in group["params"]:
                    if matrix.grad is not None:
                        self._update(matrix, group)
        return None

    def _update(self, matrix: Tensor, group: dict[str, Any]) -> None:
        state = self.state[matrix]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(matrix.grad)
        momentum = state["momentum_buffer"].lerp_(matrix.grad, 1 - group["momentum"])
        update = matrix.grad.lerp(momentum, group["momentum"]) if group["nesterov"] else momentum
        update = orthogonal(update, group["ns_coefficients"], group["ns_steps"], group["eps"])
        matrix.mul_(1 - group["lr"] * group["weight_decay"])
        matrix.add_(update, alpha=-group["lr"] * _RMS * math.sqrt(max(matrix.shape)))


def orthogonal(matrix: Tensor, coefficients: tuple[float, float, float], num_steps: int, eps: float) -> Tensor:
    """Return about the orthogonal matrix nearest to one (rows, columns), singular values 0.5 to 1.5.

    Args:
        matrix: float32.
        coefficients: of x, x^3 and x^5 in a step of the Newton-Schulz iteration.
        num_steps: how many.
        eps: least norm that is divided by.
    """
    linear, cubic, quintic = coefficients
    is_tall = matrix.shape[0] > matrix.shape[1]
    result = matrix.T if is_tall else matrix
    result = result / result.norm().clamp(min=eps)
    for _ in range(num_steps):
        gram = result @ result.T
        result = torch.addmm(result, torch.addmm(gram, gram, gram, beta=cubic, alpha=quintic), result, beta=linear)
    return result.T if is_tall else result
