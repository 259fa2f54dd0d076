"""What this machine can train: of a model whose size is known, whether an adapter and whether all parameters fit.

The figures are those of `trainer.estimate.memory_of` without activations, which depend on the rows: on a CPU 4 bytes a
parameter for the frozen weights and 16 for weights, gradients and moments; on a GPU 2 and 20 (bfloat16 weights and
fp32 masters). So a model that is said to fit may still be refused for its rows, and one that is not never fits.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from trainer.gateway import weights
from trainer.gateway.capacity import this_machine
from trainer.jobs import DEFAULT_MAX_CONTEXT, JOB_KINDS

_PROCESS = 1 << 30  # Python, libraries, rows
_MARGIN = 0.95
_ADAPTER, _ALL = {"cpu": 4, "cuda": 2}, {"cpu": 16, "cuda": 20}  # bytes a parameter
_ACCELERATOR = re.compile(r"(A100|H100|H200|A10G|L4|B200|B300|MI300X|MI325X|MI350X)")
_TYPES = {
    "A100": "NVIDIA_A100_80GB", "H100": "NVIDIA_H100_80GB", "H200": "NVIDIA_H200_141GB", "A10G": "NVIDIA_A10G_24GB",
    "L4": "NVIDIA_L4_24GB", "B200": "NVIDIA_B200_180GB", "B300": "NVIDIA_B300_288GB",
    "MI300X": "AMD_MI300X_192GB", "MI325X": "AMD_MI325X_256GB", "MI350X": "AMD_MI350X_288GB",
}  # fmt: skip


@dataclass(frozen=True)
class Trainer:
    """The place where jobs train. memory: bytes, of one accelerator or of the machine; accelerator: the contract's."""

    device: str
    memory: int
    accelerator: str = "ACCELERATOR_TYPE_UNSPECIFIED"
    count: int = 0

    def fits(self, parameters: int, *, full: bool) -> bool:
        """Whether a model of so many parameters can be trained, all of it or an adapter on it."""
        each = (_ALL if full else _ADAPTER)[self.device]
        return _PROCESS + each * parameters <= _MARGIN * self.memory


@cache
def here() -> Trainer:
    """This machine. A GPU whose memory its name does not tell counts as none."""
    found = this_machine()
    names = [
        line for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
        for line in path.read_text().splitlines() if line.startswith("Model")
    ]  # fmt: skip
    types = [accelerator_type(name) for name in names]
    if found.gpus and types and types[0] is not None:
        gib = int(types[0].rsplit("_", 1)[-1].removesuffix("GB"))
        return Trainer("cuda", gib << 30, types[0], len(found.gpus))
    return Trainer("cpu", found.memory)


def accelerator_type(name: str) -> str | None:
    """The contract's word for the GPU that its driver calls `name`, or None."""
    match = _ACCELERATOR.search(name)
    if match is None:
        return None
    return "NVIDIA_A100_40GB" if match[1] == "A100" and "40GB" in name else _TYPES[match[1]]


def parameters_of(body: Mapping[str, Any]) -> int | None:
    """How many parameters the base model `body` has, None where it does not say."""
    count = (body.get("baseModelDetails") or {}).get("parameterCount")
    return int(count) if count else None


def flags(body: Mapping[str, Any], base: Mapping[str, Any] | None, trainer: Trainer | None = None) -> dict[str, bool]:
    """The contract's tunability flags of the model `body`; base: the model that an adapter is of."""
    trainer = trainer or here()
    addon = body.get("kind") in weights.ADDON_KINDS
    size = parameters_of((base or {}) if addon else body)
    ready = body.get("state") == "READY" and (addon or body.get("kind") == "HF_BASE_MODEL") and size is not None
    lora = ready and trainer.fits(size or 0, full=False)
    full = ready and not addon and trainer.fits(size or 0, full=True)
    reinforced = "rft" in JOB_KINDS
    return {
        "tunable": lora, "supervisedLoraTunable": lora, "supervisedFullParameterTunable": full,
        "rlTunable": lora and reinforced, "rlLoraTunable": lora and reinforced,
        "rlFullParameterTunable": full and reinforced,
    }  # fmt: skip


def context(body: Mapping[str, Any], *, full: bool, trainer: Trainer | None = None) -> int:
    """The longest context, in tokens, that jobs get for the model unless they ask: 0 where it cannot be trained."""
    size = parameters_of(body)
    if size is None or not (trainer or here()).fits(size, full=full):
        return 0
    return min(int(body.get("contextLength") or DEFAULT_MAX_CONTEXT), DEFAULT_MAX_CONTEXT)
