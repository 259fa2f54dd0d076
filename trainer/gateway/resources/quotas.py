"""quotas: what an account may use at a time. A quota exists where something enforces it (`trainer.gateway.quotas`).

A quota without a `value` is no limit. `maxValue`, where there is one, is the most that `value` may be set to.
"""

from __future__ import annotations

from typing import Any

from pydantic.alias_generators import to_camel

from trainer.gateway import job_families, jobstate
from trainer.gateway.errors import invalid, not_found
from trainer.gateway.gateway import Call
from trainer.gateway.quotas import DEFAULTS, RUNNING_JOBS
from trainer.gateway.resources import in_memory
from trainer.gateway.standard import shown
from trainer.gateway.store import Resource, resources

_SCHEMA = "gatewayQuota"
_WRITABLE = ("value", "maxValue")


def get(call: Call) -> dict[str, Any]:
    """GET of one quota."""
    return shown(call, _SCHEMA, _shown(call, call.params["quota_id"]))


def list_all(call: Call) -> dict[str, Any]:
    """GET of the account's quotas."""
    found = [_shown(call, name) for name in DEFAULTS]
    return in_memory.page(found, call, schema=_SCHEMA, key=lambda one: one["name"], name="quotas")


def update(call: Call) -> dict[str, Any]:
    """PATCH: a new value. Raises NOT_FOUND for what nothing enforces, whatever `allowMissing` says."""
    quota_id = call.params["quota_id"]
    old = _record(call, quota_id)
    with call.gateway.store.transaction() as transaction:
        here = transaction.find(old.name)
        new = (here or old).changed(_changes(call))
        value, most = new.body.get("value"), new.body.get("maxValue")
        if value is not None and int(value) < 0:
            raise invalid(f"value: got {value}; expected 0 or more", field="value")
        if value is not None and most is not None and int(value) > int(most):
            raise invalid(f"value: got {value}; at most maxValue, which is {most}", field="value")
        if here is None:
            transaction.insert(new)
        else:
            transaction.save(new)
    return _shown(call, quota_id)


def _changes(call: Call) -> dict[str, Any]:
    mask = [to_camel(part.strip()) for part in call.query.get("updateMask", "").split(",") if part.strip()]
    if foreign := set(mask) - set(_WRITABLE) - {"*"}:
        what = sorted(foreign)[0][:80]
        raise invalid(f"updateMask: {what!r}; what can be written is value, maxValue", field="updateMask")
    if not mask:
        return {name: call.body[name] for name in _WRITABLE if name in call.body}
    return {name: call.body.get(name) for name in _WRITABLE if "*" in mask or name in mask}


def _record(call: Call, quota_id: str) -> Resource:
    parent = call.parent()
    if quota_id not in DEFAULTS:
        raise not_found(f"{parent}/quotas/{quota_id}", f"quotas that are enforced here: {', '.join(DEFAULTS)}")
    name = f"{parent}/quotas/{quota_id}"
    default = DEFAULTS[quota_id]
    body = {} if default is None else {"value": str(default), "maxValue": str(default)}
    return call.gateway.store.find(name) or Resource(
        name=name, collection="quotas", parent=parent, id=quota_id, body=body
    )


def _shown(call: Call, quota_id: str) -> dict[str, Any]:
    record = _record(call, quota_id)
    shown = {key: value for key, value in record.shown().items() if key != "createTime" and value != ""}
    if quota_id == RUNNING_JOBS:
        shown["usage"] = float(_running(call))
    return shown


def _running(call: Call) -> int:
    mine = (resources.c.parent == call.parent(), resources.c.state.in_(job_families.GOING))
    found = (job for kind in job_families.trained() for job in call.gateway.store.every(kind.collection, *mine))
    return sum(jobstate.is_active(job) for job in found)
