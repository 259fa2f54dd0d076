"""The sandbox in which the gateway and evaluation workers build and run evaluators, as the operator wants it.

TRAINER_SANDBOX_TIER is `auto` (the best that works here, the default), a tier by name, or `none`, which accepts no
fence at all and is for evaluators of one's own alone; every score says under which tier it was made.
TRAINER_EVALUATOR_BUILD_BYTES is what the packages of one evaluator may take while they are installed, in bytes.
TRAINER_JUDGE_URL and TRAINER_JUDGE_MODEL say which judge evaluators may ask (`evaluators/judge_desk.py` has the rest).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from evaluators.broker import Broker
from evaluators.build import Builder
from evaluators.judge_desk import configured
from evaluators.protocol import Tier
from evaluators.sandbox.build_jail import BuildLimits
from evaluators.sandboxed import SandboxRunner

TIER_VARIABLE = "TRAINER_SANDBOX_TIER"
JUDGE_VARIABLE = "TRAINER_JUDGE_SECRET"
BYTES_VARIABLE = "TRAINER_EVALUATOR_BUILD_BYTES"


def new_runner(*, workers: int | None = None, judge: Broker | None = None) -> SandboxRunner:
    """A runner that opens its sandbox when it is first needed. workers: as `Sandbox` has it.

    judge: gives the judge's key; None = its evaluators have no judge to ask. Raises `ValueError` for the operator's
    settings of the judge.
    """
    tier = _wanted()
    desk = configured(os.environ, judge.spend, redact=judge.redact) if judge else None
    return SandboxRunner(tier, workers=workers, allow_none=tier == Tier.NONE, desk=desk)


def judge_of(environment: Mapping[str, str], variable: str = "") -> Broker:
    """What gives the judge's key, and that alone: the variable that TRAINER_JUDGE_SECRET names, or `variable`."""
    name = environment.get(JUDGE_VARIABLE, "")
    return Broker(lambda _: environment.get(variable or name), usable=[name] if name else [])


def new_builder(folder: Path, *, stopped: Callable[[], bool] = lambda: False) -> Builder:
    """A builder of evaluators' environments in `folder`, in jails as the evaluators will have. stopped: as there.

    Raises `ValueError` where TRAINER_EVALUATOR_BUILD_BYTES is no number.
    """
    tier, most = _wanted(), os.environ.get(BYTES_VARIABLE) or str(BuildLimits().most_bytes)
    if not most.isdecimal():
        raise ValueError(
            f"{BYTES_VARIABLE}: got {most!r}; expected a number of bytes, such as {BuildLimits().most_bytes}"
        )
    limits = BuildLimits(most_bytes=int(most))
    return Builder(folder, limits=limits, tier=tier, allow_none=tier == Tier.NONE, stopped=stopped)


def _wanted() -> str:
    return os.environ.get(TIER_VARIABLE) or "auto"
