"""LoRA adapters on one base through PEFT: attach, switch, read and write.

PEFT holds any number of named adapters beside the frozen base; ours bear internal names, so that a model may be called
anything. Adapters are fp32 whatever the base's dtype, and never merged in place. Files are PEFT's: safetensors only.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.tuners_utils import check_target_module_exists
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from trainer.engine.base import LoraSpec

WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"


class Adapters:
    """The adapters of one base model; at most one is switched on at a time."""

    def __init__(self, base: PreTrainedModel, name_or_path: str, revision: str | None) -> None:
        self._base = base
        self._name_or_path = name_or_path
        self._revision = revision
        self._peft: Any = None
        self._count = 0
        self._active: str | None = None
        head = base.get_output_embeddings()
        linear = [(n, m) for n, m in base.named_modules() if isinstance(m, nn.Linear | Conv1D)]
        self._linear_names = sorted({name.rsplit(".", 1)[-1] for name, module in linear if module is not head})
        self._head_name = next(name for name, module in linear if module is head)
        self._fan_in_fan_out = any(isinstance(module, Conv1D) for _, module in linear)

    def config_of(self, spec: LoraSpec) -> LoraConfig:
        """PEFT's settings for `spec`; `all-linear` is every linear layer but the head."""
        targets = self._linear_names if spec.targets == "all-linear" else spec.targets
        return LoraConfig(
            r=spec.rank,
            lora_alpha=int(spec.alpha) if float(spec.alpha).is_integer() else spec.alpha,  # pyright: ignore
            lora_dropout=spec.dropout,
            target_modules=targets if isinstance(targets, str) else list(targets),
            use_rslora=spec.rslora,
            fan_in_fan_out=self._fan_in_fan_out,
            task_type="CAUSAL_LM",
        )

    def attach(self, config: LoraConfig, *, seed: int) -> str:
        """Add an adapter, its A matrices drawn from `seed`; returns its internal name."""
        if check_target_module_exists(config, self._head_name):
            raise ValueError(f"lora targets: {self._head_name} is the LM head, which adapters cannot change here")
        name = f"m{self._count}"
        devices = [self._base.device] if self._base.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), quiet_peft():
            torch.manual_seed(seed)
            if self._peft is None:
                self._peft = get_peft_model(self._base, config, adapter_name=name)  # pyright: ignore
            else:
                self._peft.add_adapter(name, config)
        self._count += 1
        self._active = None
        self._peft.eval()
        return name

    def switch(self, name: str | None) -> None:
        """Let forward passes use adapter `name`, None = the bare base."""
        if self._peft is None or name == (self._active or ""):
            return
        if name is None:
            self._peft.base_model.disable_adapter_layers()
        else:
            self._peft.base_model.enable_adapter_layers()
            self._peft.set_adapter(name)
        self._active = name

    def parameters(self, name: str) -> dict[str, nn.Parameter]:
        """The adapter's parameters under the names they have in PEFT's files."""
        inner, last = f".{name}.", f".{name}"
        found = {}
        for path, parameter in self._peft.named_parameters():
            if inner in path or path.endswith(last):
                found[path.replace(inner, ".").removesuffix(last)] = parameter
        return found

    def dropouts(self, name: str) -> list[nn.Module]:
        """The adapter's dropout layers."""
        end = f".lora_dropout.{name}"
        return [module for path, module in self._peft.named_modules() if path.endswith(end)]

    def save(self, name: str, folder: Path) -> None:
        """Write PEFT files that `PeftModel.from_pretrained` loads."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {key: p.detach().cpu().contiguous() for key, p in self.parameters(name).items()}
        save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
        config = copy.copy(self._peft.peft_config[name])
        config.base_model_name_or_path, config.revision = self._name_or_path, self._revision
        config.inference_mode = True
        if not isinstance(config.target_modules, str):
            config.target_modules = sorted(config.target_modules)
        config.save_pretrained(str(folder))

    def load(self, name: str, folder: Path) -> None:
        """Replace the adapter's weights by those in `folder`, whose settings must be the adapter's own."""
        here, there = self._peft.peft_config[name], read_config(folder)
        for key in ("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern"):
            if getattr(here, key) != getattr(there, key):
                raise ValueError(
                    f"{folder}: the adapter has {key}={getattr(there, key)}, the model {getattr(here, key)}; "
                    "create the model with warm_start to adopt the adapter's settings"
                )
        copy_into(self.parameters(name), load_file(folder / WEIGHTS_FILE), folder)


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Hide the warning that PEFT 0.21 sets off by asking transformers 5.23 by a deprecated name."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        yield


def is_adapter(folder: Path) -> bool:
    """Whether `folder` holds PEFT files rather than a full model."""
    return (folder / CONFIG_FILE).is_file()


def read_config(folder: Path) -> LoraConfig:
    """Settings of the adapter in `folder`. Raises `ValueError` for what is not a plain LoRA in safetensors."""
    if not (folder / WEIGHTS_FILE).is_file():
        raise ValueError(f"{folder}: has no {WEIGHTS_FILE}; only safetensors are read, convert the adapter first")
    config: Any = LoraConfig.from_pretrained(str(folder))
    refused = {
        "peft_type": str(getattr(config.peft_type, "value", config.peft_type)) != "LORA",
        "use_dora": bool(config.use_dora),
        "bias": config.bias != "none",
        "lora_bias": bool(config.lora_bias),
        "modules_to_save": bool(config.modules_to_save),
        "trainable_token_indices": bool(config.trainable_token_indices),
        "target_parameters": bool(config.target_parameters),
    }
    for key, wrong in refused.items():
        if wrong:
            raise ValueError(f"{folder}: {key}={getattr(config, key)} is not supported; only plain LoRA adapters are")
    config.inference_mode = False
    return config


@torch.no_grad()
def copy_into(parameters: dict[str, nn.Parameter], tensors: dict[str, Tensor], source: Path) -> None:
    """Copy `tensors` into `parameters` of the same names and shapes. Raises `ValueError` where they do not fit."""
    if set(parameters) != set(tensors):
        raise ValueError(
            f"{source}: weights do not fit the model, differ in {sorted(set(parameters) ^ set(tensors))[:4]}"
        )
    for name, parameter in parameters.items():
        if parameter.shape != tensors[name].shape:
            raise ValueError(f"{source}: {name} has shape {list(tensors[name].shape)}, wanted {list(parameter.shape)}")
        parameter.copy_(tensors[name])
