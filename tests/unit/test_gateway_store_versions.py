"""Every released version of the tables opens in the newest, wholly or not at all, and there is no way back."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from trainer.gateway import schema
from trainer.gateway.errors import GatewayError
from trainer.gateway.store import Page, Resource, Store

ROOT = Path(__file__).resolve().parents[2]
# As the first release made it, to the letter; never change it.
VERSION_1 = """
CREATE TABLE resources (
    name VARCHAR NOT NULL,
    collection VARCHAR NOT NULL,
    parent VARCHAR NOT NULL,
    id VARCHAR NOT NULL,
    body JSON NOT NULL,
    private JSON NOT NULL,
    create_time VARCHAR NOT NULL,
    update_time VARCHAR NOT NULL,
    revision INTEGER NOT NULL,
    PRIMARY KEY (name)
);
CREATE INDEX resources_by_time ON resources (collection, parent, create_time, name);
"""
TIME = "2026-01-01T00:00:00.000001Z"
KILLED = """
import os, signal, sys
from pathlib import Path
from sqlalchemy import Engine, event
from trainer.gateway.migrations import upgrade  # imported once, here: each child below starts at once
from trainer.gateway.store import Store

def child(folder, last):
    done = 0
    def count(*_):
        nonlocal done
        done += 1
        if done == last:
            os.kill(os.getpid(), signal.SIGKILL)
    event.listen(Engine, "before_cursor_execute", count)
    Store(Path(folder)).close()
    os._exit(0)

for last, folder in enumerate(sys.argv[1:], start=1):
    if not (pid := os.fork()):
        child(folder, last)
    print(os.waitpid(pid, 0)[1])
"""


def write_version_1(folder: Path, rows: int = 5) -> list[tuple[Any, ...]]:
    folder.mkdir(parents=True)
    with closing(sqlite3.connect(folder / "gateway.db")) as connection, connection:
        connection.executescript("PRAGMA journal_mode=WAL;" + VERSION_1)
        values = [
            (f"accounts/local/datasets/d{n}", "datasets", "accounts/local", f"d{n}",
             json.dumps({"state": "READY" if n % 2 else "UPLOADING", "displayName": "é\u0000"}), json.dumps({"p": n}),
             TIME, TIME, n + 1)
            for n in range(rows)
        ]  # fmt: skip
        connection.executemany("INSERT INTO resources VALUES (?,?,?,?,?,?,?,?,?)", values)
    connection.close()
    return values


def shape(store: Store) -> dict[str, Any]:
    """Everything that the database says of its tables."""
    with store.database.reading() as connection:
        found = sa.inspect(connection)
        tables = {
            name: (
                [(c["name"], str(c["type"]), c["nullable"], c.get("computed")) for c in found.get_columns(name)],
                found.get_pk_constraint(name)["constrained_columns"],
                sorted((i["name"], i["column_names"], i["unique"]) for i in found.get_indexes(name)),
                sorted((u["name"], u["column_names"]) for u in found.get_unique_constraints(name)),
            )
            for name in found.get_table_names()
        }
        triggers = connection.execute(
            sa.text("SELECT name, sql FROM sqlite_master WHERE type = 'trigger' ORDER BY name")
        ).all()
        return {"tables": tables, "triggers": triggers, "version": schema.version(connection)}


def test_version_1_opens_in_the_newest(tmp_path: Path) -> None:
    values = write_version_1(tmp_path / "old")
    for _ in range(2):  # the second time there is nothing to do
        store = Store(tmp_path / "old")
        found, _, total = store.page(Page("datasets", "accounts/local"))
        assert total == 5
        assert [(one.name, one.body, one.private, one.create_time, one.revision) for one in found] == [
            (row[0], json.loads(row[4]), json.loads(row[5]), row[6], row[8]) for row in values
        ]
        ready = store.page(Page("datasets", "accounts/local", [schema.resources.c.state == "READY"]))
        assert [one.id for one in ready[0]] == ["d1", "d3"]
        store.close()
    store = Store(tmp_path / "old")
    with store.transaction() as transaction:
        transaction.insert(Resource("accounts/local/datasets/new", "datasets", "accounts/local", "new", {}))
        transaction.delete("accounts/local/datasets/d0")
        transaction.delete("accounts/local/datasets/d1")
    assert store.page(Page("datasets", "accounts/local"))[2] == 4
    store.close()


def test_an_old_one_becomes_what_a_new_one_is(tmp_path: Path) -> None:
    write_version_1(tmp_path / "old")
    old, new = Store(tmp_path / "old"), Store(tmp_path / "new")
    assert shape(old) == shape(new)
    assert shape(new)["version"] == schema.VERSION
    old.close()
    new.close()


def test_killed_at_every_statement(tmp_path: Path) -> None:
    """kill -9 before each statement: the old tables or the new ones, and the next start makes them whole."""
    write_version_1(tmp_path / "0")
    folders = [tmp_path / str(n) for n in range(40)]
    for folder in folders[1:]:
        shutil.copytree(folders[0], folder)
    ran = subprocess.run(
        [sys.executable, "-c", KILLED, *map(str, folders)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    killed = [int(line) == 9 for line in ran.stdout.split()]
    assert killed == sorted(killed, reverse=True)  # up to the last statement, and then it was through
    assert 10 <= sum(killed) < 40
    seen = set()
    for folder, dead in zip(folders, killed, strict=True):
        with closing(sqlite3.connect(folder / "gateway.db")) as connection, connection:
            names = {row[0] for row in connection.execute("SELECT name FROM sqlite_master")}
        connection.close()
        new = {"counts", "alembic_version", "resources_added", "resources_removed", "resources_by_state"}
        assert names >= new or not names & new
        assert dead or names >= new
        seen.add(names >= new)
        store = Store(folder)
        assert store.page(Page("datasets", "accounts/local"))[2] == 5
        store.close()
    assert seen == {True, False}


def test_tables_of_a_newer_program_are_refused(tmp_path: Path) -> None:
    Store(tmp_path).close()
    with closing(sqlite3.connect(tmp_path / "gateway.db")) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '0999'")
    connection.close()
    before = (tmp_path / "gateway.db").read_bytes()
    with pytest.raises(GatewayError, match=r"have version 0999, and this program knows versions up to .* backup") as no:
        Store(tmp_path)
    assert no.value.code == "FAILED_PRECONDITION"
    assert (tmp_path / "gateway.db").read_bytes() == before


def test_opening_the_newest_needs_no_migrations_machinery(tmp_path: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from trainer.gateway.store import Store
Store(Path({str(tmp_path)!r})).close()
Store(Path({str(tmp_path)!r})).close()
print([name for name in ("alembic", "mako", "psycopg", "torch", "fsspec") if name in sys.modules])
"""
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
