"""A worker that is started again when it hung, for whoever waits for it here: the command line's runs and sweeps.

It behaves like the process it stands for. Only a hang is answered by another attempt, from the newest checkpoint and a
few times: a worker that fails says why, and whoever typed the command is there to read it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from trainer.launch import here
from trainer.launch.beat import BEAT_SECONDS, BEAT_VARIABLE, MISSED, beat_of
from trainer.launch.status import EXIT_HUNG
from trainer.silence import Silence

MAX_ATTEMPTS = 3
_LOOK_SECONDS = 0.2


class Supervised:
    """The worker of `folder`, started here. say: told when it is started again, and why."""

    def __init__(
        self,
        folder: Path,
        *,
        env: dict[str, str] | None = None,
        log: Path | None = None,
        say: Callable[[str], None] = print,
        command: tuple[str, ...] = here.COMMAND,
        attempts: int = MAX_ATTEMPTS,
    ) -> None:
        self._folder, self._env, self._log, self._say = folder, env, log, say
        self._command, self._attempts, self._attempt = command, attempts, 1
        seconds = {**os.environ, **(env or {})}.get(BEAT_VARIABLE)
        self._beat_seconds = float(seconds or BEAT_SECONDS)
        self._asked_to_stop = False
        self.process = self._start()

    def poll(self) -> int | None:
        """The exit status, once no other attempt follows; None until then."""
        status, silent = self.process.poll(), False
        if status is None and (sign := beat_of(self._folder)) is not None:
            silent = self._silence.after(sign) >= MISSED * self._beat_seconds
            if silent:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()
                status = EXIT_HUNG
        if status != EXIT_HUNG or self._asked_to_stop:
            return status
        why = f"no sign of life for {MISSED * self._beat_seconds:g} s" if silent else "a stage was past its deadline"
        if self._attempt == self._attempts:
            self._say(f"the worker hung ({why}) for the {self._attempts}. time; it is not started again")
            return status
        self._attempt += 1
        self._say(
            f"the worker hung ({why}): attempt {self._attempt} of {self._attempts} goes on from the newest checkpoint"
        )
        self.process = self._start()
        return None

    def wait(self) -> int:
        """The exit status, when all attempts are over."""
        while (status := self.poll()) is None:
            try:
                self.process.wait(_LOOK_SECONDS)
            except subprocess.TimeoutExpired:
                continue
        return status

    def terminate(self) -> None:
        """SIGTERM to the worker, which saves and pauses; no other attempt follows."""
        self._asked_to_stop = True
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)

    def _start(self) -> subprocess.Popen[bytes]:
        self._silence = Silence(self._beat_seconds / 2)
        deadline = time.monotonic() + 1.0
        while (worker := here.find(self._folder)) is not None and worker.alive and time.monotonic() < deadline:
            time.sleep(0.02)  # what a killed worker has forked goes a moment after it
        return here.start(self._folder, env=self._env, log=self._log, command=self._command)
