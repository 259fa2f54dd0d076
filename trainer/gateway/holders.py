"""Who holds work (jobs, operations): each has a record whose count goes up while it lives, and who waits looks there.

No clock is compared between processes, so a wrong one does no harm: a holder is gone when it has said so, when the
system has let go of its lock (the process is dead), or when its count has not moved for `MISSED` beats by the looks of
the one who waits. The last may be a mistake (a process that was stopped and goes on); the job's token makes it
harmless.
"""

from __future__ import annotations

import fcntl
import os
import platform
import time
import uuid
from pathlib import Path

from trainer.gateway.errors import GatewayError
from trainer.gateway.store import Resource, Store
from trainer.silence import Silence

COLLECTION = "schedulers"  # not one of the API's
BEAT_SECONDS = 5.0
MISSED = 3
_BOOT = Path("/proc/sys/kernel/random/boot_id")


def machine() -> str:
    """This machine, since it was started."""
    return _BOOT.read_text().strip() if _BOOT.exists() else f"{platform.node()}-{uuid.getnode()}"


class Holder:
    """One among the holders. `begin` before it takes anything up, `end` when it lets go of everything."""

    def __init__(self, store: Store, *, beat_seconds: float = BEAT_SECONDS) -> None:
        self.id, self.machine = uuid.uuid4().hex, machine()
        self._store, self._seconds = store, beat_seconds
        self._name, self._lock = f"{COLLECTION}/{self.id}", store.folder / COLLECTION / f"{self.id}.lock"
        self._descriptor: int | None = None
        self._beaten = 0.0
        self._silences: dict[str, Silence] = {}

    def begin(self) -> None:
        """Be known, once; and forget those whose processes have ended here."""
        if self._descriptor is not None:
            return
        self._lock.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        private = {"lock": str(self._lock), "machine": self.machine}
        record = Resource(name=self._name, collection=COLLECTION, parent="", id=self.id, body={}, private=private)
        try:
            with self._store.transaction() as transaction:
                if transaction.find(self._name) is None:  # else the answer to an earlier try was lost
                    transaction.insert(record)
                for other in transaction.every(COLLECTION):
                    if other.name != self._name and self._dead(other):
                        transaction.delete(other.name)
        except BaseException:
            self._release()
            raise
        self._beaten = time.monotonic()

    def beat(self, *, now: bool = False) -> None:
        """Say, now or when it is time to, that it lives. A record that others have taken away is made again."""
        if self._descriptor is None or not (now or time.monotonic() - self._beaten >= self._seconds):
            return
        self._beaten = time.monotonic()
        with self._store.transaction() as transaction:
            record = transaction.find(self._name)
            if record is not None:
                transaction.save(record)  # its revision is the count
        if record is None:
            self._release()
            self.begin()

    def end(self) -> None:
        """Let go: what it held may be taken up at once."""
        if self._descriptor is None:
            return
        self._forget(self._name)
        self._release()

    def gone(self, owner: str | None) -> bool:
        """True when `owner` holds nothing any more."""
        if owner == self.id:
            return False
        record = self._store.find(f"{COLLECTION}/{owner}")
        if record is None:
            return True
        silent = self._silences.setdefault(record.id, Silence(self._seconds / 2))
        if not self._dead(record) and silent.after(record.revision) < MISSED * self._seconds:
            return False
        self._forget(record.name)
        self._silences.pop(record.id, None)
        return True

    def _dead(self, record: Resource) -> bool:
        """True when its process has ended, which only its own machine can tell."""
        if record.private["machine"] != self.machine:
            return False
        try:
            descriptor = os.open(record.private["lock"], os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:  # it has just ended, or lives behind another mount
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        finally:
            os.close(descriptor)
        Path(record.private["lock"]).unlink(missing_ok=True)
        return True

    def _forget(self, name: str) -> None:
        with self._store.transaction() as transaction:
            transaction.delete(name)

    def _release(self) -> None:
        if self._descriptor is not None:
            self._lock.unlink(missing_ok=True)
            os.close(self._descriptor)
            self._descriptor = None


def is_fenced(error: GatewayError) -> bool:
    """True when a write was refused because the job is in other hands."""
    return any(detail.get("reason") == "FENCED" for detail in error.details)
