"""accounts: exactly one, `accounts/local`, which owns everything in this gateway's folder."""

from __future__ import annotations

from typing import Any

from trainer.gateway.gateway import ACCOUNT, Call, Gateway
from trainer.gateway.listing import masked, page_of
from trainer.gateway.store import Resource


def ensure(gateway: Gateway) -> None:
    """Make the account's record when the folder is new."""
    if gateway.store.find(ACCOUNT) is None:
        body = {
            "displayName": "Local", "email": gateway.options.email, "state": "READY",
            "status": {"code": "OK", "message": ""}, "accountType": "ACCOUNT_TYPE_UNSPECIFIED",
        }  # fmt: skip
        with gateway.store.transaction() as transaction:
            if transaction.find(ACCOUNT) is None:
                transaction.insert(Resource(name=ACCOUNT, collection="accounts", parent="", id="local", body=body))


def get(call: Call) -> dict[str, Any]:
    """GET of the account."""
    return masked(call.gateway.store.get(call.parent()).shown(), call.query.get("readMask", ""))


def list_all(call: Call) -> dict[str, Any]:
    """GET of the accounts: the one there is."""
    contract = call.gateway.contract
    page = page_of(contract, "gatewayAccount", collection="accounts", parent="", query=call.query)
    found, _, total = call.gateway.store.page(page)
    shown = [masked(account.shown(), call.query.get("readMask", "")) for account in found]
    return {"accounts": shown, "nextPageToken": "", "totalSize": total}
