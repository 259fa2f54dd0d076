"""AdamW with fp32 masters: torch as oracle, tiny updates under bf16 weights (trap 26), exact state, refusals."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from trainer.engine.base import AdamParams
from trainer.engine.optimizer import MasterAdamW


def parameters(dtype: torch.dtype = torch.float32) -> dict[str, nn.Parameter]:
    torch.manual_seed(0)
    return {"matrix": nn.Parameter(torch.randn(4, 3).to(dtype)), "vector": nn.Parameter(torch.randn(3).to(dtype))}


def feed(optimizer: MasterAdamW, params: dict[str, nn.Parameter], seed: int, scale: float = 1.0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in params.values():
        grad = scale * torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
        parameter.grad = grad if parameter.grad is None else parameter.grad + grad
    optimizer.gather()


@pytest.mark.parametrize("decay_vectors", [True, False])
def test_equals_torch(decay_vectors: bool) -> None:
    ours, theirs = parameters(), parameters()
    optimizer = MasterAdamW(ours, decay_vectors=decay_vectors)
    groups = [
        {"params": [theirs["matrix"]], "weight_decay": 0.1},
        {"params": [theirs["vector"]], "weight_decay": 0.1 if decay_vectors else 0.0},
    ]
    oracle = torch.optim.AdamW(groups, lr=1e-2, betas=(0.8, 0.9), eps=1e-6)
    for step in range(5):
        feed(optimizer, ours, step, scale=7.0)
        norm = optimizer.step(AdamParams(1e-2, 0.8, 0.9, 1e-6, 0.1, max_grad_norm=0.5), 7.0)
        feed(MasterAdamW(theirs, decay_vectors=True), theirs, step)
        expected = torch.nn.utils.clip_grad_norm_(theirs.values(), 0.5)
        oracle.step()
        oracle.zero_grad()
        assert norm == pytest.approx(float(expected), rel=1e-5)
    for name, parameter in ours.items():
        torch.testing.assert_close(parameter, theirs[name], rtol=1e-5, atol=1e-6)


def test_a_thousand_tiny_steps_move_bf16_weights_by_the_analytic_amount() -> None:
    params = {"weight": nn.Parameter(torch.full((8,), 0.0625, dtype=torch.bfloat16))}
    optimizer = MasterAdamW(params, decay_vectors=True)
    for _ in range(1000):
        params["weight"].grad = torch.ones(8, dtype=torch.bfloat16)
        optimizer.gather()
        optimizer.step(AdamParams(1e-6), 1.0)
    # Constant gradient: AdamW moves by the rate every step. bf16's spacing here is 2.4e-4: without masters, nothing.
    master = optimizer.state()["master.weight"]
    torch.testing.assert_close(master, torch.full((8,), 0.0625 - 1e-3), rtol=0, atol=2e-6)
    torch.testing.assert_close(params["weight"].detach(), master.bfloat16())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_state_restores_exactly(dtype: torch.dtype) -> None:
    params = parameters(dtype)
    optimizer = MasterAdamW(params, decay_vectors=True)
    for step in range(3):
        feed(optimizer, params, step)
        optimizer.step(AdamParams(1e-2), 1.0)
    copies = {name: nn.Parameter(p.detach().clone()) for name, p in params.items()}
    resumed = MasterAdamW(copies, decay_vectors=True)
    resumed.load(optimizer.state(), optimizer.steps)
    for which, target in ((optimizer, params), (resumed, copies)):
        feed(which, target, 9)
        which.step(AdamParams(1e-2), 1.0)
    for name, parameter in params.items():
        assert torch.equal(parameter, copies[name])


def test_not_finite_gradient_changes_nothing_and_is_dropped() -> None:
    params = parameters()
    optimizer = MasterAdamW(params, decay_vectors=True)
    before = {name: p.detach().clone() for name, p in params.items()}
    feed(optimizer, params, 0, scale=float("inf"))
    with pytest.raises(FloatingPointError, match="no weight has changed"):
        optimizer.step(AdamParams(1.0), 1.0)
    assert all(torch.equal(before[name], p) and p.grad is None for name, p in params.items())
    assert optimizer.steps == 0 and not optimizer.accumulated


def test_state_of_another_model_is_refused() -> None:
    optimizer = MasterAdamW(parameters(), decay_vectors=True)
    with pytest.raises(ValueError, match="does not fit this model"):
        optimizer.load({"exp_avg.other": torch.zeros(1)}, 1)
