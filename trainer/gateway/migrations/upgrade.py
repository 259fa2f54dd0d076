"""Brings an older database to the newest version within the caller's transaction: wholly, or not at all."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory

from trainer.gateway.errors import GatewayError
from trainer.gateway.schema import VERSION

_HERE = Path(__file__).parent


def upgrade(connection: sa.Connection, found: str, shown: str) -> None:
    """From version `found` to the newest. Raises FAILED_PRECONDITION for one that this program does not know."""
    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(_HERE).replace("%", "%%"))
    known = [script.revision for script in ScriptDirectory.from_config(config).walk_revisions()]
    if found not in known:
        raise GatewayError(
            "FAILED_PRECONDITION",
            f"{shown}: its tables have version {found}, and this program knows versions up to {VERSION}; a newer "
            "program has written them and there is no way back: use that program, or restore a backup made before",
            reason="STORE_TOO_NEW",
        )  # fmt: skip
    if "alembic_version" not in sa.inspect(connection).get_table_names():
        command.stamp(config, found)
    command.upgrade(config, "head")
