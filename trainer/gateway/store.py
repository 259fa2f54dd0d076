"""The gateway's records: one table of resources, safe for several processes on one state folder or one database.

A record's `body` is what the API shows; `private` is never returned (secrets, file sums, run bookkeeping). Every change
is a transaction that takes the one write lock first, so read-modify-write inside one cannot lose an update; across
transactions the revision guards. A committed change survives a power cut. `database.py` has what SQLite and PostgreSQL
differ in, `schema.py` the tables.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from trainer.gateway import tables as _tables  # noqa: F401  (a new database has them too)
from trainer.gateway.database import Database
from trainer.gateway.errors import GatewayError, not_found
from trainer.gateway.schema import counts, resources

_COLUMNS = tuple(column for column in resources.c if column.name != "state")  # a Resource's fields
# Built once: it is what most writing requests end in. rowcount is 0 where the name is taken.
_INSERT: dict[str, Any] = {
    name: insert(resources)
    .on_conflict_do_nothing(index_elements=[resources.c.name])
    .execution_options(preserve_rowcount=True)
    for name, insert in (("sqlite", sqlite.insert), ("postgresql", postgresql.insert))
}


@dataclass(frozen=True)
class Resource:
    """One record. Times are fixed-width UTC microseconds, so that they compare as strings."""

    name: str
    collection: str
    parent: str
    id: str
    body: dict[str, Any]
    private: dict[str, Any] = field(default_factory=dict)
    create_time: str = ""
    update_time: str = ""
    revision: int = 0

    def shown(self) -> dict[str, Any]:
        """The record as the API returns it, before encoding."""
        return {**self.body, "name": self.name, "createTime": self.create_time, "updateTime": self.update_time}

    def changed(self, body: dict[str, Any] | None = None, private: dict[str, Any] | None = None) -> Resource:
        """A copy with `body` and `private` merged over the present ones; None as a value removes the key."""
        return replace(self, body=_merged(self.body, body), private=_merged(self.private, private))


@dataclass(frozen=True)
class Page:
    """What a list wants: conditions on columns or JSON paths, an order, and where to go on.

    parent: a name, in which `-` stands for any id; None = whatever the parent.
    """

    collection: str
    parent: str | None
    conditions: Sequence[sa.ColumnElement[bool]] = ()
    order: str = "create_time"
    descending: bool = False
    after: tuple[str, str] | None = None
    size: int = 50


class Store:
    """The records of one state folder; `url` as `Database` has it.

    database: where they are, for what keeps tables of its own there (declared on `schema.metadata`).
    """

    def __init__(self, folder: Path, url: str | None = None) -> None:
        self.folder = folder
        self.database = Database(folder, url=url)
        self._held = threading.local()

    def close(self) -> None:
        """Close every connection."""
        self.database.close()

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """A transaction that holds the write lock from its first statement; commits at the end, or rolls back.

        Within one thread an inner `transaction()` is part of the outer one. Raises UNAVAILABLE when others hold the
        lock for too long, or the database is away.
        """
        outer: Transaction | None = getattr(self._held, "transaction", None)
        if outer is not None:
            yield outer
            return
        with self.database.writing() as connection:
            self._held.transaction = held = Transaction(connection)
            try:
                yield held
            finally:
                self._held.transaction = None
        for act in held.afterwards:
            act()

    def find(self, name: str) -> Resource | None:
        """The record `name`, or None."""
        with self._reading() as transaction:
            return transaction.find(name)

    def get(self, name: str, way_out: str = "") -> Resource:
        """The record `name`. Raises NOT_FOUND, adding `way_out`."""
        found = self.find(name)
        if found is None:
            raise not_found(name, way_out)
        return found

    def page(self, page: Page) -> tuple[list[Resource], bool, int]:
        """One page of records, whether more follow, and how many meet the conditions in all."""
        with self._reading() as transaction:
            return transaction.page(page)

    def every(self, collection: str, *conditions: sa.ColumnElement[bool]) -> list[Resource]:
        """All records of `collection` that meet the conditions, oldest first."""
        with self._reading() as transaction:
            return transaction.every(collection, *conditions)

    @contextmanager
    def _reading(self) -> Iterator[Transaction]:
        outer: Transaction | None = getattr(self._held, "transaction", None)
        if outer is not None:
            yield outer
            return
        with self.database.reading() as connection:
            yield Transaction(connection)


class Transaction:
    """Reads and writes on one connection. afterwards: what is done once it is committed, whole, and not before."""

    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection
        self.afterwards: list[Callable[[], None]] = []

    def execute(self, statement: sa.Executable, parameters: Any = None) -> sa.CursorResult[Any]:
        """Run a statement on any of the gateway's tables, within this transaction."""
        return self._connection.execute(statement, parameters)  # pyright: ignore[reportReturnType]

    def find(self, name: str) -> Resource | None:
        """The record `name`, or None."""
        row = self._connection.execute(sa.select(*_COLUMNS).where(resources.c.name == name)).mappings().first()
        return None if row is None else Resource(**dict(row))

    def get(self, name: str) -> Resource:
        """The record `name`. Raises NOT_FOUND."""
        found = self.find(name)
        if found is None:
            raise not_found(name)
        return found

    def insert(self, resource: Resource) -> Resource:
        """Add a record with its times set. Raises ALREADY_EXISTS."""
        time = now()
        new = replace(resource, create_time=resource.create_time or time, update_time=time, revision=1)
        done = self._connection.execute(_INSERT[self._connection.dialect.name], vars(new))
        if done.rowcount != 1:
            raise GatewayError(
                "ALREADY_EXISTS", f"{new.name} already exists; choose another id, or delete it first",
                metadata={"name": new.name}, retry=False,
            )  # fmt: skip
        return new

    def save(self, resource: Resource) -> Resource:
        """Store a changed record. Raises ABORTED when someone else has changed it since it was read."""
        new = replace(resource, update_time=now(), revision=resource.revision + 1)
        done = self._connection.execute(
            resources.update()
            .where(resources.c.name == resource.name, resources.c.revision == resource.revision)
            .values(**vars(new))
        )
        if done.rowcount != 1:
            raise _changed_meanwhile(resource.name)
        return new

    def amend(self, resource: Resource) -> None:
        """Store a changed private part: nothing that is shown, so the time of the last change stays. Raises as `save`.

        Whoever has read the record before must read it again, as after any change.
        """
        mine = (resources.c.name == resource.name, resources.c.revision == resource.revision)
        new = {"private": resource.private, "revision": resource.revision + 1}
        if self._connection.execute(resources.update().where(*mine).values(**new)).rowcount != 1:
            raise _changed_meanwhile(resource.name)

    def delete(self, name: str) -> None:
        """Remove the record `name` and those below it."""
        below = sa.and_(resources.c.name > f"{name}/", resources.c.name < f"{name}0")  # "0" is what follows "/"
        self._connection.execute(resources.delete().where(sa.or_(resources.c.name == name, below)))

    def every(self, collection: str, *conditions: sa.ColumnElement[bool]) -> list[Resource]:
        """All records of `collection` that meet the conditions, oldest first."""
        query = sa.select(*_COLUMNS).where(resources.c.collection == collection, *conditions)
        rows = self._connection.execute(query.order_by(resources.c.create_time, resources.c.name)).mappings()
        return [Resource(**dict(row)) for row in rows]

    def page(self, page: Page) -> tuple[list[Resource], bool, int]:
        """One page of records, whether more follow, and how many meet the conditions in all."""
        where = [resources.c.collection == page.collection, *_below(resources, page.parent), *page.conditions]
        total = self._total(page, where)
        key = sa.tuple_(resources.c[page.order], resources.c.name)
        if page.after is not None:
            after = sa.tuple_(*map(sa.literal, page.after))
            where.append(key < after if page.descending else key > after)
        columns = (resources.c[page.order], resources.c.name)
        order = [column.desc() for column in columns] if page.descending else list(columns)
        query = sa.select(*_COLUMNS).where(*where).order_by(*order).limit(page.size + 1)
        found = [Resource(**dict(row)) for row in self._connection.execute(query).mappings()]
        return found[: page.size], len(found) > page.size, total

    def _total(self, page: Page, where: Sequence[sa.ColumnElement[bool]]) -> int:
        """How many there are: kept by the database for a whole collection, counted where there are conditions."""
        if page.conditions:
            query = sa.select(sa.func.count()).select_from(resources).where(*where)
        else:
            inside = (counts.c.collection == page.collection, *_below(counts, page.parent))
            query = sa.select(sa.func.coalesce(sa.func.sum(counts.c.total), 0)).where(*inside)
        return int(self._connection.execute(query).scalar_one())


def now() -> str:
    """The time as the API writes it: UTC, fixed-width microseconds, Z."""
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def body_value(path: Sequence[str]) -> Any:
    """The JSON value at `path` in a record's body, for conditions (`.as_string()`, `.as_integer()`, ...).

    `state` has a column with an index: `resources.c.state`.
    """
    return resources.c.body[tuple(path)] if len(path) > 1 else resources.c.body[path[0]]


def _changed_meanwhile(name: str) -> GatewayError:
    return GatewayError(
        "ABORTED", f"{name} was changed by someone else meanwhile; read it again and repeat", metadata={"name": name},
        retry=False,
    )  # fmt: skip


def _below(table: sa.Table, parent: str | None) -> list[sa.ColumnElement[bool]]:
    """The condition that a row is of `parent`, in which `-` stands for any id."""
    if parent is None:
        return []
    parts = parent.split("/")
    if "-" not in parts:
        return [table.c.parent == parent]
    pattern = "/".join("%" if part == "-" else _literal(part) for part in parts)
    deeper = "%" + "/%" * len(parts)  # % takes slashes too; a parent has as many parts as its pattern
    return [table.c.parent.like(pattern, escape="\\"), table.c.parent.not_like(deeper)]


def _literal(part: str) -> str:
    return part.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")


def _merged(old: dict[str, Any], new: dict[str, Any] | None) -> dict[str, Any]:
    return {key: value for key, value in {**old, **(new or {})}.items() if value is not None}
