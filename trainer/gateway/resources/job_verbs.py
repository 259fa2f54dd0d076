"""What single kinds of jobs have beside the methods of all: logs of trainers, and debugging."""

from __future__ import annotations

from typing import Any

from trainer.gateway import jobstate
from trainer.gateway.errors import precondition
from trainer.gateway.gateway import Call
from trainer.gateway.resources import jobs
from trainer.jobs import JobState

_REINFORCEMENT, _TRAINERS = "reinforcementFineTuningJobs", "rlorTrainerJobs"


def public_logs(call: Call) -> dict[str, Any]:
    """GET of a trainer's log. Raises FAILED_PRECONDITION while there is none."""
    job = jobs.load(call, _TRAINERS)
    url = jobs.file_url(call, job, jobs.LOG)
    if not url:
        raise precondition(f"{job.name}: has written no log yet, in state {jobstate.state_of(job)}", name=job.name)
    return {"signedUrl": url}


def debug(call: Call) -> dict[str, Any]:
    """POST :debug: which job failed. Here a job is one process, so the failed one is the job itself."""
    job = jobs.load(call, _REINFORCEMENT)
    state = jobstate.state_of(job)
    if state is not JobState.FAILED:
        raise precondition(f"{job.name}: cannot debug job in state: {state}; only FAILED ones", name=job.name)
    return {"name": job.name, "failedJobName": job.name}
