"""How a job's state moves: the one place that knows which moves are possible.

CREATING -> VALIDATING -> PENDING -> (VALIDATING -> RUNNING -> WRITING_RESULTS) -> COMPLETED or another end. A state
that has ended is left by `resume` only; a cancel or a deletion on its way is not undone by a late report of the worker.
"""

from __future__ import annotations

from typing import Any

from trainer.gateway.errors import precondition
from trainer.gateway.store import Resource, now
from trainer.jobs import RESUMABLE, JobState

MOVING = frozenset(
    {
        JobState.CREATING,
        JobState.VALIDATING,
        JobState.PENDING,
        JobState.RE_QUEUEING,
        JobState.RUNNING,
        JobState.WRITING_RESULTS,
    }
)
_GOOD_ENDS = frozenset({JobState.COMPLETED, JobState.EARLY_STOPPED})


def state_of(job: Resource) -> JobState:
    """The job's state."""
    return JobState(job.body["state"])


def moved(job: Resource, state: JobState, message: str = "", *, code: str = "OK") -> Resource:
    """The job in `state`, with its status and, when it has ended, the time."""
    return job.changed(
        {
            "state": str(state),
            "status": {"code": code, "message": message},
            "completedTime": now() if state.terminal else None,
        }
    )


def may_report(job: Resource, state: JobState) -> bool:
    """True when a worker's report of `state` counts; False when it comes too late to matter."""
    current = state_of(job)
    if current in (JobState.DELETING, JobState.DELETED):
        return False
    if current is JobState.CANCELLING:
        return state in _GOOD_ENDS
    if current.terminal:
        # A run that is trained elsewhere is resumed there; that it moves again is how we learn of it.
        return is_external(job) and current in RESUMABLE and state in MOVING
    return True


def is_external(job: Resource) -> bool:
    """True when the job is trained, and stopped, and resumed, by someone who only reports to us."""
    return bool(job.private.get("external"))


def is_active(job: Resource) -> bool:
    """True from the moment the scheduler has claimed the job until its worker has ended."""
    return bool(job.private.get("run", {}).get("active"))


def cancelled(job: Resource) -> Resource:
    """The job as a cancel leaves it: CANCELLED at once, or CANCELLING while a worker must be stopped."""
    current = state_of(job)
    if current is JobState.CANCELLING:
        return job
    if current.terminal or current is JobState.DELETING:
        raise precondition(f"{job.name}: cannot cancel job in state: {current}", name=job.name, state=str(current))
    if is_external(job):
        raise precondition(
            f"{job.name} is trained by a process that only reports here; stop it where it runs (Ctrl-C, or SIGTERM)",
            name=job.name,
        )
    if is_active(job):
        return moved(job, JobState.CANCELLING, "the worker is being stopped", code="CANCELLED")
    return moved(job, JobState.CANCELLED, "cancelled before it ran", code="CANCELLED")


def resumed(job: Resource) -> Resource:
    """The job waiting to run again, in the same run folder."""
    current = state_of(job)
    if current not in RESUMABLE:
        allowed = ", ".join(sorted(RESUMABLE))
        raise precondition(
            f"{job.name}: cannot resume job in state: {current}; possible from {allowed}",
            name=job.name,
            state=str(current),
        )
    if is_external(job):
        raise precondition(
            f"{job.name} was trained by a process that only reported here; resume its run where it ran", name=job.name
        )
    run = {**job.private.get("run", {}), "attempts": 0, "resumed": is_active(job)}
    return moved(job.changed(private={"run": run, "newAttempt": True}), JobState.PENDING, "resumed")


def run_of(job: Resource) -> dict[str, Any]:
    """The scheduler's notes on the job: folder, attempts, active."""
    return dict(job.private.get("run", {}))
