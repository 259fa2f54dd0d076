"""The audit log: who changed what, when, and how it ended. Values from bodies are never in it, only fields' names.

An entry is on disk before its request is answered; that of a change which is one short transaction is written in it.
"""

from __future__ import annotations

import base64
import binascii
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa

from trainer.gateway.contract import Operation
from trainer.gateway.errors import GatewayError, invalid
from trainer.gateway.listing import page_size
from trainer.gateway.principal import Principal
from trainer.gateway.store import Store, now
from trainer.gateway.tables import audit_log
from trainer.gateway.timestamps import canonical, written

KEPT_DAYS = 400
_DEFAULT_DAYS = 30  # how far back a list without startTime goes
_DEFAULT_PAGE = 10
_MOST_FIELDS = 100
_LONGEST = 500  # characters of a message, a user agent, a name
_INSERT = audit_log.insert()


@dataclass(frozen=True)
class Origin:
    """Where a request came from, as the log has it."""

    request_id: str = ""
    user_agent: str = ""
    client_ip: str = ""


def record(
    store: Store, principal: Principal, operation: Operation, *, params: Mapping[str, str], body: Mapping[str, Any],
    resource: str, origin: Origin, error: GatewayError | None = None,
) -> None:  # fmt: skip
    """Add one entry. resource: the name that was created, or that the path speaks of."""
    time = now()
    entry = {
        "id": f"{time.translate(_DIGITS)}-{secrets.token_hex(6)}",
        "account": principal.account,
        "time": time,
        "method": operation.id,
        "principal": principal.email or principal.user,
        "key_id": principal.key_id,
        "resource": resource[:_LONGEST],
        "code": error.code if error else "OK",
        "message": error.message[:_LONGEST] if error and error.code == "PERMISSION_DENIED" else "",
        "request_id": origin.request_id,
        "user_agent": origin.user_agent[:_LONGEST],
        "client_ip": origin.client_ip,
        "is_admin": principal.role == "admin",
        "payload": {"ids": dict(params), "fields": sorted(map(str, body))[:_MOST_FIELDS]},
    }
    with store.transaction() as transaction:
        transaction.execute(_INSERT, entry)


def page(store: Store, account: str, query: Mapping[str, Any]) -> dict[str, Any]:
    """A page of the account's log, newest first, as gatewayListAuditLogsResponse has it.

    query: startTime (default: 30 days ago), endTime, email, pageSize (default 10), pageToken. Raises INVALID_ARGUMENT.
    """
    size = page_size(query, _DEFAULT_PAGE)
    where = [audit_log.c.account == account]
    start = _time(query, "startTime") or written(datetime.now(UTC) - timedelta(days=_DEFAULT_DAYS))
    where.append(audit_log.c.id >= start.translate(_DIGITS))
    if (end := _time(query, "endTime")) is not None:
        where.append(audit_log.c.id < end.translate(_DIGITS))
    if query.get("email"):
        where.append(audit_log.c.principal == query["email"])
    token = query.get("pageToken", "")
    here = [*where, audit_log.c.id < _open(token)] if token else where
    with store.database.reading() as connection:
        rows = connection.execute(
            sa.select(audit_log).where(*here).order_by(audit_log.c.id.desc()).limit(size + 1)
        ).all()
        total = connection.execute(sa.select(sa.func.count()).select_from(audit_log).where(*where)).scalar_one()
    shown = [_shown(row) for row in rows[:size]]
    return {
        "auditLogs": shown, "nextPageToken": _token(rows[size - 1].id) if len(rows) > size else "", "totalSize": total,
    }  # fmt: skip


def sweep(store: Store) -> None:
    """Forget entries of more than 400 days ago."""
    oldest = written(datetime.now(UTC) - timedelta(days=KEPT_DAYS)).translate(_DIGITS)
    with store.transaction() as transaction:
        transaction.execute(audit_log.delete().where(audit_log.c.id < oldest))


_DIGITS = {ord(letter): None for letter in "-:.TZ"}


def _shown(row: Any) -> dict[str, Any]:
    return {
        "id": row.id, "method": row.method, "principal": row.principal, "payload": row.payload,
        "status": {"code": row.code, "message": row.message}, "timestamp": row.time,
        "message": f"request {row.request_id}", "resource": row.resource, "isAdminAction": row.is_admin,
        "userAgent": row.user_agent, "clientIp": row.client_ip, "apiKeyId": row.key_id,
    }  # fmt: skip


def _time(query: Mapping[str, Any], name: str) -> str | None:
    text = query.get(name, "")
    if not text:
        return None
    found = canonical(text)
    if found is None:
        raise invalid(f"{name}: got {text[:80]!r}; expected a time such as 2026-01-31T12:00:00Z", field=name)
    return found


def _token(entry: str) -> str:
    return base64.urlsafe_b64encode(entry.encode()).decode().rstrip("=")


def _open(token: str) -> str:
    try:
        return base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True).decode("ascii")
    except (ValueError, binascii.Error) as error:
        raise invalid(
            "pageToken: not a token of this gateway; pass nextPageToken as it was", field="pageToken"
        ) from error
