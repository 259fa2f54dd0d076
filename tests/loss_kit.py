"""Small hand-made inputs for losses: datums as lists of numbers, and a loss with its slopes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor

from trainer.losses.fields import TokenFields
from trainer.losses.table import find_loss

Rows = Sequence[Sequence[float]]  # one list of numbers for each datum, a number for each trained position


def flat(rows: Rows) -> Tensor:
    return torch.tensor(list(chain.from_iterable(rows)), dtype=torch.float32)


def fields_of(
    lengths: Sequence[int],
    *,
    weights: Rows | None = None,
    old: Rows | None = None,
    reference: Rows | None = None,
    advantages: Rows | None = None,
) -> TokenFields:
    """Fields of datums with these numbers of trained positions; weights are 1 unless given."""
    return TokenFields(
        weights_N=torch.ones(sum(lengths)) if weights is None else flat(weights),
        datum_N=torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths, dtype=torch.int64)),
        datums=len(lengths),
        logprobs_N=None if old is None else flat(old),
        advantages_N=None if advantages is None else flat(advantages),
        reference_N=None if reference is None else flat(reference),
    )


def run_loss(name: str, logprobs: Tensor, fields: TokenFields, **config: float) -> tuple[float, Tensor]:
    """The loss sum and dL/dlogp [N] by autograd."""
    leaf = logprobs.detach().clone().requires_grad_()
    total, metrics = find_loss(name, config).function(leaf, fields, config)
    assert total.shape == () and not any(value.requires_grad for value in metrics.values())
    assert all(key.endswith((":sum", ":min", ":max")) for key in metrics)
    (slopes,) = torch.autograd.grad(total, leaf)
    return float(total.detach()), slopes


def run_rows(
    name: str,
    logprobs: Rows,
    *,
    weights: Rows | None = None,
    old: Rows | None = None,
    reference: Rows | None = None,
    advantages: Rows | None = None,
    **config: float,
) -> tuple[float, list[float]]:
    """As `run_loss`, of datums written out as rows; slopes as a flat list."""
    lengths = [len(row) for row in logprobs]
    fields = fields_of(lengths, weights=weights, old=old, reference=reference, advantages=advantages)
    value, slopes = run_loss(name, flat(logprobs), fields, **config)
    return value, slopes.tolist()
