"""The jail's first process: forks one child per evaluation, ends everything the child left, forwards its bytes.

It never runs user code and never holds a row: the child reads its rows from the stream itself, and what it answers
passes through fixed buffers that are zeroed. It reports raw facts; what they mean is decided by the host
(`verdict.py`). Only small modules of the standard library, so that a fork stays cheap.
"""

from __future__ import annotations

import _socket
import gc
import importlib
import json
import os
import select
import signal
import sys
import time
from contextlib import suppress
from typing import NoReturn

from evaluators.sandbox import child, host, scratch
from evaluators.sandbox.line import Line, read_exactly, settings_from_host, write_all
from evaluators.sandbox.wire import (
    ACKNOWLEDGE,
    ACKNOWLEDGED,
    CANNOT_FORK,
    CHANNEL,
    DATA,
    END,
    LAST_ACT,
    LATE,
    LENGTH,
    ORDER,
    OUTPUT_FLOOD,
    REPLY_BYTES,
    REPORT,
    REQUEST_BYTES,
    RESULT_FLOOD,
    result_bytes,
)  # fmt: skip

_CHUNK = 32 << 10
_COMPILE_SECONDS = 2.0  # at least, however little a row may take
_PATIENCE = 1.0  # seconds between looks while the host answers
_LOOK = 0.005  # seconds between looks at the child where there are no pidfds


def main() -> None:
    """Load the program, say so, then serve orders until the host closes the stream."""
    settings = settings_from_host(guest=sys.argv.pop() == "gvisor")
    null = os.open("/dev/null", os.O_RDWR)
    for handle in (1, 2):  # until here the host listened to what a failing start says
        os.dup2(null, handle)
    os.close(null)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # PID 1 is immune to signals from inside only without handlers
    supervisor = _Supervisor(settings)
    try:
        told: dict[str, object] = {"load_error": supervisor.load()}
    except OSError as error:  # the user may have no further process
        told = {"failed": str(error), "errno": error.errno}
    scratch.wipe(supervisor.scratch, owned=supervisor.alone)  # the first row finds what all the others do
    del sys.path[0]
    for name in [name for name in sys.modules if name.partition(".")[0] == "evaluators"]:
        del sys.modules[name]  # a program may bring a package of that name
    text = json.dumps(told).encode()
    os.write(CHANNEL, LENGTH.pack(len(text)) + text)
    gc.collect()
    gc.freeze()
    gc.disable()
    while supervisor.serve():
        pass
    os._exit(0)


class _Supervisor:
    """Pipes, buffers and the compiled program of one jail."""

    def __init__(self, settings: dict) -> None:
        self.settings = settings
        self.limits = settings["limits"]
        self.scratch = settings["scratch"]
        self.alone = settings["namespaces"]
        self.code = None
        self.poller = select.poll()
        self.poller.register(CHANNEL, 0)  # hang-up only
        self.result = bytearray(_CHUNK)
        self.stdout = bytearray(self.limits["stdout_kept_bytes"])
        self.stderr = bytearray(self.limits["stdout_kept_bytes"])
        self.junk = bytearray(_CHUNK)
        self.question = bytearray(REQUEST_BYTES if self.limits["host_calls"] else 0)
        self.answer = bytearray(REPLY_BYTES if self.limits["host_calls"] else 0)
        self.zeros = bytes(max(_CHUNK, len(self.stdout), len(self.question)))

    def load(self) -> str:
        """Compile in a limited child first, then here; returns what is wrong, or an empty text."""
        if self.settings["guarded"]:
            from evaluators.sandbox import seccomp  # noqa: PLC0415 - only where the supervisor can be signalled

            self.settings["guard"] = seccomp.install, seccomp.spare(os.getpid())
        for name in self.settings["preload"]:
            with suppress(Exception, SystemExit):  # the child meets the same error, and reports it
                importlib.import_module(name)
        if self.settings["mode"] == "code":
            return ""
        self.settings["host"] = host
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(CHANNEL)
            child.try_compile(self.settings, writing)
        os.close(writing)
        problem = self._listen(reading, time.monotonic() + max(self.limits["wall_seconds"], _COMPILE_SECONDS))
        os.close(reading)
        self._end_all(pid)
        if problem != "ok":
            return problem or "compiling it took too much time or memory"
        self.code = child.compile_entry(self.settings)
        return ""

    def _listen(self, reading: int, deadline: float) -> str:
        said = b""
        while len(said) < 1024:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([reading], [], [], left)[0]:
                return ""
            more = os.read(reading, 1024)
            if not more:
                break
            said += more
        return said.decode("utf-8", "replace")

    def serve(self) -> bool:
        """One order. False when the host went away or the jail must not be used again."""
        order = read_exactly(CHANNEL, ORDER.size)
        if order is None:
            return False
        fields = ORDER.unpack(order)
        rows, _, wall, total, *_ = fields
        pipes = os.pipe(), os.pipe(), os.pipe()
        asking = (os.pipe(), _answers()) if self.limits["host_calls"] else ()
        started = time.monotonic()
        try:
            pid = os.fork()
        except OSError:
            self._report(CANNOT_FORK | LAST_ACT, 0, 0.0, 0.0, (0, 0, 0))
            return False
        if pid == 0:
            child.main(self.settings, self.code, (pipes, asking), fields)
        for _, writing in pipes:
            os.close(writing)
        evaluation = _Evaluation(self, [reading for reading, _ in pipes], rows, Line(self, asking, rows))
        flags = evaluation.watch(pid, started + wall / 1000, started + total / 1000, wall / 1000)
        status, cpu_used = self._end_all(pid)
        evaluation.drain()
        for reading, _ in pipes:
            os.close(reading)
        evaluation.line.close()
        flags |= evaluation.flags
        clean = scratch.wipe(self.scratch, owned=self.alone) and flags & ACKNOWLEDGED
        if not clean:
            flags |= LAST_ACT
        seconds = time.monotonic() - started
        self._report(flags, status, seconds, cpu_used, (evaluation.held, evaluation.kept[0], evaluation.kept[1]))
        return bool(clean)

    def _end_all(self, pid: int = 0) -> tuple[int, float]:
        """Kill and reap all that is left in the jail; the wait status and CPU seconds of `pid`."""
        status, cpu = 0, 0.0
        while True:
            with suppress(ProcessLookupError, PermissionError):
                # -1: all of this namespace, Landlock domain or uid, but for this process. Else the child's group, and
                # what had left that: it becomes this process's own when its parent ends.
                if self.settings["owns_all"]:
                    os.kill(-1, signal.SIGKILL)
                else:
                    for one in _children():
                        os.kill(one, signal.SIGKILL)
                    if pid:
                        os.killpg(pid, signal.SIGKILL)
            try:
                found, raw, usage = os.wait4(-1, 0)
            except ChildProcessError:
                return status, cpu
            cpu += usage.ru_utime + usage.ru_stime
            if found == pid:
                status = raw

    def _report(self, flags: int, status: int, seconds: float, cpu: float, sizes: tuple[int, int, int]) -> None:
        header = REPORT.pack(END, flags, status, int(seconds * 1e6), int(cpu * 1e6), *sizes)
        buffers = (self.result, self.stdout, self.stderr)
        views = [memoryview(buffer)[:size] for buffer, size in zip(buffers, sizes, strict=True)]
        write_all(CHANNEL, [memoryview(header), *views])
        for view in views:
            view[:] = self.zeros[: len(view)]

    def forward(self, held: int) -> None:
        """Send a full result buffer on before the report."""
        view = memoryview(self.result)[:held]
        write_all(CHANNEL, [memoryview(REPORT.pack(DATA, 0, 0, 0, 0, held, 0, 0)), view])
        view[:] = self.zeros[:held]

    def give_up(self, pid: int) -> NoReturn:
        """The host went away: so does everything here."""
        self._end_all(pid)
        os._exit(0)


def _answers() -> tuple[int, int]:
    """Both ends, as `os.pipe` has them. No pipe: those of a user who has many hold less than an answer."""
    writing, reading = _socket.socketpair()
    writing.shutdown(_socket.SHUT_RD)
    return reading.detach(), writing.detach()


def _children() -> list[int]:
    """This process's, as the kernel tells; none where it does not."""
    try:
        with open(f"/proc/self/task/{os.getpid()}/children") as told:  # noqa: PTH123 - pathlib is not loaded here
            return [int(one) for one in told.read().split()]
    except OSError:
        return []


class _Evaluation:
    """What one child says, while it lives and after."""

    def __init__(self, jail: _Supervisor, readings: list[int], rows: int, line: Line) -> None:
        self.jail = jail
        self.line = line
        self.readings = readings
        self.open = set(readings)
        self.held = self.total = self.printed = self.lines = self.flags = 0
        self.kept = [0, 0]
        self.allowed = result_bytes(rows, jail.limits["result_bytes"])

    def watch(self, pid: int, deadline: float, last: float, wall: float) -> int:
        """Until the child ends, is late, or floods. A finished row gives the next one its time.

        While the host answers a question no time passes for the evaluation.
        """
        poller, line = self.jail.poller, self.line
        ended = _pidfd(pid)
        for handle in (*self.readings, *([ended] if ended >= 0 else [])):
            poller.register(handle, select.POLLIN)
        flags = 0
        while not self.flags & (OUTPUT_FLOOD | RESULT_FLOOD):
            left = _PATIENCE if line.waiting else min(deadline, last) - time.monotonic()
            wait = left if ended >= 0 else min(left, _LOOK)
            ready = dict(poller.poll(max(wait, 0) * 1000))
            lines = self.lines
            pause = self._take(ready, pid)
            deadline, last = deadline + pause, last + pause
            if self.lines != lines:
                deadline = time.monotonic() + wall
            if ended in ready or (ended < 0 and _has_ended(pid)):
                break
            if not ready and left <= 0:
                flags = LATE
                break
        if ended >= 0:
            poller.unregister(ended)
            os.close(ended)
        for handle in self.open:
            poller.unregister(handle)
        line.hang_up()
        return flags

    def _take(self, ready: dict[int, int], pid: int) -> float:
        """Whatever is there to be read; the seconds that the host took for an answer."""
        for handle in self.readings:
            if handle in ready and not self.read(handle):
                self.jail.poller.unregister(handle)
        if CHANNEL in ready and not self.line.waiting:
            self.jail.give_up(pid)
        if CHANNEL in ready:
            return self.line.pass_answer()
        if self.line.asking in ready:
            self.line.pass_question(self.lines)
        return 0.0

    def drain(self) -> None:
        """The rest, after every writer is dead. A pipe need not end for that: its other end may lie in a message to
        nobody, until the kernel collects that."""
        for handle in list(self.open):
            os.set_blocking(handle, False)
            with suppress(BlockingIOError):
                while self.read(handle) and not self.flags & (OUTPUT_FLOOD | RESULT_FLOOD):
                    pass

    def read(self, handle: int) -> bool:
        """Take what is there; False at the end of the pipe."""
        if handle == self.readings[0]:
            count = self._read_result(handle)
        else:
            count = self._read_printed(handle, self.readings.index(handle) - 1)
        if not count:
            self.open.discard(handle)
        return bool(count)

    def _read_result(self, handle: int) -> int:
        if self.held == _CHUNK:
            self.jail.forward(self.held)
            self.held = 0
        buffer = self.jail.result
        count = os.readv(handle, [memoryview(buffer)[self.held :]])
        if count and not self.total and buffer[0] == ACKNOWLEDGE[0]:
            self.flags |= ACKNOWLEDGED
        self.lines += buffer.count(b"\n", self.held, self.held + count)
        self.held += count
        self.total += count
        if self.total > self.allowed:
            self.flags |= RESULT_FLOOD
        return count

    def _read_printed(self, handle: int, stream: int) -> int:
        kept = self.kept[stream]
        buffer = self.jail.stderr if stream else self.jail.stdout
        count = os.readv(handle, [memoryview(buffer)[kept:], memoryview(self.jail.junk)])
        self.kept[stream] = min(kept + count, len(buffer))
        self.printed += count
        if self.printed > self.jail.limits["stdout_bytes"]:
            self.flags |= OUTPUT_FLOOD
        return count


def _pidfd(pid: int) -> int:
    """A descriptor that can be read once the child has ended; -1 where the kernel has none (gVisor)."""
    try:
        return os.pidfd_open(pid)
    except OSError:
        return -1


def _has_ended(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
