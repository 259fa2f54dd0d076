"""Empties a jail's scratch folder between evaluations, whatever was left in it: deep, locked or oddly named."""

# ruff: noqa: PTH101, PTH104, PTH106, PTH108, PTH208 - runs in the supervisor, which does without pathlib
from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import count

_SECONDS, _HOST_SECONDS = 2.0, 10.0


def wipe(top: str, *, owned: bool) -> bool:
    """False when something stayed. owned: the folder's mode and times are the jail's to change, and are put back.

    Folders are taken apart by moving what is in them up to the top: recursion would fail at some hundred levels.
    """
    try:
        if owned:
            os.chmod(top, 0o700)
        clean = _emptied(top, time.monotonic() + _SECONDS, unlock if owned else None)
        if owned:
            os.utime(top, (0, 0))  # its times would tell the next row of this one, and of what was removed just now
    except OSError:
        return False
    return clean


def remove(top: str) -> None:
    """For the host: remove a folder in which a jail had its scratch, when all its processes are dead.

    What cannot be removed stays, as does what ten seconds are too short for.
    """
    with suppress(OSError):
        unlock(top)
        _emptied(top, time.monotonic() + _HOST_SECONDS, unlock)
        os.rmdir(top)


def unlock(folder: str) -> None:
    """Make a folder that a jail locked one that can be emptied; as root it is another user's."""
    if os.geteuid() == 0 and os.lstat(folder).st_uid != 0:
        os.chown(folder, 0, 0, follow_symlinks=False)  # root without CAP_DAC_OVERRIDE may do that, and not write
    os.chmod(folder, 0o700)


def _emptied(top: str, deadline: float, unlock: Callable[[str], None] | None) -> bool:
    prefix = f"{top}/.{os.urandom(8).hex()}"  # which no name can have that is there already
    fresh = (f"{prefix}.{number}" for number in count())
    while names := os.listdir(top):
        for name in names:
            if time.monotonic() > deadline:
                return False
            _take_apart(f"{top}/{name}", fresh, unlock)
    return True


def _take_apart(path: str, fresh: Iterator[str], unlock: Callable[[str], None] | None) -> None:
    try:
        os.unlink(path)
        return
    except IsADirectoryError:
        pass
    if unlock:
        unlock(path)
    for inner in os.listdir(path):
        place = next(fresh)
        try:
            os.rename(f"{path}/{inner}", place)
        except PermissionError:  # a folder that is locked cannot be moved either
            if not unlock:
                raise
            unlock(f"{path}/{inner}")
            os.rename(f"{path}/{inner}", place)
    os.rmdir(path)
