"""Causal attention in blocks against its definition, in fp64: values and gradients, for every way a run can take."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from trainer.engine import causal

RUNS = [causal.Run(*run) for run in ((1, 5), (2, 3), (1, 1), (1, 8), (2, 1))]  # rows, length
SHARED = [
    *RUNS,
    causal.Run(1, 6, (range(2, 4),)),
    causal.Run(2, 1, (range(3), range(13, 16))),
    causal.Run(1, 2, (range(11, 12),)),
]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(causal, "_BLOCK", 3)  # the row of 8 takes three blocks
    monkeypatch.setattr(causal, "_SHORT", 1)
    causal._corners.cache_clear()
    yield  # pyright: ignore[reportReturnType]
    causal._corners.cache_clear()


def rows_of(runs: list[causal.Run]) -> list[list[int]]:
    """The tokens of each row in order, shared ones first."""
    rows: list[list[int]] = []
    start = 0
    for run in runs:
        for number in range(run.rows):
            rows.append([*(run.shared[number] if run.shared else ()), *range(start, start + run.length)])
            start += run.length
    return rows


def by_definition(q: Tensor, k: Tensor, v: Tensor, window: int | None, runs: list[causal.Run]) -> Tensor:
    seen = torch.zeros(len(q), len(q), dtype=torch.bool)
    for row in rows_of(runs):
        for place, token in enumerate(row):
            seen[token, row[max(0, place + 1 - (window or len(q))) : place + 1]] = True
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    scores = torch.einsum("ind,jnd->nij", q, k) * 0.7
    return torch.einsum("nij,jnd->ind", scores.masked_fill(~seen, float("-inf")).softmax(-1), v)


@pytest.mark.parametrize("longest", [512, 4, 0], ids=["products", "both", "kernel"])
@pytest.mark.parametrize("window", [None, 1, 2, 3, 4, 7])
@pytest.mark.parametrize("heads", [(4, 2), (2, 2), (3, 1)], ids=str)
@pytest.mark.parametrize("runs", [RUNS, SHARED], ids=["apart", "shared"])
def test_equals_its_definition(
    runs: list[causal.Run], heads: tuple[int, int], window: int | None, longest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(causal, "_LONG", longest)
    torch.manual_seed(0)
    tokens = sum(run.rows * run.length for run in runs)
    inputs = [torch.randn(tokens, n, 2, dtype=torch.float64).requires_grad_() for n in (*heads, heads[1])]
    found, expected = causal.Causal.apply(*inputs, runs, 0.7, window), by_definition(*inputs, window, runs)
    assert isinstance(found, Tensor)
    torch.testing.assert_close(found, expected)
    slope = torch.randn_like(found)
    gradients = (torch.autograd.grad(y, inputs, slope) for y in (found, expected))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_which_rows_go_where(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(causal, "_LONG", 5)
    products, others = causal._split(RUNS, None)
    assert products == [(0, 0, 1, 5, 0), (5, 5, 2, 3, 0)]
    assert others == [(11, 11, 1, 1, 0), (12, 12, 1, 8, 0), (20, 20, 2, 1, 0)]
    assert (12, 12, 1, 8, 0) in causal._split(RUNS, 4)[0]  # no query of it sees more than 4 keys


def test_a_row_that_shares_has_its_own_queries_and_all_keys() -> None:
    runs = [causal.Run(2, 3), causal.Run(2, 2, (range(3, 5), range(1, 3)))]
    products, _ = causal._split(runs, None)
    assert products == [(0, 0, 2, 3, 0), (6, 6, 2, 4, 2)]
    spread = causal.spread(torch.arange(10.0).view(10, 1, 1), runs)
    assert spread.flatten().tolist() == [0, 1, 2, 3, 4, 5, 3, 4, 6, 7, 1, 2, 8, 9]


def test_no_key_outside_the_window_is_multiplied() -> None:
    assert list(causal._blocks(8, None)) == [(0, 3, 0, 0), (3, 6, 0, 0), (6, 8, 0, 0)]
    assert list(causal._blocks(8, 2)) == [(0, 3, 0, 0), (3, 6, 2, 0), (6, 8, 5, 0)]
    assert list(causal._blocks(8, 2, 3)) == [(3, 6, 2, 3), (6, 8, 5, 3)]
