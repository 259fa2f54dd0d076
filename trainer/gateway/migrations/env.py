"""What alembic runs for every command: on the connection it is given, within that connection's transaction."""

from __future__ import annotations

from alembic import context

from trainer.gateway.schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata, transactional_ddl=True)
with context.begin_transaction():
    context.run_migrations()
