"""Runs the jobs that are created through the gateway: takes them from the queue, starts workers, applies their events.

A job's run is an ordinary run folder beside the others. All that must survive a crash is in the job's record and in
that folder: a new scheduler finds workers that still run and goes on watching them, and queues again the jobs whose
worker is gone. Stopping the scheduler leaves running workers alone; the next one adopts them.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import Popen
from types import MappingProxyType
from typing import Protocol

from pydantic import ValidationError

from trainer.beside import beside
from trainer.errors import UsageError
from trainer.gateway import events, jobstate
from trainer.gateway.errors import GatewayError
from trainer.gateway.gateway import ACCOUNT, Gateway, full_name, ready
from trainer.gateway.resources import models
from trainer.gateway.resources import supervised_fine_tuning_jobs as sft
from trainer.gateway.store import Resource
from trainer.jobs import JobState, Purpose, SupervisedFineTuningJob
from trainer.report import Event
from trainer.report_page import write_report
from trainer.runs import Inputs, RowSource, RunSpec

MAX_ATTEMPTS = 3
_LAST_LINES = 12
_MOST_EVENTS = 2_000  # per transaction
_TAIL_BYTES = 8_192
_log = logging.getLogger("trainer.gateway.scheduler")


# Fills in what a job leaves open: (kind, job, run id, inputs) -> the run.
MakeSpec = Callable[[str, SupervisedFineTuningJob, str, Inputs], RunSpec]


class Worker(Protocol):
    """A worker process, as `Launcher.find` finds it."""

    @property
    def alive(self) -> bool: ...
    def terminate(self) -> None: ...
    def kill(self) -> None: ...


class Launcher(Protocol):
    """Starts and finds workers: `trainer.launch.here` is one."""

    def start(self, run_folder: Path, *, env: dict[str, str] | None, log: Path | None) -> Popen[bytes]: ...
    def find(self, run_folder: Path) -> Worker | None: ...


@dataclass
class _Running:
    """A job whose worker runs, or has just ended. process: None when it was adopted."""

    name: str
    folder: Path
    process: Popen[bytes] | None
    offset: int = 0
    stopping_since: float | None = None
    waiting: list[Event] = field(default_factory=list)


class Scheduler:
    """The queue's worker, for one gateway; `start()` it in the process that serves.

    slots: jobs at a time. grace: seconds a worker has to stop by itself. environment: added to every worker's.
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
    ) -> None:
        self._gateway, self._make_spec, self._launcher = gateway, make_spec, launcher
        self._slots, self._grace, self._poll = slots, grace, poll
        self._environment = dict(environment or {})
        self._running: dict[str, _Running] = {}
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Take up what an earlier scheduler left, then work in a thread until `stop`."""
        self.recover()
        self._thread = threading.Thread(target=self._loop, name="scheduler", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop working; workers go on, and are adopted by the next scheduler on this folder."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def recover(self) -> None:
        """Adopt workers that still run; queue again, or fail, jobs whose worker has gone without a word."""
        for job in self._gateway.store.every(sft.FAMILY.collection):
            if not jobstate.is_active(job):
                continue
            running = _Running(job.name, Path(jobstate.run_of(job)["folder"]), None)
            self._guarded(job.name, lambda running=running: self._take_up(running))

    def _take_up(self, running: _Running) -> None:
        alive = self._alive(running)  # before reading: what it wrote last is read too
        self._apply_events(running)
        if alive:
            self._running[running.name] = running
        else:
            self._lost(self._gateway.store.get(running.name))

    def tick(self) -> None:
        """Do everything that can be done now; `start` does this again and again."""
        for running in list(self._running.values()):
            self._guarded(running.name, lambda running=running: self._watch(running))
        for job in self._queue():
            if jobstate.state_of(job) in (JobState.CREATING, JobState.VALIDATING, JobState.RE_QUEUEING):
                self._guarded(job.name, lambda job=job: self._admit(job))
        for job in self._queue():
            if len(self._running) >= self._slots:
                return
            if jobstate.state_of(job) is JobState.PENDING:
                self._guarded(job.name, lambda job=job: self._launch(job))

    def _loop(self) -> None:
        while not self._ended.wait(self._poll):
            try:
                self.tick()
            except Exception:  # noqa: BLE001  (the queue outlives what befalls one look at it; the log has it)
                _log.exception("the scheduler could not look at the queue; it tries again")
                self._ended.wait(1.0)

    def _guarded(self, name: str, act: Callable[[], None]) -> None:
        """One job's trouble is that job's failure, not the queue's."""
        try:
            act()
        except GatewayError as error:
            _log.warning("%s: %s", name, error)
            self._fail(name, error.message, code=error.code)
        except ValueError as error:  # what the job asks for cannot be composed into a run
            message = sft.readable(error).message if isinstance(error, ValidationError) else str(error)
            _log.warning("%s: %s", name, message)
            self._fail(name, message, code="INVALID_ARGUMENT")
        except Exception as error:  # noqa: BLE001  (logged, and recorded as the job's failure)
            _log.exception("%s: the scheduler could not handle it", name)
            self._fail(name, f"the gateway could not handle the job: {type(error).__name__}: {error}", code="INTERNAL")

    def _queue(self) -> list[Resource]:
        """Jobs that wait, in their order: PILOT first, then oldest first."""
        found = [
            job
            for job in self._gateway.store.every(sft.FAMILY.collection)
            if job.body["state"] in _WAITING and not jobstate.is_external(job) and not jobstate.is_active(job)
        ]
        return sorted(found, key=lambda job: (job.body.get("purpose") != Purpose.PILOT, job.create_time))

    def _admit(self, job: Resource) -> None:
        """CREATING -> VALIDATING -> PENDING, once its inputs are found to be there still."""
        if jobstate.state_of(job) is not JobState.RE_QUEUEING:
            job = self._update(job.name, lambda job: jobstate.moved(job, JobState.VALIDATING))
            self._inputs(sft.job_of(self._gateway, job))
        self._update(job.name, lambda job: jobstate.moved(job, JobState.PENDING))

    def _launch(self, job: Resource) -> None:
        run = jobstate.run_of(job)
        folder = Path(run["folder"]) if "folder" in run else self._new_folder(job)
        if not (folder / "run.json").exists():
            request = sft.job_of(self._gateway, job)
            inputs = self._inputs(request)
            spec = self._make_spec(sft.KIND.name, request, job.id, inputs)
            spec.save(folder)

        def claim(job: Resource) -> Resource:
            if jobstate.state_of(job) is not JobState.PENDING:  # cancelled or deleted since we looked
                raise GatewayError("ABORTED", f"{job.name} is {jobstate.state_of(job)}, no longer waiting")
            attempts = int(run.get("attempts", 0)) + 1
            return job.changed(private={"run": {"folder": str(folder), "attempts": attempts, "active": True}})

        try:
            job = self._update(job.name, claim)
        except GatewayError as error:
            if error.code not in ("ABORTED", "NOT_FOUND"):
                raise
            _log.info("%s", error)
            return
        self._running[job.name] = running = _Running(job.name, folder, None, offset=0)
        environment = {**self._environment, **job.private.get("secrets", {})}
        try:
            running.process = self._launcher.start(folder, env=environment, log=folder / "worker.log")
        except UsageError as error:  # someone has resumed the run by hand: it is watched like one of ours
            _log.warning("%s: %s", job.name, error)

    def _watch(self, running: _Running) -> None:
        """Apply what the worker has said; stop it if that is asked for; settle the job when it has ended."""
        ended = not self._alive(running)  # before reading: what it wrote last is read too
        self._apply_events(running)
        job = self._gateway.store.find(running.name)
        if ended:
            self._running.pop(running.name, None)
            if job is not None:
                self._settle(job, running)
        elif job is None or jobstate.state_of(job) in (JobState.CANCELLING, JobState.DELETING):
            self._stop(running)

    def _settle(self, job: Resource, running: _Running) -> None:
        """The job's state once its worker has ended."""
        state = jobstate.state_of(job)
        if state is JobState.DELETING:
            sft.remove(self._gateway, job.name)
            return
        last = _last_lines(running.folder)
        status = running.process.returncode if running.process else None

        def settled(job: Resource) -> Resource:
            run = {**jobstate.run_of(job), "active": False}
            resumed = run.pop("resumed", False)
            job = job.changed(private={"run": run})
            state = jobstate.state_of(job)
            if resumed:  # while its worker was still on its way out
                return job
            if state is JobState.CANCELLING:
                return jobstate.moved(job, JobState.CANCELLED, "cancelled", code="CANCELLED")
            if state.terminal or state is JobState.PAUSED:
                return job
            how = "ended" if status is None else f"ended with status {status}"
            message = f"the worker {how} without saying how it went; the end of its log:\n{last}"
            return jobstate.moved(job, JobState.FAILED, message, code="INTERNAL")

        self._update(job.name, settled)
        if (running.folder / "run.json").exists():
            beside("report.html", lambda: write_report(running.folder))  # it may have died without a word

    def _lost(self, job: Resource) -> None:
        """A job whose worker went while no scheduler watched."""
        if jobstate.state_of(job) not in jobstate.MOVING:
            self._settle(job, _Running(job.name, Path(jobstate.run_of(job)["folder"]), None))
            return

        started = self._launcher.find(Path(jobstate.run_of(job)["folder"])) is not None

        def queued(job: Resource) -> Resource:
            run = {**jobstate.run_of(job), "active": False}
            if not started:  # the gateway itself was killed before it made the process
                run["attempts"] = int(run.get("attempts", 1)) - 1
            job = job.changed(private={"run": run, "newAttempt": True})
            if int(run.get("attempts", 0)) >= MAX_ATTEMPTS:
                message = f"the worker was lost {MAX_ATTEMPTS} times; :resume to try again"
                return jobstate.moved(job, JobState.FAILED, message, code="ABORTED")
            message = "the gateway was restarted and the worker was gone; it goes on from its newest checkpoint"
            return jobstate.moved(job, JobState.RE_QUEUEING, message)

        self._update(job.name, queued)

    def _apply_events(self, running: _Running) -> None:
        """Read on in the run's journal and apply it; a model is registered before anything after it counts."""
        while True:
            if not running.waiting:
                path = running.folder / "sync.jsonl"
                running.waiting, running.offset = events.read_journal(path, running.offset)
            if not running.waiting:
                return
            batch = running.waiting[:_MOST_EVENTS]
            acked = int(self._gateway.store.get(running.name).private.get("ackedSeq", 0))
            for event in batch:
                if event.kind == "model" and event.seq > acked:
                    self._register_model(running, event)
            events.apply(self._gateway, running.name, batch)
            del running.waiting[: len(batch)]

    def _register_model(self, running: _Running, event: Event) -> None:
        body, folder = event.body, Path(event.body["path"])
        if not self._gateway.inside(folder):
            raise GatewayError("PERMISSION_DENIED", f"the model's files lie at {folder}, outside {self._gateway.runs}")
        job = self._gateway.store.get(running.name)
        shown = {
            key: body[key] for key in ("kind", "contextLength", "peftDetails", "baseModelDetails") if body.get(key)
        }
        if "peftDetails" in shown:
            shown["peftDetails"] = {**shown["peftDetails"], "baseModel": self._base_of(job)}
        models.register(self._gateway, f"{ACCOUNT}/models/{body['id']}", folder, body=shown, job=job.name)

    def _base_of(self, job: Resource) -> str:
        if job.body.get("baseModel"):
            return job.body["baseModel"]
        adapter = self._gateway.store.get(job.body["warmStartFrom"])
        return adapter.body["peftDetails"]["baseModel"]

    def _inputs(self, job: SupervisedFineTuningJob) -> Inputs:
        """Where the job's data sets and models lie on this machine."""
        adapter = None
        base = job.base_model
        if job.warm_start_from:
            adapter = full_name(job.warm_start_from, collection="models", what="warmStartFrom")
            base = self._gateway.store.get(adapter).body["peftDetails"]["baseModel"]
        name = full_name(base or "", collection="models", what="baseModel")
        ready(self._gateway, name, what="baseModel", way_out="upload it as a model first")
        evaluation = job.evaluation_dataset
        return Inputs(
            base_model=str(self._gateway.files.folder(name)),
            train=self._rows(job.dataset, what="dataset"),
            evaluation=self._rows(evaluation, what="evaluationDataset") if evaluation else None,
            warm_start=str(self._gateway.files.folder(adapter)) if adapter else None,
        )

    def _rows(self, value: str, *, what: str) -> RowSource:
        name = full_name(value, collection="datasets", what=what)
        ready(self._gateway, name, what=what, way_out="upload it first")
        files = self._gateway.store.get(name).private["files"]
        if len(files) > 1:
            return RowSource(name=value, path=str(self._gateway.files.folder(name)))
        ((filename, entry),) = files.items()
        return RowSource(name=value, path=str(self._gateway.files.path(name, filename)), sha256=entry["sha256"])

    def _new_folder(self, job: Resource) -> Path:
        """A folder no other run has used: an earlier job of the same id may have left one."""
        count, folder = 1, self._gateway.runs / job.id
        while folder.exists():
            count += 1
            folder = self._gateway.runs / f"{job.id}-{count}"
        return folder

    def _alive(self, running: _Running) -> bool:
        if running.process is not None:
            return running.process.poll() is None
        worker = self._launcher.find(running.folder)
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
        """FAILED, and its worker, if any, is stopped: what it does now cannot be reported."""
        running = self._running.get(name)
        worker = self._launcher.find(running.folder) if running else None
        if worker is not None and worker.alive:
            worker.kill()
        self._running.pop(name, None)

        def failed(job: Resource) -> Resource:
            job = job.changed(private={"run": {**jobstate.run_of(job), "active": False}})
            return job if jobstate.state_of(job).terminal else jobstate.moved(job, JobState.FAILED, message, code=code)

        if self._gateway.store.find(name) is not None:
            self._update(name, failed)

    def _update(self, name: str, change: Callable[[Resource], Resource]) -> Resource:
        with self._gateway.store.transaction() as transaction:
            return transaction.save(change(transaction.get(name)))


_WAITING = frozenset(
    str(state) for state in (JobState.CREATING, JobState.VALIDATING, JobState.PENDING, JobState.RE_QUEUEING)
)


def _last_lines(folder: Path) -> str:
    path = folder / "worker.log"
    if not path.exists():
        return "(the worker wrote no log)"
    with path.open("rb") as stream:
        stream.seek(max(0, path.stat().st_size - _TAIL_BYTES))
        lines = stream.read().decode("utf-8", "replace").splitlines()
    return "\n".join(lines[-_LAST_LINES:]) or "(the worker's log is empty)"
