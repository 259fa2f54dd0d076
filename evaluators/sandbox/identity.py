"""The user that a jail runs as when the host runs as root: an unprivileged id that nobody else has."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

_FIRST, _COUNT = 0x7000_0000, 0x1_0000  # beyond what systemd gives to containers and homes


def spare_uid() -> int:
    """A uid (and gid) for one jail; another for each, so that jails share no limits. The own one when not root."""
    if os.geteuid() != 0:
        return os.getuid()
    low, high = _range(Path("/proc/self/uid_map").read_text())
    return low + secrets.randbelow(high - low)


def processes_of(uid: int) -> int:
    """Threads of a user on this machine: without namespaces the kernel's limit counts them all."""
    return sum(
        _threads(folder) for folder in Path("/proc").iterdir() if folder.name.isdigit() and _owner(folder) == uid
    )


def _owner(folder: Path) -> int | None:
    try:
        return folder.stat().st_uid
    except OSError:
        return None  # it ended meanwhile


def _threads(folder: Path) -> int:
    try:
        return sum(1 for _ in (folder / "task").iterdir())
    except OSError:
        return 0


def _range(uid_map: str) -> tuple[int, int]:
    """The range to draw from, given what a container's map allows. Raises `OSError` when it has uid 0 alone."""
    held = [(int(first), int(first) + int(count)) for first, _, count in map(str.split, uid_map.splitlines())]
    if any(low <= _FIRST and high >= _FIRST + _COUNT for low, high in held):
        return _FIRST, _FIRST + _COUNT
    low, high = max(held, key=lambda one: one[1] - one[0])
    if high - low < 2:
        raise OSError(1, "root of a user namespace with one id cannot become anybody else; run as an ordinary user")
    return low + (high - low) // 2 if low == 0 else low, high
