"""The Linux calls that Python has no function for, by ctypes: namespaces, mounts, capabilities, prctl.

Every function raises `OSError` with the call's name. Used before any user code runs, never inside the jail.
"""

from __future__ import annotations

import ctypes
import os
import platform

CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 32, 4096, 16384, 1 << 18
MNT_DETACH = 2
_MOUNT_ATTR = {MS_RDONLY: 1, MS_NOSUID: 2, MS_NODEV: 4, MS_NOEXEC: 8}
_AT_RECURSIVE = 0x8000
_AT_FDCWD = -100

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_SECCOMP = 22
PR_CAPBSET_DROP = 24
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4
_LAST_CAPABILITY = 63
_CAPABILITY_VERSION = 0x20080522
_ADDR_NO_RANDOMIZE = 0x0040000

_ARCHITECTURES = {"x86_64": 0, "aarch64": 1}
_NUMBERS = {  # x86_64, aarch64
    "pivot_root": (155, 41),
    "mount_setattr": (442, 442),
    "landlock_create_ruleset": (444, 444),
    "landlock_add_rule": (445, 445),
    "landlock_restrict_self": (446, 446),
}
_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.syscall.restype = ctypes.c_long


class _MountAttr(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("attr_set", "attr_clr", "propagation", "userns_fd")]


class _CapHeader(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


class _CapData(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint32) for name in ("effective", "permitted", "inheritable")]


def syscall(name: str, *arguments: object) -> int:
    """A call of `_NUMBERS` by its number."""
    architecture = _ARCHITECTURES.get(platform.machine())
    if architecture is None:
        raise OSError(38, f"{name}: no numbers for {platform.machine()}; known are {', '.join(_ARCHITECTURES)}")
    return _checked(_LIBC.syscall(ctypes.c_long(_NUMBERS[name][architecture]), *arguments), name)


def unshare(flags: int) -> None:
    """unshare(2)."""
    _checked(_LIBC.unshare(flags), f"unshare({flags:#x})")


def mount(source: str, target: str, kind: str | None, flags: int, data: str = "") -> None:
    """mount(2)."""
    encoded = [os.fsencode(word) if word is not None else None for word in (source, target, kind)]
    result = _LIBC.mount(*encoded, ctypes.c_ulong(flags), data.encode() or None)
    _checked(result, f"mount {source} on {target}")


def bind(source: str, target: str, flags: int) -> None:
    """Bind `source` and all below it on `target`, with `flags` (MS_RDONLY and so on) added everywhere."""
    mount(source, target, None, MS_BIND | MS_REC)
    add_flags(target, flags)


def add_flags(target: str, flags: int) -> None:
    """Add mount flags to `target` and all below it; flags that are there stay."""
    attr = _MountAttr(attr_set=sum(new for old, new in _MOUNT_ATTR.items() if flags & old))
    size = ctypes.c_size_t(ctypes.sizeof(attr))
    syscall("mount_setattr", ctypes.c_int(_AT_FDCWD), os.fsencode(target), ctypes.c_uint(_AT_RECURSIVE),
            ctypes.byref(attr), size)  # fmt: skip


def pivot_root_here() -> None:
    """Make the current directory the root and drop the old one."""
    syscall("pivot_root", b".", b".")
    _checked(_LIBC.umount2(b".", MNT_DETACH), "umount2 of the old root")
    os.chdir("/")


def prctl(option: int, value: int = 0, third: object = 0) -> None:
    """prctl(2)."""
    _checked(_LIBC.prctl(option, ctypes.c_ulong(value), third, 0, 0), f"prctl({option}, {value})")


def drop_capabilities() -> None:
    """Take every capability away, also from what is executed later, and forbid gaining any."""
    for capability in range(_LAST_CAPABILITY + 1):
        if _LIBC.prctl(PR_CAPBSET_DROP, ctypes.c_ulong(capability), 0, 0, 0):
            break  # EINVAL beyond the last one, EPERM where there is none to drop
    prctl(PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    data = (_CapData * 2)()
    header = _CapHeader(_CAPABILITY_VERSION, 0)
    _checked(_LIBC.capset(ctypes.byref(header), ctypes.byref(data)), "capset")
    prctl(PR_SET_NO_NEW_PRIVS, 1)


def fixed_addresses() -> None:
    """No address randomisation from the next exec on: the order of sets of objects must not differ between runs."""
    _LIBC.personality(ctypes.c_ulong(_ADDR_NO_RANDOMIZE))


def set_hostname(name: str) -> None:
    """Of the current uts namespace."""
    _checked(_LIBC.sethostname(name.encode(), len(name)), "sethostname")


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result
