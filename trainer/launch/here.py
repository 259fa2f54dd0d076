"""Starts a run's worker as a process on this machine, in a session of its own, and stops it.

Secrets travel by the environment only. `worker.json` in the run folder names the process (pid and start time, so that a
pid used again by another program is not mistaken for it); whoever comes later can watch or stop it by that.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

WORKER_FILE = "worker.json"
COMMAND = (sys.executable, "-m", "trainer.worker")
_POLL_SECONDS = 0.05


@dataclass(frozen=True)
class Worker:
    """A worker process, perhaps not a child of this one."""

    pid: int
    started: str

    @property
    def alive(self) -> bool:
        """True while that very process runs (a zombie does not)."""
        return _start_time(self.pid) == self.started

    def stop(self, grace: float) -> None:
        """SIGTERM to its process group, and SIGKILL after `grace` seconds."""
        self._signal(signal.SIGTERM)
        deadline = time.monotonic() + grace
        while self.alive and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
        self._signal(signal.SIGKILL)

    def terminate(self) -> None:
        """SIGTERM to its process group; does not wait."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL to its process group; does not wait."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        if not self.alive:
            return
        try:
            os.killpg(self.pid, number)
        except ProcessLookupError:  # it ended between the look and the signal
            return


def start(
    run_folder: Path,
    *,
    env: dict[str, str] | None = None,
    log: Path | None = None,
    command: tuple[str, ...] = COMMAND,
) -> subprocess.Popen[bytes]:
    """Start `command` on `run_folder`; `env` is added to this process's environment.

    log: where its standard output and error are appended; None = they stay with this terminal.
    """
    full = [*command, str(run_folder)]
    environment = {**os.environ, **(env or {})}
    if log is None:
        process = subprocess.Popen(full, env=environment, stdin=subprocess.DEVNULL, start_new_session=True)  # noqa: S603
    else:
        with log.open("ab") as stream:
            process = subprocess.Popen(  # noqa: S603
                full,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
    _write(run_folder, Worker(process.pid, _start_time(process.pid)))
    return process


def stop(process: subprocess.Popen[bytes], grace: float) -> int:
    """SIGTERM to the process's group, SIGKILL after `grace` seconds; returns its exit status."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            return process.wait(grace)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
    return process.wait()


def find(run_folder: Path) -> Worker | None:
    """The worker that was last started on `run_folder`, alive or not; None when there was none."""
    try:
        value = json.loads((run_folder / WORKER_FILE).read_bytes())
        return Worker(int(value["pid"]), str(value["started"]))
    except FileNotFoundError:
        return None


def _write(run_folder: Path, worker: Worker) -> None:
    temporary = run_folder / f"{WORKER_FILE}.tmp"
    temporary.write_text(json.dumps({"pid": worker.pid, "started": worker.started}) + "\n", encoding="utf-8")
    temporary.replace(run_folder / WORKER_FILE)


def _start_time(pid: int) -> str:
    """When process `pid` began, as the system words it; '' when it has ended (a zombie has)."""
    stat = Path(f"/proc/{pid}/stat")
    if Path("/proc/self/stat").exists():
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return ""
        return "" if fields[0] in "ZX" else fields[19]
    listed = subprocess.run(  # noqa: S603
        ["ps", "-o", "state=,lstart=", "-p", str(pid)],  # noqa: S607
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    return "" if not listed or listed.startswith("Z") else listed.partition(" ")[2].strip()
