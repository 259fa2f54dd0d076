"""CISPO: the clipped ratio as a constant weight on log-likelihood, so that no token's gradient is dropped."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from trainer.loss_specs import filled
from trainer.losses.fields import TokenFields
from trainer.losses.kl import kl_penalty
from trainer.losses.ratios import ratio_metrics, ratio_of


def cispo(logprobs_N: Tensor, fields: TokenFields, config: Mapping[str, float]) -> tuple[Tensor, dict[str, Tensor]]:
    """L = sum_t w_t [-sg(clip(r_t, low, high)) A_t p_t + KL_t], r_t = exp(p_t - q_t) (2506.13585, Eqs. 4 and 5).

    Bounds of the ratio, 0.8 and 1.28 as verl, Tinker and Fireworks have them. TRL's `epsilon_high` is the upper bound
    itself, with none below: its recommended 5.0 is here low 0, high 5 (also ScaleRL's, 2510.13786); its default 0.2
    would make every weight 0.2, and is refused here (high >= 1). The paper tunes the upper bound only. KL as in `grpo`.
    Sum over trained positions, denominator the tokens of the step (the paper's: of the group).

    By hand, r = 0.5, 1.5, 4: weights 0.8, 1.28, 1.28; low 0 and high 5: 0.5, 1.5, 4. Slope: -w clip(r) A. The value
    is a surrogate's, it means nothing by itself. Shapes, errors as `ppo`. Metrics: the ratio's, clipped_low,
    clipped_high (whatever the sign of A: the weight is what is clipped).
    """
    values = filled("cispo", config)
    low, high = values["clip_low_threshold"], values["clip_high_threshold"]
    ratio_N = ratio_of(logprobs_N.detach() - fields.need("logprobs", "cispo"))
    terms_N = -ratio_N.clamp(low, high) * fields.need("advantages", "cispo") * logprobs_N
    penalty_N, kl_metrics = kl_penalty("cispo", logprobs_N, fields, values)
    return (fields.weights_N * (terms_N + penalty_N)).sum(), {
        **ratio_metrics(ratio_N),
        "clipped_low:sum": (ratio_N < low).sum().to(ratio_N.dtype),
        "clipped_high:sum": (ratio_N > high).sum().to(ratio_N.dtype),
        **kl_metrics,
    }
