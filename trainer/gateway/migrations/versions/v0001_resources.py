"""The first release: one table of resources."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """As the first release made it."""
    op.create_table(
        "resources",
        sa.Column("name", sa.String, primary_key=True),
        *(sa.Column(name, sa.String, nullable=False) for name in ("collection", "parent", "id")),
        *(sa.Column(name, sa.JSON, nullable=False) for name in ("body", "private")),
        *(sa.Column(name, sa.String, nullable=False) for name in ("create_time", "update_time")),
        sa.Column("revision", sa.Integer, nullable=False),
    )
    op.create_index("resources_by_time", "resources", ["collection", "parent", "create_time", "name"])


def downgrade() -> None:
    """There is nothing before."""
    raise NotImplementedError("no version of the tables lies before 0001")
