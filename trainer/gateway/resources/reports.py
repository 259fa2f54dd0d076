"""<jobs>:report (ours): a run trained elsewhere on this machine tells what happens to it.

The first report brings the job and makes its record, which the scheduler never runs; every report brings events.
"""

from __future__ import annotations

from typing import Any

from trainer.gateway import events
from trainer.gateway.errors import precondition
from trainer.gateway.gateway import Call
from trainer.gateway.job_families import FAMILIES, JobFamily, value_at, with_value
from trainer.gateway.resources import jobs
from trainer.gateway.standard import Handler, new_resource


def report(collection: str) -> Handler:
    """POST {"job": {...}, "events": [...]}; answers the number of the last event applied."""
    kind, records = FAMILIES[collection], jobs.family(collection)

    def handle(call: Call) -> dict[str, Any]:
        name = records.name(call)
        parsed = events.parse(call.body.get("events", []))
        if "job" in call.body:
            _ensure(call, kind, name)
        found = records.load(call)
        if not found.private.get("external"):
            raise precondition(
                f"{name} is run by this gateway, which watches its worker itself; report a run under an id of its own",
                name=name,
            )
        return {"ackedSeq": events.apply(call.gateway, name, parsed)}

    return handle


def _ensure(call: Call, kind: JobFamily, name: str) -> None:
    with call.gateway.store.transaction() as transaction:
        if transaction.find(name) is not None:
            return
        jobs.must_be_runnable(kind)
        request = jobs.read(call.gateway, kind, call.body["job"], parent=call.parent(), external=True)
        job_id, path = call.params[kind.param], kind.setting("outputModel")
        wanted = value_at(request.body, path) or job_id
        output = jobs.output_name(wanted, what=f"job.{path}", parent=call.parent())
        body = with_value({**request.body, **jobs.begun(call)}, path, output)
        new = new_resource(jobs.family(kind.collection), call, given_id=job_id, what=f"{kind.singular}Id", body=body)
        transaction.insert(new.changed(private={"external": True}))
