"""Checks a model's files without loading them: safetensors headers, configuration, and nothing that is pickled.

A safetensors file is an 8-byte little-endian length, that many bytes of JSON header, then the tensors; each header
entry says dtype, shape and the offsets of its bytes.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from trainer.gateway.errors import GatewayError

ADDON_KINDS = frozenset({"HF_PEFT_ADDON", "HF_TEFT_ADDON"})
PICKLES = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy"})
_LARGEST_HEADER = 100_000_000
_BITS = {"BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
         "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32,
         "F32": 32, "F64": 64, "I64": 64, "U64": 64, "C64": 64}  # fmt: skip


def check_model(files: Mapping[str, Path], *, kind: str) -> None:
    """Check a model's `files` (name -> place). Raises INVALID_ARGUMENT naming the file and the way out."""
    for name in files:
        if Path(name).suffix.lower() in PICKLES:
            raise _bad(name, "pickled weights can run code when they are loaded; save them as .safetensors")
    tensors = [name for name in files if name.endswith(".safetensors")]
    config = "adapter_config.json" if kind in ADDON_KINDS else "config.json"
    if config not in files:
        raise _bad(config, f"missing; a model of kind {kind} needs it beside its weights")
    _json_object(config, files[config])
    if not tensors:
        raise _bad("*.safetensors", "missing; a model needs at least one file of weights")
    for name in tensors:
        read_header(files[name], name=name)


def parameter_count(files: Mapping[str, Path]) -> int:
    """How many numbers the safetensors `files` hold."""
    total = 0
    for name, path in files.items():
        if name.endswith(".safetensors"):
            total += sum(math.prod(entry["shape"]) for entry in read_header(path, name=name).values())
    return total


def read_header(path: Path, *, name: str) -> dict[str, dict[str, Any]]:
    """The tensors of a safetensors file by name. Raises INVALID_ARGUMENT when header and file do not agree."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        prefix = stream.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else -1
        if not 2 <= length <= min(_LARGEST_HEADER, size - 8):
            raise _bad(name, f"not a safetensors file: a header of {length} bytes in a file of {size}")
        text = stream.read(length)
    try:
        header = json.loads(text)
    except ValueError as error:
        raise _bad(name, f"the safetensors header is not JSON ({error})") from error
    if not isinstance(header, dict):
        raise _bad(name, "the safetensors header is not an object")
    header.pop("__metadata__", None)
    _check_spans(header, size - 8 - length, name)
    return header


def read_json(files: Mapping[str, Path], name: str) -> dict[str, Any]:
    """The object in the JSON file `name`, or {} where there is no such file."""
    return _json_object(name, files[name]) if name in files else {}


def context_length(files: Mapping[str, Path]) -> int | None:
    """The context that the model's config.json speaks of."""
    value = read_json(files, "config.json").get("max_position_embeddings")
    return value if isinstance(value, int) else None


def peft_details(files: Mapping[str, Path], *, base_model: str) -> dict[str, Any]:
    """The contract's peftDetails, from adapter_config.json."""
    config = read_json(files, "adapter_config.json")
    targets = config.get("target_modules") or []
    return {
        "baseModel": base_model,
        "r": config.get("r", 0),
        "targetModules": sorted(targets) if isinstance(targets, list) else [str(targets)],
    }


def base_model_details(files: Mapping[str, Path]) -> dict[str, Any]:
    """The contract's baseModelDetails, from config.json and the safetensors headers."""
    config = read_json(files, "config.json")
    return {
        "checkpointFormat": "HUGGINGFACE",
        "huggingfaceFiles": sorted(files),
        "moe": any("expert" in key for key in config),
        "modelType": str(config.get("model_type", "")),
        "parameterCount": str(parameter_count(files)),
    }


def _check_spans(header: Mapping[str, Any], room: int, name: str) -> None:
    spans = []
    for tensor, entry in header.items():
        try:
            (start, end), shape, dtype = entry["data_offsets"], entry["shape"], entry["dtype"]
            whole = all(isinstance(number, int) and number >= 0 for number in (start, end, *shape))
        except (KeyError, TypeError, ValueError) as error:
            raise _bad(name, f"tensor {tensor!r} lacks dtype, shape or data_offsets") from error
        if not whole or end < start or end > room:
            raise _bad(name, f"tensor {tensor!r} lies at bytes {start} to {end}, the file has {room}; upload it again")
        if dtype in _BITS and (end - start) * 8 != math.prod(shape) * _BITS[dtype]:
            raise _bad(name, f"tensor {tensor!r}: {dtype} of shape {shape} does not fill {end - start} bytes")
        spans.append((start, end, tensor))
    spans.sort()
    for (_, end, first), (start, _, second) in pairwise(spans):
        if start < end:
            raise _bad(name, f"tensors {first!r} and {second!r} overlap")


def _json_object(name: str, path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise _bad(name, f"not JSON ({error})") from error
    if not isinstance(value, dict):
        raise _bad(name, "not a JSON object")
    return value


def _bad(name: str, what: str) -> GatewayError:
    return GatewayError("INVALID_ARGUMENT", f"{name}: {what}", reason="MODEL_INVALID", metadata={"file": name})
