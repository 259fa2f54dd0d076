"""trainingSessionJobs' sessions: one client's use of a shared trainer, and the adapter that it has loaded.

A session is made below a job that runs. Loading a checkpoint into one is the trainer's own work, and waits for it.
"""

from __future__ import annotations

import secrets
from typing import Any

from trainer.gateway import jobstate
from trainer.gateway.errors import precondition
from trainer.gateway.gateway import Call, checked_id
from trainer.gateway.resources import jobs
from trainer.gateway.standard import Family, list_all
from trainer.gateway.store import Resource
from trainer.jobs import JobState

_JOBS = "trainingSessionJobs"
_PARENT = jobs.family(_JOBS)
FAMILY = Family(collection="trainingSessions", schema="gatewayTrainingSession", param="training_session_id")
_USABLE = frozenset({JobState.RUNNING, JobState.IDLE})


def _name(call: Call) -> str:
    return f"{_PARENT.name(call)}/{FAMILY.collection}/{call.params[FAMILY.param]}"


def create(call: Call) -> dict[str, Any]:
    """POST of a session below a job that runs. Raises FAILED_PRECONDITION for one that does not."""
    job = jobs.load(call, _JOBS)
    if (state := jobstate.state_of(job)) not in _USABLE:
        raise precondition(f"{job.name}: in state {state}; sessions need a job that runs", name=job.name)
    body = {
        **call.body, "state": "READY", "status": {"code": "OK", "message": ""}, "referenceState": "BASE",
        "createdBy": call.principal.email or call.gateway.options.email,
    }  # fmt: skip
    given = call.query.get("trainingSessionId")
    bare = checked_id(given, what="trainingSessionId") if given else secrets.token_hex(8)
    name = f"{job.name}/{FAMILY.collection}/{bare}"
    new = Resource(name=name, collection=FAMILY.collection, parent=job.name, id=bare, body=body)
    with call.gateway.store.transaction() as transaction:
        return transaction.insert(new).shown()


def get(call: Call) -> dict[str, Any]:
    """GET of one session."""
    return FAMILY.answer(call, call.gateway.store.get(_name(call)))


def list_sessions(call: Call) -> dict[str, Any]:
    """GET of a job's sessions."""
    jobs.load(call, _JOBS)
    return list_all(FAMILY, parent=_PARENT.name)(call)
