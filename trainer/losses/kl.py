"""Estimators of KL(policy || reference) from one sampled token, and the penalty made of them.

http://joschu.net/blog/kl-approx.html. With d = p_t - f_t, tokens sampled from the policy, value and slope dk/dp:

    k1 = d                      slope 1            unbiased value; as a loss its expected gradient is 0
    k2 = d^2 / 2                slope d            biased value;   expected gradient that of the reverse KL
    k3 = e^-d + d - 1           slope 1 - e^-d     unbiased value; expected gradient that of the forward KL
    r k3, r = e^(p-q)           slope d at r = 1   unbiased value, off-policy too; gradient that of the reverse KL

By hand: d = 1: 1, 0.5, e^-1 = 0.367879, slopes 1, 1, 1 - e^-1 = 0.632121, 1. d = -1: -1, 0.5, e - 2 = 0.718282,
slopes 1, -1, 1 - e = -1.718282, -1. d = 0.1: 0.1, 0.005, 0.00483742.
k1 therefore is for reports and rewards (`rloo` in TRL takes it off the reward), never a penalty. N positions, nats.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from trainer.losses.fields import TokenFields
from trainer.losses.ratios import MAX_LOG_RATIO, ratio_of


def k1(logprobs_N: Tensor, reference_N: Tensor) -> Tensor:
    """d = p - f, [N]."""
    return logprobs_N - reference_N


def k2(logprobs_N: Tensor, reference_N: Tensor) -> Tensor:
    """d^2 / 2, [N]; nothing to clamp."""
    return (logprobs_N - reference_N).square() / 2


def k3(logprobs_N: Tensor, reference_N: Tensor) -> Tensor:
    """e^-d + d - 1, [N]. Where the policy is more than e^20 below the reference (d < -20) it stays what it is at -20,
    with slope 0; clamping only the exponential would turn the slope's sign. verl instead clamps d and k3 both ways."""
    behind_N = (reference_N - logprobs_N).clamp(max=MAX_LOG_RATIO)
    return behind_N.exp() - behind_N - 1


def k3_ratio(logprobs_N: Tensor, reference_N: Tensor, old_N: Tensor) -> Tensor:
    """r k3, [N], r = e^(p-q) with its gradient and not clipped (TRL's `use_bias_correction_kl`). Always the token's
    own ratio, also where the policy term has the sequence's: TRL 1.16 takes the sequence's there. Where k3 is held at
    d < -20 the product has no slope either: the ratio's alone would push the policy further from the reference."""
    product_N = ratio_of(logprobs_N - old_N) * k3(logprobs_N, reference_N)
    return torch.where(reference_N - logprobs_N > MAX_LOG_RATIO, product_N.detach(), product_N)


def kl_penalty(
    name: str, logprobs_N: Tensor, fields: TokenFields, values: Mapping[str, float]
) -> tuple[Tensor, dict[str, Tensor]]:
    """kl_k2 k2 + kl_k3 k3 + kl_k3_ratio r k3 per position, [N], weights not in it; 0 and silent where all three are 0.

    Metrics: k1 and k3 summed, both unbiased, whichever is penalised. Raises `ValueError` for datums without reference.
    """
    weights = {key: values.get(key, 0.0) for key in ("kl_k2", "kl_k3", "kl_k3_ratio")}
    if not any(weights.values()):
        return torch.zeros_like(logprobs_N), {}
    reference_N = fields.need("reference", name)
    penalty_N = weights["kl_k2"] * k2(logprobs_N, reference_N) + weights["kl_k3"] * k3(logprobs_N, reference_N)
    if weights["kl_k3_ratio"]:
        old_N = fields.need("logprobs", name)
        penalty_N = penalty_N + weights["kl_k3_ratio"] * k3_ratio(logprobs_N, reference_N, old_N)
    with torch.no_grad():
        metrics = {"kl_k1:sum": k1(logprobs_N, reference_N).sum(), "kl_k3:sum": k3(logprobs_N, reference_N).sum()}
    return penalty_N, metrics
