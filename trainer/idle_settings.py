"""Settings that were typed and change nothing, given the others: told before the run, so that none is ignored in
silence.

The one decision: a file of configs/ may set what this run has no use for, a person who types it means something by it.
So only typed words are looked at. They are told and not refused: in a sweep the same words stand beside other settings.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.jobs import DpoJob, Job, settings_of

Groups = Mapping[str, Any]  # the checked groups of a configuration


@dataclass(frozen=True)
class _Idle:
    """Settings (`of` are dotted keys, or beginnings of them that end in a dot) that rest when `rests` says so."""

    of: tuple[str, ...]
    rests: Callable[[Job, Groups], bool]
    why: str


def _carves(job: Job, groups: Groups) -> bool:
    return groups["data"].carveout if isinstance(job, DpoJob) else job.eval_auto_carveout


def _row_sources(job: Job, groups: Groups) -> list[str]:
    held_out = groups["data"].evaluation if isinstance(job, DpoJob) else job.evaluation_dataset
    return [name for name in (job.dataset, held_out) if name]


def _is_of_hub(name: str) -> bool:
    """Whether rows called so would be sought on the hub: no resource, no URL, nothing that lies here."""
    elsewhere = name.startswith("accounts/") or "://" in name
    return not elsewhere and name.count("/") == 1 and not Path(name).expanduser().exists()


def _holds_out(job: Job, groups: Groups) -> bool:
    return len(_row_sources(job, groups)) > 1 or _carves(job, groups)


def _stops_early(job: Job, groups: Groups) -> bool:
    return groups["train"].early_stop if isinstance(job, DpoJob) else job.early_stop


def _new_adapter(job: Job) -> bool:
    return not settings_of(job).warm_start_from and settings_of(job).lora_rank != 0


_IDLE = (
    _Idle(
        ("data.carveout_fraction", "data.carveout_max_rows"), lambda job, groups: not _carves(job, groups),
        "nothing is carved out; set job.eval_auto_carveout=true (data.carveout=true of a dpo job)",
    ),
    _Idle(
        ("train.evaluate_every_steps", "train.score_rows", "train.sample_rows", "train.sample_max_tokens",
         "data.gates.overlap_rows", "data.gates.overlap_prompts"),
        lambda job, groups: not _holds_out(job, groups),
        "no rows are held out; name some (data.evaluation), or have them carved out",
    ),
    _Idle(
        ("train.early_stop_patience",), lambda job, groups: not _stops_early(job, groups),
        "nothing stops early; set job.early_stop=true (train.early_stop=true of a dpo job)",
    ),
    _Idle(
        ("train.max_skipped_steps",), lambda job, groups: groups["train"].on_nonfinite == "stop",
        "train.on_nonfinite=stop skips no step; set it to skip",
    ),
    _Idle(
        ("train.min_lr_ratio",), lambda job, groups: groups["train"].scheduler == "constant",
        "train.scheduler=constant stays at the peak; set it to linear or cosine",
    ),
    _Idle(
        ("train.parity_max_gap",), lambda job, groups: not groups["train"].parity_prompts,
        "train.parity_prompts=0 compares nothing",
    ),
    _Idle(
        ("model.lora.",), lambda job, groups: not _new_adapter(job),
        "no adapter is made: all parameters are trained, or the adapter of the warm start keeps its own settings",
    ),
    _Idle(
        ("model.revision",), lambda job, groups: Path(groups["model"].path).expanduser().exists(),
        "model.path is a folder, which has no revisions; it is of a model from the hub",
    ),
    _Idle(
        ("data.split", "data.subset"), lambda job, groups: not any(map(_is_of_hub, _row_sources(job, groups))),
        "files have neither splits nor subsets; it is of rows from the hub",
    ),
    _Idle(
        ("data.max_row_bytes",),
        lambda job, groups: all(_is_of_hub(one) or one.endswith(".parquet") for one in _row_sources(job, groups)),
        "it bounds rows of .jsonl and .json files, and there is none",
    ),
    _Idle(
        ("gateway.base_url", "gateway.api_key_env"), lambda job, groups: groups["gateway"].kind != "remote",
        "it is of a remote gateway; set gateway=remote",
    ),
    _Idle(
        ("job.wandb_config.project", "job.wandb_config.entity", "job.wandb_config.run_id", "job.wandb_config.api_key"),
        lambda job, groups: not (job.wandb_config and job.wandb_config.enabled),
        "nothing is logged to Weights & Biases; set job.wandb_config.enabled=true",
    ),
)  # fmt: skip


def idle_settings(job: Job, groups: Groups, typed: Collection[str]) -> list[str]:
    """A line for each key of `typed` that has no effect in this run, with the reason and the way out."""
    return [
        f"{key} has no effect here: {one.why}"
        for one in _IDLE
        if one.rests(job, groups)
        for key in sorted(typed)
        if key in one.of or key.startswith(tuple(part for part in one.of if part.endswith(".")))
    ]
