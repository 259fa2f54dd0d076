"""What a loss sees beside the log-probs: the trained positions of one or more datums, laid end to end.

A loss is a pure function `(logprobs_N, fields, config) -> (sum, metrics)`. N: trained positions (weight not 0) of all
the datums it is given; the engine may hand over the datums of a step in any number of such pieces, so a loss must be a
sum over datums. Each metric's name ends in how pieces are put together: `:sum`, `:min` or `:max`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class TokenFields:
    """Fields of the datums at their trained positions.

    weights_N: fp32, signed, not 0. datum_N: int64, which datum a position belongs to, 0 .. datums - 1, each datum's
    positions adjacent and in order. logprobs_N: fp32 of the sampler, advantages_N: fp32; both None outside RL.
    """

    weights_N: Tensor
    datum_N: Tensor
    datums: int
    logprobs_N: Tensor | None = None
    advantages_N: Tensor | None = None


LossFunction = Callable[[Tensor, TokenFields, Mapping[str, float]], tuple[Tensor, dict[str, Tensor]]]
SlopeFunction = Callable[[TokenFields, Mapping[str, float]], Tensor]
