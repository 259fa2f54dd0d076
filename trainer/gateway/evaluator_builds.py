"""From an evaluator's source to one that can run: read strictly, its packages installed in a jail, imported in another.

`begin` is called once for every revision, when its source is whole. Few builds run at a time, in threads of this
process; the record says BUILDING until the outcome is in it, so that a server which was stopped, or killed, builds
again what it finds BUILDING (`take_up`). A lock in the state folder keeps two processes from one evaluator at a time.
"""

from __future__ import annotations

import contextvars
import fcntl
import hashlib
import logging
import os
import queue
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evaluators.build import Build, Builder, BuildState
from evaluators.requirements import read_requirements
from evaluators.sandbox import SandboxRefused
from evaluators.sandboxed import SandboxRunner
from trainer.evaluation_run import EvaluatorSource, check_loads, files_of, open_evaluator, requirements_of
from trainer.evaluation_sandbox import new_builder, new_runner
from trainer.gateway.errors import GatewayError
from trainer.gateway.schema import resources
from trainer.gateway.store import Resource

if TYPE_CHECKING:
    from trainer.gateway.gateway import Gateway

BUILD_LOG = "build.log"
STATES = frozenset({"BUILDING", "ACTIVE", "BUILD_FAILED"})
ENVIRONMENTS_VARIABLE = "TRAINER_EVALUATOR_ENVIRONMENTS"
_WORKERS = 2  # jails of one evaluator in this process, for load checks and previews
_BUILDERS = 2  # builds at a time: a quick one need not wait for a long one
_PREVIEWS = 4  # at a time
_STOP_SECONDS = 30.0
_LOOK_SECONDS = 0.2
_KEPT_SECONDS = 86_400  # longer than any build takes
_log = logging.getLogger("trainer.gateway")


@dataclass(frozen=True)
class Outcome:
    """How a build went. python: of the environment, None = a bare one. log: for people."""

    state: str
    message: str
    log: bytes = b""
    python: str | None = None
    code: str = "INVALID_ARGUMENT"  # of a failure


class Builds:
    """The builds of one gateway, and the sandbox of this process, for load checks and previews."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._waiting: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._guard, self._stopped = threading.Lock(), threading.Event()
        self._runner: SandboxRunner | None = None
        self.previews = threading.BoundedSemaphore(_PREVIEWS)

    @property
    def builder(self) -> Builder:
        """Makes environments in TRAINER_EVALUATOR_ENVIRONMENTS, else where the command line does, beside the runs."""
        given = os.environ.get(ENVIRONMENTS_VARIABLE)
        folder = Path(given) if given else self._gateway.runs / "cache" / "evaluator_environments"
        return new_builder(folder, stopped=self._stopped.is_set)

    @property
    def runner(self) -> SandboxRunner:
        """The sandbox of this process. Raises `SandboxRefused` where this machine gives none."""
        with self._guard:
            if self._runner is None:
                self._runner = new_runner(workers=_WORKERS)
            _ = self._runner.sandbox  # opened under the lock
            return self._runner

    def python_of(self, requirements: str) -> str | None:
        """The interpreter of an environment that is there already. Raises `ValueError` where it must be built first."""
        lines = read_requirements(requirements)
        if not lines:
            return None
        builder = self.builder
        place = builder.folder / builder.digest(lines)
        if not (place / "installed").is_file():
            raise ValueError(
                "requirements: these packages are not installed here; create the evaluator, and preview it by its name "
                "once it is ACTIVE"
            )
        return str(place / "bin" / "python")

    def submit(self, name: str) -> None:
        """Build the evaluator `name` in its turn."""
        with self._guard:
            if self._stopped.is_set():
                return  # it stays BUILDING, and whoever serves next builds it
            while len(self._threads) < _BUILDERS:
                context = contextvars.Context()  # no caller's account
                self._threads.append(
                    threading.Thread(target=context.run, args=(self._work,), name="builds", daemon=True)
                )
                self._threads[-1].start()
        self._waiting.put(name)

    def take_up(self) -> None:
        """Build again what an earlier process has left BUILDING, and remove what it has left half built."""
        _sweep(self.builder.folder)
        for evaluator in self._gateway.store.every("evaluators", resources.c.state == "BUILDING"):
            self.submit(evaluator.name)

    def close(self) -> None:
        """Stop building, and end every jail; what is being built stays BUILDING."""
        self._stopped.set()
        with self._guard:
            threads, runner = self._threads, self._runner
        for _ in threads:
            self._waiting.put(None)
        for thread in threads:
            thread.join(_STOP_SECONDS)
        if runner is not None:
            runner.close()

    def _work(self) -> None:
        while (name := self._waiting.get()) is not None and not self._stopped.is_set():
            try:
                self._one(name)
            except Exception:  # noqa: BLE001  (the queue outlives what befalls one build; the log has it)
                _log.exception("%s: its build could not be recorded", name)

    def _one(self, name: str) -> None:
        with _locked(self._gateway.folder / "builds", name, self._stopped.is_set) as mine:
            evaluator = self._gateway.store.find(name)
            if not mine or evaluator is None or evaluator.body.get("state") != "BUILDING":
                return
            version = evaluator.private.get("version", "")
            outcome = self._outcome(evaluator)
            if not self._stopped.is_set():
                settle(self._gateway, name, outcome, version=version)

    def _outcome(self, evaluator: Resource) -> Outcome:
        """Build it; whatever goes wrong is an outcome."""
        # Records are read by name here, so the modules that know them come late.
        from trainer.gateway.evaluating import granted, source_of  # noqa: PLC0415

        try:
            source, environment = source_of(self._gateway, evaluator), granted(self._gateway, evaluator.parent)
            files = files_of(source)
            build = self.builder.build(requirements_of(files), tell=lambda one: self._tell(evaluator, one))
            active = build.state is BuildState.ACTIVE
            problem = self._problem(source, files, build.python, environment) if active else build.message
        except SandboxRefused as error:
            return Outcome("BUILD_FAILED", f"this machine gives no sandbox: {error}", code="FAILED_PRECONDITION")
        except (ValueError, GatewayError) as error:  # the upload, its requirements, what it lacks
            message = error.message if isinstance(error, GatewayError) else str(error)
            return Outcome("BUILD_FAILED", message, f"{message}\n".encode())
        except Exception as error:  # noqa: BLE001  (logged, and told as the build's failure)
            _log.exception("%s: cannot be built", evaluator.name)
            return Outcome("BUILD_FAILED", f"the gateway could not build it: {type(error).__name__}", code="INTERNAL")
        # The builder's own log is shared by all evaluators of these packages: what is this one's stays here.
        log = build.log.read_bytes() if build.log is not None and build.log.is_file() else b""
        if not problem:
            return Outcome("ACTIVE", build.message, log + b"\nthe evaluator loads\n", build.python)
        told = f"\nthe evaluator does not load: {problem}\n" if active else ""
        code = "UNAVAILABLE" if build.ours and not active else "INVALID_ARGUMENT"
        return Outcome("BUILD_FAILED", problem, log + told.encode(), code=code)

    def _problem(
        self, source: EvaluatorSource, files: dict[str, bytes], python: str | None, environment: Mapping[str, str]
    ) -> str:
        """What is wrong with the evaluator in its environment; "" when it loads."""
        from trainer.gateway.evaluating import struck  # noqa: PLC0415

        built = source.model_copy(update={"python": python})
        try:
            check_loads(open_evaluator(built, files, self.runner, environment=environment))
        except ValueError as error:
            return struck(str(error), list(environment.values()))
        return ""

    def _tell(self, evaluator: Resource, build: Build) -> None:
        """The packages are being installed."""
        if build.state is BuildState.BUILDING:
            _saved(self._gateway, evaluator.name, {"status": _status("OK", "installing its packages")})


def begin(gateway: Gateway, evaluator: Resource, *, version: str = "") -> Resource:
    """Begin to build revision `version` of `evaluator` (`private["source"]` names the record of its files)."""
    with gateway.store.transaction() as transaction:
        found = transaction.get(evaluator.name)
        body = {"state": "BUILDING", "status": _status("OK", "waits for its build")}
        found = transaction.save(found.changed(body, {"version": version or None, "python": None}))
        transaction.afterwards.append(lambda: gateway.builds.submit(evaluator.name))
    return found


def settle(gateway: Gateway, name: str, outcome: Outcome, *, version: str = "") -> None:
    """Record how the build of a revision went, unless the evaluator is gone or has a newer one."""
    if outcome.state not in STATES:
        raise ValueError(f"state: got {outcome.state!r}; expected one of {', '.join(sorted(STATES))}")
    code = outcome.code if outcome.state == "BUILD_FAILED" else "OK"
    body = {"state": outcome.state, "status": _status(code, outcome.message)}
    with gateway.files.incoming(name, BUILD_LOG, size=None) as incoming:
        incoming.write(outcome.log or f"{outcome.message}\n".encode())
        incoming.finish()
        with gateway.store.transaction() as transaction:
            found = transaction.find(name)
            if found is None or found.private.get("version", "") != version:
                return
            incoming.place()
            transaction.save(found.changed(body, {"python": outcome.python}))
            revision = transaction.find(f"{name}/versions/{version}")
            if revision is not None:
                transaction.save(revision.changed({"snapshot": {**revision.body["snapshot"], **body}}))


@contextmanager
def _locked(folder: Path, name: str, stopped: Callable[[], bool]) -> Iterator[bool]:
    """The evaluator's lock; False where it was stopped before it was had."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.lock"
    waited = threading.Event()
    with path.open("ab") as lock:
        while not stopped():
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                waited.wait(_LOOK_SECONDS)
                continue
            yield True
            return
        yield False


def _sweep(folder: Path) -> None:
    """Remove environments that a process which was killed has left unfinished."""
    for path in folder.glob(".*"):
        if path.is_dir() and time.time() - path.stat().st_mtime > _KEPT_SECONDS:
            shutil.rmtree(path, ignore_errors=True)


def _saved(gateway: Gateway, name: str, body: dict[str, Any]) -> None:
    with gateway.store.transaction() as transaction:
        found = transaction.find(name)
        if found is not None:
            transaction.save(found.changed(body))


def _status(code: str, message: str) -> dict[str, str]:
    return {"code": code, "message": message}
