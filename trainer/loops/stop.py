"""A request to stop, made by a signal and heard by a loop between two steps."""

from __future__ import annotations

import signal
from types import FrameType


class Stop:
    """`requested` turns true at the first SIGTERM or SIGINT; further ones change nothing, so a save is never cut."""

    def __init__(self) -> None:
        self.requested = False

    def listen(self) -> Stop:
        """Hear SIGTERM and SIGINT from now on."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._hear)
        return self

    def ignore(self) -> None:
        """Hear nothing more: what was to be done is done, and a signal must not end the process in another way."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
