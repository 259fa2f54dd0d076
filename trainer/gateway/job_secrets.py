"""What a job's worker must be told and nobody else: values for its environment, sealed in the job's private part."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

from trainer.gateway.gateway import Gateway
from trainer.gateway.sealing import Sealer
from trainer.gateway.store import Resource


@cache
def sealer(folder: Path) -> Sealer:
    """The keys of the state folder, read once."""
    return Sealer(folder)


def sealed(gateway: Gateway, name: str, values: Mapping[str, str]) -> dict[str, str]:
    """`values` (variable -> value) as they are kept in `private["secrets"]` of the job `name`."""
    if not values:
        return {}
    keys = sealer(gateway.folder)
    return {variable: keys.seal(value.encode(), about=f"{name} {variable}") for variable, value in values.items()}


def environment(gateway: Gateway, job: Resource) -> dict[str, str]:
    """The variables that the job's worker gets. Raises as `Sealer.open` does."""
    kept = job.private.get("secrets", {})
    if not kept:
        return {}
    keys = sealer(gateway.folder)
    return {variable: keys.open(value, about=f"{job.name} {variable}").decode() for variable, value in kept.items()}
