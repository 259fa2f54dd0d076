"""The table of losses: name -> what computes it. One dict literal; nothing registers itself.

What a loss is in words, its constants and its denominator: `trainer.loss_specs.LOSS_SPECS`, under the same names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from trainer.loss_specs import filled
from trainer.losses.cispo import cispo
from trainer.losses.cross_entropy import cross_entropy, cross_entropy_slopes
from trainer.losses.dapo import dapo
from trainer.losses.dpo import dpo, dpo_hinge, dpo_ipo, dpo_robust, dpo_sigmoid_norm
from trainer.losses.dr_grpo import dr_grpo
from trainer.losses.dro import dro
from trainer.losses.fields import LossFunction, SlopeFunction
from trainer.losses.grpo import grpo
from trainer.losses.gspo import gspo, gspo_token
from trainer.losses.importance_sampling import importance_sampling
from trainer.losses.orpo import orpo
from trainer.losses.ppo import ppo
from trainer.losses.reinforce import reinforce
from trainer.losses.rloo import rloo


@dataclass(frozen=True)
class Loss:
    """A loss sum, and dL/dlogp where that is known before the log-probs are."""

    function: LossFunction
    slopes: SlopeFunction | None = None


LOSSES: dict[str, Loss] = {
    "cross_entropy": Loss(cross_entropy, slopes=cross_entropy_slopes),
    "dpo": Loss(dpo),
    "dpo_ipo": Loss(dpo_ipo),
    "dpo_hinge": Loss(dpo_hinge),
    "dpo_robust": Loss(dpo_robust),
    "dpo_sigmoid_norm": Loss(dpo_sigmoid_norm),
    "orpo": Loss(orpo),
    "importance_sampling": Loss(importance_sampling),
    "ppo": Loss(ppo),
    "grpo": Loss(grpo),
    "dapo": Loss(dapo),
    "dr_grpo": Loss(dr_grpo),
    "gspo": Loss(gspo),
    "gspo_token": Loss(gspo_token),
    "cispo": Loss(cispo),
    "dro": Loss(dro),
    "reinforce": Loss(reinforce),
    "rloo": Loss(rloo),
}


def find_loss(name: str, config: Mapping[str, float]) -> Loss:
    """The loss called `name`. Raises `ValueError` for an unknown name, for a constant that the loss does not have, and
    for one out of its range."""
    filled(name, config)
    return LOSSES[name]
