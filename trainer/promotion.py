"""From a checkpoint to a model's files, and the words that describe it to the gateway. Imports no tensor library."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from trainer import checkpoints
from trainer.checkpoints import Checkpoint
from trainer.disk import LOCAL_DISK
from trainer.finite import check_folder
from trainer.runs import RunSpec

_TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "chat_template.jinja",
)  # fmt: skip


def lay_out(checkpoint: Checkpoint, target: Path, *, tokenizer_from: Path | None) -> Path:
    """Make the folder `target` from a verified checkpoint: its weights (hard links where the file system has them),
    and the tokenizer's files of `tokenizer_from`. The folder appears whole or not at all; returns it.
    Raises `NotFinite` when a weight is NaN or infinite."""
    checkpoints.verify(checkpoint)
    check_folder(checkpoint.weights)
    temporary = target.with_name(f".{target.name}-writing")
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.copytree(checkpoint.weights, temporary, copy_function=_link_or_copy)
    for name in _TOKENIZER_FILES:
        if tokenizer_from is not None and (tokenizer_from / name).is_file() and not (temporary / name).exists():
            shutil.copy2(tokenizer_from / name, temporary / name)
            LOCAL_DISK.sync_file(temporary / name)
    LOCAL_DISK.sync_folder(temporary)
    shutil.rmtree(target, ignore_errors=True)
    temporary.rename(target)
    LOCAL_DISK.sync_folder(target.parent)
    return target


def describe(spec: RunSpec, model: Path) -> dict[str, Any]:
    """The body of a model event (`trainer.report.Event`) for the files in `model`: an adapter's, or a full model's."""
    body: dict[str, Any] = {"id": spec.output_model, "path": str(model), "baseModel": spec.base_name}
    adapter = model / "adapter_config.json"
    if not adapter.is_file():
        details: dict[str, Any] = {"moe": False, "checkpointFormat": "HUGGINGFACE"}
        return {**body, "kind": "HF_BASE_MODEL", "baseModelDetails": details}
    config = json.loads(adapter.read_text(encoding="utf-8"))
    targets = config["target_modules"]
    details = {
        "baseModel": body["baseModel"], "r": config["r"],
        "targetModules": sorted(targets) if isinstance(targets, list) else [targets],
    }  # fmt: skip
    return {**body, "kind": "HF_PEFT_ADDON", "peftDetails": details}


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copy2(source, target)
        LOCAL_DISK.sync_file(Path(target))
