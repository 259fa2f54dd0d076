"""What a base model consists of, read from its config and from the headers of its safetensors files, no weight loaded.

A folder, or a hub id whose files are in the hub's cache: shapes come from the headers. A hub id with a cached config
alone: shapes are derived from it for the families in `_PLAIN` (Llama's layout). Else they are unknown (None), and the
estimate says so. File sizes are exact to the byte: safetensors writes names in order into a header that is padded to 8.
H hidden size, I inner size, L layers, V vocabulary.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "I8": 1,
         "U8": 1, "BOOL": 1}  # fmt: skip
_PLAIN = {"llama", "mistral", "qwen2", "qwen3", "smollm3"}  # config alone tells every tensor
_NO_LINEAR = re.compile(r"embed|wte|wpe|lm_head|norm|ln_|\.experts\.")
_MAX_HEADER = 100_000_000  # safetensors' own limit
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Architecture:
    """What activations depend on. query, key_value: their width in all heads of a layer; kind: the config's model_type;
    silu: whether that is what the gate goes through."""

    hidden: int
    inner: int
    query: int
    key_value: int
    layers: int
    vocabulary: int
    kind: str = ""
    silu: bool = False


@dataclass(frozen=True)
class Shapes:
    """Tensors by name as stored, tied ones once. `stored_bytes` is their size in the files, 0 when there are none."""

    architecture: Architecture
    tensors: Mapping[str, Shape]
    stored_bytes: int
    source: str

    @property
    def parameters(self) -> int:
        """Numbers in all tensors."""
        return sum(math.prod(shape) for shape in self.tensors.values())

    @property
    def head_norms(self) -> bool:
        """Whether queries and keys are normed head by head."""
        return any(".q_norm." in name for name in self.tensors)

    def linear(self, targets: str | Sequence[str]) -> dict[str, tuple[int, int]]:
        """(out, in) of each linear layer that LoRA `targets` name, as PEFT reads them; the LM head is none of them."""
        found = {}
        for name, shape in self.tensors.items():
            module = name.removesuffix(".weight")
            if len(shape) != 2 or module == name or _NO_LINEAR.search(module):
                continue
            if _is_target(module, targets):
                found[module] = (shape[0], shape[1])
        return found

    def check_targets(self, targets: str | Sequence[str]) -> None:
        """Raise `ValueError` for LoRA `targets` of which one is no linear layer here; PEFT passes over those."""
        names = [targets] if isinstance(targets, str) else targets
        missing = [name for name in names if not self.linear(targets if isinstance(targets, str) else [name])]
        if missing and self.linear("all-linear"):
            known = sorted({module.rsplit(".", 1)[-1] for module in self.linear("all-linear")})
            raise ValueError(
                f"model.lora.targets: {', '.join(missing)} is no linear layer of this model; there are "
                f"{', '.join(known)}, and all-linear for all of them"
            )


def read_shapes(base: str, revision: str | None = None) -> Shapes | None:
    """Shapes of the model in a folder or of a hub id; None when no file on this machine tells them.

    Raises `ValueError` naming a file that is there and cannot be read.
    """
    folder = _folder(base, revision)
    if folder is None:
        return None
    config = _json(folder / "config.json")
    architecture = _architecture(config)
    files = sorted(folder.glob("*.safetensors"))
    if architecture is None:
        return None
    if not files:
        if config.get("model_type") not in _PLAIN:
            return None
        return Shapes(architecture, _derived(config, architecture), 0, "config.json")
    headers = [read_header(path) for path in files]
    shapes = {name: shape for header in headers for name, (_, shape) in header.items()}
    if config.get("tie_word_embeddings", False):
        shapes.pop("lm_head.weight", None)
    stored = sum(BYTES.get(dtype, 4) * math.prod(shape) for header in headers for dtype, shape in header.values())
    return Shapes(architecture, shapes, stored, "safetensors headers")


def read_header(path: Path) -> dict[str, tuple[str, Shape]]:
    """(dtype, shape) of each tensor in a safetensors file. Raises `ValueError` naming the file."""
    with path.open("rb") as stream:
        start = stream.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else _MAX_HEADER + 1
        if length > _MAX_HEADER:
            raise ValueError(f"{path}: is not a safetensors file (a header of {length:,} bytes)")
        try:
            header = json.loads(stream.read(length))
            return {
                name: (str(one["dtype"]), tuple(int(size) for size in one["shape"]))
                for name, one in header.items()
                if name != "__metadata__"
            }
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}: its safetensors header cannot be read ({error})") from error


def file_size(tensors: Mapping[str, Shape], *, bytes_each: int = 4, metadata: Mapping[str, str] | None = None) -> int:
    """Bytes of a safetensors file of these tensors, all of one dtype (4 = F32, 2 = BF16)."""
    dtype = {4: "F32", 2: "BF16"}[bytes_each]
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name in sorted(tensors):
        end = offset + bytes_each * math.prod(tensors[name])
        header[name] = {"dtype": dtype, "shape": list(tensors[name]), "data_offsets": [offset, end]}
        offset = end
    length = len(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode())
    return 8 + -(-length // 8) * 8 + offset


def lora_tensors(linear: Mapping[str, tuple[int, int]], rank: int) -> dict[str, Shape]:
    """An adapter's tensors under the names that PEFT files have: A [rank, in] and B [out, rank] of each layer."""
    found: dict[str, Shape] = {}
    for module, (out, into) in linear.items():
        found[f"base_model.model.{module}.lora_A.weight"] = (rank, into)
        found[f"base_model.model.{module}.lora_B.weight"] = (out, rank)
    return found


def _folder(base: str, revision: str | None) -> Path | None:
    if Path(base).is_dir():
        return Path(base) if (Path(base) / "config.json").is_file() else None
    from huggingface_hub import try_to_load_from_cache  # noqa: PLC0415  (slow to import; the gateway starts without it)

    found = try_to_load_from_cache(base, "config.json", revision=revision)
    return Path(found).parent if isinstance(found, str) else None


def _json(path: Path) -> dict[str, Any]:
    document = json.loads(path.read_text(encoding="utf-8"))
    text = document.get("text_config")  # of a model that also sees or hears
    return {**document, **text} if isinstance(text, dict) else document


def _architecture(config: Mapping[str, Any]) -> Architecture | None:
    """None when the config does not have the usual names."""
    try:
        hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
        head = int(config.get("head_dim") or hidden // heads)
        inner = int(config.get("intermediate_size") or 4 * hidden)
        if config.get("num_experts_per_tok"):
            inner = int(config.get("moe_intermediate_size") or inner) * int(config["num_experts_per_tok"])
        return Architecture(
            hidden=hidden,
            inner=inner,
            query=heads * head,
            key_value=int(config.get("num_key_value_heads") or heads) * head,
            layers=int(config["num_hidden_layers"]),
            vocabulary=int(config["vocab_size"]),
            kind=str(config.get("model_type", "")),
            silu=config.get("hidden_act") == "silu",
        )
    except (KeyError, TypeError, ValueError):
        return None


def _derived(config: Mapping[str, Any], a: Architecture) -> dict[str, Shape]:
    """Tensors of a model in Llama's layout: an embedding, L layers of seven linear maps, norms, an untied head."""
    found: dict[str, Shape] = {"model.embed_tokens.weight": (a.vocabulary, a.hidden), "model.norm.weight": (a.hidden,)}
    if not config.get("tie_word_embeddings", False):
        found["lm_head.weight"] = (a.vocabulary, a.hidden)
    for layer in range(a.layers):
        at = f"model.layers.{layer}."
        for name, out in (("q_proj", a.query), ("k_proj", a.key_value), ("v_proj", a.key_value)):
            found[f"{at}self_attn.{name}.weight"] = (out, a.hidden)
            if config.get("attention_bias", config.get("model_type") == "qwen2"):
                found[f"{at}self_attn.{name}.bias"] = (out,)
        found[f"{at}self_attn.o_proj.weight"] = (a.hidden, a.query)
        found[f"{at}mlp.gate_proj.weight"] = found[f"{at}mlp.up_proj.weight"] = (a.inner, a.hidden)
        found[f"{at}mlp.down_proj.weight"] = (a.hidden, a.inner)
        found[f"{at}input_layernorm.weight"] = found[f"{at}post_attention_layernorm.weight"] = (a.hidden,)
        if config.get("model_type") == "qwen3":
            head = a.query // int(config["num_attention_heads"])
            found[f"{at}self_attn.q_norm.weight"] = found[f"{at}self_attn.k_norm.weight"] = (head,)
    return found


def _is_target(module: str, targets: str | Sequence[str]) -> bool:
    if targets == "all-linear":
        return True
    if isinstance(targets, str):
        return re.fullmatch(targets, module) is not None
    return any(module == target or module.endswith(f".{target}") for target in targets)
