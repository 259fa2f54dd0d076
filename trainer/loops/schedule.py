"""The learning rate of every optimizer step, as a pure function."""

from __future__ import annotations

import math


def learning_rate(step: int, total: int, *, peak: float, warmup: int, kind: str, min_ratio: float) -> float:
    """Rate of optimizer step `step` (1 is the first) of `total`.

    Linear warm-up: step k of `warmup` has peak * k / warmup. Then constant, or down from `peak` to `min_ratio * peak`
    on the last step, linearly or by half a cosine (1608.03983 eq. 5, one period).
    Raises `ValueError` for a step outside 1..total or an unknown kind.
    """
    if not 1 <= step <= total:
        raise ValueError(f"step {step} is not in 1..{total}")
    if step <= warmup:
        return peak * step / warmup
    if kind == "constant":
        return peak
    progress = (step - warmup) / max(1, total - warmup)
    if kind == "linear":
        share = 1.0 - progress
    elif kind == "cosine":
        share = 0.5 * (1.0 + math.cos(math.pi * progress))
    else:
        raise ValueError(f"scheduler {kind!r} is not one of constant, linear, cosine")
    return peak * (min_ratio + (1.0 - min_ratio) * share)


def unreached(total: int, *, peak: float, warmup: int) -> str:
    """What to say of a warm-up that is longer than the run, whose peak no step reaches; "" for any other."""
    if warmup <= total:
        return ""
    return (
        f"warm-up of {warmup:,} steps is longer than the run ({total:,}): the rate ends at {peak * total / warmup:.3g} "
        f"and never reaches {peak:g}; set learning_rate_warmup_steps to {total} or less"
    )
