"""secrets: values that jobs and imports use by name. A value is sealed when it comes and never in an answer.

A secret's id is its key name in lower case with `-` for `_`, unless its `name` says another.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from pydantic.alias_generators import to_camel

from trainer.gateway import standard
from trainer.gateway.errors import invalid, not_found
from trainer.gateway.gateway import Call, Gateway, full_name
from trainer.gateway.job_secrets import sealer
from trainer.gateway.standard import Family, new_resource
from trainer.gateway.store import Resource

_LONGEST = 64 << 10  # bytes of a value
_KEY_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")


def _shown(_call: Call, secret: Resource) -> dict[str, Any]:
    """The name and the key name: nothing that was ever a value, under whatever key it came."""
    return {"name": secret.name, "keyName": secret.body["keyName"]}


FAMILY = Family(collection="secrets", schema="gatewaySecret", param="secret_id", present=_shown)


def create(call: Call) -> dict[str, Any]:
    """POST {"keyName", "name", "value"}; the name is an id or a full name."""
    call.parent()  # another account's secrets are not found, whatever else is wrong
    key_name, value = _key_name(call.body["keyName"]), _value(call.body.get("value"))
    name = call.body.get("name") or key_name.lower().replace("_", "-").strip("-")
    given = full_name(name, collection=FAMILY.collection, what="name", account=call.account).rsplit("/", 1)[-1]
    new = new_resource(FAMILY, call, given_id=given, what="name", body={"keyName": key_name})
    with call.gateway.store.transaction() as transaction:
        return FAMILY.answer(call, transaction.insert(_with_value(call.gateway, new, value)))


def list_all(call: Call) -> dict[str, Any]:
    """GET of the account's secrets, by name unless asked otherwise: they show no time."""
    return _listed(replace(call, query={**call.query, "orderBy": call.query.get("orderBy") or "name"}))


_listed = standard.list_all(FAMILY)


def update(call: Call) -> dict[str, Any]:
    """PATCH of the value, or of the key name."""
    mask = {to_camel(part.strip()) for part in call.query.get("updateMask", "").split(",") if part.strip()}
    if foreign := mask - {"keyName", "value", "*"}:
        what = sorted(foreign)[0][:80]
        raise invalid(f"updateMask: {what!r}; what can be written is keyName, value", field="updateMask")
    wanted = {key: call.body.get(key) for key in ("keyName", "value") if key in (mask - {"*"} or call.body)}
    with call.gateway.store.transaction() as transaction:
        secret = transaction.get(FAMILY.name(call))
        if "keyName" in wanted:
            secret = secret.changed({"keyName": _key_name(wanted["keyName"] or "")})
        if "value" in wanted:
            secret = _with_value(call.gateway, secret, _value(wanted["value"]))
        return FAMILY.answer(call, transaction.save(secret))


def value_of(gateway: Gateway, name: str, *, parent: str) -> str:
    """The value of the secret of that full name, for `parent`'s own use. Raises NOT_FOUND."""
    secret = gateway.store.find(name) if name.startswith(f"{parent}/secrets/") else None
    if secret is None:
        raise not_found(name, "create it first (POST .../secrets)")
    return sealer(gateway.folder).open(secret.private["value"], about=secret.name).decode()


def _with_value(gateway: Gateway, secret: Resource, value: str) -> Resource:
    return secret.changed(private={"value": sealer(gateway.folder).seal(value.encode(), about=secret.name)})


def _key_name(text: str) -> str:
    if not _KEY_NAME.fullmatch(text):
        raise invalid(
            f"keyName: got {text[:40]!r}; expected a name such as WANDB_API_KEY (letters, digits and _)",
            field="keyName",
        )
    return text


def _value(text: Any) -> str:
    if not text:
        raise invalid("value: required, and missing or empty", field="value")
    if len(text.encode("utf-8", "replace")) > _LONGEST:
        raise invalid(f"value: longer than {_LONGEST} bytes", field="value")
    return text
