"""Causal attention in blocks against its definition, in fp64: values and gradients, for every way a run can take."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from trainer.engine import causal

RUNS = [(1, 5), (2, 3), (1, 1), (1, 8), (2, 1)]  # (rows, length)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(causal, "_BLOCK", 3)  # the row of 8 takes three blocks
    monkeypatch.setattr(causal, "_SHORT", 1)
    causal._corners.cache_clear()
    yield  # pyright: ignore[reportReturnType]
    causal._corners.cache_clear()


def by_definition(q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
    lengths = [length for rows, length in RUNS for _ in range(rows)]
    row_T = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    i, j = torch.arange(len(row_T))[:, None], torch.arange(len(row_T))[None]
    seen = (row_T[:, None] == row_T) & (j <= i) & (j > i - (window or len(row_T)))
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    scores = torch.einsum("ind,jnd->nij", q, k) * 0.7
    return torch.einsum("nij,jnd->ind", scores.masked_fill(~seen, float("-inf")).softmax(-1), v)


@pytest.mark.parametrize("longest", [512, 4, 0], ids=["products", "both", "kernel"])
@pytest.mark.parametrize("window", [None, 1, 2, 3, 4, 7])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 2), (2, 2), (3, 1)])
def test_equals_its_definition(
    heads: int, kv_heads: int, window: int | None, longest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(causal, "_LONG", longest)
    torch.manual_seed(0)
    tokens = sum(rows * length for rows, length in RUNS)
    inputs = [torch.randn(tokens, n, 2, dtype=torch.float64).requires_grad_() for n in (heads, kv_heads, kv_heads)]
    found, expected = causal.Causal.apply(*inputs, RUNS, 0.7, window), by_definition(*inputs, window)
    assert isinstance(found, Tensor)
    torch.testing.assert_close(found, expected)
    slope = torch.randn_like(found)
    gradients = (torch.autograd.grad(y, inputs, slope) for y in (found, expected))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_which_rows_go_where(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(causal, "_LONG", 5)
    products, others = causal._split(RUNS, None)
    assert products == [(0, 1, 5), (5, 2, 3)] and others == [(11, 1, 1), (12, 1, 8), (20, 2, 1)]
    assert (12, 1, 8) in causal._split(RUNS, 4)[0]  # no query of it sees more than 4 keys


def test_no_key_outside_the_window_is_multiplied() -> None:
    assert list(causal._blocks(8, None)) == [(0, 3, 0), (3, 6, 0), (6, 8, 0)]
    assert list(causal._blocks(8, 2)) == [(0, 3, 0), (3, 6, 2), (6, 8, 5)]
