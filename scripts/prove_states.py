"""Proves that jobs make no illegal move and have one holder: `python scripts/prove_states.py --operations 100000`.

First the history of `tests/states_kit.py`: eight threads create, cancel, resume and delete jobs, push workers on (5 %
of the pushes are crashes), and let two schedulers work, stand still and die; the database itself writes down every
state. Then `--handovers`: scheduler processes on one database, their clocks ten minutes ahead and behind, while a job
runs whose worker keeps reporting; whoever holds it is stopped (SIGSTOP) until the other has taken over, and goes on
(SIGCONT). SQLite has one limit here: a process that is stopped within a write keeps all others from writing. Each
process writes down every write to the job that was let through while another held it, and at the end every report must
have been applied once and in order. Exit status 1 on any breach.
"""

from __future__ import annotations

import argparse
import faulthandler
import fcntl
import json
import logging
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.gateway_kit import make_spec, opened  # noqa: E402
from tests.states_kit import SFT, World, moves  # noqa: E402
from trainer.gateway import jobstate, store  # noqa: E402
from trainer.gateway.capacity import Capacity  # noqa: E402
from trainer.gateway.gateway import Gateway  # noqa: E402
from trainer.gateway.scheduler import Scheduler  # noqa: E402
from trainer.gateway.store import Resource, Transaction  # noqa: E402
from trainer.jobs import JobState  # noqa: E402
from trainer.launch import here  # noqa: E402

_NAME = f"accounts/local/{SFT}/handed"
_BEAT = 0.04
_LONGEST = 60.0  # seconds for one change of hands


def states(top: Path, *, operations: int, seed: int) -> list[str]:
    """Figure 11."""
    with opened(top / "gateway") as (_, gateway):
        world, began = World(gateway, seed=seed), time.monotonic()
        world.run(operations)
        world.close()
        found = world.breaches()
        seen = moves(gateway)
    done = sum(world.operations.values())
    print(f"states: {done:,} operations of 8 threads in {time.monotonic() - began:.0f} s ({dict(world.operations)}); "
          f"{world.workers.started:,} workers started, {world.workers.refused} starts refused; {sum(seen.values()):,} "
          f"moves of {len(seen)} kinds, {sum(world.resumed.values())} resumes from an end")  # fmt: skip
    return found


def hold(home: Path, name: str, *, skew: float) -> None:
    """What one scheduler process does: hold jobs, with a clock that is `skew` seconds off, until it is killed."""

    class Skewed(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
            return datetime.now(tz or UTC) + timedelta(seconds=skew)

    store.datetime = Skewed  # type: ignore[misc]
    real = time.time
    time.time = lambda: real() + skew
    gateway = Gateway(home / "gateway", runs=home)
    scheduler = Scheduler(
        gateway, make_spec, launcher=here, poll=0.01, beat_seconds=_BEAT, here=Capacity(cores=64, memory=1 << 50)
    )
    save: Callable[[Transaction, Resource], Resource] = Transaction.save

    def watched(transaction: Transaction, resource: Resource) -> Resource:
        before = transaction.find(resource.name) if resource.name == _NAME else None
        mine = scheduler._holder.id
        holders = [jobstate.run_of(one).get("owner") for one in (before, resource) if one is not None]
        if before is not None and mine not in holders:
            with (home / "double-writes").open("a") as stream:
                stream.write(f"{name}: {jobstate.run_of(before)}\n")
        return save(transaction, resource)

    Transaction.save = watched  # type: ignore[method-assign]
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    (home / f"{name}.id").write_text(scheduler._holder.id)
    scheduler.start()
    while True:
        time.sleep(60)


class Reports(threading.Thread):
    """The worker of the job: holds the run's lock, and reports a step every few milliseconds."""

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        self.folder, self.count, self.ended = folder, 0, threading.Event()

    def run(self) -> None:
        with (self.folder / here.LOCK_FILE).open("ab") as lock, (self.folder / "sync.jsonl").open("a") as journal:
            fcntl.flock(lock, fcntl.LOCK_EX)
            while not self.ended.wait(0.02):
                self.count += 1
                body = {"step": self.count, "loss": 1.0}
                event = {"seq": self.count, "time": "2026-01-01T00:00:00Z", "kind": "metrics", "body": body}
                journal.write(json.dumps(event) + "\n")
                journal.flush()


def handovers(home: Path, *, count: int) -> list[str]:
    """Figure 12."""
    folder = home / "handed"
    folder.mkdir(parents=True)
    processes: dict[str, subprocess.Popen[bytes]] = {}
    with opened(home / "gateway") as (_, gateway):
        with gateway.store.transaction() as transaction:
            run = {"folder": str(folder), "attempts": 1, "active": True, "token": 1, "owner": "nobody"}
            body = {"state": str(JobState.RUNNING), "status": {"code": "OK", "message": ""}}
            new = Resource(_NAME, SFT, "accounts/local", "handed", body, {"run": run})
            transaction.insert(new)
        reports, began, changed, stopped_writing = Reports(folder), time.monotonic(), 0, 0
        reports.start()
        try:
            for name, skew in (("fast", 600.0), ("slow", -600.0)):
                command = [sys.executable, __file__, "--hold", str(home), "--name", name, "--skew", str(skew)]
                processes[name] = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)})
            owners = {_read(home / f"{name}.id"): process for name, process in processes.items()}
            while changed < count:
                owner = _held(gateway, set(owners))
                stopped_writing += _stop(owners[owner], home / "gateway" / "gateway.db")
                _held(gateway, set(owners) - {owner})
                owners[owner].send_signal(signal.SIGCONT)
                changed += 1
                if changed % 100 == 0:
                    print(f"  {changed} hand-overs, {time.monotonic() - began:.0f} s", flush=True)
            reports.ended.set()
            reports.join()
            _all_applied(gateway, reports.count)
            metrics = gateway.files.path(_NAME, "metrics.jsonl").read_bytes().splitlines()
        except SystemExit:
            for process in processes.values():  # where it hangs
                process.send_signal(signal.SIGUSR1)
            time.sleep(1)
            raise
        finally:
            reports.ended.set()
            for process in processes.values():
                process.send_signal(signal.SIGCONT)
                process.kill()
                process.wait()
        token = jobstate.token_of(gateway.store.get(_NAME))
    steps = [json.loads(line)["step"] for line in metrics]
    path = home / "double-writes"
    doubles = path.read_text().splitlines() if path.exists() else []
    print(f"hand-overs: {changed:,} in {time.monotonic() - began:.0f} s, clocks 20 minutes apart; token {token}; "
          f"{reports.count:,} reports, {len(steps):,} applied; {len(doubles)} double writes; "
          f"{stopped_writing} times it was stopped in the midst of a write, and had to go on first")  # fmt: skip
    found = [f"double write by {line}" for line in doubles[:10]]
    return found + ([] if steps == list(range(1, reports.count + 1)) else ["reports were lost, or applied twice"])


def _stop(process: subprocess.Popen[bytes], database: Path) -> int:
    """SIGSTOP, between two writes: within one, SQLite lets nobody else write until it goes on. How often it was so."""
    for tries in range(1000):
        process.send_signal(signal.SIGSTOP)
        _until(lambda: _stands(process.pid), "it stands still")  # a call in the kernel is ended first
        try:
            with closing(sqlite3.connect(database, timeout=0.5, isolation_level=None)) as probe:
                probe.execute("BEGIN IMMEDIATE")
                probe.execute("ROLLBACK")
            return tries
        except sqlite3.OperationalError:
            process.send_signal(signal.SIGCONT)
            time.sleep(0.02)
    raise SystemExit("the holder is always in the midst of a write")


def _stands(pid: int) -> bool:
    """True when every thread of the process is stopped."""
    stats = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/stat")]
    return all(stat.rpartition(")")[2].split()[0] == "T" for stat in stats)


def _held(gateway: Gateway, by: set[str]) -> str:
    """The owner of the job, once it is one of `by`."""
    return _until(lambda: next((one for one in by if one == _owner(gateway)), None), f"it is held by one of {by}")


def _owner(gateway: Gateway) -> str:
    return jobstate.run_of(gateway.store.get(_NAME))["owner"]


def _all_applied(gateway: Gateway, count: int) -> None:
    """Wait while more and more of the reports are applied."""
    acked = gateway.store.get(_NAME).private.get("ackedSeq", 0)
    print(f"  {count - acked:,} of {count:,} reports wait for the last holder", flush=True)
    while acked < count:
        acked = _until(lambda least=acked: _beyond(gateway, least), "more is applied")


def _beyond(gateway: Gateway, least: int) -> int:
    """How many reports are applied, once it is more than `least`."""
    acked = gateway.store.get(_NAME).private.get("ackedSeq", 0)
    return acked if acked > least else 0


def _read(path: Path) -> str:
    return _until(lambda: path.read_text() if path.exists() else "", f"{path} is there")


def _until(found: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + _LONGEST
    while not (one := found()):
        if time.monotonic() > deadline:
            raise SystemExit(f"{what}: not within {_LONGEST:.0f} s")
        time.sleep(0.01)
    return one


def main() -> int:
    """Both proofs, or one scheduler process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--operations", type=int, default=100_000, help="0 = none")
    parser.add_argument("--handovers", type=int, default=1_000, help="0 = none")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--at", type=Path, help="a folder for the records; on a memory disk it is faster")
    parser.add_argument("--hold", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--name", help=argparse.SUPPRESS)
    parser.add_argument("--skew", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    if options.hold:
        hold(options.hold, options.name, skew=options.skew)
    found: list[str] = []
    with tempfile.TemporaryDirectory(prefix="prove-states-", dir=options.at) as place:
        if options.operations:
            found += states(Path(place) / "states", operations=options.operations, seed=options.seed)
        if options.handovers:
            found += handovers(Path(place) / "handovers", count=options.handovers)
    for breach in found[:50]:
        print(f"BREACH: {breach}")
    print("no illegal move, no double write" if not found else f"{len(found)} breaches")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
