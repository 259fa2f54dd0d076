"""The gateway's tables in their newest version; `migrations/` has the way here from every version released before.

Tables of other modules of the gateway are declared on `metadata` too. What is derived is kept by the database itself,
so that no writer can forget it: `state` is computed from the body, and triggers count the records of each collection,
for `totalSize` without a scan.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

VERSION = "0002"  # of the tables below: the newest file of migrations/versions

# Compared by code point on every database: PostgreSQL would otherwise sort by the language of its cluster.
Text = sa.String().with_variant(postgresql.TEXT(collation="C"), "postgresql")

metadata = sa.MetaData()


class _bytewise(FunctionElement[str]):
    """Text of a body, compared by code point."""

    name, type, inherit_cache = "bytewise", sa.String(), True


@compiles(_bytewise, "sqlite")
def _bytewise_in_sqlite(element: Any, compiler: Any, **options: Any) -> str:
    return compiler.process(element.clauses, **options)


@compiles(_bytewise, "postgresql")
def _bytewise_in_postgresql(element: Any, compiler: Any, **options: Any) -> str:
    return f'({compiler.process(element.clauses, **options)} COLLATE "C")'


class _Comparator(sa.JSON.Comparator[Any]):
    def as_string(self) -> Any:
        return _bytewise(super().as_string())


class Json(sa.JSON):
    """JSON whose strings, taken out with `as_string`, are compared as `Text` is."""

    cache_ok = True
    comparator_factory = _Comparator


class _State(sa.Computed):
    """The body's `state`, as a column that can be indexed."""


@compiles(_State, "sqlite")
def _state_in_sqlite(_element: Any, _compiler: Any, **_: Any) -> str:
    return "GENERATED ALWAYS AS (json_extract(body, '$.state')) VIRTUAL"


@compiles(_State, "postgresql")
def _state_in_postgresql(_element: Any, _compiler: Any, **_: Any) -> str:
    return "GENERATED ALWAYS AS (body ->> 'state') STORED"


resources = sa.Table(
    "resources",
    metadata,
    sa.Column("name", Text, primary_key=True),
    sa.Column("collection", Text, nullable=False),
    sa.Column("parent", Text, nullable=False),
    sa.Column("id", Text, nullable=False),
    sa.Column("body", Json, nullable=False),
    sa.Column("private", Json, nullable=False),
    sa.Column("create_time", Text, nullable=False),
    sa.Column("update_time", Text, nullable=False),
    sa.Column("revision", sa.Integer, nullable=False),
    sa.Column("state", Text, _State("state")),
    sa.Index("resources_by_time", "collection", "parent", "create_time", "name"),
    sa.Index("resources_by_update", "collection", "parent", "update_time", "name"),
    sa.Index("resources_by_name", "collection", "parent", "name"),
    sa.Index("resources_of_any_parent", "collection", "create_time", "name", "parent"),
    sa.Index("resources_by_state", "collection", "state", "create_time", "name", "parent"),
)
counts = sa.Table(
    "counts",
    metadata,
    sa.Column("collection", Text, primary_key=True),
    sa.Column("parent", Text, primary_key=True),
    sa.Column("total", sa.Integer, nullable=False),
)

_SQLITE_TRIGGERS = (
    """CREATE TRIGGER resources_added AFTER INSERT ON resources BEGIN
    INSERT INTO counts (collection, parent, total) VALUES (new.collection, new.parent, 1)
    ON CONFLICT (collection, parent) DO UPDATE SET total = total + 1; END""",
    """CREATE TRIGGER resources_removed AFTER DELETE ON resources BEGIN
    UPDATE counts SET total = total - 1 WHERE collection = old.collection AND parent = old.parent; END""",
)
# Once for each statement: a row of `counts` that one transaction changes 100,000 times would grow slow to change.
_POSTGRESQL_TRIGGERS = (
    """CREATE FUNCTION resources_added() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO counts (collection, parent, total) SELECT collection, parent, count(*) FROM added GROUP BY 1, 2
    ON CONFLICT (collection, parent) DO UPDATE SET total = counts.total + excluded.total; RETURN NULL; END $$""",
    """CREATE FUNCTION resources_removed() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    UPDATE counts SET total = counts.total - gone.total
    FROM (SELECT collection, parent, count(*) AS total FROM removed GROUP BY 1, 2) AS gone
    WHERE counts.collection = gone.collection AND counts.parent = gone.parent; RETURN NULL; END $$""",
    """CREATE TRIGGER resources_added AFTER INSERT ON resources REFERENCING NEW TABLE AS added
    FOR EACH STATEMENT EXECUTE FUNCTION resources_added()""",
    """CREATE TRIGGER resources_removed AFTER DELETE ON resources REFERENCING OLD TABLE AS removed
    FOR EACH STATEMENT EXECUTE FUNCTION resources_removed()""",
)
TRIGGERS = {"sqlite": _SQLITE_TRIGGERS, "postgresql": _POSTGRESQL_TRIGGERS}


def create(connection: sa.Connection) -> None:
    """Make every table, in an empty database, within the caller's transaction."""
    metadata.create_all(connection, checkfirst=False)
    for statement in TRIGGERS[connection.dialect.name]:
        connection.exec_driver_sql(statement)
    connection.exec_driver_sql("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL PRIMARY KEY)")
    connection.execute(sa.text("INSERT INTO alembic_version (version_num) VALUES (:version)"), {"version": VERSION})


def version(connection: sa.Connection) -> str | None:
    """The version of a database's tables; None for an empty one."""
    present = set(sa.inspect(connection).get_table_names())
    if "alembic_version" in present:
        found = connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar()
        if found is not None:
            return str(found)
    return "0001" if "resources" in present else None  # the first release had no note of its version
