"""Muon in float32 does what PyTorch's does in bfloat16."""

from __future__ import annotations

import pytest
import torch

from tianquan.training.muon import Muon, orthogonal

COEFFICIENTS = (3.4445, -4.7750, 2.0315)


@pytest.mark.parametrize("shape", [(8, 8), (5, 40), (40, 5), (1, 7), (64, 1)])
def test_singular_values_are_about_one(shape):
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonal(torch.randn(shape), COEFFICIENTS, 5, 1e-7))
    assert values.min() > 0.5
    assert values.max() < 1.5


def test_nothing_stays_nothing():
    assert not orthogonal(torch.zeros(3, 4), COEFFICIENTS, 5, 1e-7).any()


def test_steps_are_those_of_pytorch_and_so_is_the_state():
    torch.manual_seed(0)
    ours = [torch.nn.Parameter(torch.randn(shape)) for shape in ((16, 48), (48, 16), (4, 4))]
    theirs = [torch.nn.Parameter(matrix.detach().clone()) for matrix in ours]
    one = Muon(ours, learning_rate=1e-2, weight_decay=0.1)
    other = torch.optim.Muon(theirs, lr=1e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    before = [matrix.detach().clone() for matrix in ours]
    for _ in range(3):
        for mine, same in zip(ours, theirs, strict=True):
            mine.grad = torch.randn_like(mine)
            same.grad = mine.grad.clone()
        one.step()
        other.step()
    for mine, same, old in zip(ours, theirs, before, strict=True):
        moved = (same - old).norm()
        assert (mine - same).norm() < 0.02 * moved  # bfloat16 has 8 bits
        torch.testing.assert_close(one.state[mine]["momentum_buffer"], other.state[same]["momentum_buffer"])


def test_a_matrix_without_a_gradient_stays():
    matrix = torch.nn.Parameter(torch.ones(2, 2))
    Muon([matrix], learning_rate=1.0, weight_decay=1.0).step()
    assert torch.equal(matrix, torch.ones(2, 2))
