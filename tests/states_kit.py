"""A history of jobs under schedulers, clients, workers and crashes, and the checker that reads it.

Threads create, cancel, resume and delete jobs as the API's handlers do, push workers on, and let schedulers work and
crash. A trigger in the database writes down every state that any of them commits, so nothing escapes the checker; what
may follow what is written out here, apart from the program's own table.
"""

from __future__ import annotations

import json
import random
import shutil
import sqlite3
import threading
from collections import Counter
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.gateway_kit import make_spec
from trainer.errors import UsageError
from trainer.gateway import jobstate
from trainer.gateway.capacity import Capacity
from trainer.gateway.errors import GatewayError
from trainer.gateway.gateway import Gateway
from trainer.gateway.resources import jobs
from trainer.gateway.scheduler import Scheduler
from trainer.gateway.store import Resource
from trainer.jobs import JobState

ACCOUNTS = ("accounts/local", "accounts/other")
SFT = "supervisedFineTuningJobs"
CRASHES = 0.05
TERMINAL = {"COMPLETED", "FAILED", "CANCELLED", "EARLY_STOPPED"}
_RUNS = {"RUNNING", "PAUSED", "RE_QUEUEING", "CANCELLING", "DELETING", "COMPLETED", "EARLY_STOPPED", "FAILED"}
# What may be committed after what. "PENDING" after an end is a resume, and must be as frequent as those were.
ALLOWED = {
    "CREATING": {"VALIDATING", "CANCELLED", "FAILED"},
    "VALIDATING": {"PENDING", "CANCELLED", "WRITING_RESULTS"} | _RUNS,
    "PENDING": {"VALIDATING", "CANCELLED", "WRITING_RESULTS"} | _RUNS,
    "RUNNING": {"WRITING_RESULTS", "VALIDATING"} | _RUNS,
    "WRITING_RESULTS": {"VALIDATING"} | _RUNS,
    "RE_QUEUEING": {"PENDING", "CANCELLED", "FAILED"},
    "PAUSED": {"PENDING", "CANCELLED", "CANCELLING", "DELETING"},
    "CANCELLING": {"CANCELLED", "COMPLETED", "EARLY_STOPPED", "DELETING"},
    "FAILED": {"PENDING", "DELETING"},
    "CANCELLED": {"PENDING", "DELETING"},
    "COMPLETED": {"DELETING"},
    "EARLY_STOPPED": {"DELETING"},
    "DELETING": set[str](),
}
_HISTORY = """
CREATE TABLE history (id INTEGER PRIMARY KEY, name TEXT, before TEXT, after TEXT, token INTEGER);
CREATE TRIGGER keep_history AFTER UPDATE ON resources WHEN new.collection = 'supervisedFineTuningJobs' BEGIN
INSERT INTO history (name, before, after, token) VALUES (new.name, json_extract(old.body, '$.state'),
json_extract(new.body, '$.state'), json_extract(new.private, '$.run.token')); END;
"""


class FakeWorker:
    """A worker without a process, which says one thing whenever it is pushed on: a Popen and a found worker in one."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.returncode, self.stopping, self.beat = folder, None, False, None
        self.said = ["VALIDATING", "RUNNING", "metrics", "metrics", "WRITING_RESULTS", "COMPLETED"]
        self._lock = threading.Lock()

    @property
    def alive(self) -> bool:
        return self.returncode is None

    def poll(self) -> int | None:
        return self.returncode

    def terminate(self) -> None:
        self.stopping = True

    def kill(self) -> None:
        self.end(-9)

    def end(self, status: int, state: str | None = None, code: str = "OK") -> None:
        """End with `status`, having said `state`."""
        with self._lock:
            if self.returncode is None:
                if state:
                    self._say("state", {"state": f"JOB_STATE_{state}", "code": code, "message": ""})
                self.returncode = status

    def push(self, draw: random.Random) -> None:
        """Say the next thing, pause, fail for good, or crash."""
        chance = draw.random()
        if self.stopping and chance < 0.7:
            self.end(75, "PAUSED")
        elif chance < CRASHES:
            self.end(draw.choice((-9, 1, 76)), draw.choice((None, "FAILED")), "INTERNAL")
        elif chance < CRASHES + 0.02:
            self.end(2, "FAILED", "INVALID_ARGUMENT")
        elif chance < CRASHES + 0.04:
            self.end(75, "PAUSED")
        else:
            self._next()

    def _next(self) -> None:
        with self._lock:
            if self.returncode is not None:
                return
            what = self.said.pop(0)
            if what == "metrics":
                self._say("metrics", {"step": 1, "loss": 1.0})
            else:
                self._say("state", {"state": f"JOB_STATE_{what}", "code": "OK", "message": ""})
            if not self.said:
                self.returncode = 0

    def _say(self, kind: str, body: dict[str, Any]) -> None:
        path = self.folder / "sync.jsonl"
        seq = 1 + (path.read_bytes().count(b"\n") if path.exists() else 0)
        with path.open("a") as stream:
            stream.write(json.dumps({"seq": seq, "time": "2026-01-01T00:00:00Z", "kind": kind, "body": body}) + "\n")


class Workers:
    """The launcher of fake workers; `twice` counts starts beside a living worker that were let through."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.last: dict[Path, FakeWorker] = {}
        self.fences: Counter[Path] = Counter()
        self.started = self.refused = 0

    def start(self, run_folder: Path, *, env: dict[str, str] | None, log: Path | None, token: int | None) -> FakeWorker:
        with self._lock:
            last = self.last.get(run_folder)
            if (last is not None and last.alive) or (token or 0) < self.fences[run_folder]:
                self.refused += 1
                raise UsageError(f"{run_folder}: another worker is at work, or a newer token is out")
            self.started += 1
            self.last[run_folder] = FakeWorker(run_folder)
            return self.last[run_folder]

    def find(self, run_folder: Path) -> FakeWorker | None:
        return self.last.get(run_folder)

    def fence(self, run_folder: Path, token: int) -> None:
        with self._lock:
            self.fences[run_folder] = max(self.fences[run_folder], token)

    def living(self) -> list[FakeWorker]:
        with self._lock:
            return [worker for worker in self.last.values() if worker.alive]


class World:
    """One gateway, two schedulers that come and go, clients and workers; `act` does one random thing."""

    def __init__(self, gateway: Gateway, *, seed: int) -> None:
        self.gateway, self.workers = gateway, Workers()
        self.operations: Counter[str] = Counter()
        self.resumed: Counter[str] = Counter()
        self.problems: list[str] = []
        self._lock = threading.Lock()
        self._numbers = iter(range(10**9))
        self._names: list[str] = []
        self._seats = [threading.Lock(), threading.Lock()]
        self._schedulers = [self._scheduler(), self._scheduler()]
        with gateway.store.transaction() as transaction:
            base = transaction.get("accounts/local/models/base")
            transaction.insert(replace(base, name="accounts/other/models/base", parent="accounts/other"))
        files = gateway.files
        shutil.copytree(files.folder("accounts/local/models/base"), files.folder("accounts/other/models/base"))
        with closing(sqlite3.connect(gateway.folder / "gateway.db")) as connection:
            connection.executescript(_HISTORY)
        self._seed = seed

    def work(self, number: int, count: int) -> None:
        """What one thread does."""
        draw = random.Random(f"{self._seed}:{number}")
        for _ in range(count):
            what = draw.choices(
                ("create", "cancel", "resume", "delete", "push", "tick", "crash", "stand"),
                (6, 3, 5, 3, 52, 28, 1, 2),
            )[0]
            self.operations[what] += 1
            try:
                getattr(self, f"_{what}")(draw)
            except GatewayError as error:
                if error.code not in ("FAILED_PRECONDITION", "NOT_FOUND", "ABORTED", "ALREADY_EXISTS"):
                    self.problems.append(f"{what}: {error}")
            except Exception as error:  # noqa: BLE001  (whatever it is, the history is wrong)
                self.problems.append(f"{what}: {type(error).__name__}: {error}")

    def _scheduler(self) -> Scheduler:
        return Scheduler(
            self.gateway, make_spec, launcher=self.workers, slots=6, grace=0.01, beat_seconds=0.05,  # type: ignore[arg-type]
            here=Capacity(cores=64, memory=1 << 50),
        )  # fmt: skip

    def _create(self, draw: random.Random) -> None:
        account = draw.choice(ACCOUNTS)
        with self._lock:
            job_id = f"j{next(self._numbers)}"
        body = {
            "dataset": "accounts/local/datasets/rows", "baseModel": f"{account}/models/base",
            "outputModel": f"{account}/models/{job_id}", "state": "JOB_STATE_CREATING",
            "status": {"code": "OK", "message": ""}, "jobProgress": {"percent": 0, "epoch": 0},
            "purpose": draw.choice(("PURPOSE_UNSPECIFIED", "PURPOSE_PILOT")),
        }  # fmt: skip
        name = f"{ACCOUNTS[0]}/{SFT}/{job_id}"
        with self.gateway.store.transaction() as transaction:
            transaction.insert(Resource(name=name, collection=SFT, parent=account, id=job_id, body=body))
        with self._lock:
            self._names.append(name)

    def _any(self, draw: random.Random) -> str:
        with self._lock:
            if not self._names:
                raise GatewayError("NOT_FOUND", "there are no jobs yet")
            return draw.choice(self._names[-40:])

    def _cancel(self, draw: random.Random) -> None:
        with self.gateway.store.transaction() as transaction:
            transaction.save(jobstate.cancelled(transaction.get(self._any(draw))))

    def _resume(self, draw: random.Random) -> None:
        name = self._any(draw)
        with self.gateway.store.transaction() as transaction:
            job = transaction.get(name)
            ended = jobstate.state_of(job).terminal
            transaction.save(jobstate.resumed(job))
        if ended:
            with self._lock:
                self.resumed[name] += 1

    def _delete(self, draw: random.Random) -> None:
        name = self._any(draw)
        with self.gateway.store.transaction() as transaction:
            job = transaction.get(name)
            if jobstate.is_active(job):
                transaction.save(jobstate.moved(job, JobState.DELETING, "the worker is being stopped"))
                return
            jobs.remove(self.gateway, name, tombstone=False)

    def _push(self, draw: random.Random) -> None:
        if living := self.workers.living():
            draw.choice(living).push(draw)

    def _tick(self, draw: random.Random) -> None:
        seat = draw.randrange(2)
        with self._seats[seat]:
            self._schedulers[seat].tick()

    def _crash(self, draw: random.Random) -> None:
        """kill -9 of a scheduler: the system lets go of its lock, nothing is said, another takes its seat."""
        seat = draw.randrange(2)
        with self._seats[seat]:
            dead = self._schedulers[seat]
            dead._holder._release()
            self._schedulers[seat] = self._scheduler()
            self._schedulers[seat].recover()

    def _stand(self, draw: random.Random) -> None:
        """A scheduler that stands still (SIGSTOP) for as long as others need to take over, and then goes on."""
        seat = draw.randrange(2)
        if self._seats[seat].acquire(blocking=False):
            try:
                threading.Event().wait(draw.uniform(0, 0.2))
                self._schedulers[seat].tick()
            finally:
                self._seats[seat].release()

    def run(self, operations: int, *, threads: int = 8) -> None:
        """Let `threads` do `operations` things in all."""
        share = -(-operations // threads)
        working = [threading.Thread(target=self.work, args=(number, share)) for number in range(threads)]
        for thread in working:
            thread.start()
        for thread in working:
            thread.join()

    def close(self) -> None:
        """End the schedulers."""
        for scheduler in self._schedulers:
            scheduler.stop()

    def breaches(self) -> list[str]:
        """What the history shows that must not be."""
        with closing(sqlite3.connect(self.gateway.folder / "gateway.db")) as connection:
            rows = connection.execute("SELECT name, before, after, token FROM history ORDER BY id").fetchall()
        return [*self.problems, *checked(rows, self.resumed)]


def checked(rows: list[tuple[str, str, str, int | None]], resumed: Counter[str]) -> list[str]:
    """Illegal moves, ends that were left without a resume, and tokens that fell."""
    found: list[str] = []
    left: Counter[str] = Counter()
    tokens: dict[str, int] = {}
    for name, before, after, token in rows:
        old, new = before.removeprefix("JOB_STATE_"), after.removeprefix("JOB_STATE_")
        if new != old and new not in ALLOWED[old] | {"DELETING"}:
            found.append(f"{name}: {old} -> {new}")
        if old in TERMINAL and new == "PENDING":
            left[name] += 1
        if (token or 0) < tokens.get(name, 0):
            found.append(f"{name}: token {token} after {tokens[name]}")
        tokens[name] = token or 0
    found += [f"{name}: left its end {left[name]} times, {resumed[name]} resumes" for name in left | resumed
              if left[name] != resumed[name]]  # fmt: skip
    return found


def moves(gateway: Gateway) -> Counter[str]:
    """How often each move was committed."""
    with closing(sqlite3.connect(gateway.folder / "gateway.db")) as connection:
        rows = connection.execute("SELECT before, after FROM history WHERE before != after").fetchall()
    return Counter(f"{a.removeprefix('JOB_STATE_')} -> {b.removeprefix('JOB_STATE_')}" for a, b in rows)
