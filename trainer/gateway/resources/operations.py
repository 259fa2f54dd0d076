"""operations (ours; the contract names them and has no paths): how work goes that outlasts its request."""

from __future__ import annotations

from typing import Any

from trainer.gateway import standard
from trainer.gateway.errors import precondition
from trainer.gateway.gateway import Call
from trainer.gateway.operations import COLLECTION, shown
from trainer.gateway.standard import Family
from trainer.gateway.store import Resource


def _present(call: Call, found: Resource) -> dict[str, Any]:
    return shown(call.gateway.operations.settled(found))


def _may_delete(call: Call, found: Resource) -> None:
    if not call.gateway.operations.settled(found).body["done"]:
        raise precondition(f"{found.name} is not done; cancel it first", name=found.name)


FAMILY = Family(
    collection=COLLECTION, schema="googlelongrunningOperation", param="operation_id", present=_present,
    may_delete=_may_delete,
)  # fmt: skip
get, list_all, delete = standard.get(FAMILY), standard.list_all(FAMILY), standard.delete(FAMILY)


def cancel(call: Call) -> dict[str, Any]:
    """POST :cancel: asks the work to end; it does at its next step."""
    call.gateway.operations.cancel(FAMILY.load(call))
    return {}
