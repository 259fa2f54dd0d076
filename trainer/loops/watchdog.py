"""A hung stage is named: a thread that knows what the run is doing and since when, and says so when it takes too long.

The loop enters a stage (`with watchdog.stage("a step"):`); past the stage's deadline the thread writes `hang.txt`, with
the stage, how long it has taken and the stacks of all threads, and logs it. Then, by policy, it goes on waiting, or
ends the process with status 76, so that whoever supervises it starts it again from the newest checkpoint.
Not guaranteed: a call that never lets go of Python's lock also stops this thread, and SIGSTOP stops the whole process;
both need a watcher outside.
"""

from __future__ import annotations

import faulthandler
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from trainer.launch.status import EXIT_HUNG
from trainer.runs import WatchdogSettings

HANG_FILE = "hang.txt"
READING, LOADING, REFERENCE, STEP, EVALUATION, SAVE, HAND_OVER = (
    "reading the rows", "loading the model", "a reference pass", "a step", "an evaluation", "a save", "the hand-over",
)  # fmt: skip
_LAST_WORDS_SECONDS = 5.0  # the reporter may be what hangs


@dataclass(eq=False)
class _Stage:
    name: str
    started: float
    deadline: float  # seconds after `started`; infinite where there is none
    told: bool = False


class Watchdog:
    """Watches the stages of one run. `say` gets one line for people; `end` ends the process (policy stop)."""

    def __init__(
        self,
        settings: WatchdogSettings,
        folder: Path,
        *,
        say: Callable[[str], None],
        end: Callable[[int], None] = os._exit,
    ) -> None:
        self._settings, self._path, self._say, self._end = settings, folder / HANG_FILE, say, end
        self._seconds = {
            READING: settings.reading_seconds, LOADING: settings.loading_seconds, STEP: settings.step_seconds,
            REFERENCE: settings.evaluation_seconds, EVALUATION: settings.evaluation_seconds,
            SAVE: settings.save_seconds, HAND_OVER: settings.save_seconds,
        }  # fmt: skip
        self._changed = threading.Condition()
        self._stages: list[_Stage] = []
        self._closed = False
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """The run is in stage `name` now; within another stage, that one's time stands still."""
        entered = _Stage(name, time.monotonic(), self._seconds[name] or float("inf"))
        with self._changed:
            self._stages.append(entered)
            self._changed.notify()
        try:
            yield
        finally:
            with self._changed:
                self._stages.remove(entered)
                took = time.monotonic() - entered.started
                for outer in self._stages:
                    outer.started += took
                self._changed.notify()

    def close(self) -> None:
        """No more stages follow."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _watch(self) -> None:
        with self._changed:
            while not self._closed:
                now = time.monotonic()
                stage = self._stages[-1] if self._stages else None
                if stage is None or stage.told or stage.deadline == float("inf"):
                    self._changed.wait()
                elif now - stage.started < stage.deadline:
                    self._changed.wait(stage.deadline - (now - stage.started))
                else:
                    stage.told = True
                    self._tell(stage, now - stage.started)

    def _tell(self, stage: _Stage, seconds: float) -> None:
        stop = self._settings.policy == "stop"
        words = (
            f"{stage.name} has taken {seconds:.1f} s, its deadline is {stage.deadline:g} s; "
            f"{'the process is ended' if stop else 'it is waited for'}"
        )
        with self._path.open("w", encoding="utf-8") as stream:
            stream.write(f"{words}\n\n")
            stream.flush()
            faulthandler.dump_traceback(file=stream, all_threads=True)
        line = f"watchdog: {words} (stacks of all threads: {self._path})"
        speaker = threading.Thread(target=self._say, args=(line,), name="watchdog-says", daemon=True)
        speaker.start()
        speaker.join(_LAST_WORDS_SECONDS)
        if stop:
            self._end(EXIT_HUNG)
