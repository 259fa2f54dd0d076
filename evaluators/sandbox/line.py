"""The supervisor's part of an evaluation's line to the judge, and how the stream to the host is read and written.

One question at a time, passed on through buffers that are zeroed: no row may find what an earlier one asked.
"""

from __future__ import annotations

import json
import os
import select
import time
from contextlib import suppress
from typing import Any

from evaluators.sandbox.wire import ASK, CHANNEL, LENGTH, REPLY_BYTES, REPORT

_REFUSED_TOO = 4  # times the questions that are answered may be asked; beyond that nobody listens


class Line:
    """One evaluation's. jail: the supervisor, for its poller, limits and buffers. pipes: none, or two as `os.pipe`."""

    def __init__(self, jail: Any, pipes: tuple, rows: int) -> None:
        self.jail = jail
        self.asking = self.answering = -1
        self.left = jail.limits["host_calls"] * rows * _REFUSED_TOO
        self.held = 0
        self.since = 0.0  # when the host was asked; 0 = nothing is
        if pipes:
            (self.asking, writing), (reading, self.answering) = pipes
            os.close(writing)
            os.close(reading)
            os.set_blocking(self.answering, False)
            jail.poller.register(self.asking, select.POLLIN)
        self.listening = bool(pipes)

    @property
    def waiting(self) -> bool:
        """True while the host owes an answer."""
        return self.since > 0

    def pass_question(self, place: int) -> None:
        """Take what has come; a whole line goes to the host. Who says more than one line is not listened to again."""
        buffer = self.jail.question
        count = os.readv(self.asking, [memoryview(buffer)[self.held :]])
        self.held += count
        ends = buffer.count(b"\n", 0, self.held)
        if count and not ends and self.held < len(buffer):
            return
        self._listen(False)
        if ends == 1 and buffer[self.held - 1] == b"\n"[0]:
            view = memoryview(buffer)[: self.held]
            write_all(CHANNEL, [memoryview(REPORT.pack(ASK, 0, place, 0, 0, self.held, 0, 0)), view])
            self.since = time.monotonic()
            self.left -= 1
            self.jail.poller.modify(CHANNEL, select.POLLIN)
        buffer[: self.held] = self.jail.zeros[: self.held]
        self.held = 0

    def pass_answer(self) -> float:
        """Hand the host's answer on; the seconds it took."""
        size = self._answer()
        view = memoryview(self.jail.answer)[:size]
        with suppress(OSError):  # the child is gone, or does not read what it asked for
            os.write(self.answering, view)
        view[:] = self.jail.zeros[:size]
        took, self.since = time.monotonic() - self.since, 0.0
        self.jail.poller.modify(CHANNEL, 0)
        if self.left > 0:
            self._listen(True)
        return took

    def hang_up(self) -> None:
        """Nobody asks any more. An answer that is under way is waited for: the stream must stay in step."""
        if self.waiting:
            size = self._answer()
            self.jail.answer[:size] = self.jail.zeros[:size]
            self.since = 0.0
            self.jail.poller.modify(CHANNEL, 0)
        self._listen(False)

    def close(self) -> None:
        """Once every process of the evaluation is dead."""
        if self.asking >= 0:
            os.close(self.asking)
            os.close(self.answering)

    def _answer(self) -> int:
        header = read_exactly(CHANNEL, LENGTH.size)
        size = LENGTH.unpack(header)[0] if header else REPLY_BYTES + 1
        if size > REPLY_BYTES:
            os._exit(0)  # the host went away
        view = memoryview(self.jail.answer)[:size]
        while view:
            count = os.readv(CHANNEL, [view])
            if not count:
                os._exit(0)
            view = view[count:]
        return size

    def _listen(self, on: bool) -> None:
        if on != self.listening:
            if on:
                self.jail.poller.register(self.asking, select.POLLIN)
            else:
                self.jail.poller.unregister(self.asking)
            self.listening = on


def settings_from_host(*, guest: bool) -> dict[str, Any]:
    """What the first process of a jail is for, as the host says it. guest: in a kernel of its own, which the launcher
    on the host could not prepare."""
    if guest:
        os.dup2(0, CHANNEL)
    (size,) = LENGTH.unpack(read_exactly(CHANNEL, LENGTH.size) or os._exit(0))
    settings = json.loads(read_exactly(CHANNEL, size) or os._exit(0))
    if guest:
        from evaluators.sandbox.guest import settle  # noqa: PLC0415 - only there

        settle(settings["limits"])
    return settings


def read_exactly(handle: int, size: int) -> bytes | None:
    found = b""
    while len(found) < size:
        more = os.read(handle, size - len(found))
        if not more:
            return None
        found += more
    return found


def write_all(handle: int, views: list[memoryview]) -> None:
    while views:
        try:
            sent = os.writev(handle, views)
        except OSError:
            os._exit(0)  # the host went away
        while views and sent >= len(views[0]):
            sent -= len(views.pop(0))
        if views and sent:
            views[0] = views[0][sent:]
