"""apiKeys: a user's keys. The key itself is in the answer to its creation and nowhere else."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from trainer.gateway import keys
from trainer.gateway.errors import invalid
from trainer.gateway.gateway import Call
from trainer.gateway.resources import in_memory, users
from trainer.gateway.store import Resource, now

_MOST_ANNOTATIONS, _LONGEST_ANNOTATION = 32, 256


def create(call: Call) -> dict[str, Any]:
    """POST {"apiKey": {displayName, expireTime, annotations}}."""
    user, given = users.FAMILY.load(call), call.body["apiKey"]
    notes = given.get("annotations", {})
    if len(notes) > _MOST_ANNOTATIONS or any(len(k) + len(v) > _LONGEST_ANNOTATION for k, v in notes.items()):
        raise invalid(
            f"apiKey.annotations: at most {_MOST_ANNOTATIONS}, each of {_LONGEST_ANNOTATION} characters",
            field="apiKey.annotations",
        )
    expires = _time(given["expireTime"]) if given.get("expireTime") else ""
    made, key = keys.create_key(
        call.gateway.store, call.parent(), user.id, user.body["role"], given.get("displayName") or "default",
        expire_time=expires, annotations=notes,
    )  # fmt: skip
    return {**_shown(made, user), "key": key}


def list_all(call: Call) -> dict[str, Any]:
    """GET of a user's keys."""
    user = users.FAMILY.load(call)
    found = [_shown(one, user) for one in keys.keys_of(call.gateway.store, call.parent(), user.id)]
    return in_memory.page(
        found, call, schema="gatewayApiKey", key=lambda one: f"{one['createTime']} {one['keyId']}", name="apiKeys"
    )


def get(call: Call) -> dict[str, Any]:
    """GET of one key: `.../apiKeys/{key_id}`, or the contract's own path, which lacks a place for `keyId`, with it as a
    query parameter."""
    user = users.FAMILY.load(call)
    key_id = call.params.get("key_id") or call.query.get("keyId")
    if not key_id:
        raise invalid("keyId: add ?keyId=ID, or ask for .../apiKeys/ID", field="keyId")
    return _shown(keys.key_of(call.gateway.store, call.parent(), user.id, key_id), user)


def delete(call: Call) -> dict[str, Any]:
    """POST :delete {"keyId": "..."}: the key is dead with the next request."""
    user = users.FAMILY.load(call)
    keys.revoke(call.gateway.store, call.parent(), call.body["keyId"], user=user.id)
    return {}


def _shown(key: keys.Key, user: Resource) -> dict[str, Any]:
    return {**key.shown(), "email": user.body.get("email", "")}


def _time(text: str) -> str:
    """A time to come, in the form in which the gateway compares times."""
    try:
        moment = datetime.fromisoformat(text.upper().replace("Z", "+00:00"))
    except ValueError as error:
        raise invalid(f"apiKey.expireTime: {text!r} is not a time", field="apiKey.expireTime") from error
    found = moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    if found <= now():
        raise invalid(f"apiKey.expireTime: {text} is over; choose a time to come", field="apiKey.expireTime")
    return found
