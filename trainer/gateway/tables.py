"""The tables beside the records: API keys, the audit log, and answers kept for repeated requests.

They are declared on the schema's metadata, so a new database has them from its first moment; `migrations/` adds them to
one that was made before them.
"""

from __future__ import annotations

import sqlalchemy as sa

from trainer.gateway.schema import Text, metadata

api_keys = sa.Table(
    "api_keys",
    metadata,
    sa.Column("key_id", Text, primary_key=True),
    sa.Column("account", Text, nullable=False),
    sa.Column("user_id", Text, nullable=False),
    sa.Column("role", Text, nullable=False),
    sa.Column("display_name", Text, nullable=False),
    sa.Column("digest", Text, nullable=False),  # SHA-256 of the whole key; the key itself is nowhere
    sa.Column("prefix", Text, nullable=False),
    sa.Column("annotations", sa.JSON, nullable=False),
    sa.Column("create_time", Text, nullable=False),
    sa.Column("expire_time", Text, nullable=False),  # "" = never
    sa.Column("revoke_time", Text, nullable=False),  # "" = not revoked
    sa.Column("last_used", Text, nullable=False),  # "" = never
    sa.Index("api_keys_by_user", "account", "user_id", "create_time", "key_id"),
)
audit_log = sa.Table(
    "audit_log",
    metadata,
    sa.Column("id", Text, primary_key=True),  # begins with the time, so it orders too
    sa.Column("account", Text, nullable=False),
    sa.Column("time", Text, nullable=False),
    sa.Column("method", Text, nullable=False),
    sa.Column("principal", Text, nullable=False),
    sa.Column("key_id", Text, nullable=False),
    sa.Column("resource", Text, nullable=False),
    sa.Column("code", Text, nullable=False),
    sa.Column("message", Text, nullable=False),
    sa.Column("request_id", Text, nullable=False),
    sa.Column("user_agent", Text, nullable=False),
    sa.Column("client_ip", Text, nullable=False),
    sa.Column("is_admin", sa.Boolean, nullable=False),
    sa.Column("payload", sa.JSON, nullable=False),
    sa.Index("audit_log_by_account", "account", "id"),
    sa.Index("audit_log_by_principal", "account", "principal", "id"),
)
idempotency = sa.Table(
    "idempotency",
    metadata,
    sa.Column("key", Text, primary_key=True),
    sa.Column("request", Text, nullable=False),  # digest of what was asked; and, where counted, how often again
    sa.Column("answer", sa.JSON, nullable=False),
    sa.Column("resource", Text, nullable=False),
    sa.Column("time", sa.Float, nullable=False),  # seconds since 1970
    sa.Index("idempotency_by_time", "time"),
)
TABLES = (api_keys, audit_log, idempotency)
