"""auditLogs: who changed what, newest first."""

from __future__ import annotations

from typing import Any

from trainer.gateway import audit
from trainer.gateway.errors import invalid
from trainer.gateway.gateway import Call


def list_all(call: Call) -> dict[str, Any]:
    """GET of the account's log: startTime, endTime, email."""
    for word in ("filter", "orderBy", "readMask"):
        if call.query.get(word):
            raise invalid(f"{word}: the log has none; choose by startTime, endTime and email", field=word)
    return audit.page(call.gateway.store, call.parent(), call.query)
