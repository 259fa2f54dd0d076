"""The system call filter: an allow-list compiled to BPF and installed by prctl, no library needed.

The one decision: default-deny. A foreign architecture or x32 number kills the process, a number beyond the last known
answers ENOSYS, everything else that is not allowed answers EPERM; a few calls are allowed for harmless arguments only,
and a few answer as if they had been done.
"""

from __future__ import annotations

import ctypes
import errno
import platform
import struct

from evaluators.sandbox import kernel
from evaluators.sandbox.kernel import PR_SET_SECCOMP
from evaluators.sandbox.syscalls import ALLOWED, ARCHITECTURES, AUDIT, CHECKED, CLONE3, LAST_KNOWN, PRETENDED, XATTRS

_LOAD, _RETURN, _AND = 0x20, 0x06, 0x54  # BPF_LD|BPF_W|BPF_ABS, BPF_RET|BPF_K, BPF_ALU|BPF_AND|BPF_K
_EQUAL, _GREATER, _AT_LEAST, _ANY_BIT = 0x15, 0x25, 0x35, 0x45  # BPF_JMP with K
_KILL, _ERRNO, _ALLOW = 0x80000000, 0x00050000, 0x7FFF0000
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data
_X32 = 0x40000000
_SECCOMP_MODE_FILTER = 2

_NEW_NAMESPACES = 0x7E020000  # every CLONE_NEW* of clone(2)
_AF_UNIX = 1
_SOCKET_KINDS = (1, 5)  # streams of bytes or messages; datagrams could be sent to any socket that has a path
_SOCKET_FLAGS = 0x80800  # non-blocking, close-on-exec
_SOCKET_OPTIONS = (2, 9, 13, 16, 18, 20, 21)  # addresses, keep-alive, lingering, credentials, low water, timeouts
_SOCKET_BUFFERS = (7, 8)  # their sizes stay as they are: the kernel counts them as nobody's memory
_PRCTL = (1, 2, 3, 15, 16, 38, 39)  # parent-death signal, dumpable (get), name, no_new_privs
_IOCTL = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)  # TCGETS TIOCGWINSZ FIONREAD FIONBIO FIONCLEX FIOCLEX
_FCNTL = (0, 1, 2, 3, 4, 1030, 1032)  # dup, descriptor and status flags, dup with close-on-exec, size of a pipe
_QUERY_PERSONALITY = 0xFFFFFFFF
_SCHED_IDLE = 5  # the one policy that takes nothing from others

_SIGNALS = ("kill", "tkill", "tgkill", "rt_sigqueueinfo")
METADATA = (  # withheld in the landlock tier, where they would reach files of the host
    "chmod",
    "fchmod",
    "fchmodat",
    "fchmodat2",
    "utime",
    "utimes",
    "utimensat",
    "futimesat",
)


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]


def program(*, machine: str | None = None, withheld: tuple[str, ...] = (), pretended: bool = False,
            stacked: bool = False) -> bytes:  # fmt: skip
    """The filter as BPF instructions for `machine`. Raises `OSError` on a machine whose call numbers are unknown.

    pretended: what is withheld answers as if it had been done, for programs that insist. stacked: another filter may be
    put on top (`spare`), as it may where something is withheld.
    """
    machine = machine or platform.machine()
    if machine not in ARCHITECTURES:
        raise OSError(38, f"no system call table for {machine}; there is one for {', '.join(ARCHITECTURES)}")
    place = ARCHITECTURES[machine]
    code = [_op(_LOAD, _ARCHITECTURE), _op(_EQUAL, AUDIT[place], 1, 0), _op(_RETURN, _KILL), _op(_LOAD, _NUMBER)]
    if machine == "x86_64":
        code += [_op(_AT_LEAST, _X32, 0, 1), _op(_RETURN, _KILL)]
    code += [_op(_GREATER, LAST_KNOWN, 0, 1), _refuse(errno.ENOSYS), _op(_EQUAL, CLONE3, 0, 1), _refuse(errno.ENOSYS)]
    first, last = XATTRS[place]
    code += [_op(_AT_LEAST, first, 0, 2), _op(_GREATER, last, 1, 0), _refuse(errno.EOPNOTSUPP)]
    for name, numbers in CHECKED.items():
        body = _one_of((*_PRCTL, PR_SET_SECCOMP)) if (withheld or stacked) and name == "prctl" else _CHECKS[name]
        code += [_op(_EQUAL, numbers[place], 0, len(body)), *body]
    pairs = (pair for name, pair in ALLOWED.items() if name not in withheld)
    numbers = sorted(number for pair in pairs if (number := pair[place]) is not None)
    for low, high in _ranges(numbers):
        code += [_op(_AT_LEAST, low, 0, 2), _op(_GREATER, high, 1, 0), _op(_RETURN, _ALLOW)]
    done = [*PRETENDED.values(), *(ALLOWED[name] for name in withheld if pretended)]
    for number in (pair[place] for pair in done):
        code += [_op(_EQUAL, number, 0, 1), _refuse(0)] if number is not None else []
    return b"".join([*code, _refuse(errno.EPERM)])


def install(instructions: bytes) -> None:
    """For this thread and all that it starts, for ever. no_new_privs must be set."""
    holder = _Program(len(instructions) // 8, instructions)
    kernel.prctl(kernel.PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(holder))


def spare(pid: int, *, machine: str | None = None) -> bytes:
    """A second filter, for evaluating children that could signal the supervisor: none to `pid`, none to everybody, and
    none to the own group by number 0, which they may share with it."""
    place = ARCHITECTURES[machine or platform.machine()]
    body = [_argument(0)]
    for value in (pid, -pid & 0xFFFFFFFF, 0xFFFFFFFF, 0):
        body += [_op(_EQUAL, value, 0, 1), _refuse(errno.EPERM)]
    code = [_op(_LOAD, _NUMBER)]
    for name in _SIGNALS:
        number = ALLOWED[name][place]
        code += [_op(_EQUAL, number or 0, 0, len(body) + 1), *body, _op(_RETURN, _ALLOW)]
    return b"".join([*code, _op(_RETURN, _ALLOW)])


def _op(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)


def _refuse(number: int) -> bytes:
    return _op(_RETURN, _ERRNO | number)


def _argument(place: int) -> bytes:
    return _op(_LOAD, _ARGUMENTS + 8 * place)  # the low half: what the kernel's ints and unsigned ints look at


def _one_of(allowed: tuple[int, ...], *, place: int = 0, refusal: int = errno.EPERM, without: int = 0) -> list[bytes]:
    """Allow if an argument, but for the bits of `without`, is one of `allowed`."""
    masked = [_op(_AND, without ^ 0xFFFFFFFF)] if without else []
    tests = [_op(_EQUAL, value, len(allowed) - at, 0) for at, value in enumerate(allowed)]
    return [_argument(place), *masked, *tests, _refuse(refusal), _op(_RETURN, _ALLOW)]


def _zeros(*places: int) -> list[bytes]:
    """Allow if these arguments are 0: a call about the caller itself."""
    body: list[bytes] = []
    for place in places:
        body += [_argument(place), _op(_EQUAL, 0, 1, 0), _refuse(errno.EPERM)]
    return [*body, _op(_RETURN, _ALLOW)]


def _ranges(numbers: list[int]) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for number in numbers:
        if found and number == found[-1][1] + 1:
            found[-1] = (found[-1][0], number)
        else:
            found.append((number, number))
    return found


_CHECKS = {
    "clone": [_argument(0), _op(_ANY_BIT, _NEW_NAMESPACES, 0, 1), _refuse(errno.EPERM), _op(_RETURN, _ALLOW)],
    "socketpair": [*_one_of((_AF_UNIX,))[:-1], *_one_of(_SOCKET_KINDS, place=1, without=_SOCKET_FLAGS)],
    "prctl": _one_of(_PRCTL),
    "ioctl": _one_of(_IOCTL, place=1, refusal=errno.ENOTTY),
    "fcntl": _one_of(_FCNTL, place=1),
    "prlimit64": _zeros(0),
    "sched_setaffinity": _zeros(0),
    "setpriority": _zeros(0, 1),
    "personality": _one_of((_QUERY_PERSONALITY,)),
    "setsockopt": [
        *(op for one in _SOCKET_BUFFERS for op in (_argument(2), _op(_EQUAL, one, 0, 1), _refuse(0))),
        *_one_of(_SOCKET_OPTIONS, place=2, refusal=errno.ENOPROTOOPT),
    ],
    "sched_setscheduler": [*_zeros(0)[:-1], *_one_of((_SCHED_IDLE,), place=1)],
}
