"""DAPO's policy loss: clipped further above than below, every token of the step counting alike."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from trainer.loss_specs import filled
from trainer.losses.clipping import clipped_tokens
from trainer.losses.fields import TokenFields


def dapo(logprobs_N: Tensor, fields: TokenFields, config: Mapping[str, float]) -> tuple[Tensor, dict[str, Tensor]]:
    """L = -sum_t w_t min(r_t A_t, clip(r_t, 0.8, 1.28) A_t) (2503.14476, Eq. 8).

    Sum over trained positions, denominator the **tokens of the whole step**. The paper divides by the tokens of each
    prompt's group: for that give weights 1/(tokens of the group) and divide by the groups. TRL 1.16 divides by the
    tokens of the generation batch times accumulation/steps_per_generation, an average over its optimizer steps instead
    of each one's own count: the same when one step takes the whole generation batch. A KL (as in `grpo`) and a dual
    clip can be weighed in; the paper has neither. DAPO's other parts are not losses: overlong punishment
    (`trainer.advantages`), the mask of cut completions (weights 0), the filter of groups (rollouts).

    By hand, r = 1, A 1 with 2 tokens and A -1 with 8: (-2 + 8) / 10 = 0.6. A 1, r = 0.5, 1, 1.5, 4: -0.5, -1, -1.28,
    -1.28. Slope at r = 1: -w A. Shapes, errors and metrics as `grpo`.
    """
    terms_N, metrics = clipped_tokens("dapo", logprobs_N, fields, filled("dapo", config))
    return (fields.weights_N * terms_N).sum(), metrics
