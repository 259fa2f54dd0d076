"""GRPO: the clipped surrogate, averaged within each completion, then over completions."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from trainer.loss_specs import filled
from trainer.losses.clipping import clipped_tokens
from trainer.losses.fields import TokenFields


def grpo(logprobs_N: Tensor, fields: TokenFields, config: Mapping[str, float]) -> tuple[Tensor, dict[str, Tensor]]:
    """L = sum_i 1/n_i sum_t w_t [-min(r_t A_t, clip(r_t, low, high) A_t) + KL_t] (2402.03300, Eq. 3).

    n_i: trained positions of datum i. Sum over datums, denominator the sequences of the step: with groups of one size
    that is the paper's mean over G and over questions. Advantages come with the datum (`trainer.advantages`).
    KL_t = kl_k2 k2 + kl_k3 k3 + kl_k3_ratio r k3, all off by default. Unlike the paper: no KL unless weighed (it has k3
    at 0.04), optional dual clip, log-ratio clamped to +-20. Unlike TRL 1.16 (`loss_type="grpo"`; its default is dapo):
    the same mean over sequences, but over the whole step once, where TRL averages micro-batches of one size.

    By hand, r = 1, A 1 with 2 tokens and A -1 with 8: -1 + 1 = 0, over 2 sequences 0. Slope at r = 1, KL off:
    -w A / n_i; the clipped ones as `ppo`. 1/n_i rewards long wrong answers (2503.20783): see `dr_grpo`, `dapo`.
    Shapes, errors and metrics as `ppo`; with a KL weight Datum.reference is needed, and kl_k1, kl_k3 are summed.
    """
    terms_N, metrics = clipped_tokens("grpo", logprobs_N, fields, filled("grpo", config))
    return fields.means_D(fields.weights_N * terms_N).sum(), metrics
