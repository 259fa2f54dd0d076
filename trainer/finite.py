"""Are all numbers in safetensors files finite? Read in pieces, by bits, without a tensor library.

safetensors itself does not look for NaN. A floating-point number is NaN or infinite exactly when all bits of its
exponent are set, so one masked comparison per number answers for every format, bfloat16 included. Integers are finite.
The formats of 8 bits and less whose exponent does not tell (F8_E4M3: only 0x7f and 0xff are NaN) have their own rule.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import IO

import numpy as np

_PIECE = 1 << 24  # bytes held at a time
# dtype: (unsigned integer of the same width, bits that are all set in NaN and infinity)
_EXPONENT = {
    "F64": (np.dtype("<u8"), 0x7FF0_0000_0000_0000),
    "F32": (np.dtype("<u4"), 0x7F80_0000),
    "F16": (np.dtype("<u2"), 0x7C00),
    "BF16": (np.dtype("<u2"), 0x7F80),
    "F8_E5M2": (np.dtype("u1"), 0x7C),
    "F8_E4M3": (np.dtype("u1"), 0x7F),
    "C64": (np.dtype("<u4"), 0x7F80_0000),
}


class NotFinite(ValueError):
    """A stored tensor holds NaN or infinity; the message names the file, the tensor and how many."""


def check_folder(folder: Path) -> None:
    """Raise `NotFinite` for the first tensor below `folder` that is not finite throughout."""
    for path in sorted(folder.rglob("*.safetensors")):
        check_file(path)


def check_file(path: Path) -> None:
    """Raise `NotFinite` for the first tensor of a safetensors file that is not finite throughout."""
    with path.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(size))
        for name, entry in header.items():
            if name == "__metadata__" or entry["dtype"] not in _EXPONENT:
                continue
            start, end = entry["data_offsets"]
            stream.seek(8 + size + start)
            bad = _count(stream, end - start, entry["dtype"])
            if bad:
                raise NotFinite(
                    f"{path}: {bad:,} of {math.prod(entry['shape']):,} numbers of {name} are NaN or infinite; such "
                    "weights are never kept or promoted. Go back to an earlier checkpoint, and lower the learning rate"
                )


def _count(stream: IO[bytes], length: int, dtype: str) -> int:
    """How many of the next `length` bytes' numbers are not finite."""
    kind, mask = _EXPONENT[dtype]
    bad = 0
    while length > 0:
        piece = np.frombuffer(stream.read(min(length, _PIECE)), kind)
        if not piece.size:
            raise NotFinite(f"{stream.name}: ends before its header says; the file is damaged")
        bits = kind.type(mask)
        bad += int(np.count_nonzero((piece & bits) == bits))
        length -= piece.nbytes
    return bad
