"""The words that host and build supervisor exchange: frames of at most 64 KiB; the same file runs on both sides.

The jail asks for a path of the index (`FETCH`) and is answered by a `HEAD`, then `BODY`s, then `LAST` or `BROKEN`. What
pip prints comes as `PRINTED`, its end as `ENDED`; then every installed file as a `FILE` and its `PART`s, and `DONE`.
`STRANGE` names something that is no plain file.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

FRAME = struct.Struct("!cI")  # kind, bytes that follow
MOST = 1 << 16
FETCH, PRINTED, ENDED, FILE, PART, STRANGE, DONE = b"F", b"P", b"E", b"N", b"C", b"S", b"D"
HEAD, BODY, LAST, BROKEN = b"H", b"B", b"L", b"X"
STATUS = struct.Struct("!i")  # of ENDED: as from waitpid
ABOUT = struct.Struct("!QIB")  # of FILE: bytes, modification time, whether it may be executed; its path follows
ANSWER = struct.Struct("!Hq")  # of HEAD: HTTP status, length (-1 = not known); its content type follows


class Answer(NamedTuple):
    """To one GET. kind: content type. length: None = not known."""

    status: int
    kind: str
    length: int | None
    parts: Iterator[bytes]
