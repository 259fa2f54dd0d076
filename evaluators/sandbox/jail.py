"""The host's side of one jail: start it, give it rows, take its report, end it.

One jail serves one program under one set of limits. The host trusts nothing that comes out: every size is bounded
before it is read, and a jail that is late, silent or out of step is killed and never used again.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import math
import os
import resource
import secrets
import shutil
import socket
import subprocess
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from evaluators.protocol import Limits, Program, Tier
from evaluators.sandbox import bubblewrap, folders, gvisor, identity, landlock, memory, scratch, share, tree
from evaluators.sandbox.cgroup import Cgroup
from evaluators.sandbox.interpreter import Interpreter, interpreter, preloads, seeded
from evaluators.sandbox.wire import (
    ASK,
    END,
    LAST_ACT,
    LENGTH,
    ORDER,
    REPORT,
    REQUEST_BYTES,
    ROW,
    SCRATCH,
    result_bytes,
)  # fmt: skip
from evaluators.scores import legible

HOST_GRACE_SECONDS = 3.0  # beyond the supervisor's own deadline, then the whole jail is killed
_START_SECONDS = 20.0
_LEAVE_SECONDS = 0.5
_MOST_TOLD = 64 << 10
_READ_AHEAD = 64 << 10  # what the supervisor may have read before it notices a flood
_COMPLAINT = 300  # characters that are told of what a launcher said
_WATCH_SECONDS = 0.05  # how often a long evaluation's memory is looked at where no cgroup limits it
_MOST_FIELD, _MOST_CPU = 0xFFFFFFFF, 1 << 31  # of an order
_NO_ROOM = {errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ESRCH}  # ESRCH: it was ended at once
_OWN_PROCESSES = 2  # supervisor and the process above it, which the kernel counts too
_PACKAGE = Path(__file__).parent.parent
_JAIL_FILES = ("returned.py", "sandbox/supervisor.py", "sandbox/child.py", "sandbox/scratch.py", "sandbox/wire.py",
               "sandbox/kernel.py", "sandbox/seccomp.py", "sandbox/syscalls.py", "sandbox/rlimits.py",
               "sandbox/guest.py", "sandbox/host.py", "sandbox/line.py")  # fmt: skip
_LAUNCHER_FILES = ("sandbox/launcher.py", "sandbox/landlock.py", "sandbox/tree.py", "sandbox/gvisor.py")
OWN, BWRAP = "own", "bwrap"
_LAUNCH = "import sys; sys.path.insert(0, {!r}); from evaluators.sandbox.launcher import main; main()"


class JailError(Exception):
    """The jail, not the evaluator, failed; the message says how."""


class NoRoom(JailError):
    """The host has no descriptors, processes or memory for one more jail."""


@dataclass(frozen=True)
class Raw:
    """What one order came to, before anybody judges it. wait_status as from waitpid; times in seconds."""

    flags: int
    wait_status: int
    seconds: float
    cpu_seconds: float
    result: bytes
    stdout: bytes
    stderr: bytes
    nonce: bytes
    out_of_memory: bool = False


class Jail:
    """One started jail. Not thread-safe: the pool gives it to one thread at a time."""

    def __init__(self, program: Program, limits: Limits, *, tier: Tier = Tier.STANDARD, mode: str = "score",
                 launcher: str = OWN) -> None:  # fmt: skip
        """Raises `JailError` when it does not come up; `load_error` says when only the program does not.

        launcher: who builds the tree of tier standard, `own` or `bwrap`.
        """
        self._host = os.getpid()
        self.limits = limits
        self._yields_until, self._lowered = 0.0, False
        self.tier = tier
        self.way = _way(tier, launcher)
        self.usable = True
        self.folder: str | None = None
        self._killed_at_end = False
        self._kills = 0
        self._shared_before, self._noted = memory.shared_on_machine(), time.monotonic()
        self._watched = self._noted
        self._open = contextlib.ExitStack()  # descriptors
        self.cgroup: Cgroup | None = None
        _jails.add(self)
        try:
            self.cgroup = Cgroup.create(limits, kernel=tier is Tier.STRONG)
            self.said = self._open.enter_context(os.fdopen(os.memfd_create("said"), "w+b"))  # the launcher's complaints
            self.socket, inside = map(self._open.enter_context, _pair())
            setup, blobs = self._setup(program, mode)
            self.process = self._launch(setup, inside)
            inside.close()
            if self.cgroup:
                self.cgroup.add(self.process.pid)
            self.load_error = self._start(setup, blobs)
            self.said.close()
            if self.way == "bwrap":
                self._take_in()
        except BaseException as error:
            self.close()
            if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in _NO_ROOM):
                raise NoRoom(f"the jail could not be started: {error}") from error
            raise

    def _take_in(self) -> None:
        """Bubblewrap forks before this host can say anything of its processes: they are seen to when they are there."""
        for one in memory.descendants(self.process.pid):
            if self.cgroup:
                self.cgroup.add(one)
            with contextlib.suppress(OSError):  # where /proc is read-only; in the tree there is none
                Path(f"/proc/{one}/oom_score_adj").write_text("1000")  # when memory runs out, jails go first

    def _setup(self, program: Program, mode: str) -> tuple[dict[str, Any], dict[str, bytes]]:
        tier, namespaces = self.tier, self.way != "folder"
        needs_all = self.way in ("folder", "bwrap") and os.geteuid() == 0  # there the new user goes by the host's paths
        python = interpreter(program.python, for_all=needs_all)
        home, writable, programs = "/sandbox", SCRATCH, "/program"
        if self.way in ("folder", "bwrap"):
            self.folder = folders.make()
        if not namespaces:
            home, writable, programs = (f"{self.folder}/{name}" for name in ("sandbox", "scratch", "program"))
            Path(writable).mkdir(mode=0o700)
        blobs = {f"{programs}/{path}": content for path, content in _checked(program.files).items()}
        blobs |= {f"{home}/evaluators/{name}": content for name, content in self._own_files().items()}
        readable = [*python.readable, *program.readable]
        fence = {"own": ["/"], "bwrap": ["/"], "gvisor": []}.get(self.way, _landlock_paths(readable, self.folder))
        elsewhere = 0 if namespaces or os.geteuid() == 0 else identity.processes_of(os.getuid())
        limits = {**asdict(self.limits), "process_count": self.limits.processes + _OWN_PROCESSES + elsewhere,
                  "whole_cpu_seconds": whole_cpu_seconds(self.limits)}  # fmt: skip
        sources = program.files.values()
        supervisor = {
            "mode": mode, "program": programs, "entry": program.entry.split("::", 1), "scratch": writable,
            "packages": python.packages, "environment": dict(program.environment), "limits": limits,
            "namespaces": namespaces, "guarded": tier in (Tier.LANDLOCK, Tier.STRONG), "owns_all": _owns_all(tier),
            "guest": self.way == "gvisor", "preload": preloads(sources) if mode == "score" else [],
            "seeded": seeded(sources),
        }  # fmt: skip
        setup = {
            "way": self.way, "landlock": fence if tier is not Tier.NONE else [], "seccomp": tier is not Tier.NONE,
            "home": home, "uid": identity.spare_uid(), "readable": readable, "scratch": writable, "folder": self.folder,
            "scratch_bytes": self.limits.scratch_bytes, "scratch_inodes": self.limits.scratch_inodes,
            "kernel": shutil.which(gvisor.PROGRAM), "python": python.executable,
            "environment": _environment(python, writable), "supervisor": supervisor,
        }  # fmt: skip
        if self.way == "bwrap" and self.folder:
            etc = {f"/etc/{name}": text.encode() for name, text in tree.ETC.items()}
            bubblewrap.write(self.folder, blobs | etc, setup["uid"])
            blobs = {}
        setup["files"] = [(path, len(content)) for path, content in blobs.items()]
        return setup, blobs

    def _own_files(self) -> dict[str, bytes]:
        """What of this package the jail gets, by its path in it."""
        return _jail_files(self.way == "bwrap")

    def _launch(self, setup: Mapping[str, Any], inside: socket.socket) -> subprocess.Popen[bytes]:
        descriptor = str(inside.fileno())
        user = setup["uid"] if self.way == "bwrap" and os.geteuid() == 0 else None
        if self.way == "bwrap":
            code = _LAUNCH.format(setup["home"])
            command = bubblewrap.command(setup, [setup["python"], "-I", "-S", "-B", "-c", code, descriptor])
        else:
            code = _LAUNCH.format(str(_PACKAGE.parent))
            command = [interpreter(None).executable, "-I", "-S", "-B", "-c", code, descriptor]
        # Not a session of its own: the scheduler would give each session an equal share, whatever its niceness.
        return subprocess.Popen(  # noqa: S603 - our own launcher
            command, pass_fds=(inside.fileno(),), env={}, cwd="/", stdin=subprocess.DEVNULL, stdout=self.said,
            stderr=self.said, user=user, group=user, extra_groups=None if user is None else [],
            process_group=0,
        )  # fmt: skip

    def _start(self, setup: dict[str, Any], blobs: dict[str, bytes]) -> str:
        """Tell the launcher what to build and, behind that, the supervisor what it is for.

        None of it stands among a process's arguments: those are short, and every user of the machine can read them.
        """
        self.socket.settimeout(_START_SECONDS)
        supervisor = setup.pop("supervisor")
        setup |= {"limits": supervisor["limits"], "namespaces": supervisor["namespaces"]}
        building, serving = json.dumps(setup).encode(), json.dumps(supervisor).encode()
        parts = [LENGTH.pack(len(building)), building, *blobs.values(), LENGTH.pack(len(serving)), serving]
        try:
            self.socket.sendall(b"".join(parts))
            (size,) = LENGTH.unpack(self._read(LENGTH.size, time.monotonic() + _START_SECONDS))
            if size > _MOST_TOLD:
                raise JailError(f"the launcher told {size} bytes")
            told = json.loads(self._read(size, time.monotonic() + _START_SECONDS))
        except memory.TooMuch:
            self.close()
            return "loading it took too much memory"
        except (OSError, ValueError) as error:
            raise JailError(f"the jail did not start: {error}{self._complaint()}") from error
        if "failed" in told:
            kind = NoRoom if told.get("errno") in _NO_ROOM else JailError
            raise kind(f"the jail could not be built: {told['failed']}")
        return legible(str(told.get("load_error", ""))[:300])

    def _complaint(self) -> str:
        """The last line that launcher, bubblewrap or gVisor wrote, where there is one."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(_LEAVE_SECONDS)
        size = self.said.seek(0, os.SEEK_END)
        self.said.seek(max(0, size - _COMPLAINT))
        lines = self.said.read(_COMPLAINT).decode("utf-8", "replace").strip().splitlines()
        return f": {lines[-1]}" if lines else ""

    @property
    def load_failed(self) -> bool:
        """True when the program does not compile."""
        return bool(self.load_error)

    def run(
        self, rows: Sequence[tuple[bytes, int]], *, nice: int = 0, answer: Callable[[int, bytes], bytes] | None = None
    ) -> Raw:
        """One process scores `rows` (JSON text, seed). Raises `JailError`; the jail is then unusable.

        answer: (place of the row that asks, its question) -> the host's answer; for `Limits.host_calls` of each row.
        """
        limits, count = self.limits, len(rows)
        payload = b"".join(ROW.pack(len(text), seed) + text for text, seed in rows)
        nonce = secrets.token_hex(8).encode()
        wall = int(limits.wall_seconds * 1000)
        cpu = whole_cpu_seconds(limits, count)
        over = time.monotonic() + limits.wall_seconds * count
        deadline = over + HOST_GRACE_SECONDS
        self._begin_watch()
        apart = nice > 0 and self.tier is not Tier.STRONG and not share.refusal()
        self._yields_until = over if apart else 0.0
        try:
            self.socket.settimeout(limits.wall_seconds * count + HOST_GRACE_SECONDS)
            whole = min(wall * count, _MOST_FIELD)
            self.socket.sendall(ORDER.pack(count, len(payload), wall, whole, cpu, nice, apart, nonce) + payload)
            result = bytearray()
            while True:
                kind, flags, status, wall_us, cpu_us, *sizes = REPORT.unpack(self._read(REPORT.size, deadline))
                if kind == ASK:
                    deadline += self._answer(answer, status, sizes[0], deadline)
                    continue
                self._check_sizes(sizes, len(result), count)
                result += self._read(sizes[0], deadline)
                if kind == END:
                    break
            stdout, stderr = self._read(sizes[1], deadline), self._read(sizes[2], deadline)
        except memory.TooMuch:
            self.close()
            return Raw(0, 9, 0.0, 0.0, b"", b"", b"", nonce, out_of_memory=True)
        except (OSError, ValueError) as error:
            self.close()
            if self._killed_at_end:
                return Raw(0, 9, 0.0, 0.0, b"", b"", b"", nonce, out_of_memory=True)
            raise JailError(f"the jail died or went silent: {error}") from error
        except BaseException:  # also one that interrupts the host: the stream is out of step
            self.close()
            raise
        if flags & LAST_ACT:
            self.close()
        killed = self._killed_for_memory() and status != 0
        return Raw(flags, status, wall_us / 1e6, cpu_us / 1e6, bytes(result), stdout, stderr, nonce, killed)

    def _answer(self, answer: Callable[[int, bytes], bytes] | None, place: int, size: int, deadline: float) -> float:
        """Have a question answered; the seconds it took, which are nobody's fault in the jail."""
        if answer is None or size > REQUEST_BYTES or not self.limits.host_calls:
            raise JailError("the jail asked what it may not ask")
        question = self._read(size, deadline)
        started = time.monotonic()
        told = answer(place, question)
        self.socket.settimeout(HOST_GRACE_SECONDS)
        self.socket.sendall(LENGTH.pack(len(told)) + told)
        return time.monotonic() - started

    def _killed_for_memory(self) -> bool:
        """True when the kernel has killed in this jail for want of memory since this was last asked."""
        if self.cgroup is None:
            return self._killed_at_end
        before, self._kills = self._kills, self.cgroup.kills()
        return self._kills > before

    def _check_sizes(self, sizes: Sequence[int], held: int, rows: int) -> None:
        limits = self.limits
        most = result_bytes(rows, limits.result_bytes) + _READ_AHEAD
        if held + sizes[0] > most or max(sizes[1:]) > limits.stdout_kept_bytes:
            raise JailError(f"the jail reported {sizes} bytes, more than its limits")

    def _read(self, size: int, deadline: float) -> bytes:
        """Exactly `size` bytes before `deadline`; meanwhile the jail's memory is looked at now and then."""
        parts: list[bytes] = []
        while size:
            self.socket.settimeout(_WATCH_SECONDS)
            if time.monotonic() > self._watched + _WATCH_SECONDS:  # also while a jail sends without a pause
                self._watch()
            try:
                part = self.socket.recv(min(size, 1 << 16))
            except TimeoutError:
                if time.monotonic() > deadline:
                    raise
                continue
            if not part:
                raise ConnectionError("the stream ended")
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def _begin_watch(self) -> None:
        """What is there before a row; of rows that follow each other closely, before the first of them."""
        self._watched = time.monotonic()
        if self.cgroup is None and self._watched > self._noted + _WATCH_SECONDS:
            self._shared_before, self._noted = memory.shared_on_machine(), self._watched

    def _watch(self) -> None:
        """Look at a long evaluation's memory, where no cgroup limits it, and at its share of the processor."""
        self._share_processor()
        if self.cgroup is None:
            self._check_memory()
        self._watched = time.monotonic()

    def _check_memory(self) -> None:
        own = self.tier is Tier.STRONG
        memory.check(self.process.pid, self.limits.memory_bytes, kernel=own, before=self._shared_before)

    def _share_processor(self) -> None:
        """An evaluation that is to yield does so until its time is over: to be ended takes a processor, too."""
        yields = time.monotonic() < self._yields_until
        if yields and not self._lowered:
            self._lowered = share.set_share(self.process.pid, share.LEAST)
        elif self._lowered and not yields:
            self._lowered = False
            share.set_share(self.process.pid, share.USUAL)

    def close(self) -> None:
        """End everything in the jail and remove what it had on the host. Safe to call twice."""
        patience = _LEAVE_SECONDS if self.usable else 0.0
        self.usable = False
        self._open.close()
        if self._host != os.getpid():
            return
        process = getattr(self, "process", None)
        if process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(patience)  # an idle supervisor leaves by itself when the stream closes
            if self.folder and process.poll() is None:  # no pid namespace ends with its first process
                memory.kill_below(process.pid)
            process.kill()
            process.wait()
        if self.cgroup:
            self._killed_at_end = self.cgroup.remove()
            self.cgroup = None
        if self.folder:
            scratch.remove(self.folder)


def _pair() -> list[socket.socket]:
    """Two ends of a stream, at numbers that no standard stream has: a host may have closed its own."""
    return [_above_standard(one) for one in socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)]


def _above_standard(one: socket.socket) -> socket.socket:
    if one.fileno() < 3:
        with one:
            one = socket.socket(fileno=fcntl.fcntl(one, fcntl.F_DUPFD_CLOEXEC, 3))
    one.setblocking(True)  # whatever the host's default for sockets is: the jail reads without waiting in a loop
    return one


def _leave_to_parent() -> None:
    """A forked process has no jails: it lets go of its parent's, which end when nobody holds their streams any more."""
    for jail in _jails:
        jail.close()
        if hasattr(jail, "process"):
            jail.process.returncode = 0  # not to be waited for here
    _jails.clear()


_jails: weakref.WeakSet[Jail] = weakref.WeakSet()
os.register_at_fork(after_in_child=_leave_to_parent)


def _way(tier: Tier, launcher: str) -> str:
    """How a jail of this tier is built."""
    return {Tier.STRONG: "gvisor", Tier.STANDARD: launcher}.get(tier, "folder")


def _owns_all(tier: Tier) -> bool:
    """True where kill(-1) in the jail can reach nothing but the jail. Elsewhere it would end all of the user's work."""
    return tier in (Tier.STRONG, Tier.STANDARD) or os.geteuid() == 0 or (tier is Tier.LANDLOCK and landlock.abi() >= 6)


def whole_cpu_seconds(limits: Limits, rows: int = 1) -> int:
    """Of a process for so many rows. The kernel counts whole seconds: at least one each, rounded up.

    The host may itself be allowed less, of which a second is left to end who ignores the signal.
    """
    wanted = max(1, math.ceil(limits.cpu_seconds)) * rows
    _, most = resource.getrlimit(resource.RLIMIT_CPU)
    return min(wanted, _MOST_CPU) if most == resource.RLIM_INFINITY else max(1, min(wanted, _MOST_CPU, most - 1))


@lru_cache(maxsize=2)
def _jail_files(with_launcher: bool) -> dict[str, bytes]:
    names = (*_JAIL_FILES, *_LAUNCHER_FILES) if with_launcher else _JAIL_FILES
    files = {name: (_PACKAGE / name).read_bytes() for name in names}
    return files | {"__init__.py": b"", "sandbox/__init__.py": b""}


def _checked(files: Mapping[str, bytes]) -> Mapping[str, bytes]:
    for path in files:
        if not path or path.startswith("/") or "\0" in path or {"..", ".", ""} & set(path.split("/")):
            raise ValueError(f"program file {path!r}: a path must be relative, without '.', '..' or empty parts")
    return files


def _landlock_paths(readable: Sequence[str], folder: str | None) -> list[str]:
    system = ["/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc/ld.so.cache"]
    return [*system, *readable, f"{folder}/sandbox", f"{folder}/program"]


def _environment(python: Interpreter, scratch: str) -> dict[str, str]:
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    path = f"/usr/bin:/bin:{os.path.dirname(python.executable)}"  # noqa: PTH120
    return {"PATH": path, "HOME": scratch, "TMPDIR": scratch, "LANG": "C.UTF-8", "TZ": "UTC", "PYTHONHASHSEED": "0",
            "PYTHONDONTWRITEBYTECODE": "1", "MALLOC_ARENA_MAX": "1", **threads}  # fmt: skip
