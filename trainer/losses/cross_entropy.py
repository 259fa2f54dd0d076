"""Weighted cross-entropy: supervised fine-tuning, and the linear surrogate of anything whose slopes are known.

It is a sum; the engine divides once per optimizer step, by the denominator that the loop counts over the whole step
(a mean per micro-batch would weigh short micro-batches more: https://unsloth.ai/blog/gradient).
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from trainer.losses.fields import TokenFields


def cross_entropy(
    logprobs_N: Tensor, fields: TokenFields, config: Mapping[str, float]
) -> tuple[Tensor, dict[str, Tensor]]:
    """L = -sum_t w_t p_t, with p_t the natural log-prob of target t and w_t its weight (signed; 1 in plain SFT).

    With the denominator sum_t w_t this is the SFT loss of TRL 1.16 (`loss_type="nll"`, N = num_items_in_batch) and
    Tinker's `cross_entropy`; unlike both, weights may be negative. Shapes: logprobs_N, fields.weights_N [N] fp32, nats.
    Returns the sum (scalar) and "weight:sum". `config` has no keys.
    """
    del config
    weights_N = fields.weights_N
    return -(weights_N * logprobs_N).sum(), {"weight:sum": weights_N.sum()}


def cross_entropy_slopes(fields: TokenFields, config: Mapping[str, float]) -> Tensor:
    """dL/dp_t = -w_t, [N]: known before any log-prob is, so the head can make its gradient in the forward pass."""
    del config
    return -fields.weights_N
