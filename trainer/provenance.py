"""Where each value of a configuration came from: typed, a file of configs/, an objective's name, the wire, or trainer.

The one decision: nothing is guessed by comparing values. The files that were merged, in Hydra's own order, and then
what was typed, are laid over each other, and the last one that mentions a key is where its value came from. A key
that only refers to another (`dataset: ${data.train}`) takes the origin of that other key, and says so.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from trainer.jobs import Job, settings_of
from trainer.runs import LoraSettings

TYPED = "typed"
DEFAULT = "trainer default"
COMPUTED = "computed"
WIRE = "job (wire)"
PRESET = "objective="  # and the name of the objective that was asked for

_REFERENCE = re.compile(r"\$\{([A-Za-z_][\w.]*)\}")  # one plain reference and nothing else; ${shipped:...} is none

# Which field of the job each number of `Hyperparameters` is filled in from; lora_alpha comes from the model's group.
_HYPER_FROM = {
    "epochs": "epochs", "learning_rate": "learning_rate", "warmup_steps": "learning_rate_warmup_steps",
    "weight_decay": "optimizer_weight_decay", "lora_rank": "lora_rank", "batch_tokens": "batch_size",
    "batch_rows": "batch_size_samples", "accumulation": "gradient_accumulation_steps",
    "max_context": "max_context_length",
}  # fmt: skip
_ZERO_COUNTS = {
    "learning_rate",
    "optimizer_weight_decay",
    "lora_rank",
}  # elsewhere 0 asks for the default, as None does


@dataclass(frozen=True)
class Layer:
    """One thing that was merged: its name, the dotted key it is merged at ("" = the top), and what it says."""

    name: str
    at: str
    content: Any


def leaves(content: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of everything below `content`; a list and an empty mapping are values."""
    if isinstance(content, BaseModel):
        content = content.model_dump()
    if not isinstance(content, Mapping) or not content:
        yield at, content
        return
    for key, value in content.items():
        yield from leaves(value, f"{at}.{key}" if at else str(key))


def origins(layers: Sequence[Layer]) -> dict[str, str]:
    """The origin of each key that any of `layers`, given in merge order, mentions."""
    last: dict[str, tuple[str, Any]] = {}
    for layer in layers:
        for key, value in leaves(layer.content, layer.at):
            last[key] = (layer.name, value)
    return {key: _followed(key, last) for key in last}


def of_settings(groups: Mapping[str, Any], found: Mapping[str, str]) -> dict[str, str]:
    """The origin of every leaf of the checked `groups`. An unset value is trainer's default unless it was typed."""
    told = {}
    for key, value in leaves(groups):
        origin = found.get(key, DEFAULT)
        unset = key.startswith("job.") and value is None and origin.startswith("configs/")
        told[key] = DEFAULT if unset else origin
    return told


def of_wire(job: Job) -> dict[str, str]:
    """The origin of every leaf of a job that came over the wire."""
    return {key: WIRE if _given(job, key.split(".")[1:]) else DEFAULT for key, _ in leaves({"job": job})}


def of_hyper(job: Job, lora: LoraSettings, known: Mapping[str, str]) -> dict[str, str]:
    """The origin of each number the loop trains by, from the origins `known` of the job's and the model's keys."""
    told = {}
    for name, field in _HYPER_FROM.items():
        value = getattr(settings_of(job), field)
        given = value is not None and (value != 0 or field in _ZERO_COUNTS)
        told[f"hyper.{name}"] = known.get(f"{job.settings_at}.{field}", COMPUTED) if given else DEFAULT
    if job.warm_start_from:
        told["hyper.lora_rank"] = COMPUTED  # that of the adapter started from
    told["hyper.lora_alpha"] = known.get("model.lora.alpha", COMPUTED) if lora.alpha else COMPUTED
    return told


def _given(model: BaseModel, path: Sequence[str]) -> bool:
    """Whether whoever made `model` said what stands at `path`."""
    inner = getattr(model, path[0])
    if path[0] not in model.model_fields_set:
        return False
    return _given(inner, path[1:]) if len(path) > 1 and isinstance(inner, BaseModel) else True


def _followed(key: str, last: Mapping[str, tuple[str, Any]]) -> str:
    name, value = last[key]
    target = key
    while name != TYPED and isinstance(value, str) and (reference := _REFERENCE.fullmatch(value)):
        if reference[1] not in last:
            break
        target = reference[1]
        name, value = last[target]
    return name if target == key else f"{name} (as {target})"
