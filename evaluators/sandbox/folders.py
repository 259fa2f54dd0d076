"""Folders of jails on the host, among its temporary files: those of a host that was killed go when the next one starts.

A host process holds a lock on one file for as long as it lives, and its folders bear that file's name. Who gets the
lock knows that its holder is dead, also where the two cannot see each other's processes (containers).
"""

from __future__ import annotations

import atexit
import fcntl
import os
import tempfile
from functools import lru_cache
from pathlib import Path

from evaluators.sandbox import scratch

_PREFIX, _LOCK = "evaluator-", ".lock"


def make() -> str:
    """A new folder for one jail, which only this user may enter."""
    return tempfile.mkdtemp(prefix=f"{_own(os.getpid())}-")


@lru_cache(maxsize=1)
def _own(pid: int) -> str:
    """What the names of this process's folders begin with. The lock is never given back: it ends with the process."""
    sweep()
    while True:
        held, path = tempfile.mkstemp(prefix=_PREFIX, suffix=_LOCK)
        fcntl.flock(held, fcntl.LOCK_EX)
        if os.path.exists(path):  # noqa: PTH110 - else another process swept it before it was locked
            atexit.register(_leave, pid, path)
            return Path(path).name.removesuffix(_LOCK)
        os.close(held)


def _leave(pid: int, path: str) -> None:
    if os.getpid() == pid:
        Path(path).unlink(missing_ok=True)


def sweep() -> None:
    """Remove what killed hosts of this user have left. What cannot be removed stays."""
    temporary = Path(tempfile.gettempdir())
    for path in temporary.glob(f"{_PREFIX}*{_LOCK}"):
        try:
            held = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:  # another user's, or gone
            continue
        try:
            if os.fstat(held).st_uid != os.geteuid():
                continue
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for left in temporary.glob(f"{path.name.removesuffix(_LOCK)}-*"):
                if left.is_dir() and not left.is_symlink():
                    scratch.remove(str(left))
            path.unlink(missing_ok=True)
        except BlockingIOError:  # its host lives
            continue
        finally:
            os.close(held)
