"""The five standard methods, once: create, get, list, patch, delete.

A `Family` says what is particular to a collection; where a family differs in more than that, its file in `resources/`
writes the method itself and uses the parts here.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from pydantic.alias_generators import to_camel

from trainer.gateway import uploads
from trainer.gateway.errors import invalid
from trainer.gateway.gateway import Call, checked_id
from trainer.gateway.listing import checked_mask, listed, masked
from trainer.gateway.store import Resource

Handler = Callable[[Call], Any]


def _as_is(_call: Call, resource: Resource) -> dict[str, Any]:
    return resource.shown()


def _nothing(*_: object) -> None:
    return None


@dataclass(frozen=True)
class Family:
    """A collection. param: its id's name in paths. present: what a record looks like in an answer.

    may_delete: raises when a record must stay. immutable: fields that a patch may not touch. check_patch: raises for a
    patch whose body cannot be, before the records are held; may_change: for what it would make of a record (old, new).
    """

    collection: str
    schema: str
    param: str
    present: Callable[[Call, Resource], dict[str, Any]] = _as_is
    may_delete: Callable[[Call, Resource], None] = _nothing
    immutable: frozenset[str] = frozenset()
    check_patch: Callable[[Call], None] = _nothing
    may_change: Callable[[Resource, Resource], None] = _nothing

    def name(self, call: Call) -> str:
        """The full name that the path speaks of."""
        return f"{call.parent()}/{self.collection}/{call.params[self.param]}"

    def load(self, call: Call) -> Resource:
        """The record that the path speaks of. Raises NOT_FOUND."""
        return call.gateway.store.get(self.name(call))

    def answer(self, call: Call, resource: Resource) -> dict[str, Any]:
        """The record as this call is to see it. Raises INVALID_ARGUMENT for a readMask with what is no field."""
        return shown(call, self.schema, self.present(call, resource))


def shown(call: Call, schema: str, value: dict[str, Any]) -> dict[str, Any]:
    """`value` (of `schema`) as this call is to see it. Raises as `read_mask`."""
    return masked(value, read_mask(call, schema))


def read_mask(call: Call, schema: str) -> str:
    """The call's readMask, "" where it has none. Raises INVALID_ARGUMENT for one with what is no field of `schema`."""
    mask = call.query.get("readMask", "")
    checked_mask(call.gateway.contract, schema, mask, what="readMask")
    return mask


def answer_mask(call: Call) -> str:
    """The mask of a verb's whole answer: a readMask in its query or its body; "" for none, and for lists of records.

    Lists and reads of records see to theirs themselves. Raises INVALID_ARGUMENT for one with what is no field.
    """
    operation = call.operation
    if not operation.path.rsplit("/", 1)[-1].count(":"):
        return ""
    fields = call.gateway.contract.schema(operation.body).get("properties", {}) if operation.body else {}
    mask = call.query.get("readMask", "") if "readMask" in operation.query else ""
    mask = mask or (call.body.get("readMask", "") if "readMask" in fields else "")
    checked_mask(call.gateway.contract, operation.response or {}, mask, what="readMask")
    return mask


def new_resource(family: Family, call: Call, *, given_id: str | None, what: str, body: dict[str, Any]) -> Resource:
    """A record to insert, with the client's id (validated, `what` names it) or one made here; the caller owns it."""
    bare = checked_id(given_id, what=what) if given_id else secrets.token_hex(8)
    parent = call.parent()
    return Resource(
        name=f"{parent}/{family.collection}/{bare}", collection=family.collection, parent=parent, id=bare, body=body,
        private={"owner": call.principal.user},
    )  # fmt: skip


def get(family: Family) -> Handler:
    """GET of one record."""
    return lambda call: family.answer(call, family.load(call))


def list_all(family: Family, *, parent: Callable[[Call], str] = Call.parent) -> Handler:
    """GET of a collection below `parent`; `-` for an id in the path stands for all there are."""

    def handle(call: Call) -> dict[str, Any]:
        read_mask(call, family.schema)  # refused in an empty list too
        found = listed(
            call.gateway, family.schema, collection=family.collection, parent=parent(replace(call, wildcards=True)),
            query=call.query, default_order=call.operation.default_order,
        )  # fmt: skip
        return {
            family.collection: [family.answer(call, resource) for resource in found.resources],
            "nextPageToken": found.next_page_token,
            "totalSize": found.total,
        }

    return handle


def patch(family: Family) -> Handler:
    """PATCH of one record: the fields of updateMask, or all that the body has; `*` replaces every field."""

    def handle(call: Call) -> dict[str, Any]:
        family.check_patch(call)
        with call.gateway.store.transaction() as transaction:
            old = transaction.get(family.name(call))
            wanted = changes(family, call, old)
            touched = sorted(key for key in family.immutable & set(wanted) if wanted[key] != old.body.get(key))
            if touched:
                raise invalid(
                    f"{touched[0]}: cannot be changed once created; create another resource", field=touched[0]
                )
            new = old.changed(wanted)
            family.may_change(old, new)
            new = transaction.save(new)
        return family.answer(call, new)

    return handle


def delete(family: Family) -> Handler:
    """DELETE of one record, what lies below it, and its files."""

    def handle(call: Call) -> dict[str, Any]:
        with call.gateway.store.transaction() as transaction:
            found = transaction.get(family.name(call))
            family.may_delete(call, found)
            uploads.condemn(transaction, found.name)
        uploads.remove(call.gateway, found.name)
        return {}

    return handle


def writable(call: Call, schema: str) -> dict[str, bool]:
    """The schema's fields: True for those that a client may write."""
    properties = call.gateway.contract.schema(schema)["properties"]
    return {name: not call.gateway.contract.schema(item).get("readOnly") for name, item in properties.items()}


def changes(family: Family, call: Call, old: Resource) -> dict[str, Any]:
    """What a patch makes of the record's fields; None removes one. Raises INVALID_ARGUMENT for a mask that is none."""
    mask = [part.strip() for part in call.query.get("updateMask", "").split(",") if part.strip()]
    if not mask:
        return call.body
    fields = writable(call, family.schema)
    if mask == ["*"]:
        gone = {key: None for key in old.body if fields.get(key, True) and key not in family.immutable}
        return {**gone, **call.body}
    found: dict[str, Any] = {}
    checked_mask(call.gateway.contract, family.schema, ",".join(mask), what="updateMask")
    for path in mask:
        parts = [to_camel(part) for part in path.split(".")]
        if not fields.get(parts[0], False):
            allowed = ", ".join(name for name, free in fields.items() if free)
            raise invalid(
                f"updateMask: {path!r} is not a field that can be written; those are {allowed}", field="updateMask"
            )
        if len(parts) == 1:
            found[parts[0]] = call.body.get(parts[0])
        else:
            inner = found.get(parts[0], old.body.get(parts[0]))
            found[parts[0]] = inner = dict(inner or {})
            _assign(inner, parts[1:], call.body.get(parts[0], {}))
    return found


def _assign(target: dict[str, Any], parts: list[str], source: Any) -> None:
    for part in parts[:-1]:
        target[part] = dict(target.get(part, {}))
        target, source = target[part], source.get(part, {}) if isinstance(source, dict) else {}
    value = source.get(parts[-1]) if isinstance(source, dict) else None
    if value is None:
        target.pop(parts[-1], None)
    else:
        target[parts[-1]] = value
