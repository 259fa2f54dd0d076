"""An adapter merged into a copy of its base: the sum is made in fp32 and rounded once, to the base's own dtype.

The base's files are not touched, and an engine never merges in place. The tokenizer is the caller's to copy.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM

from trainer.engine.adapters import quiet_peft, read_config


def merge_adapter(base: str | Path, adapter_folder: Path, out_folder: Path, *, revision: str | None = None) -> None:
    """Write `base` plus the adapter in `adapter_folder` as a full model in safetensors to `out_folder`."""
    read_config(adapter_folder)  # refuses what is not a plain LoRA in safetensors
    source: dict[str, Any] = {"revision": revision or "main", "trust_remote_code": False}
    dtype = AutoConfig.from_pretrained(str(base), **source).get_text_config().dtype or torch.float32
    model = AutoModelForCausalLM.from_pretrained(str(base), dtype=torch.float32, use_safetensors=True, **source)
    with quiet_peft():
        adapted = PeftModel.from_pretrained(model, str(adapter_folder))
    merged: Any = adapted.merge_and_unload(safe_merge=True)
    merged.to(dtype).save_pretrained(out_folder)
