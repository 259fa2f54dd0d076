"""ORPO: fine-tuning on the chosen response and an odds ratio against the rejected one, without a reference."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from trainer.loss_specs import filled
from trainer.losses.fields import TokenFields
from trainer.losses.pairs import check_pairs, split_pairs

# Mean log-probs nearer to 0 have no odds: at 0 they are infinite. As the Fireworks cookbook, which also clamps below
# -50; there nothing overflows, and a clamp would only take the gradient away.
_LARGEST_MEAN = -1e-6


def log1mexp(x_M: Tensor) -> Tensor:
    """log(1 - e^x) for x <= 0, as log(-expm1(x)): exact to rounding near 0, and absolutely so far from it.

    -1e-3: -6.908255; -1e-8: -18.420681; -1e-17: -39.143947 (where 1 - e^x is 0 even in fp64); 0: -inf. Slope
    e^x / expm1(x), finite for x < 0. Without TRL's branch at -ln 2, whose other arm makes the slope NaN from -1e-8 on.
    """
    return (-torch.expm1(x_M)).log()


def orpo(logprobs_N: Tensor, fields: TokenFields, config: Mapping[str, float]) -> tuple[Tensor, dict[str, Tensor]]:
    """L = sum_pairs -c - lambda log s(o), o = (c - r) - (log(1 - e^c) - log(1 - e^r)) (2403.07691, Eqs. 6 and 7).

    c, r = sum_t w_t p_t / n: **mean** log-probs of the chosen and the rejected response; lambda = `orpo_lambda`.
    Sum over pairs, denominator the pairs of the step. Unlike TRL 1.16: the likelihood term is that of the response,
    each pair's mean alike (TRL: prompt and response, mean over the tokens of a micro-batch: it depends on the split);
    in the odds c and r are at most -1e-6, where TRL is infinite at 0 and its slope NaN from about -1e-8. Fireworks has
    the same loss with lambda 1.0 by default, ours is the paper's and TRL's 0.1.

    By hand, c -0.5, r -1: log(1 - e^c) = -0.932752, log(1 - e^r) = -0.458675, o = 0.5 + 0.474077 = 0.974077,
    -log s(o) = 0.320300, L = 0.5 + 0.032030 = 0.532030. Slopes of the odds term: dL/dc = -lambda s(-o) / (1 - e^c) =
    -0.0696544, dL/dr = +lambda s(-o) / (1 - e^r) = +0.0433570; each position has w_t / n of that, chosen ones -w_t / n
    more. Shapes: logprobs_N, weights_N [N], nats. Errors as in `dpo`, no reference needed. Metrics, each a sum over
    pairs: pairs, log_odds, correct (c > r), nll.
    """
    values = filled("orpo", config)
    check_pairs(fields, "orpo")
    chosen_P, rejected_P = split_pairs(fields.means_D(fields.weights_N * logprobs_N))
    odds_P = _log_odds(chosen_P) - _log_odds(rejected_P)
    total = -chosen_P.sum() - values["orpo_lambda"] * logsigmoid(odds_P).sum()
    with torch.no_grad():
        return total, {
            "pairs:sum": torch.ones_like(odds_P).sum(),
            "log_odds:sum": odds_P.sum(),
            "correct:sum": (chosen_P > rejected_P).to(odds_P.dtype).sum(),
            "nll:sum": -chosen_P.sum(),
        }


def _log_odds(mean_P: Tensor) -> Tensor:
    bounded_P = mean_P.clamp(max=_LARGEST_MEAN)
    return bounded_P - log1mexp(bounded_P)
