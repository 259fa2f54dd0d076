"""A memory and process limit over a whole jail, where the host may make cgroups: v2 delegated, or v1 as root.

Where it may not, `Cgroup.create` gives None: then rlimits bound each process and `memory.py` their sum.
"""

from __future__ import annotations

import itertools
import os
import time
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from evaluators.protocol import Limits

_ROOT = Path("/sys/fs/cgroup")
_OWN_BYTES = 48 << 20  # supervisor and launcher
_OWN_PROCESSES = 4
_KERNEL_BYTES = 192 << 20  # a kernel of the jail's own, besides: its programs and what they know of the guest
_KERNEL_PROCESSES = 400  # its threads, and those that stand for the guest's
_NUMBER = itertools.count()
_REMOVE_SECONDS = 1.0


class Cgroup:
    """The groups of one jail: one folder in v2, one per controller in v1."""

    def __init__(self, folders: list[Path], version: int) -> None:
        self.folders = folders
        self.version = version
        name = "memory.events" if version == 2 else "memory.oom_control"
        found = [os.open(folder / name, os.O_RDONLY) for folder in folders if (folder / name).exists()]
        self._events = found[0] if found else -1  # kept open: it is read after every evaluation

    @classmethod
    def create(cls, limits: Limits, *, kernel: bool = False) -> Cgroup | None:
        """A new group with `limits`, or None where this process may not make one.

        kernel: the jail runs on a kernel of its own, which needs room beside the limits and keeps them itself.
        """
        version, parents = _parents()
        made: list[Path] = []
        name = f"evaluator-{os.getpid()}-{next(_NUMBER)}"
        try:
            for controller, parent in parents.items():
                folder = parent / name
                folder.mkdir()
                made.append(folder)
                _set_limits(folder, controller, limits, kernel)
        except OSError:
            for folder in made:
                folder.rmdir()
            return None
        return cls(made, version) if made else None

    def add(self, pid: int) -> None:
        """Put a process into it; its children follow."""
        for folder in self.folders:
            (folder / "cgroup.procs").write_text(str(pid))

    def kills(self) -> int:
        """How many processes the kernel killed in it for want of memory."""
        if self._events < 0:
            return 0
        words = os.pread(self._events, 4096, 0).split()
        return int(words[words.index(b"oom_kill") + 1]) if b"oom_kill" in words else 0

    def remove(self) -> bool:
        """Remove it once it is empty; True when the kernel had killed in it for want of memory."""
        killed = self.kills() > 0
        if self._events >= 0:
            os.close(self._events)
            self._events = -1
        deadline = time.monotonic() + _REMOVE_SECONDS
        for folder in self.folders:
            while True:
                try:
                    folder.rmdir()
                    break
                except OSError:
                    if time.monotonic() > deadline:
                        break  # the kernel is still reaping; an empty folder stays behind
                    time.sleep(0.005)
        return killed


def _set_limits(folder: Path, controller: str, limits: Limits, kernel: bool) -> None:
    memory = str(limits.memory_bytes + _OWN_BYTES + kernel * _KERNEL_BYTES)
    processes = str(limits.processes + _OWN_PROCESSES + kernel * _KERNEL_PROCESSES)
    files = {
        "memory": {"memory.limit_in_bytes": memory},
        "pids": {"pids.max": processes},
        "": {"memory.max": memory, "memory.swap.max": "0", "pids.max": processes},
    }[controller]
    for name, value in files.items():
        if (folder / name).exists():
            (folder / name).write_text(value)


@lru_cache(maxsize=1)
def _parents() -> tuple[int, dict[str, Path]]:
    """Version and controller -> folder where groups can be made ("" = all, in v2). Found once, by doing it."""
    own = dict(line.split(":", 2)[1:] for line in _read(Path("/proc/self/cgroup")).splitlines() if line.count(":") >= 2)
    second = _ROOT / own.get("", "/").lstrip("/")
    if {"memory", "pids"} <= set(_read(second / "cgroup.subtree_control").split()) and _can_make(second):
        return 2, {"": second}
    for places in (own, {}):
        first = {name: _ROOT / name / places.get(name, "/").lstrip("/") for name in ("memory", "pids")}
        if all(map(_can_make, first.values())):
            return 1, first
    return 0, {}


def describe() -> str:
    """In words, for the doctor."""
    version, parents = _parents()
    return (
        f"version {version}: {', '.join(map(str, parents.values()))}" if version else "none that this process may use"
    )


def _can_make(parent: Path) -> bool:
    probe = parent / f"evaluator-probe-{os.getpid()}"
    for left in parent.glob("evaluator-*-*"):
        host = left.name.split("-")[1]
        if host.isdigit() and not Path("/proc", host).exists():
            with suppress(OSError):  # something runs in it yet, or another process removed it
                left.rmdir()
    try:
        probe.mkdir()
        (probe / "cgroup.procs").read_text()
        usable = any((probe / name).exists() for name in ("memory.max", "memory.limit_in_bytes", "pids.max"))
        probe.rmdir()
    except OSError:
        return False
    return usable


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
