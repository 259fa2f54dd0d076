"""Moves a gateway's records from SQLite to PostgreSQL or back, and its files between the folder and a bucket.

Nothing is given up before all of it is at its new place and has been compared there, by row counts and digests; then
one small file, the folder's mark, says where things are. A move that was cut off is begun again with an emptied target.
No other process may use them meanwhile; what was left is kept under another name.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from trainer.gateway import database, files, tables
from trainer.gateway.bucket_files import BucketFiles
from trainer.gateway.buckets import own
from trainer.gateway.database import Database
from trainer.gateway.errors import GatewayError
from trainer.gateway.schema import counts, metadata, resources

_BATCH = 1000
_BESIDE = ("models", "evaluators")  # which have files that no record names
# Those of other modules are on `metadata` because `tables` has been imported; `counts` is made by triggers.
TABLES = tuple(table for table in metadata.sorted_tables if table is not counts)
assert set(tables.TABLES) <= set(TABLES)

Row = tuple[str, dict[str, Any]]


@dataclass(frozen=True)
class Extent:
    """A table's content: rows, and the sha256 over them in the order of their keys."""

    rows: int
    sha256: str


def rows(connection: sa.Connection) -> Iterator[Row]:
    """Every row of every table, as (table, column -> value), in the order of tables and their keys."""
    for table in TABLES:
        columns = [column for column in table.c if column.computed is None]
        query = sa.select(*columns).order_by(*table.primary_key.columns).execution_options(yield_per=_BATCH)
        with connection.execute(query) as result:
            for row in result.mappings():
                yield table.name, dict(row)


def empty(connection: sa.Connection) -> bool:
    """True where no table has a row."""
    return all(
        connection.execute(sa.select(sa.literal(1)).select_from(table).limit(1)).first() is None for table in TABLES
    )


def load(connection: sa.Connection, content: Iterable[Row]) -> None:
    """Insert rows as `rows` gives them, in the caller's transaction. Raises FAILED_PRECONDITION for unknown tables."""
    known = {table.name: table for table in TABLES}
    ahead = iter(content)
    while batch := list(islice(ahead, _BATCH)):
        by_table: dict[str, list[dict[str, Any]]] = {}
        for name, row in batch:
            if name not in known:
                raise GatewayError("FAILED_PRECONDITION", f"table {name!r} is not one that this program knows")
            by_table.setdefault(name, []).append(row)
        for name, listed in by_table.items():
            connection.execute(known[name].insert(), listed)


def line(name: str, row: Mapping[str, Any]) -> str:
    """A row as a line of JSON, the same from every database."""
    return database.encode_json({"table": name, "row": row})


class Extents:
    """Counts and digests rows that pass."""

    def __init__(self) -> None:
        self._rows = {table.name: 0 for table in TABLES}
        self._digests = {table.name: hashlib.sha256() for table in TABLES}

    def passing(self, content: Iterable[Row]) -> Iterator[Row]:
        """The rows as they are."""
        for name, row in content:
            self._rows[name] += 1
            self._digests[name].update(line(name, row).encode() + b"\n")
            yield name, row

    def found(self) -> dict[str, Extent]:
        """By table."""
        return {name: Extent(count, self._digests[name].hexdigest()) for name, count in self._rows.items()}


def move_records(folder: Path, url: str | None) -> dict[str, Extent]:
    """Move the records of `folder` to PostgreSQL at `url`, or to SQLite (None); returns what was moved.

    Raises FAILED_PRECONDITION while they are in use, where the target has records, or they are there already.
    """
    aside = folder / f"moving.{secrets.token_hex(4)}"
    with not_served(folder), _closing(Database(folder, as_marked=True, alone=True)) as source:
        for left in folder.glob("moving.*"):  # by a move that was killed
            shutil.rmtree(left)
        for left in folder.glob(".*-writing-*"):
            left.unlink()
        if (url is None) == (source.engine.dialect.name == "sqlite"):
            raise GatewayError("FAILED_PRECONDITION", f"the records of {folder} are in {source.shown} already")
        try:
            with _closing(Database(aside, url=url)) as target:
                moved = _copied(source, target)
                if url is not None:
                    database.mark(folder, target.engine.url)
            if url is None:  # closing has brought all of it into the one file
                database.set_aside(folder)  # what a move that was killed has left
                (aside / database.SQLITE_FILE).rename(folder / database.SQLITE_FILE)
                database.unmark(folder)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        source.close()
        if url is not None:
            database.set_aside(folder)
    return moved


def move_files(folder: Path, url: str | None) -> int:
    """Move the files of `folder` to the bucket at `url`, or out of it (None); returns how many. Copies stay here.

    Raises FAILED_PRECONDITION while they are in use, or where they are there already; DATA_LOSS for a file that is not
    what its record says.
    """
    with not_served(folder), _closing(Database(folder, as_marked=True, alone=True)) as records:
        held = files.FileStore(folder, as_marked=True)
        if (url is None) == (not held.in_bucket):
            raise GatewayError("FAILED_PRECONDITION", f"the files of {folder} are there already")
        listed = list(kept_files(records, held))
        if url is None:
            for resource, filename, _ in listed:
                held.path(resource, filename)
            files.unmark(folder)
            return len(listed)
        bucket = BucketFiles(own(url), notes=folder / "cached", partial=folder / "partial")
        moved = 0
        for resource, filename, said in listed:
            place = held.path(resource, filename)
            digest, moved = files.sha256(place) if place.is_file() else "nothing", moved + 1
            if digest != (said or digest):
                raise GatewayError("DATA_LOSS", f"{place} is {digest}, and {resource} says {said}; nothing was moved")
            bucket.put(place, resource, filename, digest)
            bucket.name(place, resource, filename, digest)
        files.mark(folder, url)
        return moved


def kept_files(records: Database, held: files.FileStore) -> Iterator[tuple[str, str, str]]:
    """(resource, file name, sha256 where its record has it) of every file; a job's growing logs stay in the folder."""
    with records.reading() as connection:
        columns = (resources.c.name, resources.c.collection, resources.c.private)
        found = connection.execute(sa.select(*columns).order_by(resources.c.name)).all()
    for resource, collection, private in found:
        said = {name: entry["sha256"] for name, entry in (private.get("files") or {}).items()}
        said |= {note["file"]: note["sha256"] for note in (private.get("inputs") or {}).values()}
        beside = held.names(resource) if collection in _BESIDE else []  # converted weights, the log of a build
        for filename in sorted({*said, *beside}):
            yield resource, filename, said.get(filename, "")


@contextmanager
def not_served(folder: Path) -> Iterator[None]:
    """Keeps servers, and all others, off `folder`. Raises FAILED_PRECONDITION while there is one."""
    with (folder / "server.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise GatewayError("FAILED_PRECONDITION", f"{folder} is being served; stop that server first") from error
        with database.unused(folder):
            yield


def _copied(source: Database, target: Database) -> dict[str, Extent]:
    with source.writing() as before, target.writing() as after:  # nobody writes to either meanwhile
        if not empty(after):
            raise GatewayError("FAILED_PRECONDITION", f"{target.shown} has records already; empty it, or take another")
        gone, came = Extents(), Extents()
        load(after, gone.passing(rows(before)))
        for _ in came.passing(rows(after)):
            pass
        if gone.found() != came.found():
            raise GatewayError("DATA_LOSS", f"{target.shown} has other rows than {source.shown}; nothing was moved")
        return gone.found()


@contextmanager
def _closing(opened: Database) -> Iterator[Database]:
    try:
        yield opened
    finally:
        opened.close()


def read_line(text: str | bytes) -> Row:
    """The row of a line."""
    found = json.loads(text) if isinstance(text, bytes) and b"\\ufdd0" not in text else database.decode_json(text)
    return str(found["table"]), dict(found["row"])
