"""The words that host and supervisor exchange over their stream; the same file runs on both sides.

The host sends an `ORDER` and, right behind it, the rows, which only the evaluating child reads: for each a `ROW` and
its JSON. Back come `REPORT`s: `DATA` with a part of the result, and one `END` with the rest and what was printed. In
between an evaluator that may ask the host's broker asks: an `ASK` with the place of the row that asks in place of the
wait status and the question in place of the result, to which the host answers with a `LENGTH` and that many bytes.
"""

from __future__ import annotations

import struct

SCRATCH = "/scratch"  # and /tmp, which leads there: the one folder in a jail that can be written
CHANNEL = 3  # descriptor of the stream inside the jail
LENGTH = struct.Struct("!I")
# rows, payload bytes, wall milliseconds of a row, of all rows, CPU seconds, niceness, own session or not, nonce
ORDER = struct.Struct("!IIIIIB?16s")
# bytes of the row's JSON, its seed
ROW = struct.Struct("!IQ")
# kind, flags, wait status, wall microseconds, CPU microseconds, result bytes, stdout bytes, stderr bytes
REPORT = struct.Struct("!cBiIIIII")
DATA, END, ASK = b"D", b"E", b"Q"
REQUEST_BYTES, REPLY_BYTES = 64 << 10, 32 << 10  # of a question and of an answer; the latter fits into an empty pipe
ACKNOWLEDGED, LATE, OUTPUT_FLOOD, RESULT_FLOOD, CANNOT_FORK, LAST_ACT = 1, 2, 4, 8, 16, 32

ACKNOWLEDGE = b"A"  # the child's first byte: it has read its rows
END_MARK = b" end\n"  # behind the nonce, the child's last bytes
ROW_OVERHEAD = 256  # bytes of a result line beside the result itself
OUT_OF_MEMORY = 77  # exit status of a model's program that ended in MemoryError


def result_bytes(rows: int, each: int) -> int:
    """The most that `rows` results of `each` bytes come to."""
    return (rows + 1) * (each + ROW_OVERHEAD)
