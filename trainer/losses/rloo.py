"""RLOO's policy loss as TRL trains it: the ratio of whole completions, a product, clipped."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from trainer.loss_specs import filled
from trainer.losses.clipping import clipped
from trainer.losses.fields import TokenFields
from trainer.losses.ratios import ratio_of


def rloo(logprobs_N: Tensor, fields: TokenFields, config: Mapping[str, float]) -> tuple[Tensor, dict[str, Tensor]]:
    """L = sum_i -min(R_i A_i, clip(R_i, low, high) A_i), R_i = exp(sum_t (p_t - q_t)), A_i = mean of w_t A_t.

    2402.14740 is plain REINFORCE with a leave-one-out baseline (`reinforce`, `trainer.advantages`); ratio and clip are
    TRL 1.16's RLOOTrainer. Unlike it the summed log-ratio is clamped to +-20: TRL's overflows at 89 nats, to an
    infinite loss where A < 0 and to NaN where A = 0. TRL takes its KL (k1, weight 0.05) off the reward: do so before
    the advantages. Sum over datums, denominator the sequences of the step.

    By hand, log-ratios 0.1, -0.2, 0.3: R = e^0.2 = 1.221403. Slope at R = 1: -A on every position, no 1/n.
    Shapes: [N], nats. Errors and metrics as `gspo`.
    """
    values = filled("rloo", config)
    log_ratio_D = fields.sums_D(logprobs_N - fields.need("logprobs", "rloo"))
    advantages_D = fields.means_D(fields.weights_N * fields.need("advantages", "rloo"))
    terms_D, metrics = clipped(ratio_of(log_ratio_D), advantages_D, values)
    return terms_D.sum(), metrics
