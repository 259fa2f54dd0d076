"""What this machine has for jobs: cores, memory and GPUs, found without the tensor libraries."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from trainer import machine


@dataclass(frozen=True)
class Capacity:
    """Of a machine. memory: bytes. gpus: as CUDA_VISIBLE_DEVICES names them. free: bytes of memory free now."""

    cores: int
    memory: int
    gpus: tuple[str, ...] = ()
    free: Callable[[], int] = field(default=lambda: 1 << 60)


def this_machine() -> Capacity:
    """Cores, memory and GPUs of this machine."""
    total, _ = machine.memory()
    return Capacity(machine.cores(), total, machine.gpus(), free=lambda: machine.memory()[1])
