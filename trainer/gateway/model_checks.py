"""Whether a model's files fit together: headers against the configuration, the index and, for an adapter, its base.

Nothing is loaded: shapes are read from safetensors headers (`weights.read_header`) and derived from configurations
(`trainer.shapes`, for families in Llama's layout). What cannot be judged is said in a warning, not passed over.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer.gateway import weights
from trainer.gateway.errors import GatewayError
from trainer.shapes import Shape, read_shapes

_INDEX = "model.safetensors.index.json"
_ADAPTER = re.compile(r"(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<side>A|B)(?:\.default)?\.weight")
_MOST_NAMED = 3


def check_base(files: Mapping[str, Path]) -> list[str]:
    """Check a base model's tensors against its config.json and its index; returns warnings.

    Raises INVALID_ARGUMENT naming the tensor.
    """
    _check_index(files)
    found = _tensors(files)
    config = weights.read_json(files, "config.json")
    expected = derived(config)
    if expected is None:
        return [f"config.json: shapes of model_type {config.get('model_type')!r} are not known here, so not checked"]
    missing = sorted(expected.keys() - found.keys())
    if missing:
        raise _bad("*.safetensors", f"lacks {_some(missing)}, which config.json speaks of")
    for name, shape in expected.items():
        if found[name] != shape:
            raise _bad("*.safetensors", f"{name} has shape {list(found[name])}; by config.json it is {list(shape)}")
    extra = sorted(found.keys() - expected.keys() - {"lm_head.weight"})
    return [f"{_some(extra)}: tensors that config.json does not speak of"] if extra else []


def check_adapter(files: Mapping[str, Path], base: Mapping[str, Path] | None) -> list[str]:
    """Check an adapter's tensors against its rank and, where the base's files are here, the base's layers.

    Returns warnings; raises INVALID_ARGUMENT naming the tensor.
    """
    config = weights.read_json(files, "adapter_config.json")
    held = _tensors(files)
    pairs = {name: match for name in held if (match := _ADAPTER.fullmatch(name))}
    if not pairs:
        return ["adapter_model.safetensors: no tensor is named as PEFT names LoRA's, so shapes are not checked"]
    warnings = [] if base is not None else ["the base model's files are not here, so the layers are not checked"]
    layers = _tensors(base) if base is not None else {}
    pattern = config.get("rank_pattern") or {}
    for name, match in pairs.items():
        shape, module = held[name], match["module"]
        rank = shape[0] if match["side"] == "A" else shape[-1]
        if len(shape) != 2:
            raise _bad("adapter_model.safetensors", f"{name} has shape {list(shape)}; expected two dimensions")
        if not pattern and rank != config.get("r"):
            raise _bad(
                "adapter_model.safetensors", f"{name} is of rank {rank}, adapter_config.json says {config.get('r')}"
            )
        if base is None:
            continue
        layer = layers.get(f"{module}.weight")
        if layer is None:
            raise _bad("adapter_model.safetensors", f"{name}: the base model has no layer {module}")
        there, here = (layer[1], shape[1]) if match["side"] == "A" else (layer[0], shape[0])
        if there != here:
            raise _bad("adapter_model.safetensors", f"{name} has shape {list(shape)}; {module} is {list(layer)}")
    return warnings


def derived(config: Mapping[str, Any]) -> dict[str, Shape] | None:
    """The tensors that a config.json speaks of, None where its family is not known here."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config), encoding="utf-8")
        shapes = read_shapes(folder)
    return dict(shapes.tensors) if shapes is not None else None


def check_config(config: Mapping[str, Any], tokenizer: Mapping[str, Any]) -> None:
    """Raises INVALID_ARGUMENT for a configuration that no model here can be loaded by."""
    kind = config.get("model_type")
    if not isinstance(kind, str) or not kind:
        raise _bad("configJson", "model_type: missing; it names the architecture")
    for name, document in (("configJson", config), ("tokenizerConfigJson", tokenizer)):
        if document.get("auto_map"):
            raise _bad(name, "auto_map: the model brings code of its own, which is never run here")
    for field in ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "max_position_embeddings"):
        text = config.get("text_config")
        value = config.get(field, text.get(field) if isinstance(text, dict) else None)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise _bad("configJson", f"{field}: got {str(value)[:40]!r}; expected a whole number above 0")


def _tensors(files: Mapping[str, Path]) -> dict[str, Shape]:
    return {
        tensor: tuple(entry["shape"])
        for name, path in files.items() if name.endswith(".safetensors")
        for tensor, entry in weights.read_header(path, name=name).items()
    }  # fmt: skip


def _check_index(files: Mapping[str, Path]) -> None:
    listed = weights.read_json(files, _INDEX).get("weight_map", {})
    if not isinstance(listed, dict):
        raise _bad(_INDEX, "weight_map: expected an object")
    gone = sorted({str(name) for name in listed.values()} - files.keys())
    if gone:
        raise _bad(_INDEX, f"{_some(gone)}: named there, and not among the files")
    held = _tensors(files) if listed else {}
    lost = sorted(set(listed) - held.keys())
    if lost:
        raise _bad(_INDEX, f"{_some(lost)}: named there, and in none of the files")


def _some(names: list[str]) -> str:
    more = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def _bad(name: str, what: str) -> GatewayError:
    return GatewayError("INVALID_ARGUMENT", f"{name}: {what}", reason="MODEL_INVALID", metadata={"file": name})
