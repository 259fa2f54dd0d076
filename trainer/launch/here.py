"""Starts a run's worker as a process on this machine, in a session of its own, and stops it.

Secrets travel by the environment only. The worker holds the lock `launch.lock` in the run folder for as long as it
lives: it is taken before the process is made and inherited by it, so at no moment, whoever is killed, is there a worker
without the lock or a lock without a worker. `worker.json` names the process, and is written by that process itself
before it becomes the worker; whoever comes later can watch or stop it by the two. `fence.TOKEN` names the newest token
that anyone was given for the run: a start with an older one, however late it comes, is refused. It is a file for each
token and not one that they share, so that nobody waits for a holder that stands still while it writes.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from trainer.disk import write_whole
from trainer.errors import UsageError
from trainer.launch.beat import BEAT_FILE, beat_of

WORKER_FILE, LOCK_FILE, FENCE = "worker.json", "launch.lock", "fence."
COMMAND = (sys.executable, "-m", "trainer.worker")
_POLL_SECONDS = 0.05
_LOOK_SECONDS = 0.5  # whoever looks whether the lock is held holds it for an instant
# Says who it is, then becomes the worker: the same pid. $1 is the run folder, the rest the command.
_SHIM = (
    'file="$1/worker.json"; shift; '
    'printf \'{"pid": %d}\\n\' $$ > "$file.tmp" && mv -f "$file.tmp" "$file" || exit 73; '
    'exec "$@"'
)


@dataclass(frozen=True)
class Worker:
    """The worker of a run folder, perhaps not a child of this process.

    It counts as alive while anything that it has forked without closing its files still runs.
    """

    folder: Path

    @property
    def pid(self) -> int | None:
        """The process that was last started on the folder; None until it has said who it is."""
        try:
            return int(json.loads((self.folder / WORKER_FILE).read_bytes())["pid"])
        except FileNotFoundError:
            return None

    @property
    def alive(self) -> bool:
        """True while that very process runs (a zombie does not)."""
        return _held(self.folder)

    @property
    def beat(self) -> int | None:
        """What changes as long as it shows signs of life; None while it has shown none."""
        return beat_of(self.folder)

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
        deadline = time.monotonic() + _LOOK_SECONDS
        while (pid := self.pid) is None and self.alive and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)  # it is about to say who it is
        if pid is None or not self.alive:
            return
        try:
            os.killpg(pid, number)
        except ProcessLookupError:  # it ended between the look and the signal
            return


def start(
    run_folder: Path,
    *,
    env: dict[str, str] | None = None,
    log: Path | None = None,
    token: int | None = None,
    command: tuple[str, ...] = COMMAND,
) -> subprocess.Popen[bytes]:
    """Start `command` on `run_folder`; `env` is added to this process's environment.

    log: where its standard output and error are appended; None = they stay with this terminal. token: of whoever
    starts it (`fence`); None = a person, who is asked for none.
    Raises `UsageError` when a worker is at work there, or the token is not the newest.
    """
    full = ["/bin/sh", "-c", _SHIM, "worker", str(run_folder), *command, str(run_folder)]
    environment = {**os.environ, **(env or {})}
    with _launch_lock(run_folder, token) as lock:
        if log is None:
            return subprocess.Popen(  # noqa: S603
                full, env=environment, stdin=subprocess.DEVNULL, start_new_session=True, pass_fds=(lock,)
            )
        with log.open("ab") as stream:
            return subprocess.Popen(  # noqa: S603
                full,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=(lock,),
            )


def fence(run_folder: Path, token: int) -> None:
    """From now on no start with a token below `token` succeeds; one that has, shows in `find` already."""
    if not run_folder.is_dir():
        return
    if _fence_of(run_folder) < token:
        write_whole(run_folder / f"{FENCE}{token}", b"")
    for older in (each for each in _fences(run_folder) if each < token):
        (run_folder / f"{FENCE}{older}").unlink(missing_ok=True)


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
    """The worker that was last started on `run_folder`, alive or not; None when none was since it was last tried."""
    worker = Worker(run_folder)
    return worker if worker.alive or worker.pid is not None else None


def _fence_of(run_folder: Path) -> int:
    return max(_fences(run_folder), default=0)


def _fences(run_folder: Path) -> list[int]:
    names = (path.name.removeprefix(FENCE) for path in run_folder.glob(f"{FENCE}*"))
    return [int(name) for name in names if name.isdigit()]


@contextmanager
def _launch_lock(run_folder: Path, token: int | None = None) -> Iterator[int]:
    """The run's lock, held; a process that inherits the descriptor holds it on."""
    descriptor = os.open(run_folder / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        _take(descriptor, run_folder)
        if token is not None and token < _fence_of(run_folder):
            raise UsageError(f"{run_folder} is in other hands (token {_fence_of(run_folder)}, not {token})")
        for earlier in (WORKER_FILE, BEAT_FILE):  # of an earlier process
            (run_folder / earlier).unlink(missing_ok=True)
        yield descriptor
    finally:
        os.close(descriptor)


def _take(descriptor: int, run_folder: Path) -> None:
    deadline = time.monotonic() + _LOOK_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError as error:
            if time.monotonic() > deadline:  # longer than anyone needs who only looks
                raise UsageError(
                    f"another worker is at work on {run_folder} (pid {Worker(run_folder).pid or 'not known yet'}); "
                    "wait until it ends, or stop it"
                ) from error
        time.sleep(_POLL_SECONDS)


def _held(run_folder: Path) -> bool:
    """True while a process holds the run's lock."""
    try:
        descriptor = os.open(run_folder / LOCK_FILE, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
