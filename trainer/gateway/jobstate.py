"""How a job's state moves: the one place that knows which moves are possible, and who may write.

CREATING -> VALIDATING -> PENDING -> (VALIDATING -> RUNNING -> WRITING_RESULTS) -> COMPLETED or another end; a job whose
worker was lost goes back by RE_QUEUEING. A state that has ended is left by a deletion only, or by `resume` where the
job's kind has it so; a cancel or a deletion on its way is not undone by a late report of the worker. `moved` refuses
every other move.

A job that is taken up belongs to one scheduler, its owner, under a token that grows with every change of hands; a write
that carries an older token is refused (`fenced`). No clock takes part in it.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from trainer.gateway import job_families
from trainer.gateway.errors import GatewayError, precondition
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
# What a worker says of itself; that it was stopped, queued again or deleted is for others to say.
_REPORTED = _GOOD_ENDS | {
    JobState.VALIDATING, JobState.RUNNING, JobState.WRITING_RESULTS, JobState.PAUSED, JobState.FAILED,
}  # fmt: skip
_GOING = frozenset({JobState.DELETING, JobState.DELETED})
_AT_WORK = _REPORTED | _GOING | {JobState.RE_QUEUEING, JobState.CANCELLING, JobState.CANCELLED}
_STOPPED = _GOING | {JobState.PENDING}  # a resume, or a deletion

LEGAL: dict[JobState, frozenset[JobState]] = {
    JobState.CREATING: _GOING | {JobState.VALIDATING, JobState.FAILED, JobState.CANCELLED},
    JobState.VALIDATING: _AT_WORK | {JobState.PENDING},
    JobState.PENDING: _AT_WORK,
    JobState.RUNNING: _AT_WORK,
    JobState.WRITING_RESULTS: _AT_WORK,
    JobState.RE_QUEUEING: _GOING | {JobState.PENDING, JobState.FAILED, JobState.CANCELLED},
    JobState.PAUSED: _STOPPED | {JobState.CANCELLING, JobState.CANCELLED},
    JobState.CANCELLING: _GOING | _GOOD_ENDS | {JobState.CANCELLED, JobState.FAILED},
    JobState.FAILED: _STOPPED,
    JobState.CANCELLED: _STOPPED,
    JobState.COMPLETED: _GOING,
    JobState.EARLY_STOPPED: _GOING,
    JobState.EXPIRED: _GOING,
    JobState.DELETING: frozenset({JobState.DELETED}),
}


def possible(job: Resource) -> frozenset[JobState]:
    """What may follow the job's state: `LEGAL`, and a resume where its kind allows more of them."""
    current = state_of(job)
    again = frozenset({JobState.PENDING}) if current in job_families.family_of(job).resumable else frozenset()
    return LEGAL.get(current, frozenset()) | again


def state_of(job: Resource) -> JobState:
    """The job's state."""
    return JobState(job.body["state"])


def moved(job: Resource, state: JobState, message: str = "", *, code: str = "OK") -> Resource:
    """The job in `state`, with its status and, when it has ended, the time.

    Raises FAILED_PRECONDITION for a move that is not `possible`; a job that is trained elsewhere moves as it is told.
    """
    current = state_of(job)
    if not is_external(job) and state is not current and state not in possible(job):
        allowed = ", ".join(sorted(possible(job))) or "nothing"
        raise precondition(
            f"{job.name}: cannot go from {current} to {state}; possible: {allowed}", name=job.name, state=str(current)
        )
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
    if current in _GOING:
        return False
    if current is JobState.CANCELLING:
        return state in _GOOD_ENDS
    if not is_external(job) and (run_of(job).get("resumed") or state not in _REPORTED):
        return False  # it speaks of an attempt that is over
    if current.terminal:
        # A run that is trained elsewhere is resumed there; that it moves again is how we learn of it.
        return is_external(job) and current in RESUMABLE and state in MOVING
    return is_external(job) or state is current or state in LEGAL[current]


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


def resumed(job: Resource, *, resumable: Collection[JobState] = RESUMABLE) -> Resource:
    """The job waiting to run again, in the same run folder. resumable: the states that its kind can leave so."""
    current = state_of(job)
    if current not in resumable:
        allowed = ", ".join(sorted(resumable))
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
    """The scheduler's notes on the job: folder, attempts, active, owner, token, need, turn."""
    return dict(job.private.get("run", {}))


def noted(job: Resource, **notes: Any) -> Resource:
    """The job with `notes` among the scheduler's; None as a value removes one."""
    run = {key: value for key, value in {**run_of(job), **notes}.items() if value is not None}
    return job.changed(private={"run": run})


def token_of(job: Resource) -> int:
    """How often the job has changed hands."""
    return int(run_of(job).get("token", 0))


def taken(job: Resource, owner: str, **notes: Any) -> Resource:
    """The job in the hands of scheduler `owner`, under a new token."""
    return noted(job, owner=owner, token=token_of(job) + 1, active=True, **notes)


def fenced(job: Resource, token: int) -> Resource:
    """The job, if `token` is the newest. Raises ABORTED for a holder whose time is over."""
    if token_of(job) != token:
        raise GatewayError(
            "ABORTED", f"{job.name} is in other hands (token {token_of(job)}, not {token})", reason="FENCED",
            metadata={"name": job.name}, retry=False,
        )  # fmt: skip
    return job


def failure_of(job: Resource) -> dict[str, str] | None:
    """What the worker of a job of ours has said went wrong: {code, message}; its end decides what becomes of it."""
    return job.private.get("failure")
