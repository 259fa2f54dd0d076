"""The lines of a JSONL file, each an object by `trainer.data.strict_json`, in bounded memory.

What is wrong with a line is a `RowProblem` in its place, so that reading goes on after it. A line that is too long is
passed over by pieces. Needs neither `datasets` nor pyarrow, so whoever may not load those can read rows strictly too.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from trainer.data.problem import RowProblem
from trainer.data.strict_json import Decoder, too_long

_CHUNK = 1 << 16  # bytes of an overlong line passed over at a time
_UTF8 = b"\xef\xbb\xbf"  # a byte order mark that may stand before the first row
_STARTS = {  # how files begin that are not UTF-8 text, whatever their name says; the longest comes first
    b"\xff\xfe\0\0": ("utf32", "UTF-32 text; save it as UTF-8 (iconv -f UTF-32 -t UTF-8)"),
    b"\0\0\xfe\xff": ("utf32", "UTF-32 text; save it as UTF-8 (iconv -f UTF-32 -t UTF-8)"),
    b"\xff\xfe": ("utf16", "UTF-16 text; save it as UTF-8 (iconv -f UTF-16 -t UTF-8)"),
    b"\xfe\xff": ("utf16", "UTF-16 text; save it as UTF-8 (iconv -f UTF-16 -t UTF-8)"),
    b"\x1f\x8b": ("packed", "gzip; unpack it (gunzip) and give the file that comes out"),
    b"PK\x03\x04": ("packed", "a ZIP archive; unpack it and give the file or folder that comes out"),
    b"\x28\xb5\x2f\xfd": ("packed", "Zstandard; unpack it (unzstd) and give the file that comes out"),
    b"PAR1": ("packed", "Parquet; name it .parquet"),
}


def json_lines(path: Path, longest: int) -> Iterator[tuple[int, dict[str, Any] | RowProblem | None]]:
    """Each line's number, from 1, and what stands there: an object, what is wrong with it, or None for a blank line.

    longest: bytes of a line. Raises `RowProblem` when the file is no UTF-8 text at all.
    """
    check_start(path)
    decoder = Decoder()
    with path.open("rb") as stream:
        for number, line in _lines(stream, longest):
            if isinstance(line, RowProblem):
                yield number, line
                continue
            text = line.removeprefix(_UTF8 if number == 1 else b"")
            yield number, _decoded(text, decoder) if text.strip() else None


def check_start(path: Path) -> None:
    """Raise `RowProblem` where the first bytes say that the file is no UTF-8 text."""
    with path.open("rb") as stream:
        head = stream.read(4)
    found = next((what for start, what in _STARTS.items() if head.startswith(start)), None)
    if found is None and len(head) == 4 and (head[0::2] == b"\0\0") != (head[1::2] == b"\0\0"):
        found = _STARTS[b"\xff\xfe"]  # every other byte is 0: UTF-16 without its mark
    if found:
        code, what = found
        raise RowProblem(code, f"the file is {what}").at(str(path), 1)


def _lines(stream: BinaryIO, longest: int) -> Iterator[tuple[int, bytes | RowProblem]]:
    """Each line with its number; of one that is over `longest` bytes only its length is known."""
    number = 0
    while line := stream.readline(longest + 1):
        number += 1
        if len(line) <= longest or line.endswith(b"\n"):
            yield number, line
            continue
        length = len(line)
        while not line.endswith(b"\n") and (line := stream.readline(_CHUNK)):
            length += len(line)
        yield number, RowProblem("too_long", too_long(longest, length - line.endswith(b"\n")))


def _decoded(line: bytes, decoder: Decoder) -> dict[str, Any] | RowProblem:
    try:
        return decoder.decode(line.strip(b" \t\r\n").decode("utf-8"))
    except UnicodeDecodeError as error:
        return RowProblem("not_utf8", f"not UTF-8 at byte {error.start + 1} of the line; save the file as UTF-8")
    except RowProblem as problem:
        return problem
