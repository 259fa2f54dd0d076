"""users: who may use an account, and in which role. A role goes with all of the user's keys, from the next request on.

Role `custom` goes with a `permissionPreset` (`trainer.gateway.permission_presets`), which the other roles do not have.

An account has at least one user, the one who set it up; there is no deletion in the contract, so whoever is to stay out
loses the keys.
"""

from __future__ import annotations

from typing import Any

from trainer.gateway import keys
from trainer.gateway.errors import invalid
from trainer.gateway.gateway import Call, Gateway
from trainer.gateway.permission_presets import PRESETS
from trainer.gateway.principal import CUSTOM, OWNER, ROLES
from trainer.gateway.standard import Family, new_resource, patch
from trainer.gateway.store import Resource

FAMILY = Family(
    collection="users", schema="gatewayUser", param="user_id", immutable=frozenset({"serviceAccount", "email"})
)
_LONGEST_EMAIL = 254


def ensure(gateway: Gateway) -> None:
    """Make the record of the user who works without a key, when the folder is new."""
    name = f"{OWNER.account}/users/{OWNER.user}"
    if gateway.store.find(name) is not None:
        return
    body = {"displayName": OWNER.user, "role": OWNER.role, "email": gateway.options.email, **_state()}
    with gateway.store.transaction() as transaction:
        if transaction.find(name) is None:
            transaction.insert(Resource(name=name, collection="users", parent=OWNER.account, id=OWNER.user, body=body))


def create(call: Call) -> dict[str, Any]:
    """POST of a user; the id comes in the query."""
    parent = call.parent()
    _check(call.body)
    body = {key: value for key, value in call.body.items() if key != "permissionPreset" or value} | _state()
    new = new_resource(FAMILY, call, given_id=call.query.get("userId"), what="userId", body=body)
    if "email" not in body:
        new = new.changed({"email": f"{new.id}@{parent.removeprefix('accounts/')}"})
    with call.gateway.store.transaction() as transaction:
        return FAMILY.answer(call, transaction.insert(new))


def update(call: Call) -> dict[str, Any]:
    """PATCH of a user; a new role is at once that of the user's keys."""
    with call.gateway.store.transaction() as transaction:
        _patch(call)
        user = transaction.get(FAMILY.name(call))
        had = user.body.get("permissionPreset")
        if had == "" or (had and user.body.get("role") in ROLES and "permissionPreset" not in call.body):
            user = transaction.save(user.changed({"permissionPreset": None}))
        _check(user.body)
        keys.set_role(call.gateway.store, user.parent, user.id, user.body["role"])
    return FAMILY.answer(call, user)


_patch = patch(FAMILY)


def _check(body: dict[str, Any]) -> None:
    role, preset = body.get("role", ""), body.get("permissionPreset", "")
    if role not in (*ROLES, CUSTOM):
        raise invalid(f"role: got {role[:80]!r}; expected one of {', '.join((*ROLES, CUSTOM))}", field="role")
    if role == CUSTOM and preset not in PRESETS:
        raise invalid(
            f"permissionPreset: got {preset[:80]!r}; role custom takes one of {', '.join(PRESETS)}",
            field="permissionPreset",
        )
    if role != CUSTOM and preset:
        raise invalid(
            f"permissionPreset: goes with role custom only, and the role is {role}; leave it out, or set that role",
            field="permissionPreset",
        )
    if len(body.get("displayName", "")) > 63:
        raise invalid("displayName: longer than 63 characters", field="displayName")
    if len(body.get("email", "")) > _LONGEST_EMAIL:
        raise invalid(f"email: longer than {_LONGEST_EMAIL} characters", field="email")


def _state() -> dict[str, Any]:
    return {"state": "READY", "status": {"code": "OK", "message": ""}}
