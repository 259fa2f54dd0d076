"""The sandbox in which the gateway and evaluation workers run evaluators, as the operator wants it.

TRAINER_SANDBOX_TIER is `auto` (the best that works here, the default), a tier by name, or `none`, which accepts no
fence at all and is for evaluators of one's own alone; every score says under which tier it was made.
"""

from __future__ import annotations

import os

from evaluators.protocol import Tier
from evaluators.sandboxed import SandboxRunner

TIER_VARIABLE = "TRAINER_SANDBOX_TIER"


def new_runner(*, workers: int | None = None) -> SandboxRunner:
    """A runner that opens its sandbox when it is first needed. workers: as `Sandbox` has it."""
    tier = os.environ.get(TIER_VARIABLE) or "auto"
    return SandboxRunner(tier, workers=workers, allow_none=tier == Tier.NONE)
