"""Standard output and error that may go away: a closed pipe, a lost terminal, a full disk behind a redirection.

The one decision: what is shown is never what counts (that stands in files), so a stream that cannot be written to any
more goes silent, and whatever writes to it goes on. Letters that its encoding lacks are written as escapes.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, TextIO


class Steady:
    """A text stream that goes silent at its first error, and is the stream itself in all else."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._silent = stream, False

    def write(self, text: str) -> int:
        """Write, or say nothing more."""
        try:
            return len(text) if self._silent else self._stream.write(text)
        except UnicodeEncodeError:
            encoding = self._stream.encoding
            return self.write(text.encode(encoding, "backslashreplace").decode(encoding))
        except OSError:
            self._go_silent()
            return len(text)

    def flush(self) -> None:
        """Flush, or say nothing more."""
        try:
            self._stream.flush()
        except OSError:
            self._go_silent()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _go_silent(self) -> None:
        """What is still in the stream's buffer goes nowhere, so that the end of the process is no error either."""
        self._silent = True
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)


def steady() -> None:
    """Make this process's standard streams steady. A closed one is opened to nowhere: else the next file that is
    opened would get its number, and a child process would write its output into that file."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)  # the lowest number that is free: this one
            assert opened == number
            os.set_inheritable(number, True)
    for name in ("stdout", "stderr"):
        stream: TextIO | None = getattr(sys, name)
        if stream is None:
            stream = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115  (to the end of the process)
        setattr(sys, name, Steady(stream))
