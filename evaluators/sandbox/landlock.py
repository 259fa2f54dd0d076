"""Landlock: a fence of the kernel's around files, TCP, signals and abstract sockets, which a process puts up itself.

In the standard tier it is the second fence behind the namespaces; in the landlock tier it is the first. Not covered by
it: `stat`, modes and times of own files, UDP; the system call filter sees to those.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable

from evaluators.sandbox import kernel

_CREATE_RULESET_VERSION = 1
_RULE_PATH_BENEATH = 1
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1, 2, 4, 8
_FILES_BY_ABI = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}
_TCP_BOTH = 3
_SCOPE_BOTH = 3
_FILE_ONLY = _EXECUTE | _WRITE_FILE | _READ_FILE | (1 << 14) | (1 << 15)  # rights that fit a file; the rest: folders


class _Ruleset(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("files", "net", "scoped")]


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _layout_ = "ms"
    _fields_ = [("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32)]


def abi() -> int:
    """The kernel's Landlock version; 0 where there is none."""
    try:
        return kernel.syscall(
            "landlock_create_ruleset", None, ctypes.c_size_t(0), ctypes.c_uint32(_CREATE_RULESET_VERSION)
        )
    except OSError:
        return 0


def restrict(*, read: Iterable[str], write: Iterable[str], devices: Iterable[str] = ()) -> int:
    """Allow this process and its children these paths only, and no TCP or signals out. Returns the ABI; 0 = absent."""
    version = abi()
    if not version:
        return 0
    files = _FILES_BY_ABI[max(known for known in _FILES_BY_ABI if known <= version)]
    ruleset = _Ruleset(files, _TCP_BOTH if version >= 4 else 0, _SCOPE_BOTH if version >= 6 else 0)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    fence = kernel.syscall("landlock_create_ruleset", ctypes.byref(ruleset), ctypes.c_size_t(size), ctypes.c_uint32(0))
    rules = [(path, _EXECUTE | _READ_FILE | _READ_DIR) for path in read] + [(path, files & ~_EXECUTE) for path in write]
    rules += [(path, _FILE_ONLY & ~_EXECUTE) for path in devices]
    for path, rights in rules:
        _allow(fence, path, rights & files)
    kernel.syscall("landlock_restrict_self", ctypes.c_int(fence), ctypes.c_uint32(0))
    os.close(fence)
    return version


def _allow(fence: int, path: str, rights: int) -> None:
    try:
        parent = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return  # a path that is not there needs no right
    try:
        beneath = _PathBeneath(rights if os.path.isdir(path) else rights & _FILE_ONLY, parent)  # noqa: PTH112
        kernel.syscall("landlock_add_rule", ctypes.c_int(fence), ctypes.c_int(_RULE_PATH_BENEATH),
                       ctypes.byref(beneath), ctypes.c_uint32(0))  # fmt: skip
    finally:
        os.close(parent)
