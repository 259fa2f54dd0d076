"""Empties a jail's scratch folder between evaluations, whatever was left in it: deep, locked or oddly named."""

# ruff: noqa: PTH101, PTH104, PTH106, PTH108, PTH208 - runs in the supervisor, which does without pathlib
from __future__ import annotations

import os
import time

_SECONDS = 2.0


def wipe(top: str, *, owned: bool) -> bool:
    """False when something stayed. owned: the folder's mode and times are the jail's to change, and are put back.

    Folders are taken apart by moving what is in them up to the top: recursion would fail at some hundred levels.
    """
    if owned:
        os.chmod(top, 0o700)
        os.utime(top, (0, 0))  # its times would tell the next row of this one
    names = os.listdir(top)
    deadline = time.monotonic() + _SECONDS
    moved = 0
    while names and time.monotonic() < deadline:
        try:
            for name in names:
                moved = _take_apart(top, name, moved, owned=owned)
            names = os.listdir(top)
        except OSError:
            return False
    return not names


def _take_apart(top: str, name: str, moved: int, *, owned: bool) -> int:
    path = f"{top}/{name}"
    try:
        os.unlink(path)
    except IsADirectoryError:
        if owned:
            os.chmod(path, 0o700)
        for inner in os.listdir(path):
            moved += 1
            os.rename(f"{path}/{inner}", f"{top}/.{moved}.gone")
        os.rmdir(path)
    return moved
