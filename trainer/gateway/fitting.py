"""What a job takes of this machine, and whether there is room for it: cores, memory and GPUs.

A job's need is what it takes for certain (weights, what is trained, the process), not what it may take at its worst,
which nobody knows before its rows have been read: a job that can never fit fails at once, the worker's own estimate
refuses what is left. GPUs are given by number, one job each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trainer.estimate import least_memory, size
from trainer.gateway.capacity import Capacity
from trainer.runs import RunSpec


@dataclass(frozen=True)
class Need:
    """Of one job. memory: bytes of the machine's. gpus: how many."""

    cores: int = 1
    memory: int = 0
    gpus: int = 0


def need_of(spec: RunSpec, here: Capacity) -> Need:
    """What the run takes for certain. A device of `auto` takes a GPU where there is one."""
    device = spec.engine.device
    gpus = 1 if device.startswith("cuda") or (device == "auto" and here.gpus) else 0
    return Need(spec.engine.threads or 1, least_memory(spec, gpu=bool(gpus)) or 0, gpus)


def never_fits(need: Need, here: Capacity) -> str | None:
    """Why the job cannot run on this machine, however idle; None when it can."""
    lacks = [
        f"{wanted} of {there} {what}"
        for what, wanted, there in (("cores", need.cores, here.cores), ("GPUs", need.gpus, len(here.gpus)))
        if wanted > there
    ]
    if need.memory > here.memory:
        lacks.append(f"{size(need.memory)} of {size(here.memory)} memory")
    return f"the job needs {', '.join(lacks)} of this machine; it can never fit here" if lacks else None


def no_room(need: Need, notes: Sequence[dict[str, Any]], here: Capacity) -> str | None:
    """Why the job cannot run now, beside the jobs whose scheduler's notes these are; None when it can.

    Cores are what jobs say they use; a job alone always has room for its cores.
    """
    cores = here.cores - sum(int(one.get("cores", 0)) for one in notes)
    memory = here.memory - sum(int(one.get("memory", 0)) for one in notes)
    if need.gpus > len(free_gpus(notes, here)):
        return f"waits for {need.gpus} GPUs, {len(free_gpus(notes, here))} are free"
    if notes and need.cores > cores:
        return f"waits for {need.cores} cores, {max(cores, 0)} are free"
    if need.memory > (left := min(memory, here.free())):
        return f"waits for {size(need.memory)} of memory, {size(max(left, 0))} are free"
    return None


def free_gpus(notes: Sequence[dict[str, Any]], here: Capacity) -> list[str]:
    """The GPUs that no job has."""
    given = {gpu for one in notes for gpu in one.get("gpus", [])}
    return [gpu for gpu in here.gpus if gpu not in given]
