"""accounts: each caller sees exactly one, its own; the one of the state folder is `accounts/local`."""

from __future__ import annotations

from typing import Any

from trainer.gateway.gateway import ACCOUNT, Call, Gateway
from trainer.gateway.resources import in_memory, users
from trainer.gateway.standard import shown
from trainer.gateway.store import Resource

_SCHEMA = "gatewayAccount"


def ensure(gateway: Gateway, name: str = ACCOUNT, *, email: str = "") -> Resource:
    """The account's record, made when it is new; that of the folder itself with its one user."""
    found = gateway.store.find(name)
    if found is None:
        body = {
            "displayName": name.rsplit("/", 1)[-1].capitalize(), "email": email or gateway.options.email,
            "state": "READY", "status": {"code": "OK", "message": ""}, "accountType": "ACCOUNT_TYPE_UNSPECIFIED",
        }  # fmt: skip
        with gateway.store.transaction() as transaction:
            found = transaction.find(name) or transaction.insert(
                Resource(name=name, collection="accounts", parent="", id=name.rsplit("/", 1)[-1], body=body)
            )
    if name == ACCOUNT:
        users.ensure(gateway)
    return found


def get(call: Call) -> dict[str, Any]:
    """GET of the caller's account."""
    call.parent()
    return shown(call, _SCHEMA, _own(call))


def list_all(call: Call) -> dict[str, Any]:
    """GET of the accounts: the caller's."""
    return in_memory.page([_own(call)], call, schema=_SCHEMA, key=lambda account: account["name"], name="accounts")


def _own(call: Call) -> dict[str, Any]:
    return ensure(call.gateway, call.account, email=call.principal.email).shown()
