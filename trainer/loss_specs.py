"""What each built-in loss is, in words and numbers: the half of the table that needs no tensors.

`run.json` stores it (`described`), the losses take their constants from it (`filled`), and what a step divides by is
counted as it says (`step_denominator`). A default lives here and nowhere else, and the same name means the same in
every loss: clip thresholds are absolute bounds of the ratio (1.28, not 0.28), whatever a backend calls them.

In the equations: p_t log-prob now, q_t of the policy that sampled (datum field `logprobs`), f_t of the frozen reference
(`reference`), A_t advantage, w_t weight, r_t = exp(p_t - q_t), n_i trained positions of datum i, sg stop-gradient,
s the logistic function. Sums run over trained positions, datums i, or pairs (c chosen, r rejected).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Denominator = Literal["tokens", "sequences", "pairs", "sequence_tokens"]
RatioLevel = Literal["none", "token", "sequence mean", "sequence product", "pair"]

_TINY = 1e-6  # the smallest value of a constant that must not be 0
_HUGE = 1e6  # above it a bound bounds nothing, and fp32 products lose their digits


@dataclass(frozen=True)
class Constant:
    """A number a loss takes: its default, the closed interval it must lie in, and what it means."""

    default: float
    low: float
    high: float
    meaning: str


@dataclass(frozen=True)
class LossSpec:
    """One loss. `needs`: datum fields it reads beside the log-probs and weights. `pairs`: datums come as chosen,
    rejected, chosen, rejected. `ascending`: pairs of constants of which the first may not exceed the second, unless
    the second is 0 (off)."""

    equation: str
    paper: str
    sum_over: str
    denominator: Denominator
    ratio: RatioLevel = "none"
    needs: tuple[str, ...] = ()
    pairs: bool = False
    constants: Mapping[str, Constant] = field(default_factory=dict)
    ascending: tuple[tuple[str, str], ...] = ()


def _clip(low: float, high: float) -> dict[str, Constant]:
    return {
        "clip_low_threshold": Constant(low, 0, 1, "lower bound of the ratio (1 - epsilon_low)"),
        "clip_high_threshold": Constant(high, 1, _HUGE, "upper bound of the ratio (1 + epsilon_high)"),
    }


_CLIP_ORDER = (("clip_low_threshold", "clip_high_threshold"),)
_DUAL = {"dual_clip": Constant(0, 0, _HUGE, "bound of the ratio where A < 0 (1912.09729; TRL's delta); 0 = none")}
_DUAL_ORDER = (*_CLIP_ORDER, ("clip_high_threshold", "dual_clip"))
# No weight for k1: its expected gradient is 0, whatever it reports.
_KL = {
    "kl_k2": Constant(0, 0, _HUGE, "weight of k2 = (p - f)^2 / 2: on-policy the gradient of the reverse KL"),
    "kl_k3": Constant(0, 0, _HUGE, "weight of k3 = e^(f-p) - (f-p) - 1: on-policy the gradient of the forward KL"),
    "kl_k3_ratio": Constant(0, 0, _HUGE, "weight of r_t k3, r_t not clipped: the gradient of the reverse KL"),
}
_BETA = {"beta": Constant(0.1, _TINY, _HUGE, "weight of the reference: the larger, the closer to it")}
_NLL = {"nll_weight": Constant(0, 0, _HUGE, "weight of -(mean log-prob of chosen), per pair (2404.19733, Eq. 1)")}
_SMOOTHING = {"label_smoothing": Constant(0, 0, 0.5, "share of labels taken as flipped (cDPO, Eq. 3); 0 = none")}
_FLIPS = {"label_smoothing": Constant(0.1, 0, 0.49, "rate of flipped labels, corrected for; below 1/2")}
_MARGIN = "D = sum_t w_t (p_t - f_t) of c minus the same of r"
_MEAN_MARGIN = "M = sum_t w_t (p_t - f_t) / n of c minus the same of r"
_CLIPPED = "-sum_t w_t min(r_t A_t, clip(r_t) A_t)"
_CLIPPED_KL = "sum_t w_t (-min(r_t A_t, clip(r_t) A_t) + KL_t)"
_RL = ("logprobs", "advantages")

LOSS_SPECS: dict[str, LossSpec] = {
    "cross_entropy": LossSpec(
        equation="L = -sum_t w_t p_t",
        paper="maximum likelihood",
        sum_over="trained positions",
        denominator="tokens",
    ),
    "dpo": LossSpec(
        equation=f"L = sum_pairs -(1-e) log s(beta D) - e log s(-beta D) + nll_weight NLL_c; {_MARGIN}",
        paper="2305.18290, Eq. 7",
        sum_over="pairs",
        denominator="pairs",
        ratio="pair",
        needs=("reference",),
        pairs=True,
        constants={**_BETA, **_SMOOTHING, **_NLL},
    ),
    "dpo_ipo": LossSpec(
        equation=f"L = sum_pairs (M - 1 / (2 beta))^2 + nll_weight NLL_c; {_MEAN_MARGIN}",
        paper="2310.12036, Eq. 17",
        sum_over="pairs",
        denominator="pairs",
        ratio="pair",
        needs=("reference",),
        pairs=True,
        constants={**_BETA, **_NLL},
    ),
    "dpo_hinge": LossSpec(
        equation=f"L = sum_pairs max(0, 1 - beta D) + nll_weight NLL_c; {_MARGIN}",
        paper="2309.06657 (RSO; after SLiC, 2305.10425)",
        sum_over="pairs",
        denominator="pairs",
        ratio="pair",
        needs=("reference",),
        pairs=True,
        constants={**_BETA, **_NLL},
    ),
    "dpo_robust": LossSpec(
        equation=f"L = sum_pairs (-(1-e) log s(beta D) + e log s(-beta D)) / (1-2e) + nll_weight NLL_c; {_MARGIN}",
        paper="2403.00409",
        sum_over="pairs",
        denominator="pairs",
        ratio="pair",
        needs=("reference",),
        pairs=True,
        constants={**_BETA, **_FLIPS, **_NLL},
    ),
    "dpo_sigmoid_norm": LossSpec(
        equation=f"L = sum_pairs -(1-e) log s(beta M) - e log s(-beta M) + nll_weight NLL_c; {_MEAN_MARGIN}",
        paper="2411.15124 (Tulu 3, length-normalised DPO)",
        sum_over="pairs",
        denominator="pairs",
        ratio="pair",
        needs=("reference",),
        pairs=True,
        constants={**_BETA, **_SMOOTHING, **_NLL},
    ),
    "orpo": LossSpec(
        equation="L = sum_pairs -c - lambda log s(logit(e^c) - logit(e^r)); c, r mean log-probs, at most -1e-6",
        paper="2403.07691, Eqs. 6 and 7",
        sum_over="pairs",
        denominator="pairs",
        ratio="none",
        pairs=True,
        constants={"orpo_lambda": Constant(0.1, 0, _HUGE, "weight of the odds-ratio term (TRL calls it beta)")},
    ),
    "importance_sampling": LossSpec(
        equation="L = -sum_t w_t r_t A_t",
        paper="1707.06347, Eq. 6",
        sum_over="trained positions",
        denominator="tokens",
        ratio="token",
        needs=_RL,
    ),
    "ppo": LossSpec(
        equation=f"L = {_CLIPPED}",
        paper="1707.06347, Eq. 7; dual clip 1912.09729",
        sum_over="trained positions",
        denominator="tokens",
        ratio="token",
        needs=_RL,
        constants={**_clip(0.8, 1.2), **_DUAL},
        ascending=_DUAL_ORDER,
    ),
    "grpo": LossSpec(
        equation=f"L = sum_i 1/n_i {_CLIPPED_KL}",
        paper="2402.03300, Eq. 3",
        sum_over="datums, each the mean over its trained positions",
        denominator="sequences",
        ratio="token",
        needs=_RL,
        constants={**_clip(0.8, 1.2), **_DUAL, **_KL},
        ascending=_DUAL_ORDER,
    ),
    "dapo": LossSpec(
        equation=f"L = {_CLIPPED_KL}; no KL in the paper",
        paper="2503.14476, Eq. 8",
        sum_over="trained positions",
        denominator="tokens",
        ratio="token",
        needs=_RL,
        constants={**_clip(0.8, 1.28), **_DUAL, **_KL},
        ascending=_DUAL_ORDER,
    ),
    "dr_grpo": LossSpec(
        equation=f"L = {_CLIPPED_KL}",
        paper="2503.20783, Sec. 3.2",
        sum_over="trained positions",
        denominator="sequence_tokens",
        ratio="token",
        needs=_RL,
        constants={**_clip(0.8, 1.2), **_DUAL, **_KL},
        ascending=_DUAL_ORDER,
    ),
    "gspo": LossSpec(
        equation="L = sum_i -min(s_i A_i, clip(s_i) A_i) + 1/n_i sum_t w_t KL_t; s_i = exp(sum_t (p_t - q_t) / n_i)",
        paper="2507.18071, Eqs. 5 and 7",
        sum_over="datums",
        denominator="sequences",
        ratio="sequence mean",
        needs=_RL,
        constants={**_clip(1 - 3e-4, 1 + 4e-4), **_KL},
        ascending=_CLIP_ORDER,
    ),
    "gspo_token": LossSpec(
        equation="L = sum_i 1/n_i sum_t w_t (-min(s_t A_t, clip(s_t) A_t) + KL_t); s_t = sg(s_i) exp(p_t - sg(p_t))",
        paper="2507.18071, Eqs. 13 and 14",
        sum_over="datums, each the mean over its trained positions",
        denominator="sequences",
        ratio="sequence mean",
        needs=_RL,
        constants={**_clip(1 - 3e-4, 1 + 4e-4), **_KL},
        ascending=_CLIP_ORDER,
    ),
    "cispo": LossSpec(
        equation="L = sum_t w_t (-sg(clip(r_t)) A_t p_t + KL_t)",
        paper="2506.13585, Eqs. 4 and 5",
        sum_over="trained positions",
        denominator="tokens",
        ratio="token",
        needs=_RL,
        constants={**_clip(0.8, 1.28), **_KL},
        ascending=_CLIP_ORDER,
    ),
    "dro": LossSpec(
        equation="L = -sum_t w_t (A_t p_t - beta/2 (p_t - q_t)^2)",
        paper="2405.19107, Eq. 4 (its policy part, with A for r - V)",
        sum_over="trained positions",
        denominator="tokens",
        ratio="token",
        needs=_RL,
        constants={"beta": Constant(0.05, 0, _HUGE, "weight of the squared log-ratio")},
    ),
    "reinforce": LossSpec(
        equation="L = sum_t w_t (-A_t p_t + KL_t)",
        paper="Williams 1992; for language models 2402.14740",
        sum_over="trained positions",
        denominator="sequences",
        ratio="none",
        needs=("advantages",),
        constants=_KL,
    ),
    "rloo": LossSpec(
        equation="L = -sum_i min(R_i A_i, clip(R_i) A_i); R_i = exp(sum_t (p_t - q_t))",
        paper="2402.14740, with the ratio and clip of TRL's RLOOTrainer",
        sum_over="datums",
        denominator="sequences",
        ratio="sequence product",
        needs=_RL,
        constants=_clip(0.8, 1.2),
        ascending=_CLIP_ORDER,
    ),
}


def find_spec(name: str) -> LossSpec:
    """The loss called `name`. Raises `ValueError` naming all there are."""
    if name not in LOSS_SPECS:
        raise ValueError(f"loss: {name!r} is not one of {sorted(LOSS_SPECS)}")
    return LOSS_SPECS[name]


def filled(name: str, config: Mapping[str, float]) -> dict[str, float]:
    """Every constant of loss `name`, those of `config` in place of the defaults.

    Raises `ValueError` for a key the loss does not take, a value out of its interval or not finite, a wrong order.
    """
    spec = find_spec(name)
    unknown = sorted(set(config) - set(spec.constants))
    if unknown:
        raise ValueError(f"loss_config: {name} does not take {unknown}; it takes {sorted(spec.constants)}")
    values = {key: float(config.get(key, constant.default)) for key, constant in spec.constants.items()}
    for key, constant in spec.constants.items():
        if not constant.low <= values[key] <= constant.high:
            raise ValueError(
                f"loss_config: {name}.{key} is {values[key]}, wanted {constant.low} to {constant.high} "
                f"({constant.meaning})"
            )
    for lower, upper in spec.ascending:
        if values[upper] and values[lower] > values[upper]:
            raise ValueError(f"loss_config: {name}.{lower} {values[lower]} is above {upper} {values[upper]}")
    return values


def described(name: str, config: Mapping[str, float]) -> dict[str, Any]:
    """The expanded loss as `run.json` stores it: words, and the value of every constant. Raises as `filled`."""
    spec = find_spec(name)
    return {
        "name": name,
        "equation": spec.equation,
        "paper": spec.paper,
        "sum_over": spec.sum_over,
        "denominator": spec.denominator,
        "ratio_level": spec.ratio,
        "reads": ["logprobs of the model", "weights", *spec.needs],
        "pairs": spec.pairs,
        "constants": filled(name, config),
        "meanings": {key: asdict(constant)["meaning"] for key, constant in spec.constants.items()},
    }


_STEP_DENOMINATORS: dict[Denominator, Callable[[Sequence[int], int], float]] = {
    "tokens": lambda trained, max_tokens: sum(trained),
    "sequences": lambda trained, max_tokens: len(trained),
    "pairs": lambda trained, max_tokens: len(trained) / 2,
    "sequence_tokens": lambda trained, max_tokens: len(trained) * max_tokens,
}


def step_denominator(kind: Denominator, trained: Sequence[int], *, max_tokens: int = 0) -> float:
    """What divides the sum of one optimizer step. `trained`: trained positions of each datum of the **whole** step,
    over all calls and ranks; a datum without any still counts as a sequence, as in TRL. `max_tokens`: the constant
    length of `sequence_tokens` (a completion's token limit). Raises `ValueError` when that comes to nothing."""
    found = float(_STEP_DENOMINATORS[kind](trained, max_tokens))
    if not (math.isfinite(found) and found > 0):
        raise ValueError(
            f"denominator {kind!r}: {len(trained)} datums, {sum(trained)} trained positions, max_tokens {max_tokens} "
            "give nothing to divide by; skip the step, or set max_tokens"
        )
    return found
