"""The table of losses: name -> what computes it. One dict literal; nothing registers itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from trainer.losses.cross_entropy import cross_entropy, cross_entropy_slopes
from trainer.losses.fields import LossFunction, SlopeFunction


@dataclass(frozen=True)
class Loss:
    """A loss sum, the config keys it takes, and dL/dlogp where that is known before the log-probs are."""

    function: LossFunction
    config_keys: frozenset[str] = frozenset()
    slopes: SlopeFunction | None = None


LOSSES: dict[str, Loss] = {
    "cross_entropy": Loss(cross_entropy, slopes=cross_entropy_slopes),
}


def find_loss(name: str, config: Mapping[str, float]) -> Loss:
    """The loss called `name`. Raises `ValueError` for an unknown name or a config key the loss does not have."""
    if name not in LOSSES:
        raise ValueError(f"loss: {name!r} is not one of {sorted(LOSSES)}")
    loss = LOSSES[name]
    unknown = sorted(set(config) - loss.config_keys)
    if unknown:
        raise ValueError(f"loss_config: {name} does not take {unknown}; it takes {sorted(loss.config_keys)}")
    return loss
