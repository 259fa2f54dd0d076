"""Runs the jobs that are created through the gateway: takes them from the queue, starts workers, applies their events.

A job's run is an ordinary run folder beside the others. All that must survive a crash is in the job's record and in
that folder. Several schedulers may work on one gateway's records: each job that runs is held by one of them, under a
token (`jobstate`), and is taken over when its holder is gone (`holders`): the new one watches the worker if it still
runs, and queues the job again if it does not. Every write about a job that is held carries the token, and so does the
start of its worker. Stopping a scheduler leaves running workers alone; the next one adopts them.

It works over the table of job families and knows no kind of job.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from subprocess import Popen
from types import MappingProxyType
from typing import Any, Protocol

from pydantic import ValidationError

from trainer.beside import beside
from trainer.errors import UsageError
from trainer.gateway import (
    endings,
    evaluating,
    evaluating_plans,
    events,
    external_inputs,
    fitting,
    job_families,
    job_secrets,
    jobstate,
    quotas,
    schema,
    turns,
    uploads,
)
from trainer.gateway.capacity import Capacity, this_machine
from trainer.gateway.errors import GatewayError, disk_full, is_missing
from trainer.gateway.fitting import Need
from trainer.gateway.gateway import Gateway
from trainer.gateway.holders import BEAT_SECONDS, COLLECTION, MISSED, Holder, is_fenced
from trainer.gateway.job_inputs import base_of, inputs_of
from trainer.gateway.resources import jobs, models
from trainer.gateway.row_fetches import RowFetches
from trainer.gateway.store import Resource, Transaction
from trainer.jobs import Job, JobState
from trainer.launch import beat
from trainer.launch.status import EXIT_DONE, EXIT_PAUSED, EXIT_REFUSED
from trainer.report import Event
from trainer.report_page import write_report
from trainer.runs import Inputs, RunSpec
from trainer.silence import Silence

MAX_ATTEMPTS = endings.MAX_ATTEMPTS
_LAST_LINES = 12
_MOST_EVENTS = 2_000  # per transaction
_TAIL_BYTES = 8_192
_LIVE = [str(state) for state in JobState if not state.terminal]
_ADMITTING = frozenset({JobState.CREATING, JobState.VALIDATING, JobState.RE_QUEUEING})
_PASSING = frozenset({"UNAVAILABLE", "ABORTED", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED"})
_WITH_A_WORD = (EXIT_DONE, EXIT_REFUSED, EXIT_PAUSED)  # a worker that ends so has written its page
_AGAIN_SECONDS = 5.0  # after a start that could not be made, as on a full disk
_REMOVAL_SECONDS = 600.0  # between two looks for files whose deletion could not be finished
_TURNS = f"{COLLECTION}/turns"  # the record of whose turn was when
_log = logging.getLogger("trainer.gateway.scheduler")


class Spec(Protocol):
    """What a worker is told: `RunSpec` is one. objective: by what it works, for the job's log."""

    @property
    def objective(self) -> dict[str, Any]: ...
    def save(self, folder: Path) -> Path: ...


# Fills in what a job leaves open: (kind, job, run id, inputs) -> the run.
MakeSpec = Callable[[str, Job, str, Inputs], RunSpec]


class Worker(Protocol):
    """A worker process, as `Launcher.find` finds it. beat: what changes while it lives; None before its first sign."""

    @property
    def alive(self) -> bool: ...
    @property
    def beat(self) -> int | None: ...
    def terminate(self) -> None: ...
    def kill(self) -> None: ...


class Launcher(Protocol):
    """Starts and finds workers: `trainer.launch.here` is one. A start with a token below that of `fence` is refused."""

    def start(
        self, run_folder: Path, *, env: dict[str, str] | None, log: Path | None, token: int | None
    ) -> Popen[bytes]: ...
    def find(self, run_folder: Path) -> Worker | None: ...
    def fence(self, run_folder: Path, token: int) -> None: ...


@dataclass
class _Running:
    """A job of ours whose worker runs, or has just ended. process: None when it was adopted.

    started: False from the claim until there is a worker.
    """

    name: str
    folder: Path
    token: int
    silence: Silence
    process: Popen[bytes] | None = None
    started: bool = True
    offset: int = 0
    stopping_since: float | None = None
    hung: bool = False
    waiting: list[Event] = field(default_factory=list)


@dataclass(frozen=True)
class _Planned:
    """What a waiting job would run as. created: of the record that it was made from."""

    created: str
    spec: Spec
    need: Need


class Scheduler:
    """A worker of the queue of one gateway; `start()` it in the process that serves.

    slots: jobs at a time on this machine. grace: seconds a worker has to stop by itself. environment: added to every
    worker's. attempts: starts of a job whose worker is lost each time. here: None = this machine. limits: of accounts,
    None = those that are set in the gateway.
    beat_seconds: between this scheduler's signs of life; worker_beat_seconds: between a worker's.
    """

    def __init__(
        self,
        gateway: Gateway,
        make_spec: MakeSpec,
        *,
        launcher: Launcher,
        slots: int = 1,
        grace: float = 30.0,
        poll: float = 0.2,
        environment: MappingProxyType[str, str] | dict[str, str] | None = None,
        attempts: int = MAX_ATTEMPTS,
        here: Capacity | None = None,
        limits: Callable[[str, str], int | None] | None = None,
        beat_seconds: float = BEAT_SECONDS,
        worker_beat_seconds: float = beat.BEAT_SECONDS,
    ) -> None:
        self._gateway, self._make_spec, self._launcher = gateway, make_spec, launcher
        self._slots, self._grace, self._poll, self._attempts = slots, grace, poll, attempts
        self._environment = {beat.BEAT_VARIABLE: str(worker_beat_seconds), **(environment or {})}
        self._here = here or this_machine()
        self._limits = limits or partial(quotas.quota, store=gateway.store)
        self._beat_seconds, self._worker_beat = beat_seconds, worker_beat_seconds
        self._holder = Holder(gateway.store, beat_seconds=beat_seconds)
        self._rows = RowFetches(gateway)
        self._running: dict[str, _Running] = {}
        self._planned: dict[str, _Planned] = {}
        self._overtaken: Counter[str] = Counter()
        self._looked = 0.0
        self._next_start = 0.0
        self._said: dict[str, str] = {}  # by job, so that trouble that lasts is logged once
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Take up what an earlier scheduler left, then work in a thread until `stop`."""
        self.recover()
        self._thread = threading.Thread(target=self._loop, name="scheduler", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop working; workers go on, and are adopted by the next scheduler on these records."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._running.clear()
        try:
            self._holder.end()
        except GatewayError as error:  # as when the disk is full: others see by its silence that it is gone
            _log.warning("the scheduler could not say that it has ended: %s", error)

    def recover(self) -> None:
        """Take over every job whose holder is gone: watch its worker, or queue it again, or fail it."""
        self._holder.begin()
        self._take_over(every=True)

    def tick(self) -> None:
        """Do everything that can be done now; `start` does this again and again."""
        self._holder.begin()
        if self._running:
            self._holder.beat()
        for running in list(self._running.values()):
            self._guarded(running.name, lambda running=running: self._watch(running))
        if time.monotonic() - self._looked > self._beat_seconds / MISSED:
            self._take_over()
        for job in self._waiting(*_ADMITTING):
            self._guarded(job.name, lambda job=job: self._admit(job))
        self._start_next()

    def _loop(self) -> None:
        removed = time.monotonic()
        while not self._ended.wait(self._poll):
            try:
                self.tick()
                if time.monotonic() - removed > _REMOVAL_SECONDS:
                    removed = time.monotonic()
                    uploads.finish_removals(self._gateway)
                self._said.pop("", None)
            except Exception as error:  # noqa: BLE001  (the queue outlives what befalls one look at it; the log has it)
                if self._new("", error):
                    _log.exception("the scheduler could not look at the queue; it tries again")
                self._ended.wait(1.0)

    def _guarded(self, name: str, act: Callable[[], None]) -> None:
        """One job's trouble is that job's failure, not the queue's."""
        try:
            act()
            self._said.pop(name, None)
        except GatewayError as error:
            if is_missing(error, name):  # deleted since we looked; what has its name now is another job
                self._planned.pop(name, None)
                self._said.pop(name, None)
                return
            if self._new(name, error):
                _log.warning("%s: %s", name, error)
            if is_fenced(error):
                self._running.pop(name, None)  # it is another scheduler's now, and so is its worker
            elif error.code not in _PASSING:  # else it is tried again
                self._fail(name, error.message, code=error.code)
        except ValueError as error:  # what the job asks for cannot be composed into a run
            message = jobs.readable(error).message if isinstance(error, ValidationError) else str(error)
            _log.warning("%s: %s", name, message)
            self._fail(name, message, code="INVALID_ARGUMENT")
        except Exception as error:  # noqa: BLE001  (logged, and recorded as the job's failure)
            if self._new(name, error):
                _log.exception("%s: the scheduler could not handle it", name)
            if disk_full(error) is not None:
                return  # it is tried again
            self._fail(name, f"the gateway could not handle the job: {type(error).__name__}: {error}", code="INTERNAL")

    def _new(self, name: str, error: Exception) -> bool:
        """Whether this is not what befell `name` the last time."""
        before, self._said[name] = self._said.get(name), f"{type(error).__name__}: {error}"
        return before != self._said[name]

    # --- The queue ---

    def _waiting(self, *states: JobState) -> list[Resource]:
        """Jobs of ours in one of `states` that nobody holds, oldest first."""
        wanted = schema.resources.c.state.in_([str(state) for state in states])
        found = [
            job for family in job_families.trained() for job in self._gateway.store.every(family.collection, wanted)
        ]
        return [job for job in found if not jobstate.is_external(job) and not jobstate.is_active(job)]

    def _admit(self, job: Resource) -> None:
        """CREATING -> VALIDATING -> PENDING, once its inputs are there and this machine can hold it."""

        def admitted(state: JobState) -> Callable[[Resource], Resource]:
            def change(job: Resource) -> Resource:
                if jobstate.state_of(job) not in _ADMITTING or jobstate.is_active(job):
                    return job
                again = jobstate.state_of(job) is JobState.RE_QUEUEING  # why it is stays to be seen until it starts
                return jobstate.moved(job, state, job.body["status"]["message"] if again else "")

            return change

        if jobstate.state_of(job) is not JobState.RE_QUEUEING:
            job = self._update(job.name, admitted(JobState.VALIDATING))
            if self._awaits_rows(job):
                return
            problem = fitting.never_fits(self._plan(job).need, self._here)
            if problem:
                raise GatewayError("FAILED_PRECONDITION", problem)
        self._update(job.name, admitted(JobState.PENDING))

    def _start_next(self) -> None:
        """Start as many waiting jobs as there is room for, in their turn."""
        waiting = self._waiting(JobState.PENDING) if time.monotonic() >= self._next_start else []
        if not waiting:
            return
        with self._gateway.store.transaction() as transaction:
            active, record = self._active(transaction), transaction.find(_TURNS)
        accounts = Counter(job.parent for job in active)
        for job in turns.in_turn(waiting, accounts, record.private["turns"] if record else {}):
            if sum(jobstate.run_of(one).get("machine") == self._holder.machine for one in active) >= self._slots:
                return
            started: list[Resource] = []
            self._guarded(job.name, lambda job=job, started=started: started.extend(self._launch(job)))
            active += started
            if started:
                self._overtaken.pop(job.name, None)
                for name in self._overtaken:
                    self._overtaken[name] += 1
            elif self._overtaken.get(job.name, 0) >= turns.OVERTAKEN_AT_MOST:
                return  # it has let others go first often enough

    def _launch(self, job: Resource) -> list[Resource]:
        """Claim the job and start its worker; the claimed job, or nothing where it is not to start now."""
        if self._awaits_rows(job):
            return []
        plan = self._plan(job)
        with self._gateway.store.transaction() as transaction:
            found = transaction.find(job.name)
            if found is None or jobstate.state_of(found) is not JobState.PENDING or jobstate.is_active(found):
                return []  # cancelled, deleted, or another scheduler's since we looked
            why = self._why_not(transaction, found, plan.need)
            if why:
                if found.body["status"].get("message") != why:
                    transaction.save(jobstate.moved(found, JobState.PENDING, why))
                return []
            job = transaction.save(self._opened(transaction, self._claim(transaction, found, plan.need), plan.spec))
        del self._planned[job.name]
        first, running = not self._running, self._running_of(job)
        running.started, self._running[job.name] = False, running  # whatever befalls the rest: it is queued again
        self._holder.beat(now=first)
        if not (running.folder / "run.json").exists():
            plan.spec.save(running.folder)
        environment = {**self._environment, **job_secrets.environment(self._gateway, job)}
        if gpus := jobstate.run_of(job)["need"].get("gpus"):
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
        try:
            running.process = self._launcher.start(
                running.folder, env=environment, log=running.folder / "worker.log", token=running.token
            )
        except UsageError as error:  # someone has resumed the run by hand: it is watched like one of ours
            _log.warning("%s: %s", job.name, error)
        running.started = True
        return [job]

    def _awaits_rows(self, job: Resource) -> bool:
        """Whether rows that the job reads elsewhere are still on their way; its status says so then."""
        why = self._rows.waits(job)

        def told(found: Resource) -> Resource:
            same = jobstate.state_of(found) is jobstate.state_of(job) and not jobstate.is_active(found)
            said = found.body["status"].get("message") == why
            return jobstate.moved(found, jobstate.state_of(found), why or "") if same and not said else found

        if why:
            self._update(job.name, told)
        return why is not None

    def _why_not(self, transaction: Transaction, job: Resource, need: Need) -> str | None:
        """Why the job waits, in words; None when it may start."""
        active = self._active(transaction)
        own = [jobstate.run_of(one).get("need", {}) for one in active if one.parent == job.parent]
        used = {quotas.RUNNING_JOBS: len(own), quotas.GPUS: sum(len(one.get("gpus", [])) for one in own)}
        wanted = {quotas.RUNNING_JOBS: 1, quotas.GPUS: need.gpus}
        for name, much in wanted.items():
            limit = self._limits(job.parent, name)
            if limit is not None and much and used[name] + much > limit:
                return f"waits: {job.parent} uses {used[name]} of its quota of {limit} {name}"
        runs = [jobstate.run_of(one) for one in active]
        notes = [run.get("need", {}) for run in runs if run.get("machine") == self._holder.machine]
        if len(notes) >= self._slots:
            return f"waits: {len(notes)} of {self._slots} jobs run on this machine"
        why = fitting.no_room(need, notes, self._here)
        if why:
            self._overtaken.setdefault(job.name, 0)
        return why

    def _claim(self, transaction: Transaction, job: Resource, need: Need) -> Resource:
        """The job as ours, with what it has of the machine, its folder, and its account's turn noted."""
        active = self._active(transaction)
        runs = [jobstate.run_of(one) for one in active]
        notes = [run.get("need", {}) for run in runs if run.get("machine") == self._holder.machine]
        given = fitting.free_gpus(notes, self._here)[: need.gpus]
        record = transaction.find(_TURNS) or transaction.insert(
            Resource(name=_TURNS, collection="turns", parent="", id="turns", body={}, private={"turns": {}})
        )
        number = 1 + max(record.private["turns"].values(), default=0)
        transaction.save(record.changed(private={"turns": {**record.private["turns"], job.parent: number}}))
        run = jobstate.run_of(job)
        return jobstate.taken(
            job, self._holder.id, machine=self._holder.machine, attempts=int(run.get("attempts", 0)) + 1,
            folder=run.get("folder") or str(self._new_folder(job)),
            need={"cores": need.cores, "memory": need.memory, "gpus": given},
        )  # fmt: skip

    def _opened(self, transaction: Transaction, job: Resource, spec: Spec) -> Resource:
        """The job with its log begun: by what it is trained, and what it says that nothing here acts on."""
        if jobs.LOG in job.private.get("bytes", {}):
            return job  # a later attempt
        lines = [json.dumps({"objective": spec.objective}, ensure_ascii=False)]
        if unknown := job_families.unknown_fields(self._gateway, job):
            why = "the contract does not know these fields: kept and shown, never acted on"
            lines.append(json.dumps({"unknownFields": unknown, "message": why}, ensure_ascii=False))
        return events.logged(self._gateway, transaction, job, lines)

    def _active(self, transaction: Transaction) -> list[Resource]:
        """Jobs that someone holds and that have not ended."""
        live = schema.resources.c.state.in_(_LIVE)
        found = [job for family in job_families.trained() for job in transaction.every(family.collection, live)]
        return [job for job in found if jobstate.is_active(job)]

    def _plan(self, job: Resource) -> _Planned:
        """The job's run and its need; made once, for the job as it was created."""
        known = self._planned.get(job.name)
        if known is not None and known.created == job.create_time:
            return known
        family = job_families.family_of(job)
        if family.kind in evaluating_plans.PLANS:
            spec, need = evaluating_plans.PLANS[family.kind](self._gateway, job, self._here)
            self._planned[job.name] = plan = _Planned(job.create_time, spec, need)
            return plan
        folder = Path(jobstate.run_of(job).get("folder", ""))
        if jobstate.run_of(job).get("folder") and (folder / "run.json").exists():
            spec = RunSpec.load(folder)
        else:
            typed, inputs = job_families.typed(self._gateway, job), inputs_of(self._gateway, job)
            spec = self._make_spec(family.kind, typed, job.id, inputs)
        self._planned[job.name] = plan = _Planned(job.create_time, spec, fitting.need_of(spec, self._here))
        return plan

    def _new_folder(self, job: Resource) -> Path:
        """A folder, made here, that no other run has used: an earlier job of the same id may have left one."""
        count, folder = 1, self._gateway.runs / job.id
        while True:
            try:
                folder.mkdir(parents=True)
                return folder
            except FileExistsError:
                count += 1
                folder = self._gateway.runs / f"{job.id}-{count}"

    # --- Jobs that run ---

    def _take_over(self, *, every: bool = False) -> None:
        """Take up jobs whose holder is gone. every: among those that have ended too (their worker may not have)."""
        self._looked = time.monotonic()
        columns = schema.resources.c
        wanted = columns.private[("run", "active")].as_boolean() if every else columns.state.in_(_LIVE)
        gone: dict[str | None, bool] = {}
        for family in job_families.trained():
            for job in self._gateway.store.every(family.collection, wanted):
                owner = jobstate.run_of(job).get("owner")
                if not jobstate.is_active(job) or job.name in self._running:
                    continue
                if owner not in gone:  # ours, and not known to be: the answer to a write was lost
                    gone[owner] = owner == self._holder.id or self._holder.gone(owner)
                if gone[owner]:
                    self._guarded(job.name, lambda job=job: self._take_up(job))

    def _take_up(self, job: Resource) -> None:
        before = jobstate.token_of(job)
        job = self._update(job.name, lambda job: jobstate.taken(jobstate.fenced(job, before), self._holder.id))
        running = self._running_of(job)
        self._launcher.fence(running.folder, running.token)
        self._holder.beat(now=not self._running)
        self._running[job.name] = running
        running.started = self._launcher.find(running.folder) is not None  # or else its holder was killed before
        self._watch(running)

    def _running_of(self, job: Resource) -> _Running:
        folder = Path(jobstate.run_of(job)["folder"])
        return _Running(job.name, folder, jobstate.token_of(job), Silence(self._worker_beat / 2))

    def _watch(self, running: _Running) -> None:
        """Apply what the worker has said; stop it if that is asked for; settle the job when it has ended."""
        worker = self._launcher.find(running.folder)
        ended = not self._alive(running, worker)  # before reading: what it wrote last is read too
        job = self._gateway.store.find(running.name)
        if job is not None:
            self._apply_events(running)
            job = self._gateway.store.find(running.name)
        if ended:
            if job is not None:
                self._settle(job, running)
            self._running.pop(running.name, None)  # not before that is written
        elif job is None or jobstate.state_of(job) in (JobState.CANCELLING, JobState.DELETING):
            self._stop(running)
        elif worker is not None and worker.beat is not None:
            running.hung = running.silence.after(worker.beat) >= beat.MISSED * self._worker_beat
            if running.hung:
                _log.warning("%s: its worker shows no sign of life and is killed", running.name)
                worker.kill()

    def _settle(self, job: Resource, running: _Running) -> None:
        """The job's state once its worker has ended, or was never started."""
        if jobstate.state_of(job) is JobState.DELETING:
            jobstate.fenced(job, running.token)
            jobs.remove(self._gateway, job.name)
            return
        status = running.process.returncode if running.process else None
        ended = endings.Ended(status, _last_lines(running.folder), hung=running.hung)

        def settled(job: Resource) -> Resource:
            run = jobstate.run_of(jobstate.fenced(job, running.token))
            if not jobstate.is_active(job):
                return job  # that has been written already
            attempts = int(run.get("attempts", 1)) - (not running.started)
            job = jobstate.noted(job, active=False, resumed=None, need=None, attempts=attempts)
            if run.get("resumed"):  # while its worker was still on its way out
                return job
            if not running.started and jobstate.state_of(job) in jobstate.MOVING:
                return endings.again_queued(job, _unstarted(self._said.get(job.name)))
            return endings.settled(job, ended, attempts=attempts, most=self._attempts)

        external_inputs.let_go(self._gateway, self._update(job.name, settled))
        if not running.started:
            self._next_start = time.monotonic() + (_AGAIN_SECONDS if job.name in self._said else 0.0)
        if status not in _WITH_A_WORD and (running.folder / "run.json").exists():
            beside("report.html", lambda: write_report(running.folder))  # it may have died before it could

    def _apply_events(self, running: _Running) -> None:
        """Read on in the run's journal and apply it; a model is registered before anything after it counts."""
        while True:
            if not running.waiting:
                path = running.folder / "sync.jsonl"
                running.waiting, running.offset = events.read_journal(path, running.offset)
            if not running.waiting:
                return
            batch = running.waiting[:_MOST_EVENTS]
            job = jobstate.fenced(self._gateway.store.get(running.name), running.token)
            acked = int(job.private.get("ackedSeq", 0))
            for event in batch:
                if event.kind == "model" and event.seq > acked:
                    self._register_model(job, event)
                if event.kind == "results" and event.seq > acked:
                    evaluating.register(self._gateway, job, event.body)
            events.apply(self._gateway, running.name, batch, token=running.token)
            del running.waiting[: len(batch)]

    def _register_model(self, job: Resource, event: Event) -> None:
        body, folder = event.body, Path(event.body["path"])
        if not self._gateway.inside(folder):
            raise GatewayError("PERMISSION_DENIED", f"the model's files lie at {folder}, outside {self._gateway.runs}")
        shown: dict[str, Any] = {
            key: body[key] for key in ("kind", "contextLength", "peftDetails", "baseModelDetails") if body.get(key)
        }
        if "peftDetails" in shown:
            shown["peftDetails"] = {**shown["peftDetails"], "baseModel": base_of(self._gateway, job)}
        models.register(self._gateway, f"{job.parent}/models/{body['id']}", folder, body=shown, job=job.name)

    def _alive(self, running: _Running, worker: Worker | None) -> bool:
        if running.process is not None:
            return running.process.poll() is None
        return worker is not None and worker.alive

    def _stop(self, running: _Running) -> None:
        worker = self._launcher.find(running.folder)
        if worker is None:
            return
        if running.stopping_since is None:
            running.stopping_since = time.monotonic()
            worker.terminate()
        elif time.monotonic() - running.stopping_since > self._grace:
            worker.kill()

    def _fail(self, name: str, message: str, *, code: str) -> None:
        """FAILED, and its worker, if any, is stopped: what it does now cannot be reported. Only what is ours fails."""
        running = self._running.pop(name, None)
        self._planned.pop(name, None)

        def failed(job: Resource) -> Resource:
            owner = jobstate.run_of(job).get("owner")
            if jobstate.is_active(job) and (running is None or owner != self._holder.id):
                return job
            job = jobstate.noted(job, active=False, need=None)
            can = JobState.FAILED in jobstate.LEGAL.get(jobstate.state_of(job), ())
            return jobstate.moved(job, JobState.FAILED, message, code=code) if can else job

        worker = self._launcher.find(running.folder) if running else None
        if worker is not None and worker.alive:
            worker.kill()
        with self._gateway.store.transaction() as transaction:
            if (job := transaction.find(name)) is not None and (new := failed(job)) is not job:
                transaction.save(new)

    def _update(self, name: str, change: Callable[[Resource], Resource]) -> Resource:
        with self._gateway.store.transaction() as transaction:
            job = transaction.get(name)
            new = change(job)
            return job if new is job else transaction.save(new)


def _unstarted(why: str | None) -> str:
    return f"its worker could not be started ({why})" if why else "the gateway was stopped before it started the worker"


def _last_lines(folder: Path) -> str:
    path = folder / "worker.log"
    if not path.exists():
        return "(the worker wrote no log)"
    with path.open("rb") as stream:
        stream.seek(max(0, path.stat().st_size - _TAIL_BYTES))
        lines = stream.read().decode("utf-8", "replace").splitlines()
    return "\n".join(lines[-_LAST_LINES:]) or "(the worker's log is empty)"
