"""From scores to advantages: what a completion was worth beside the others of its prompt; and length shaping. numpy.

Rewards are [P, G]: P prompts, G completions each. None or NaN = unscorable (the evaluator failed; never score that
0): it is left out of mean and std and gets A = 0, and so does the only scorable completion of a prompt, which has
nothing to be compared with. Fewer than 2 columns are refused: every advantage would be 0. Advantages come back as
float32 [P, G], computed in float64. Adding a constant to a group's rewards changes none of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

Std = Literal["sample", "population", "batch", "none"]
Rewards = npt.ArrayLike | Sequence[Sequence[float | None]]

STD_EPSILON = 1e-4  # TRL's, added to the std: a group that all but agrees is not blown up. verl 1e-6, Fireworks 1e-8.
_DDOF = {"sample": 1, "population": 0, "batch": 1}


def group_advantages(rewards_PG: Rewards, *, std: Std = "sample", epsilon: float = STD_EPSILON) -> np.ndarray:
    """A = (R - mean) / (std + epsilon), mean over the prompt's scorable completions (GRPO, 2402.03300, Sec. 4.1.2).

    `std`: "sample" divides by v - 1 of v scorable ones (unbiased variance; TRL's "group"), "population" by v, "batch"
    is the sample std of all rewards of all prompts around their common mean (TRL's "batch"), "none" leaves the division
    out (Dr. GRPO, 2503.20783, Sec. 3.2; also prime-rl, Tinker), and epsilon with it.
    By hand, [1, 0, 0, 0]: mean 0.25, sample std sqrt((0.75^2 + 3 * 0.25^2) / 3) = 0.5, A = 0.75 / 0.5001 = 1.499700 and
    -0.499900 three times; population std sqrt(0.1875) = 0.433013. Scaling rewards by k scales "none" by k, and leaves
    the others alone to within epsilon. Raises `ValueError` as `_scores`, and for an unknown `std` or epsilon < 0.
    """
    if std not in ("sample", "population", "batch", "none"):
        raise ValueError(f"std: {std!r} is not one of 'sample', 'population', 'batch', 'none'")
    if not 0 <= epsilon < np.inf:
        raise ValueError(f"epsilon: want a finite number >= 0, got {epsilon}")
    scores_PG = _scores(rewards_PG)
    centred_PG, compared_PG = _centred(scores_PG)
    if std == "none":
        return centred_PG.astype(np.float32)
    spread_P1 = _batch_std(scores_PG) if std == "batch" else _group_std(centred_PG, compared_PG, _DDOF[std])
    return _divided(centred_PG, spread_P1 + epsilon)


def rloo_advantages(rewards_PG: Rewards) -> np.ndarray:
    """A_i = R_i - mean of the **other** scorable completions (RLOO, 2402.14740) = v/(v-1) (R_i - mean).

    By hand, [1, 0, 0, 0]: 1 - 0 = 1, and 0 - 1/3 = -1/3 three times. Scales with the rewards.
    """
    scores_PG = _scores(rewards_PG)
    baseline_PG = leave_one_out(scores_PG)
    return np.where(np.isnan(baseline_PG) | np.isnan(scores_PG), 0.0, scores_PG - baseline_PG).astype(np.float32)


def leave_one_out(rewards_PG: Rewards) -> np.ndarray:
    """For each completion the mean reward of the prompt's other scorable ones, float64 [P, G]; NaN where there is none.

    An unscorable completion gets the mean of the scorable ones. By hand, [1, 0, 0, 0]: 0, 1/3, 1/3, 1/3.
    """
    scores_PG = _scores(rewards_PG)
    valid_PG = ~np.isnan(scores_PG)
    others_PG = valid_PG.sum(1, keepdims=True) - valid_PG
    total_PG = np.nansum(scores_PG, axis=1, keepdims=True) - np.where(valid_PG, scores_PG, 0.0)
    return np.divide(total_PG, others_PG, out=np.full(scores_PG.shape, np.nan), where=others_PG > 0)


def overlong_penalty(lengths: npt.ArrayLike, *, max_tokens: int, cache_tokens: int) -> np.ndarray:
    """DAPO's soft punishment, to be added to the reward (2503.14476, Eq. 13); float64, the shape of `lengths` (tokens).

    0 up to max - cache, then ((max - cache) - length) / cache, down to -1 at max, -1 beyond. By hand, max 20480 and
    cache 4096: 16384 -> 0, 18432 -> -2048 / 4096 = -0.5, 20480 -> -1. Shape first, then `group_advantages`; filter
    groups on the reward before this. `cache_tokens` 0: -1 beyond max, else 0.
    Raises `ValueError` for a cache that is not within 0 .. max_tokens.
    """
    if not 0 <= cache_tokens <= max_tokens or max_tokens < 1:
        raise ValueError(f"overlong: want 0 <= cache_tokens <= max_tokens, got {cache_tokens} and {max_tokens}")
    over = np.asarray(lengths, dtype=np.float64) - (max_tokens - cache_tokens)
    return -np.clip(over / cache_tokens, 0, 1) if cache_tokens else np.where(over > 0, -1.0, 0.0)


def _scores(rewards_PG: Rewards) -> np.ndarray:
    """float64 [P, G], NaN where unscorable. Raises `ValueError` for another shape, G < 2, or an infinite reward."""
    scores_PG = np.asarray(rewards_PG, dtype=np.float64)  # numpy makes None a NaN
    if scores_PG.ndim != 2 or scores_PG.shape[0] < 1 or scores_PG.shape[1] < 2:
        raise ValueError(
            f"rewards: want [P, G] with P >= 1 prompts of G >= 2 completions, got shape {scores_PG.shape}; "
            "one completion has nothing to be compared with"
        )
    if np.isinf(scores_PG).any():
        raise ValueError("rewards: hold an infinite value; give None for a completion that could not be scored")
    return scores_PG


def _centred(scores_PG: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """R - mean where there is something to compare, else 0; and where that is. A group that agrees has exactly 0, not
    the rounding of its mean, which a std of the same rounding would make into +-1."""
    valid_PG = ~np.isnan(scores_PG)
    count_P1 = valid_PG.sum(1, keepdims=True)
    least_P1 = np.where(valid_PG, scores_PG, np.inf).min(1, keepdims=True)
    most_P1 = np.where(valid_PG, scores_PG, -np.inf).max(1, keepdims=True)
    compared_PG = valid_PG & (least_P1 < most_P1)
    mean_P1 = np.where(valid_PG, scores_PG, 0.0).sum(1, keepdims=True) / np.maximum(count_P1, 1)
    return np.where(compared_PG, scores_PG - mean_P1, 0.0), compared_PG


def _group_std(centred_PG: np.ndarray, compared_PG: np.ndarray, ddof: int) -> np.ndarray:
    count_P1 = compared_PG.sum(1, keepdims=True)
    return np.sqrt((centred_PG**2).sum(1, keepdims=True) / np.maximum(count_P1 - ddof, 1))


def _batch_std(scores_PG: np.ndarray) -> np.ndarray:
    valid = scores_PG[~np.isnan(scores_PG)]
    return np.full((1, 1), valid.std(ddof=_DDOF["batch"]) if valid.size > 1 else 0.0)


def _divided(centred_PG: np.ndarray, spread_P1: np.ndarray) -> np.ndarray:
    """centred / spread, 0 where centred is 0 (also with epsilon 0 and a group that agrees)."""
    out_PG = np.zeros_like(centred_PG)
    return np.divide(centred_PG, spread_P1, out=out_PG, where=centred_PG != 0).astype(np.float32)
