"""What a jail's processes hold together, read from the host's /proc: the limit over all of them without a cgroup.

rlimits bound each process alone; this bounds their sum. It is looked at every few hundredths of a second, so a burst
can pass the limit for that long.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import time
from pathlib import Path

_PAGE = resource.getpagesize()
_MOST_PROCESSES = 4096
_SUPERVISOR = 16 << 20  # what the jail's own process may hold besides
_KERNEL = 192 << 20  # and a kernel of its own
_ROUNDS = 1000


class TooMuch(Exception):
    """The processes of a jail hold more than they may."""


def check(pid: int, limit: int, *, kernel: bool = False) -> None:
    """Raise `TooMuch` when the processes below `pid` hold more than `limit` bytes of their own memory.

    What they share without a file counts for each that holds it: the host cannot see which of them share what.
    kernel: they are gVisor's, whose guest's memory is shared between them, so that the largest share counts.
    """
    below = descendants(pid)
    held = [_bytes(one) for one in below]
    most = limit + (_KERNEL if kernel else _SUPERVISOR)
    total = sum(own for own, _ in held)
    if kernel:
        total += max((shared for _, shared in held), default=0)
    elif total + sum(shared for _, shared in held) > most:  # most of that is usually programs and libraries
        total += sum(map(_shared_without_a_file, below))
    if total > most:
        raise TooMuch


def kill_below(pid: int) -> None:
    """End every process below `pid`, which adopts orphans, until there is none."""
    for _ in range(_ROUNDS):
        found = descendants(pid)
        if not found:
            return
        for one in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(one, signal.SIGKILL)
        time.sleep(0.001)


def descendants(pid: int) -> list[int]:
    """Every process below `pid`, as far as they can be seen at one moment."""
    found, waiting = [], children(pid)
    while waiting and len(found) < _MOST_PROCESSES:
        found.append(waiting.pop())
        waiting += children(found[-1])
    return found


def children(pid: int) -> list[int]:
    """Of one process, whichever of its threads started them."""
    try:
        found: list[int] = []
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += map(int, (task / "children").read_text().split())
        return found
    except (OSError, ValueError):
        return []  # it ended meanwhile


def _shared_without_a_file(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        return int(status.partition("\nRssShmem:")[2].split(maxsplit=1)[0]) << 10
    except (OSError, ValueError, IndexError):
        return 0  # it ended meanwhile


def _bytes(pid: int) -> tuple[int, int]:
    """What a process holds alone, and what it shares."""
    try:
        words = Path(f"/proc/{pid}/statm").read_text().split()
        return (int(words[1]) - int(words[2])) * _PAGE, int(words[2]) * _PAGE
    except (OSError, ValueError, IndexError):
        return 0, 0  # it ended meanwhile
