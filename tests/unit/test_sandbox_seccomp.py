"""The system call filter, run instruction by instruction as the kernel would, for both architectures."""

import struct

import pytest

from evaluators.sandbox.seccomp import METADATA, program, spare
from evaluators.sandbox.syscalls import ALLOWED, ARCHITECTURES, AUDIT, CHECKED, PRETENDED

ALLOW, KILL = 0x7FFF0000, 0x80000000
EPERM, ENOSYS, ENOTTY, ENOTSUP, DONE = 0x50001, 0x50026, 0x50019, 0x5005F, 0x50000
MACHINES = list(ARCHITECTURES)


def decide(code: bytes, number: int, *arguments: int, audit: int = AUDIT[0]) -> int:
    """What the filter returns for one call."""
    data = struct.pack("<IIQ6Q", number, audit, 0, *(*arguments, *(0,) * (6 - len(arguments))))
    at, held = 0, 0
    while True:
        operation, if_true, if_false, value = struct.unpack_from("=HBBI", code, 8 * at)
        at += 1
        if operation == 0x20:
            (held,) = struct.unpack_from("<I", data, value)
        elif operation == 0x54:
            held &= value
        elif operation == 0x06:
            return value
        else:
            holds = {0x15: held == value, 0x25: held > value, 0x35: held >= value, 0x45: bool(held & value)}[operation]
            at += if_true if holds else if_false


@pytest.mark.parametrize("machine", MACHINES)
def test_exactly_the_allowed_calls_pass(machine: str) -> None:
    place = ARCHITECTURES[machine]
    code = program(machine=machine)
    passing = {number for number in range(463) if decide(code, number, 1, 1, 1, audit=AUDIT[place]) == ALLOW}
    allowed = {pair[place] for pair in ALLOWED.values()} - {None}
    assert passing - {pair[place] for pair in CHECKED.values()} == allowed
    assert {decide(code, pair[place], audit=AUDIT[place]) for pair in PRETENDED.values()} == {DONE}
    assert decide(code, 463, audit=AUDIT[place]) == ENOSYS
    assert decide(code, 435, audit=AUDIT[place]) == ENOSYS


def test_foreign_numbers_kill() -> None:
    code = program(machine="x86_64")
    assert decide(code, 39, audit=0x40000003) == KILL
    assert decide(code, 0x40000000 | 39) == KILL
    assert decide(program(machine="aarch64"), 172, audit=AUDIT[0]) == KILL


@pytest.mark.parametrize(
    ("name", "fine", "refused", "answer"),
    [
        ("clone", (17,), (0x10000000 | 17,), EPERM),
        ("clone", (0x3D0F00,), (0x3D0F00 | 0x40000000,), EPERM),
        ("socketpair", (1, 1), (40, 1), EPERM),
        ("socketpair", (1, 5 | 0x80800), (1, 2), EPERM),  # messages are fine, datagrams could be sent anywhere
        ("socketpair", (1, 1 | 0x80000), (1, 3 | 0x80000), EPERM),  # raw ones are datagrams, too
        ("setsockopt", (0, 1, 20), (0, 1, 26), 0x5005C),  # a filter of its own: ENOPROTOOPT
        ("setsockopt", (0, 1, 16), (0, 1, 7), DONE),  # a larger buffer, which nobody would count
        ("prctl", (15,), (22, 2), EPERM),
        ("ioctl", (0, 0x5401), (0, 0x5412), ENOTTY),
        ("fcntl", (0, 2), (0, 6), EPERM),
        ("prlimit64", (0,), (1,), EPERM),
        ("sched_setaffinity", (0,), (1,), EPERM),
        ("setpriority", (0, 0), (0, 1), EPERM),
        ("personality", (0xFFFFFFFF,), (0x40000,), EPERM),
        ("sched_setscheduler", (0, 5), (0, 1), EPERM),
        ("sched_setscheduler", (0, 5), (1, 5), EPERM),
    ],
)
def test_arguments_decide_for_some(name: str, fine: tuple, refused: tuple, answer: int) -> None:
    for machine, place in ARCHITECTURES.items():
        code = program(machine=machine)
        assert decide(code, CHECKED[name][place], *fine, audit=AUDIT[place]) == ALLOW
        assert decide(code, CHECKED[name][place], *refused, audit=AUDIT[place]) == answer


def test_without_namespaces_modes_are_withheld_and_the_supervisor_is_spared() -> None:
    code = program(machine="x86_64", withheld=METADATA)
    assert decide(code, 90) == decide(code, 280) == EPERM  # chmod, utimensat
    assert decide(code, CHECKED["prctl"][0], 22) == ALLOW  # the child adds the second filter
    second = spare(4711, machine="x86_64")
    assert decide(second, 62, 4711, 9) == decide(second, 234, 4711, 4711, 9) == EPERM  # kill, tgkill
    assert decide(second, 62, -1 & 0xFFFFFFFF, 9) == decide(second, 62, -4711 & 0xFFFFFFFF, 9) == EPERM
    assert decide(second, 62, 0, 9) == EPERM  # the own group, which may be the supervisor's
    assert decide(second, 62, 4712, 9) == decide(second, 0, 4711) == ALLOW


def test_a_build_without_namespaces_is_told_that_modes_are_set() -> None:
    code = program(machine="x86_64", withheld=METADATA, pretended=True)
    assert decide(code, 90) == decide(code, 268) == decide(code, 280) == DONE  # chmod, fchmodat, utimensat
    assert decide(code, 92) == EPERM  # chown


@pytest.mark.parametrize(("machine", "first"), [("x86_64", 188), ("aarch64", 5)])
def test_extended_attributes_are_not_supported(machine: str, first: int) -> None:
    audit = AUDIT[ARCHITECTURES[machine]]
    code = program(machine=machine)
    assert {decide(code, number, audit=audit) for number in range(first, first + 12)} == {ENOTSUP}


def test_a_machine_without_a_table_is_refused() -> None:
    with pytest.raises(OSError, match="no system call table for riscv64"):
        program(machine="riscv64")
