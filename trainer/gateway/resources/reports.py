"""supervisedFineTuningJobs:report (ours): a run trained elsewhere on this machine tells what happens to it.

The first report brings the job and makes its record, which the scheduler never runs; every report brings events.
"""

from __future__ import annotations

from typing import Any

from trainer.gateway import events
from trainer.gateway.errors import precondition
from trainer.gateway.gateway import Call, full_name
from trainer.gateway.resources.supervised_fine_tuning_jobs import FAMILY, read
from trainer.gateway.standard import new_resource
from trainer.jobs import JobState


def report(call: Call) -> dict[str, Any]:
    """POST {"job": {...}, "events": [...]}; answers the number of the last event applied."""
    name = FAMILY.name(call)
    parsed = events.parse(call.body.get("events", []))
    if "job" in call.body:
        _ensure(call, name)
    found = FAMILY.load(call)
    if not found.private.get("external"):
        raise precondition(
            f"{name} is run by this gateway, which watches its worker itself; report a run under an id of its own",
            name=name,
        )
    return {"ackedSeq": events.apply(call.gateway, name, parsed)}


def _ensure(call: Call, name: str) -> None:
    with call.gateway.store.transaction() as transaction:
        if transaction.find(name) is not None:
            return
        request = read(call.gateway, call.body["job"], external=True)
        job_id = call.params[FAMILY.param]
        output = full_name(request.job.output_model or job_id, collection="models", what="job.outputModel")
        body = {
            **request.body, "outputModel": output, "state": str(JobState.CREATING),
            "createdBy": call.gateway.options.email, "status": {"code": "OK", "message": ""},
            "jobProgress": {"percent": 0, "epoch": 0},
        }  # fmt: skip
        new = new_resource(FAMILY, call, given_id=job_id, what="supervisedFineTuningJobId", body=body)
        transaction.insert(new.changed(private={"external": True}))
