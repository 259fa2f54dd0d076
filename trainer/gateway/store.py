"""The gateway's records: one SQLite table of resources, safe for several processes on one state folder.

A record's `body` is what the API shows; `private` is never returned (secrets, file sums, run bookkeeping). Every change
is a transaction that takes SQLite's write lock first (BEGIN IMMEDIATE), so read-modify-write inside one cannot lose an
update; across transactions the revision guards. A committed change survives a power cut (synchronous=FULL).
"""

from __future__ import annotations

import fcntl
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event

from trainer.gateway.errors import GatewayError, not_found

_BUSY_MS = 20_000  # how long a writer waits for another process's transaction

_metadata = sa.MetaData()
resources = sa.Table(
    "resources",
    _metadata,
    sa.Column("name", sa.String, primary_key=True),
    sa.Column("collection", sa.String, nullable=False),
    sa.Column("parent", sa.String, nullable=False),
    sa.Column("id", sa.String, nullable=False),
    sa.Column("body", sa.JSON, nullable=False),
    sa.Column("private", sa.JSON, nullable=False),
    sa.Column("create_time", sa.String, nullable=False),
    sa.Column("update_time", sa.String, nullable=False),
    sa.Column("revision", sa.Integer, nullable=False),
    sa.Index("resources_by_time", "collection", "parent", "create_time", "name"),
)


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
    """What a list wants: conditions on columns or JSON paths, an order, and where to go on."""

    collection: str
    parent: str
    conditions: Sequence[sa.ColumnElement[bool]] = ()
    order: str = "create_time"
    descending: bool = False
    after: tuple[str, str] | None = None
    size: int = 50


class Store:
    """The records of one state folder."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._engine = sa.create_engine(
            f"sqlite:///{folder / 'gateway.db'}", connect_args={"timeout": _BUSY_MS / 1000, "check_same_thread": False}
        )
        event.listen(self._engine, "connect", _prepare)
        self._held = threading.local()
        # Entering WAL mode does not wait for others as other locks do, so the first to come does it alone.
        with (folder / "gateway.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            _metadata.create_all(self._engine)

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """A transaction that holds the write lock from its first statement; commits at the end, or rolls back.

        Within one thread an inner `transaction()` is part of the outer one.
        """
        outer: Transaction | None = getattr(self._held, "transaction", None)
        if outer is not None:
            yield outer
            return
        with self._engine.connect() as connection:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            self._held.transaction = Transaction(connection)
            try:
                yield self._held.transaction
                connection.exec_driver_sql("COMMIT")
            except BaseException:
                if connection.connection.driver_connection.in_transaction:  # pyright: ignore[reportOptionalMemberAccess]
                    connection.exec_driver_sql("ROLLBACK")
                raise
            finally:
                self._held.transaction = None

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
        with self._engine.connect() as connection:
            yield Transaction(connection)


class Transaction:
    """Reads and writes on one connection."""

    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection

    def find(self, name: str) -> Resource | None:
        """The record `name`, or None."""
        row = self._connection.execute(sa.select(resources).where(resources.c.name == name)).mappings().first()
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
        if self.find(new.name) is not None:
            raise GatewayError(
                "ALREADY_EXISTS", f"{new.name} already exists; choose another id, or delete it first",
                metadata={"name": new.name}, retry=False,
            )  # fmt: skip
        self._connection.execute(resources.insert().values(**vars(new)))
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
            raise GatewayError(
                "ABORTED", f"{resource.name} was changed by someone else meanwhile; read it again and repeat",
                metadata={"name": resource.name}, retry=False,
            )  # fmt: skip
        return new

    def delete(self, name: str) -> None:
        """Remove the record `name` and those below it."""
        below = resources.c.name.startswith(name + "/", autoescape=True)
        self._connection.execute(resources.delete().where(sa.or_(resources.c.name == name, below)))

    def every(self, collection: str, *conditions: sa.ColumnElement[bool]) -> list[Resource]:
        """All records of `collection` that meet the conditions, oldest first."""
        query = sa.select(resources).where(resources.c.collection == collection, *conditions)
        rows = self._connection.execute(query.order_by(resources.c.create_time, resources.c.name)).mappings()
        return [Resource(**dict(row)) for row in rows]

    def page(self, page: Page) -> tuple[list[Resource], bool, int]:
        """One page of records, whether more follow, and how many meet the conditions in all."""
        where = [resources.c.collection == page.collection, resources.c.parent == page.parent, *page.conditions]
        total = self._connection.execute(sa.select(sa.func.count()).select_from(resources).where(*where)).scalar_one()
        key = sa.tuple_(resources.c[page.order], resources.c.name)
        if page.after is not None:
            after = sa.tuple_(*map(sa.literal, page.after))
            where.append(key < after if page.descending else key > after)
        columns = (resources.c[page.order], resources.c.name)
        order = [column.desc() for column in columns] if page.descending else list(columns)
        query = sa.select(resources).where(*where).order_by(*order).limit(page.size + 1)
        found = [Resource(**dict(row)) for row in self._connection.execute(query).mappings()]
        return found[: page.size], len(found) > page.size, total


def now() -> str:
    """The time as the API writes it: UTC, fixed-width microseconds, Z."""
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def body_value(path: Sequence[str]) -> Any:
    """The JSON value at `path` in a record's body, for conditions (`.as_string()`, `.as_integer()`, ...)."""
    return resources.c.body[tuple(path)] if len(path) > 1 else resources.c.body[path[0]]


def _merged(old: dict[str, Any], new: dict[str, Any] | None) -> dict[str, Any]:
    return {key: value for key, value in {**old, **(new or {})}.items() if value is not None}


def _prepare(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # transactions begin where this module says so
    cursor = connection.cursor()
    for pragma in (f"busy_timeout={_BUSY_MS}", "journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()
