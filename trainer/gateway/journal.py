"""Reads a run's journal (`sync.jsonl`) in pieces of bounded size, however long it has become.

The reader keeps nothing but a byte offset, and takes whole lines only: a line that its writer has not finished is
waited for.
"""

from __future__ import annotations

from pathlib import Path

PIECE_BYTES = 1 << 20


def read_lines(path: Path, offset: int, *, piece: int = PIECE_BYTES) -> tuple[list[bytes], int]:
    """The next whole lines from byte `offset` on, about `piece` bytes of them, and the offset after them.

    ([], offset) where no whole line follows. A single line longer than a piece is returned whole.
    """
    if not path.exists():
        return [], offset
    with path.open("rb") as stream:
        stream.seek(offset)
        data = stream.read(piece)
        while b"\n" not in data and (more := stream.read(piece)):
            data += more
    whole = data[: data.rfind(b"\n") + 1]
    return whole.splitlines(keepends=True), offset + len(whole)


def count_lines(path: Path, offset: int) -> int:
    """How many whole lines follow byte `offset`."""
    if not path.exists():
        return 0
    count = 0
    with path.open("rb") as stream:
        stream.seek(offset)
        while data := stream.read(PIECE_BYTES):
            count += data.count(b"\n")
    return count
