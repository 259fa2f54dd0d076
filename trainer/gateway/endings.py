"""What becomes of a job whose worker has ended: its own word counts, then the exit status, then patience.

A worker that was lost (a crash, a signal, a hang) is started again from the newest checkpoint, a few times; what it
says against the job itself (refused, not finite) would only be said again.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass

from trainer.gateway import jobstate
from trainer.gateway.store import Resource
from trainer.jobs import JobState
from trainer.launch.status import EXIT_HUNG, EXIT_PAUSED, EXIT_REFUSED

MAX_ATTEMPTS = 3
# About the job, not about this attempt at it.
_LASTING = frozenset({"INVALID_ARGUMENT", "FAILED_PRECONDITION", "OUT_OF_RANGE", "PERMISSION_DENIED", "NOT_FOUND"})


@dataclass(frozen=True)
class Ended:
    """How a worker ended. status: as `Popen.returncode`, None where nobody saw it. hung: it was killed for that."""

    status: int | None
    log: str
    hung: bool = False

    @property
    def words(self) -> str:
        """In words."""
        if self.hung:
            return "the worker hung (no sign of life) and was killed"
        if self.status == EXIT_HUNG:
            return "the worker ended itself because a stage hung"
        if self.status is None:
            return "the worker ended"
        if self.status < 0:
            return f"the worker was killed by {signal.Signals(-self.status).name}"
        return f"the worker ended with status {self.status}"


def settled(job: Resource, ended: Ended, *, attempts: int, most: int = MAX_ATTEMPTS) -> Resource:
    """The job once its worker has ended, `attempts` having been made: an end, a pause, or its place in the queue."""
    state, failure = jobstate.state_of(job), jobstate.failure_of(job)
    job = job.changed(private={"failure": None})
    if state is JobState.CANCELLING:
        return jobstate.moved(job, JobState.CANCELLED, "cancelled", code="CANCELLED")
    if state.terminal or state is JobState.PAUSED:
        return job
    if ended.status == EXIT_PAUSED and failure is None:
        return jobstate.moved(job, JobState.PAUSED, "the worker paused")
    code, tail = (failure or {}).get("code", "INTERNAL"), f"the end of its log:\n{ended.log}"
    said = failure["message"] if failure else tail
    if code in _LASTING or ended.status == EXIT_REFUSED:
        return jobstate.moved(job, JobState.FAILED, said if failure else f"{ended.words}: refused; {said}", code=code)
    if attempts < most:
        again = f"{ended.words}; attempt {attempts + 1} of {most} goes on from its newest checkpoint. {said}"
        return again_queued(job, again)
    message = f"{ended.words}; {attempts} attempts were made, :resume to try again. {said}"
    return jobstate.moved(job, JobState.FAILED, f"{message}\n{tail}" if failure else message, code=code)


def again_queued(job: Resource, message: str) -> Resource:
    """The job waiting for another attempt, whose numbers take the place of those it repeats."""
    return jobstate.moved(job.changed(private={"newAttempt": True}), JobState.RE_QUEUEING, message)
