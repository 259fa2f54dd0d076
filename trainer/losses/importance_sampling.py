"""The importance-weighted policy gradient, not clipped: unbiased whatever policy sampled, as variable as its ratios."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from trainer.loss_specs import filled
from trainer.losses.fields import TokenFields
from trainer.losses.ratios import ratio_metrics, ratio_of


def importance_sampling(
    logprobs_N: Tensor, fields: TokenFields, config: Mapping[str, float]
) -> tuple[Tensor, dict[str, Tensor]]:
    """L = -sum_t w_t r_t A_t, r_t = exp(p_t - q_t) (1707.06347, Eq. 6; Tinker's `importance_sampling`).

    Unlike Tinker weights multiply and the log-ratio is clamped to +-20 (as the Fireworks cookbook does). Sum over
    trained positions; the denominator is the caller's (Tinker: none; a token mean: the tokens of the step).
    Slope: -w r A; 0 beyond the clamp. By hand, A 1, r = 0.5, 1.5: -0.5, -1.5. Shapes: all [N]; logprobs in nats.
    Errors: `ValueError` for datums without logprobs or advantages. No constants. Metrics: those of the ratio.
    """
    filled("importance_sampling", config)
    old_N, advantages_N = (
        fields.need("logprobs", "importance_sampling"),
        fields.need("advantages", "importance_sampling"),
    )
    ratio_N = ratio_of(logprobs_N - old_N)
    return -(fields.weights_N * ratio_N * advantages_N).sum(), ratio_metrics(ratio_N)
