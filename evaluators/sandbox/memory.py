"""What a jail's processes hold together, read from the host's /proc: the limit over all of them without a cgroup.

rlimits bound each process alone; this bounds their sum. It is looked at every few hundredths of a second, so a burst
can pass the limit for that long. What is shared without a file outlives being mapped, and is in no process's count
then: it is known by what the whole machine shares more than before, while a process of the jail holds such memory.
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
_PARTS = "Pss_Anon", "Pss_Shmem"


class TooMuch(Exception):
    """The processes of a jail hold more than they may."""


def check(pid: int, limit: int, *, kernel: bool = False, before: int | None = None) -> None:
    """Raise `TooMuch` when the processes below `pid` hold more than `limit` bytes of their own memory.

    What several of them share counts once. before: `shared_on_machine()` before they could share anything (None = what
    they do not map does not count). kernel: they are gVisor's, whose guest's memory is one file in memory that each of
    them maps a part of.
    """
    below = descendants(pid)
    if kernel:
        held = [(*_bytes(one), _files_in_memory(one)) for one in below]
        total = sum(own for own, _, _ in held) + max((max(rest) for _, *rest in held), default=0)
        if total > limit + _KERNEL:
            raise TooMuch
        return
    most = limit + _SUPERVISOR
    own, shared = _held(below, most)
    unmapped = shared_on_machine() - before if before is not None else 0
    if own + shared > most or (own + unmapped > most and any(map(_may_share, below))):
        raise TooMuch


def shared_on_machine() -> int:
    """Bytes that all processes share without a file, and that lie in file systems in memory; 0 where nobody tells."""
    try:
        return int(Path("/proc/meminfo").read_text().partition("\nShmem:")[2].split(maxsplit=1)[0]) << 10
    except (OSError, ValueError, IndexError):
        return 0


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


def _held(pids: list[int], most: int) -> tuple[int, int]:
    """What processes hold alone, and what they share without a file: together, exact where it may be more than `most`.

    At first it is too large, as what is shared counts for each; to measure takes a hundred times as long.
    """
    held = [_bytes(one) for one in pids]
    own, mapped = sum(one for one, _ in held), sum(other for _, other in held)
    shared = sum(map(_shared_without_a_file, pids)) if own + mapped > most else 0  # mapped is mostly programs
    if own + shared <= most:
        return own, shared
    return min(_measured(pids), _measured(pids), key=sum)  # twice: what ends meanwhile leaves its share to the rest


def _measured(pids: list[int]) -> tuple[int, int]:
    """As `_held`: each page divided by the number of processes that map it."""
    found = [_parts(one) for one in pids]
    return sum(own for own, _ in found), sum(shared for _, shared in found)


def _parts(pid: int) -> tuple[int, int]:
    try:
        told = Path(f"/proc/{pid}/smaps_rollup").read_text()
        own, shared = (int(told.partition(f"\n{name}:")[2].split(maxsplit=1)[0]) << 10 for name in _PARTS)
    except (ProcessLookupError, FileNotFoundError):
        return 0, 0  # it ended meanwhile
    except (OSError, ValueError, IndexError):  # not to be read, or an older kernel's
        return _bytes(pid)[0], _shared_without_a_file(pid)
    return own, shared


def _may_share(pid: int) -> bool:
    """Whether a process maps memory that is shared without a file: the kernel shows that as an unlinked /dev/zero."""
    try:
        return "/dev/zero (deleted)" in Path(f"/proc/{pid}/maps").read_text(errors="replace")
    except PermissionError:
        return True
    except OSError:
        return False  # it ended meanwhile


def _files_in_memory(pid: int) -> int:
    """What the files without a name hold that a process has open, mapped or not."""
    found: dict[int, int] = {}
    with contextlib.suppress(OSError):  # it ended meanwhile
        for one in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # it closed this one
                if str(one.readlink()).startswith("/memfd:"):
                    file = one.stat()
                    found[file.st_ino] = file.st_blocks * 512
    return sum(found.values())


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
