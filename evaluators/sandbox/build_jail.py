"""The host's side of a build: a jail as evaluators have it, in which pip installs to a large scratch folder.

The one decision: the jail of a build has no network either, nor sockets. What pip asks of the index comes over the
jail's one stream as a path, and is answered by the host (`Answers`); what it installed comes as files, which the host
checks and writes itself (`Receives`). Nothing of the jail's file system is ever opened by the host.
"""

from __future__ import annotations

import contextlib
import os
import select
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from evaluators.protocol import Limits, Program, Tier
from evaluators.sandbox import memory
from evaluators.sandbox.build_wire import (
    ABOUT,
    ANSWER,
    BODY,
    BROKEN,
    DONE,
    ENDED,
    FETCH,
    FILE,
    FRAME,
    HEAD,
    LAST,
    MOST,
    PART,
    PRINTED,
    STATUS,
    STRANGE,
    Answer,
)
from evaluators.sandbox.interpreter import interpreter
from evaluators.sandbox.jail import OWN, Jail, JailError

_RELEASES = ["/etc/os-release", "/usr/lib/os-release", "/etc/lsb-release", "/etc/debian_version"]  # pip looks there
_LOOK_SECONDS = 0.1
_HERE = Path(__file__).parent
_ADDED = ("build_supervisor.py", "build_wire.py", "build_bridge.py")
_BRIDGE = "sandbox/bridge"
_INDEX_URL = "http://localhost/simple"  # pip takes plain http from this name alone; it leads to the first process


class BuildStopped(Exception):
    """A build was given up; the message says why, for people."""


class Answers(Protocol):
    """The index as a build may see it."""

    def answer(self, path: str) -> Answer:
        """To GET `path`. The parts may raise `OSError`: the answer then breaks off."""
        ...


class Receives(Protocol):
    """Takes what was installed. Each raises `BuildStopped` for what it refuses."""

    def begin(self, path: bytes, size: int, modified: int, executable: bool) -> None:
        """A file, of so many bytes."""
        ...

    def add(self, content: bytes) -> None:
        """The next bytes of the file that was begun."""
        ...

    def end(self) -> None:
        """There are no more files."""
        ...


@dataclass(frozen=True)
class BuildLimits:
    """What a build may use. seconds: wall, and CPU of each process. most_bytes: of the folder that it installs to, with
    what is downloaded and unpacked on the way; in memory, where there are namespaces. process_bytes: address space."""

    seconds: float = 600.0
    most_bytes: int = 2 << 30
    most_files: int = 100_000
    process_bytes: int = 1 << 30
    processes: int = 64
    printed_bytes: int = 16 << 20


class BuildJail(Jail):
    """A jail for one run of pip. pip: the folder of the package `pip`, or a wheel of it."""

    def __init__(self, requirements: dict[str, bytes], pip: Path, limits: BuildLimits, *, tier: Tier,
                 launcher: str = OWN) -> None:  # fmt: skip
        """requirements: `requirements.txt`, maybe `constraints.txt`. Raises `JailError` when it does not come up."""
        self._pip, self._most = pip, limits
        each = Limits(
            wall_seconds=limits.seconds, cpu_seconds=limits.seconds, processes=limits.processes, descriptors=256,
            memory_bytes=limits.process_bytes + limits.most_bytes, scratch_bytes=limits.most_bytes,
            scratch_inodes=limits.most_files,
        )  # fmt: skip
        python = interpreter(None).executable  # the one that evaluators will have, or none
        program = Program(requirements, "requirements.txt::pip", python=python, readable=(str(pip),))
        super().__init__(program, each, tier=tier, mode="build", launcher=launcher)

    def _own_files(self) -> dict[str, bytes]:
        added = {f"sandbox/{name}": (_HERE / name).read_bytes() for name in _ADDED}
        return super()._own_files() | added | {f"{_BRIDGE}/sitecustomize.py": (_HERE / "build_bridge.py").read_bytes()}

    def _setup(self, program: Program, mode: str) -> tuple[dict[str, Any], dict[str, bytes]]:
        setup, blobs = super()._setup(program, mode)
        setup["first"] = "build_supervisor"
        home, scratch, supervisor = setup["home"], setup["scratch"], setup["supervisor"]
        supervisor["limits"] = {**supervisor["limits"], "memory_bytes": self._most.process_bytes}
        if self.way == "folder":
            setup["pretends"] = True  # pip insists on modes, which are not its to set there and do not leave the jail
            setup["landlock"] += _RELEASES if setup["landlock"] else []
        target = f"{scratch}/packages"
        arguments = ["install", "--isolated", "--no-input", "--no-color", "--disable-pip-version-check",
                     "--no-cache-dir", "--progress-bar", "off", "--no-warn-script-location", "--retries", "0",
                     "--timeout", "600", "--index-url", _INDEX_URL, "--target", target]  # fmt: skip
        for option, name in (("--requirement", "requirements.txt"), ("--constraint", "constraints.txt")):
            arguments += [option, f"{supervisor['program']}/{name}"] if name in program.files else []
        supervisor["build"] = {"pip": str(self._pip if self._pip.is_file() else self._pip.parent), "target": target,
                               "bridge": f"{home}/evaluators/{_BRIDGE}", "arguments": arguments}  # fmt: skip
        return setup, blobs

    def install(
        self, index: Answers, tree: Receives, *, printed: Callable[[bytes], object], check: Callable[[], None]
    ) -> int:
        """Run pip to its end, and take over what it installed; its wait status. check: called now and then.

        Raises `BuildStopped` (also from `check`) and `JailError`; the jail is then ended.
        """
        status, said = -1, 0
        try:
            while True:
                kind, payload = self._frame(check)
                if kind == FETCH:
                    self._serve(index.answer(payload.decode("utf-8", "replace")), check)
                elif kind == PRINTED:
                    said += len(payload)
                    if said > self._most.printed_bytes:
                        raise BuildStopped(f"pip printed more than {self._most.printed_bytes:,} bytes")
                    printed(payload)
                elif kind == ENDED:
                    (status,) = STATUS.unpack(payload)
                    check()  # pip may have failed for want of what was stopped
                elif kind == DONE:
                    if status == 0:
                        tree.end()
                    return status
                else:
                    _received(tree, kind, payload)
        except (ValueError, OSError, struct.error, memory.TooMuch) as error:
            self.close()
            if isinstance(error, memory.TooMuch) or self._killed_at_end:
                raise BuildStopped("the build took more memory than it may") from None
            raise JailError(f"the jail of the build died or is out of step: {error}") from error
        except BaseException:
            self.close()
            raise

    def _serve(self, answer: Answer, check: Callable[[], None]) -> None:
        length = -1 if answer.length is None else answer.length
        self._send(HEAD, ANSWER.pack(answer.status, length) + answer.kind.encode("ascii", "replace")[:100], check)
        try:
            for part in answer.parts:
                for start in range(0, len(part), MOST):
                    self._send(BODY, part[start : start + MOST], check)
        except _Gone:
            raise
        except OSError:
            self._send(BROKEN, b"", check)  # the index broke off, and has said so in the log
            return
        self._send(LAST, b"", check)

    def _frame(self, check: Callable[[], None]) -> tuple[bytes, bytes]:
        kind, size = FRAME.unpack(self._take(FRAME.size, check))
        if size > MOST:
            raise ValueError(f"a frame of {size} bytes")
        return kind, self._take(size, check)

    def _take(self, size: int, check: Callable[[], None]) -> bytes:
        found = bytearray()
        while len(found) < size:
            if not select.select([self.socket], [], [], _LOOK_SECONDS)[0]:
                self._look(check)
                continue
            part = self.socket.recv(size - len(found))
            if not part:
                raise _Gone("the stream ended")
            found += part
        return bytes(found)

    def _send(self, kind: bytes, payload: bytes, check: Callable[[], None]) -> None:
        left = memoryview(FRAME.pack(kind, len(payload)) + payload)
        self.socket.settimeout(_LOOK_SECONDS)
        while left:
            try:
                left = left[self.socket.send(left) :]
            except TimeoutError:
                self._look(check)
            except OSError as error:
                raise _Gone(str(error)) from None

    def _look(self, check: Callable[[], None]) -> None:
        """What is looked at while nothing comes."""
        check()
        if self.cgroup is None:
            self._check_memory()
        if self.folder and self.way == "folder" and _size(self.folder) > self._most.most_bytes:
            raise BuildStopped(f"the packages take more than {self._most.most_bytes:,} bytes")


class _Gone(OSError):
    """The jail's end of the stream is closed."""


def _received(tree: Receives, kind: bytes, payload: bytes) -> None:
    if kind in (FILE, PART):
        try:
            _stored(tree, kind, payload)
        except OSError as error:
            raise JailError(f"the packages cannot be stored: {error}") from error
    elif kind == STRANGE:
        shown = payload[:200].decode("utf-8", "backslashreplace")
        raise BuildStopped(f"the packages hold {shown!r}, which is no plain file; links and devices are refused")
    else:
        raise ValueError(f"a frame of unknown kind {kind!r}")


def _stored(tree: Receives, kind: bytes, payload: bytes) -> None:
    if kind == FILE:
        size, modified, executable = ABOUT.unpack_from(payload)
        tree.begin(payload[ABOUT.size :], size, modified, bool(executable))
    else:
        tree.add(payload)


def _size(folder: str) -> int:
    """Bytes below a folder of the host, for tiers whose scratch folder is one."""
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):  # pip moves its files about
                total += os.lstat(f"{root}/{name}").st_size
    return total
