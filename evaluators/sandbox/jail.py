"""The host's side of one jail: start it, give it rows, take its report, end it.

One jail serves one program under one set of limits. The host trusts nothing that comes out: every size is bounded
before it is read, and a jail that is late, silent or out of step is killed and never used again.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from evaluators.protocol import Limits, Program, Tier
from evaluators.sandbox import identity, landlock, memory
from evaluators.sandbox.cgroup import Cgroup
from evaluators.sandbox.interpreter import Interpreter, interpreter, preloads, seeded
from evaluators.sandbox.wire import END, LAST_ACT, LENGTH, ORDER, REPORT, ROW, SCRATCH, result_bytes

HOST_GRACE_SECONDS = 3.0  # beyond the supervisor's own deadline, then the whole jail is killed
_START_SECONDS = 20.0
_LEAVE_SECONDS = 0.5
_MOST_TOLD = 64 << 10
_READ_AHEAD = 64 << 10  # what the supervisor may have read before it notices a flood
_WATCH_SECONDS = 0.05  # how often a long evaluation's memory is looked at where no cgroup limits it
_OWN_PROCESSES = 2  # supervisor and the process above it, which the kernel counts too
_PACKAGE = Path(__file__).parent.parent
_JAIL_FILES = ("returned.py", "sandbox/supervisor.py", "sandbox/child.py", "sandbox/scratch.py", "sandbox/wire.py",
               "sandbox/kernel.py", "sandbox/seccomp.py", "sandbox/syscalls.py")  # fmt: skip
_LAUNCH = "import sys; sys.path.insert(0, {!r}); from evaluators.sandbox.launcher import main; main()"


class JailError(Exception):
    """The jail, not the evaluator, failed; the message says how."""


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

    def __init__(self, program: Program, limits: Limits, *, tier: Tier = Tier.STANDARD, mode: str = "score") -> None:
        """Raises `JailError` when it does not come up; `load_error` says when only the program does not."""
        self.limits = limits
        self.usable = True
        self.folder: str | None = None
        self._killed_at_end = False
        self._kills = 0
        self.cgroup = Cgroup.create(limits)
        self.socket, inside = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            setup, blobs = self._setup(program, tier, mode)
            self.process = _launch(inside)
            inside.close()
            if self.cgroup:
                self.cgroup.add(self.process.pid)
            self.load_error = self._start(setup, blobs)
        except BaseException:
            inside.close()
            self.close()
            raise

    def _setup(self, program: Program, tier: Tier, mode: str) -> tuple[dict[str, Any], dict[str, bytes]]:
        python = interpreter(program.python)
        namespaces = tier is Tier.STANDARD
        home, scratch, programs = "/sandbox", SCRATCH, "/program"
        if not namespaces:
            self.folder = tempfile.mkdtemp(prefix="evaluator-")
            home, scratch, programs = (f"{self.folder}/{name}" for name in ("sandbox", "scratch", "program"))
            Path(scratch).mkdir(mode=0o700)
        blobs = {f"{programs}/{path}": content for path, content in _checked(program.files).items()}
        blobs |= {f"{home}/evaluators/{name}": content for name, content in _jail_files().items()}
        readable = [*python.readable, *program.readable]
        fence = {Tier.STANDARD: ["/"], Tier.LANDLOCK: _landlock_paths(readable, self.folder)}.get(tier, [])
        elsewhere = 0 if namespaces or os.geteuid() == 0 else identity.processes_of(os.getuid())
        limits = {**asdict(self.limits), "process_count": self.limits.processes + _OWN_PROCESSES + elsewhere,
                  "whole_cpu_seconds": whole_cpu_seconds(self.limits)}  # fmt: skip
        sources = program.files.values()
        supervisor = {
            "mode": mode, "program": programs, "entry": program.entry.split("::", 1), "scratch": scratch,
            "packages": python.packages, "environment": dict(program.environment), "limits": limits,
            "namespaces": namespaces, "guarded": tier is Tier.LANDLOCK, "owns_all": _owns_all(tier),
            "preload": preloads(sources) if mode == "score" else [], "seeded": seeded(sources),
        }  # fmt: skip
        setup = {
            "namespaces": namespaces, "landlock": fence, "seccomp": tier is not Tier.NONE, "home": home,
            "uid": identity.spare_uid(), "readable": readable, "scratch": scratch, "folder": self.folder,
            "scratch_bytes": self.limits.scratch_bytes, "scratch_inodes": self.limits.scratch_inodes,
            "python": python.executable, "environment": _environment(python, scratch), "supervisor": supervisor,
            "files": [(path, len(content)) for path, content in blobs.items()],
        }  # fmt: skip
        return setup, blobs

    def _start(self, setup: dict[str, Any], blobs: dict[str, bytes]) -> str:
        self.socket.settimeout(_START_SECONDS)
        encoded = json.dumps(setup).encode()
        try:
            self.socket.sendall(b"".join([LENGTH.pack(len(encoded)), encoded, *blobs.values()]))
            (size,) = LENGTH.unpack(self._read(LENGTH.size, time.monotonic() + _START_SECONDS))
            if size > _MOST_TOLD:
                raise JailError(f"the launcher told {size} bytes")
            told = json.loads(self._read(size, time.monotonic() + _START_SECONDS))
        except (OSError, ValueError) as error:
            raise JailError(f"the jail did not start: {error}") from error
        if "failed" in told:
            raise JailError(f"the jail could not be built: {told['failed']}")
        return str(told.get("load_error", ""))[:300]

    @property
    def load_failed(self) -> bool:
        """True when the program does not compile."""
        return bool(self.load_error)

    def run(self, rows: Sequence[tuple[bytes, int]], *, nice: int = 0) -> Raw:
        """One process scores `rows` (JSON text, seed). Raises `JailError`; the jail is then unusable."""
        limits, count = self.limits, len(rows)
        payload = b"".join(ROW.pack(len(text), seed) + text for text, seed in rows)
        nonce = secrets.token_hex(8).encode()
        wall = int(limits.wall_seconds * 1000)
        cpu = whole_cpu_seconds(limits) * count
        deadline = time.monotonic() + limits.wall_seconds * count + HOST_GRACE_SECONDS
        try:
            self.socket.settimeout(limits.wall_seconds * count + HOST_GRACE_SECONDS)
            self.socket.sendall(ORDER.pack(count, len(payload), wall, wall * count, cpu, nice, nonce) + payload)
            result = bytearray()
            while True:
                kind, flags, status, wall_us, cpu_us, *sizes = REPORT.unpack(self._read(REPORT.size, deadline))
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
        except JailError:
            self.close()
            raise
        if flags & LAST_ACT:
            self.close()
        killed = status != 0 and self._killed_for_memory()
        return Raw(flags, status, wall_us / 1e6, cpu_us / 1e6, bytes(result), stdout, stderr, nonce, killed)

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
            try:
                part = self.socket.recv(min(size, 1 << 16))
            except TimeoutError:
                if time.monotonic() > deadline:
                    raise
                if self.cgroup is None:
                    memory.check(self.process.pid, self.limits.memory_bytes)
                continue
            if not part:
                raise ConnectionError("the stream ended")
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def close(self) -> None:
        """End everything in the jail and remove what it had on the host. Safe to call twice."""
        patience = _LEAVE_SECONDS if self.usable else 0.0
        self.usable = False
        self.socket.close()
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
            shutil.rmtree(self.folder, ignore_errors=True)


def _owns_all(tier: Tier) -> bool:
    """True where kill(-1) in the jail can reach nothing but the jail. Elsewhere it would end all of the user's work."""
    return tier is Tier.STANDARD or os.geteuid() == 0 or (tier is Tier.LANDLOCK and landlock.abi() >= 6)


def whole_cpu_seconds(limits: Limits) -> int:
    """The kernel counts whole seconds: at least one, rounded up."""
    return max(1, math.ceil(limits.cpu_seconds))


def _launch(inside: socket.socket) -> subprocess.Popen[bytes]:
    command = [interpreter(None).executable, "-I", "-S", "-B", "-c", _LAUNCH.format(str(_PACKAGE.parent))]
    # Not a session of its own: the scheduler would give each session an equal share, whatever its niceness.
    return subprocess.Popen(  # noqa: S603 - our own launcher
        [*command, str(inside.fileno())], pass_fds=(inside.fileno(),), env={}, cwd="/", process_group=0,
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


@lru_cache(maxsize=1)
def _jail_files() -> dict[str, bytes]:
    files = {name: (_PACKAGE / name).read_bytes() for name in _JAIL_FILES}
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
