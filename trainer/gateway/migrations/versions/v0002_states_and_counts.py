"""A column for the state, indexes for every order of a list, counts of collections, keys, audit log, kept answers.

Version 0001 was only ever made in SQLite: PostgreSQL came with this one.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_INDEXES = {
    "resources_by_update": ["collection", "parent", "update_time", "name"],
    "resources_by_name": ["collection", "parent", "name"],
    "resources_of_any_parent": ["collection", "create_time", "name", "parent"],
    "resources_by_state": ["collection", "state", "create_time", "name", "parent"],
}
_TRIGGERS = (
    """CREATE TRIGGER resources_added AFTER INSERT ON resources BEGIN
    INSERT INTO counts (collection, parent, total) VALUES (new.collection, new.parent, 1)
    ON CONFLICT (collection, parent) DO UPDATE SET total = total + 1; END""",
    """CREATE TRIGGER resources_removed AFTER DELETE ON resources BEGIN
    UPDATE counts SET total = total - 1 WHERE collection = old.collection AND parent = old.parent; END""",
)
_KEY = object()
_TABLES: dict[str, dict[str, Any]] = {
    "api_keys": {
        "key_id": _KEY,
        **dict.fromkeys(("account", "user_id", "role", "display_name", "digest", "prefix"), sa.String),
        "annotations": sa.JSON,
        **dict.fromkeys(("create_time", "expire_time", "revoke_time", "last_used"), sa.String),
    },
    "audit_log": {
        "id": _KEY,
        **dict.fromkeys(("account", "time", "method", "principal", "key_id", "resource", "code", "message"), sa.String),
        **dict.fromkeys(("request_id", "user_agent", "client_ip"), sa.String),
        "is_admin": sa.Boolean,
        "payload": sa.JSON,
    },
    "idempotency": {
        "key": _KEY, "request": sa.String, "answer": sa.JSON, "resource": sa.String, "time": sa.Float,
    },
}  # fmt: skip
_TABLE_INDEXES = {
    "api_keys_by_user": ("api_keys", ["account", "user_id", "create_time", "key_id"]),
    "audit_log_by_account": ("audit_log", ["account", "id"]),
    "audit_log_by_principal": ("audit_log", ["account", "principal", "id"]),
    "idempotency_by_time": ("idempotency", ["time"]),
}


def upgrade() -> None:
    """Add what 0001 lacks, and count what is there."""
    op.execute(
        "ALTER TABLE resources ADD COLUMN state VARCHAR GENERATED ALWAYS AS (json_extract(body, '$.state')) VIRTUAL"
    )
    for name, columns in _INDEXES.items():
        op.create_index(name, "resources", columns)
    op.create_table(
        "counts",
        sa.Column("collection", sa.String, primary_key=True),
        sa.Column("parent", sa.String, primary_key=True),
        sa.Column("total", sa.Integer, nullable=False),
    )
    op.execute(
        "INSERT INTO counts (collection, parent, total) "
        "SELECT collection, parent, count(*) FROM resources GROUP BY collection, parent"
    )
    for statement in _TRIGGERS:
        op.execute(statement)
    for table, columns in _TABLES.items():
        op.create_table(table, *(_column(name, kind) for name, kind in columns.items()))
    for name, (table, columns) in _TABLE_INDEXES.items():
        op.create_index(name, table, columns)


def _column(name: str, kind: Any) -> sa.Column[Any]:
    primary = kind is _KEY
    return sa.Column(name, sa.String if primary else kind, primary_key=primary, nullable=False)


def downgrade() -> None:
    """Refused: records written since may rely on it."""
    raise NotImplementedError("the tables cannot go back from 0002 to 0001; restore a backup made before")
