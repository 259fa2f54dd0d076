"""DPO and its neighbours: one margin per pair, five shapes of the loss of a margin.

Shared by all (`_preference`): with S_i = sum_t w_t (p_t - f_t) over the trained positions of datum i, the margin is
D = S_c - S_r, or of means (S_i / n_i) M. Sum over pairs; the denominator is the pairs of the step (the mean over pairs
of the papers and TRL). `nll_weight` a adds a * (-sum_t w_t p_t / n_c), chosen only (2404.19733, Eq. 1; it divides by
prompt + response, we by trained positions. TRL's "sft" is a token mean over the micro-batch: it depends on the split).

Shapes: logprobs_N, fields.weights_N, fields.reference_N [N], nats; scalars out. Errors: `ValueError` for an odd number
of datums, a datum without trained positions, no reference, or constants out of range. The reference is a constant and
comes with the datum, computed in eval mode by the model whose adapter is off.
Metrics, each a sum over pairs: pairs; margin (beta D or beta M); correct (margin > 0); chosen_reward, rejected_reward
(beta S); chosen_logprob, rejected_logprob (sum_t w_t p_t, of the whole response).

By hand, beta 0.1, chosen -10 against the reference's -12, rejected -15 against -14: D = 2 - (-1) = 3, so
-log s(0.3) = 0.554355, and each chosen position has the slope -0.1 s(-0.3) = -0.0425557, each rejected one +0.0425557.
Averaged over lengths 5 and 10 (the known mistake, and `dpo_sigmoid_norm`'s purpose): M = 2/5 + 1/10 = 0.5 and
-log s(0.05) = 0.668460. At the start D = 0: DPO ln 2 = 0.693147, IPO (1 / 0.2)^2 = 25.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from trainer.loss_specs import filled
from trainer.losses.fields import TokenFields
from trainer.losses.pairs import check_pairs, split_pairs

_Shape = Callable[[Tensor, Mapping[str, float]], Tensor]


def dpo(logprobs_N: Tensor, fields: TokenFields, config: Mapping[str, float]) -> tuple[Tensor, dict[str, Tensor]]:
    """L = sum_pairs -(1-e) log s(beta D) - e log s(-beta D) (2305.18290, Eq. 7; e: ericmitchell.ai/cdpo.pdf, Eq. 3).

    Slope: -beta w ((1-e) s(-beta D) - e s(beta D)) on chosen positions, the negative on rejected ones. As TRL's
    `loss_type="sigmoid"`, but that TRL 1.16 ignores label_smoothing there.
    """
    return _preference("dpo", _smoothed, logprobs_N, fields, config)


def dpo_ipo(logprobs_N: Tensor, fields: TokenFields, config: Mapping[str, float]) -> tuple[Tensor, dict[str, Tensor]]:
    """L = sum_pairs (M - 1 / (2 beta))^2 (2310.12036, Eq. 17, beta is its tau), M of **means**.

    The paper writes log-probs of whole responses; TRL averages after asking its authors, and so do we: summed, the
    target 1/(2 beta) would mean something else for each length. Slope: 2 w (M - 1/(2 beta)) / n_c; negative for r.
    """
    return _preference("dpo_ipo", _squared, logprobs_N, fields, config, mean=True)


def dpo_hinge(logprobs_N: Tensor, fields: TokenFields, config: Mapping[str, float]) -> tuple[Tensor, dict[str, Tensor]]:
    """L = sum_pairs max(0, 1 - beta D) (RSO 2309.06657, after SLiC 2305.10425). Slope: -beta w while it is > 0."""
    return _preference("dpo_hinge", _hinge, logprobs_N, fields, config)


def dpo_robust(
    logprobs_N: Tensor, fields: TokenFields, config: Mapping[str, float]
) -> tuple[Tensor, dict[str, Tensor]]:
    """L = sum_pairs (-(1-e) log s(beta D) + e log s(-beta D)) / (1 - 2e) (2403.00409), e < 1/2 the rate of flips.

    Unbiased for the clean loss. By hand, D 3, beta 0.1, e 0.1: (0.9 * 0.554355 - 0.1 * 0.854355) / 0.8 = 0.516855.
    Slope: -beta w ((1-e) s(-beta D) + e s(beta D)) / (1 - 2e). Unbounded below
    as D grows, as TRL's.
    """
    return _preference("dpo_robust", _robust, logprobs_N, fields, config)


def dpo_sigmoid_norm(
    logprobs_N: Tensor, fields: TokenFields, config: Mapping[str, float]
) -> tuple[Tensor, dict[str, Tensor]]:
    """L = `dpo` of the margin M of **means** (Tulu 3, 2411.15124). Slope: `dpo`'s at M, over n of the response."""
    return _preference("dpo_sigmoid_norm", _smoothed, logprobs_N, fields, config, mean=True)


def _smoothed(margin_P: Tensor, values: Mapping[str, float]) -> Tensor:
    beta, flipped = values["beta"], values["label_smoothing"]
    return -(1 - flipped) * logsigmoid(beta * margin_P) - flipped * logsigmoid(-beta * margin_P)


def _squared(margin_P: Tensor, values: Mapping[str, float]) -> Tensor:
    return (margin_P - 1 / (2 * values["beta"])).square()


def _hinge(margin_P: Tensor, values: Mapping[str, float]) -> Tensor:
    return torch.relu(1 - values["beta"] * margin_P)


def _robust(margin_P: Tensor, values: Mapping[str, float]) -> Tensor:
    beta, flipped = values["beta"], values["label_smoothing"]
    clean_P, flip_P = logsigmoid(beta * margin_P), logsigmoid(-beta * margin_P)
    return (-(1 - flipped) * clean_P + flipped * flip_P) / (1 - 2 * flipped)


def _preference(
    name: str,
    shape: _Shape,
    logprobs_N: Tensor,
    fields: TokenFields,
    config: Mapping[str, float],
    *,
    mean: bool = False,
) -> tuple[Tensor, dict[str, Tensor]]:
    values = filled(name, config)
    reference_N = fields.need("reference", name)
    check_pairs(fields, name)
    summed = fields.means_D if mean else fields.sums_D
    chosen_P, rejected_P = split_pairs(summed(fields.weights_N * (logprobs_N - reference_N)))
    total = shape(chosen_P - rejected_P, values).sum()
    if values["nll_weight"]:
        total = total - values["nll_weight"] * split_pairs(fields.means_D(fields.weights_N * logprobs_N))[0].sum()
    with torch.no_grad():
        margin_P = values["beta"] * (chosen_P - rejected_P)
        chosen_logprob_P, rejected_logprob_P = split_pairs(fields.sums_D(fields.weights_N * logprobs_N))
        return total, {
            "pairs:sum": torch.ones_like(margin_P).sum(),
            "margin:sum": margin_P.sum(),
            "correct:sum": (margin_P > 0).to(margin_P.dtype).sum(),
            "chosen_reward:sum": values["beta"] * chosen_P.sum(),
            "rejected_reward:sum": values["beta"] * rejected_P.sum(),
            "chosen_logprob:sum": chosen_logprob_P.sum(),
            "rejected_logprob:sum": rejected_logprob_P.sum(),
        }
