"""REINFORCE: advantage-weighted likelihood. Right only where the policy that sampled is the one that is trained."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from trainer.loss_specs import filled
from trainer.losses.fields import TokenFields
from trainer.losses.kl import kl_penalty


def reinforce(logprobs_N: Tensor, fields: TokenFields, config: Mapping[str, float]) -> tuple[Tensor, dict[str, Tensor]]:
    """L = sum_t w_t [-A_t p_t + KL_t] (Williams 1992; for language models with a leave-one-out baseline 2402.14740).

    No ratio: off-policy its expected gradient is that of the samples' policy, sum_a q(a) A(a) grad p(a). With ratios:
    `importance_sampling`, which is what the Fireworks cookbook calls reinforce. KL as in `grpo`, off by default.
    Sum over trained positions, denominator the sequences of the step: the log-prob of a completion is the sum of its
    tokens', so the mean over completions has no 1/n (2402.14740).

    By hand, p -1, -2, A 0.5, -2: 0.5 - 4 = -3.5. Slope: -w A. Shapes: all [N], nats. Errors: `ValueError` for datums
    without advantages. Metrics: tokens, advantage, and those of the KL.
    """
    advantages_N = fields.need("advantages", "reinforce")
    penalty_N, kl_metrics = kl_penalty("reinforce", logprobs_N, fields, filled("reinforce", config))
    metrics = {"tokens:sum": torch.ones_like(advantages_N).sum(), "advantage:sum": advantages_N.sum()}
    return (fields.weights_N * (penalty_N - advantages_N * logprobs_N)).sum(), {**metrics, **kl_metrics}
