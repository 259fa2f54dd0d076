"""A worker's sign of life: it touches `beat` in its run folder every few seconds, and whoever watches looks for that.

A watcher inside the worker cannot see that all of it stands still: stopped by a signal, or in a call that never lets go
of the interpreter's lock. The time of the file is compared with itself only, never with a clock, and silence is counted
by the watcher's own looks: a machine that slept does not make a worker look dead.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

BEAT_FILE = "beat"
BEAT_SECONDS = 20.0
BEAT_VARIABLE = "TRAINER_BEAT_SECONDS"  # in the worker's environment: how often
MISSED = 3  # beats, after which a worker counts as hung


@contextmanager
def beating(run_folder: Path) -> Iterator[None]:
    """Beat in a thread; the file is gone when the worker ends by itself."""
    file, ended = run_folder / BEAT_FILE, threading.Event()
    seconds = float(os.environ.get(BEAT_VARIABLE, BEAT_SECONDS))

    def beat() -> None:
        while not ended.wait(seconds):
            os.utime(file)  # needs no space on a full disk

    file.touch()
    thread = threading.Thread(target=beat, name="beat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        file.unlink(missing_ok=True)


def beat_of(run_folder: Path) -> int | None:
    """What changes with every beat; None where the worker has not begun to, or has ended."""
    try:
        return (run_folder / BEAT_FILE).stat().st_mtime_ns
    except FileNotFoundError:
        return None
