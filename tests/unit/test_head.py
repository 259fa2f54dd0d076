"""The tiled head against full logits: values and every gradient, for any tile, dtype, bias and cap."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from trainer.engine.head import Head

N, H, V = 13, 8, 21


def make(*, bias: bool, softcap: float | None, tile: int, dtype: torch.dtype = torch.float32) -> Head:
    torch.manual_seed(0)
    return Head(nn.Linear(H, V, bias=bias).to(dtype), softcap, tile)


def inputs(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    return (3 * torch.randn(N, H)).to(dtype).requires_grad_(), torch.randint(0, V, (N,)), torch.randn(N)


def full_logprobs(head: Head, hidden: Tensor, targets: Tensor) -> Tensor:
    logits = head.module(hidden).float()
    if head.softcap:
        logits = torch.tanh(logits / head.softcap) * head.softcap
    return torch.log_softmax(logits, -1).gather(1, targets[:, None])[:, 0]


def gradients(head: Head, hidden: Tensor) -> list[Tensor]:
    found = [hidden.grad, *(parameter.grad for parameter in head.module.parameters())]
    hidden.grad = None
    head.module.zero_grad()
    assert all(grad is not None for grad in found)
    return found  # pyright: ignore[reportReturnType]


@pytest.mark.parametrize("tile", [1, 4, 13, 100])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_both_ways_equal_full_logits(tile: int, bias: bool, softcap: float | None) -> None:
    head = make(bias=bias, softcap=softcap, tile=tile)
    hidden, targets, slopes = inputs()
    expected = full_logprobs(head, hidden, targets)
    (expected * slopes).sum().backward()
    wanted = gradients(head, hidden)

    recomputed = head.logprobs(hidden, targets)
    torch.testing.assert_close(recomputed, expected)
    (recomputed * slopes).sum().backward()
    torch.testing.assert_close(gradients(head, hidden), wanted)

    total, logprobs = head.sloped(hidden, targets, slopes)
    torch.testing.assert_close(logprobs, expected.detach())
    torch.testing.assert_close(total, (expected * slopes).sum())
    (total * 1.0).backward()
    torch.testing.assert_close(gradients(head, hidden), wanted)


def test_gradcheck_in_fp64_of_a_nonlinear_loss() -> None:
    head = make(bias=True, softcap=2.0, tile=4)
    hidden, targets, _ = inputs()
    expected = full_logprobs(head, hidden, targets)
    expected.exp().sum().backward()
    wanted = gradients(head, hidden)
    head.logprobs(hidden, targets).exp().sum().backward()
    torch.testing.assert_close(gradients(head, hidden), wanted)


def test_bf16_head_has_fp32_logprobs_and_grads_in_the_weights_dtype() -> None:
    head = make(bias=False, softcap=None, tile=4, dtype=torch.bfloat16)
    hidden, targets, slopes = inputs(torch.bfloat16)
    total, logprobs = head.sloped(hidden, targets, slopes)
    assert logprobs.dtype == torch.float32
    torch.testing.assert_close(logprobs, full_logprobs(head, hidden, targets).detach())
    total.backward()
    assert [grad.dtype for grad in gradients(head, hidden)] == [torch.bfloat16, torch.bfloat16]


def test_frozen_head_gets_no_gradient() -> None:
    head = make(bias=True, softcap=None, tile=4)
    head.module.requires_grad_(False)
    hidden, targets, slopes = inputs()
    head.sloped(hidden, targets, slopes)[0].backward()
    assert hidden.grad is not None and head.weight_VH.grad is None


def test_a_target_that_is_all_but_impossible_has_a_finite_logprob_and_gradient() -> None:
    head = Head(nn.Linear(1, 3, bias=False), None, 4)
    with torch.no_grad():
        head.weight_VH.copy_(torch.tensor([[0.0], [1000.0], [1000.0]]))
    hidden = torch.ones(1, 1, requires_grad=True)
    logprobs = head.logprobs(hidden, torch.tensor([0]))
    assert logprobs.item() == pytest.approx(-1000 - math.log(2))  # exp(-1000) is 0 in fp32
    logprobs.sum().backward()
    assert head.weight_VH.grad is not None
    torch.testing.assert_close(head.weight_VH.grad, torch.tensor([[1.0], [-0.5], [-0.5]]))


def fake_model(*, vocabulary: int = 2**20, device: str = "meta", **config: object) -> SimpleNamespace:
    text = SimpleNamespace(**config)
    return SimpleNamespace(
        config=SimpleNamespace(get_text_config=lambda: text),
        get_output_embeddings=lambda: nn.Linear(1, vocabulary, device=device),
    )


def test_tile_times_vocabulary_is_bounded() -> None:
    assert Head.of(fake_model(), 1024).tile == 32


@pytest.mark.parametrize(("vocabulary", "tile"), [(512, 1024), (8192, 512), (2**15, 128), (2**18, 128), (2**20, 32)])
def test_a_tile_fits_the_cache_of_a_cpu(vocabulary: int, tile: int) -> None:
    assert Head.of(fake_model(vocabulary=vocabulary, device="cpu"), 1024).tile == tile
    assert Head.of(fake_model(vocabulary=vocabulary, device="cpu"), 8).tile == 8


def test_unknown_scaling_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"config.logits_scaling=8.0"):
        Head.of(fake_model(logits_scaling=8.0), 16)
    assert Head.of(fake_model(logits_scaling=1.0, final_logit_softcapping=30.0), 16).softcap == 30.0
