"""Weights in another precision: safetensors files rewritten tensor by tensor, without the tensor libraries.

FP16 and BF16 from F32, F16 and BF16, rounding to the nearest, ties to even, as IEEE 754 has it. Integers stay. A number
too large for FP16 is refused by its tensor's name, not turned into infinity. One tensor at a time is in memory.
"""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

import numpy as np

from trainer.gateway import weights
from trainer.gateway.errors import GatewayError

DTYPES = {"FP16": "F16", "BF16": "BF16"}
_FLOATS = frozenset({"F32", "F16", "BF16", "F64"})
_KEPT = frozenset({"I8", "U8", "I16", "U16", "I32", "U32", "I64", "U64", "BOOL"})


def convert(source: Path, target: Path, *, precision: str) -> None:
    """Write `source` in `precision` (a key of `DTYPES`) to the new file `target`.

    Raises FAILED_PRECONDITION naming a tensor that cannot be had in it.
    """
    header, wanted = weights.read_header(source, name=source.name), DTYPES[precision]
    start = _data_start(source)
    order = sorted(header, key=lambda name: header[name]["data_offsets"][0])
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name in order:
        shape, dtype = header[name]["shape"], _after(header[name]["dtype"], wanted, name)
        length = math.prod(shape) * 2 if dtype == wanted else _length(header[name])
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + length]}
        offset += length
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with source.open("rb") as read, target.open("xb") as write:
        write.write(struct.pack("<Q", len(text)) + text)
        for name in order:
            read.seek(start + header[name]["data_offsets"][0])
            raw = read.read(_length(header[name]))
            write.write(raw if header[name]["dtype"] in (*_KEPT, wanted) else _cast(raw, header[name], wanted, name))


def _cast(raw: bytes, entry: dict[str, Any], wanted: str, name: str) -> bytes:
    values = _float32(raw, entry["dtype"])
    if wanted == "BF16":
        return _bfloat16(values).tobytes()
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    if bool((np.isinf(half) & np.isfinite(values)).any()):
        raise GatewayError(
            "FAILED_PRECONDITION",
            f"{name}: has numbers of {float(np.abs(values).max()):.4g}, FP16 ends at 65504; prepare BF16 instead",
            reason="PRECISION_OVERFLOW",
        )
    return half.tobytes()


def _float32(raw: bytes, dtype: str) -> Any:
    if dtype == "BF16":
        return (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(raw, {"F32": "<f4", "F16": "<f2", "F64": "<f8"}[dtype]).astype(np.float32)


def _bfloat16(values: Any) -> Any:
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16
    quiet = (bits >> 16) | np.uint32(0x40)  # of a NaN, whose rounding could make it infinite
    return np.where(np.isnan(values), quiet, rounded).astype("<u2")


def _after(dtype: str, wanted: str, name: str) -> str:
    if dtype in _KEPT:
        return dtype
    if dtype in _FLOATS:
        return wanted
    raise GatewayError(
        "FAILED_PRECONDITION", f"{name}: is stored as {dtype}, from which nothing is converted here",
        reason="PRECISION_UNKNOWN",
    )  # fmt: skip


def _length(entry: dict[str, Any]) -> int:
    start, end = entry["data_offsets"]
    return int(end) - int(start)


def _data_start(path: Path) -> int:
    with path.open("rb") as stream:
        return 8 + int(struct.unpack("<Q", stream.read(8))[0])
