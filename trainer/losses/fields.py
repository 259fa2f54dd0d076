"""What a loss sees beside the log-probs: the trained positions of one or more datums, laid end to end.

A loss is a pure function `(logprobs_N, fields, config) -> (sum, metrics)`. N: trained positions (weight not 0) of all
the datums it is given; the engine may hand over the datums of a step in any number of such pieces (never half a datum,
nor half a pair), so a loss must be a sum over datums or pairs. D: datums. Each metric's name ends in how pieces are put
together: `:sum`, `:min` or `:max`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class TokenFields:
    """Fields of the datums at their trained positions.

    weights_N: fp32, signed, not 0. datum_N: int64, which datum a position belongs to, 0 .. datums - 1 in the order the
    caller gave them (of a pair: even chosen, odd rejected), each datum's positions adjacent and in order; the datums
    themselves may lie in any order. logprobs_N: fp32 of the sampler, reference_N: fp32 of the frozen reference,
    advantages_N: fp32; each None where the datums do not have it.
    """

    weights_N: Tensor
    datum_N: Tensor
    datums: int
    logprobs_N: Tensor | None = None
    advantages_N: Tensor | None = None
    reference_N: Tensor | None = None

    def need(self, name: Literal["logprobs", "advantages", "reference"], loss: str) -> Tensor:
        """A field the loss cannot do without, [N]. Raises `ValueError` where the datums do not have it."""
        found: Tensor | None = getattr(self, f"{name}_N")
        if found is None:
            raise ValueError(f"{loss}: the datums have no {name}; it needs Datum.{name}, one number for each position")
        return found

    def sums_D(self, values_N: Tensor) -> Tensor:
        """Sum over each datum's positions, [D]; 0 for a datum that has none."""
        return values_N.new_zeros(self.datums).index_add(0, self.datum_N, values_N)

    def counts_D(self, like: Tensor) -> Tensor:
        """Trained positions of each datum, [D], in the dtype of `like`; 1 for a datum that has none."""
        return self.sums_D(torch.ones_like(self.weights_N, dtype=like.dtype)).clamp(min=1)

    def means_D(self, values_N: Tensor) -> Tensor:
        """Mean over each datum's positions, [D]; 0 for a datum that has none."""
        return self.sums_D(values_N) / self.counts_D(values_N)


LossFunction = Callable[[Tensor, TokenFields, Mapping[str, float]], tuple[Tensor, dict[str, Tensor]]]
SlopeFunction = Callable[[TokenFields, Mapping[str, float]], Tensor]
