"""The clipped surrogate of PPO and its descendants, per ratio: a token's, or a sequence's. M ratios."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from trainer.losses.fields import TokenFields
from trainer.losses.kl import kl_penalty
from trainer.losses.ratios import ratio_metrics, ratio_of


def clipped(ratio_M: Tensor, advantages_M: Tensor, values: Mapping[str, float]) -> tuple[Tensor, dict[str, Tensor]]:
    """l = -min(r A, clip(r, low, high) A) (1707.06347, Eq. 7), and with `dual_clip` c, where A < 0, at most -c A.

    Dual clip (1912.09729) as min(r, c) in the first term where A < 0: the same as TRL's `delta` as long as
    c >= clip_high_threshold, which `filled` sees to. Slope: -r A where the first term is the smaller one or r lies in
    the closed interval; else 0. Returns l [M] and the shares clipped, each counted where it takes a gradient away.
    """
    low, high = values["clip_low_threshold"], values["clip_high_threshold"]
    dual = values.get("dual_clip", 0.0)
    negative_M = advantages_M < 0
    capped_M = torch.where(negative_M, ratio_M.clamp(max=dual), ratio_M) if dual else ratio_M
    loss_M = -torch.minimum(capped_M * advantages_M, ratio_M.clamp(low, high) * advantages_M)
    metrics = {
        **ratio_metrics(ratio_M),
        "clipped_low:sum": ((ratio_M < low) & negative_M).sum().to(ratio_M.dtype),
        "clipped_high:sum": ((ratio_M > high) & (advantages_M > 0)).sum().to(ratio_M.dtype),
    }
    if dual:
        metrics["clipped_dual:sum"] = ((ratio_M > dual) & negative_M).sum().to(ratio_M.dtype)
    return loss_M, metrics


def clipped_tokens(
    name: str, logprobs_N: Tensor, fields: TokenFields, values: Mapping[str, float]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Per position: the clipped surrogate of r_t = exp(p_t - q_t), plus the KL penalty where `values` weigh one.

    Weights are not in it. Raises `ValueError` for datums without logprobs, advantages, or the reference a KL needs.
    """
    log_ratio_N = logprobs_N - fields.need("logprobs", name)
    terms_N, metrics = clipped(ratio_of(log_ratio_N), fields.need("advantages", name), values)
    penalty_N, kl_metrics = kl_penalty(name, logprobs_N, fields, values)
    return terms_N + penalty_N, {**metrics, **kl_metrics}
