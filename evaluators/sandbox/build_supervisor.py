"""The first process of a build's jail: runs pip, passes on what it asks of the index, and hands over what it installed.

pip, and what it may run, reach nothing but this process: connections are ends of socket pairs, of which only `GET PATH`
is understood and passed to the host over the one stream (`build_wire.py`). When pip has ended everything else in the
jail is killed, so that nothing changes while the files are sent. What is sent is checked by the host all the same.
"""

# ruff: noqa: PTH114, PTH118 - runs in the jail, which does without pathlib
from __future__ import annotations

import array
import json
import os
import resource
import select
import signal
import socket
import stat
import sys
from contextlib import suppress
from typing import NoReturn

from evaluators.sandbox.build_bridge import CHANNEL_VARIABLE
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
)
from evaluators.sandbox.line import read_exactly, settings_from_host, write_all
from evaluators.sandbox.wire import CHANNEL, LENGTH

_INDEX = CHANNEL + 1  # descriptor of the channel to this process, in pip's
_RUN_PIP = "import sys, runpy; sys.path.insert(0, sys.argv.pop(1)); runpy.run_module('pip', None, '__main__', True)"
_CHUNK = 32 << 10
_MOST_CONNECTIONS = 32
_MOST_REQUEST = 16 << 10
_SEND_SECONDS = 30.0
_LOOK_MILLISECONDS = 20
_REASONS = {200: "OK", 404: "Not Found", 405: "Method Not Allowed", 429: "Too Many Requests", 502: "Bad Gateway"}


def main() -> None:
    """Say that the jail is up, install, hand over, leave."""
    settings = settings_from_host(guest=sys.argv.pop() == "gvisor")
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # PID 1 is immune to signals from inside only without handlers
    told = json.dumps({"load_error": ""}).encode()
    write_all(CHANNEL, [memoryview(LENGTH.pack(len(told)) + told)])
    status = _Build(settings).run()
    _frame(ENDED, STATUS.pack(status))
    if status == 0:
        _hand_over(settings["build"]["target"])
    _frame(DONE)
    _read(1)  # the host closes the stream
    os._exit(0)


class _Build:
    """One run of pip."""

    def __init__(self, settings: dict) -> None:
        self.settings = settings
        self.index, self.far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.connections: dict[int, socket.socket] = {}
        self.asked: dict[int, bytes] = {}
        self.poller = select.poll()

    def run(self) -> int:
        """Until pip has ended; its wait status."""
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                self._become_pip(writing)
            finally:
                os._exit(126)
        os.close(writing)
        self.far.close()
        self.poller.register(CHANNEL, 0)  # hang-up only
        for handle in (reading, self.index.fileno()):
            self.poller.register(handle, select.POLLIN)
        while not os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            ready = [handle for handle, _ in self.poller.poll(_LOOK_MILLISECONDS)]
            if CHANNEL in ready:
                self._give_up(pid)
            if reading in ready and not _forward(reading):
                self.poller.unregister(reading)
            if self.index.fileno() in ready:
                self._accept()
            for handle in ready:
                if handle in self.connections:
                    self._serve(handle)
        status = self._end_all(pid)
        while _forward(reading):
            pass
        return status

    def _become_pip(self, writing: int) -> NoReturn:
        build, limits = self.settings["build"], self.settings["limits"]
        os.setpgid(0, 0)
        nothing = os.open("/dev/null", os.O_RDONLY)
        far = os.dup(self.far.fileno())
        for source, target in ((nothing, 0), (writing, 1), (writing, 2), (far, _INDEX)):
            os.dup2(source, target)
        os.close(CHANNEL)
        os.closerange(_INDEX + 1, 256)
        cpu = limits["whole_cpu_seconds"]
        resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu))
        if self.settings["guarded"]:
            from evaluators.sandbox import seccomp  # noqa: PLC0415 - only where there is no pid namespace

            seccomp.install(seccomp.spare(os.getppid()))
        environment = {**os.environ, "PYTHONPATH": build["bridge"], "PYTHONNOUSERSITE": "1",
                       "PIP_CONFIG_FILE": "/dev/null", CHANNEL_VARIABLE: str(_INDEX)}  # fmt: skip
        command = [sys.executable, "-P", "-s", "-c", _RUN_PIP, build["pip"], *build["arguments"]]
        os.execve(command[0], command, environment)  # noqa: S606

    def _accept(self) -> None:
        """Take a connection that was handed over."""
        size = array.array("i").itemsize
        try:
            _, ancillary, _, _ = self.index.recvmsg(1, socket.CMSG_LEN(size))
        except OSError:
            return
        for level, kind, data in ancillary:
            if (level, kind) != (socket.SOL_SOCKET, socket.SCM_RIGHTS) or len(data) < size:
                continue
            handle = array.array("i", data[:size])[0]
            if len(self.connections) >= _MOST_CONNECTIONS or not stat.S_ISSOCK(os.fstat(handle).st_mode):
                os.close(handle)
                continue
            connection = socket.socket(fileno=handle)
            connection.settimeout(_SEND_SECONDS)
            self.connections[handle], self.asked[handle] = connection, b""
            self.poller.register(handle, select.POLLIN)

    def _serve(self, handle: int) -> None:
        """Read on; answer a request that is whole."""
        connection = self.connections[handle]
        try:
            more = connection.recv(_MOST_REQUEST, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            more = b""
        self.asked[handle] += more
        if not more or len(self.asked[handle]) > _MOST_REQUEST:
            self._drop(handle)
            return
        head, mark, rest = self.asked[handle].partition(b"\r\n\r\n")
        if mark:
            self.asked[handle] = rest
            if not self._answer(connection, head):
                self._drop(handle)

    def _answer(self, connection: socket.socket, head: bytes) -> bool:
        """One request; False where the connection is of no more use."""
        method, _, rest = head.partition(b"\r\n")[0].partition(b" ")
        path = rest.partition(b" ")[0]
        if method != b"GET" or not path.startswith(b"/") or len(path) > 2048:
            return _sent(connection, _head(405, "text/plain", 0)) and False
        _frame(FETCH, path)
        kind, payload = _taken()
        if kind != HEAD:
            os._exit(0)  # out of step
        status, length = ANSWER.unpack_from(payload)
        alive = _sent(connection, _head(status, payload[ANSWER.size :].decode(), length))
        while kind not in (LAST, BROKEN):
            kind, payload = _taken()
            if kind == BODY and alive:
                alive = _sent(connection, payload)
        return alive and kind == LAST and length >= 0

    def _drop(self, handle: int) -> None:
        self.poller.unregister(handle)
        del self.asked[handle]
        self.connections.pop(handle).close()

    def _give_up(self, pid: int) -> NoReturn:
        """The host went away: so does everything here."""
        self._end_all(pid)
        os._exit(0)

    def _end_all(self, pid: int) -> int:
        """Kill and reap all that is left in the jail; the wait status of `pid`."""
        status = 0
        while True:
            with suppress(ProcessLookupError, PermissionError):
                if self.settings["owns_all"]:  # -1: all of this namespace, Landlock domain or uid, but this process
                    os.kill(-1, signal.SIGKILL)
                else:
                    os.killpg(pid, signal.SIGKILL)
            try:
                found, raw = os.waitpid(-1, 0)
            except ChildProcessError:
                return status
            if found == pid:
                status = raw


def _forward(reading: int) -> bool:
    """Pass on what was printed; False at its end."""
    part = os.read(reading, _CHUNK)
    if part:
        _frame(PRINTED, part)
    return bool(part)


def _head(status: int, kind: str, length: int) -> bytes:
    more = f"Content-Length: {length}\r\n" if length >= 0 else "Connection: close\r\n"
    return f"HTTP/1.1 {status} {_REASONS.get(status, 'Answer')}\r\nContent-Type: {kind}\r\n{more}\r\n".encode()


def _sent(connection: socket.socket, content: bytes) -> bool:
    try:
        connection.sendall(content)
    except OSError:  # whoever asked went away, or does not read
        return False
    return True


def _hand_over(target: str) -> None:
    """Every plain file below `target`; anything else is named as strange."""
    top = os.fsencode(target)
    for folder, folders, files in os.walk(top):
        for name in [*(name for name in folders if os.path.islink(os.path.join(folder, name))), *files]:
            path = os.path.join(folder, name)
            _send_file(path, path[len(top) + 1 :])


def _send_file(path: bytes, inner: bytes) -> None:
    about = os.lstat(path)
    if not stat.S_ISREG(about.st_mode):
        _frame(STRANGE, inner[: MOST - 1])
        return
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    when = min(max(int(about.st_mtime), 0), 0xFFFFFFFF)
    _frame(FILE, ABOUT.pack(about.st_size, when, bool(about.st_mode & stat.S_IXUSR)) + inner)
    while part := os.read(handle, _CHUNK):
        _frame(PART, part)
    os.close(handle)


def _taken() -> tuple[bytes, bytes]:
    kind, size = FRAME.unpack(_read(FRAME.size))
    return kind, _read(size)


def _frame(kind: bytes, payload: bytes = b"") -> None:
    write_all(CHANNEL, [memoryview(FRAME.pack(kind, len(payload))), memoryview(payload)])


def _read(size: int) -> bytes:
    found = read_exactly(CHANNEL, size)
    if found is None:
        os._exit(0)  # the host went away
    return found
