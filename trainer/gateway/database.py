"""The database below the store: a SQLite file, or PostgreSQL by URL; here lies all in which the two differ.

Both have one writer at a time: SQLite by BEGIN IMMEDIATE, PostgreSQL by an advisory lock that a transaction takes first
and its end releases. So what is read inside a writing transaction stays true until it commits, and no change has to be
tried again. Within a process writers queue in the order in which they came, and those who wait share a commit
(`group_commit.py`).
"""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy import exc as sa_errors

from trainer.disk import LOCAL_DISK, write_whole
from trainer.gateway import schema
from trainer.gateway.errors import GatewayError
from trainer.gateway.group_commit import GroupCommit, busy

STORE_VARIABLE = "TRAINER_GATEWAY_STORE"
SQLITE_FILE = "gateway.db"
_MARK, _USERS = "store.json", "users.lock"
RESTORING = "restoring"  # in a folder that is not whole yet
_BUSY_SECONDS = 20  # how long a writer waits for others
_CACHE_KIB = 256  # pages that a connection keeps; SQLite's own 2 MiB, times the connections, come only slowly to a rest
_LOCK = 0x7472_6169_6E65_7221  # the advisory lock of all writers
_POOL_SECONDS = 20  # and how long for a connection
_READ_ONLY = ("readonly database", "read-only transaction", "Read-only file system", "during recovery")
_BROKEN = ("disk I/O error", "unable to open database file")
_IDLE_MS = 60_000  # then PostgreSQL ends the transaction of a process that stands still, and others go on
# What PostgreSQL's text cannot hold, and U+FDD0, which stands before its code where it is stored.
_UNSTORABLE = re.compile("[\x00\ud800-\udfff\ufdd0]")
_STORED = re.compile("\ufdd0([0-9a-f]{4})")


class Database:
    """Connections to the records of the state folder `folder`, their tables in the newest version.

    url: postgresql://...; None = that of TRAINER_GATEWAY_STORE, else what the folder's mark says, else SQLite.
    as_marked: where the folder's records are, whatever the environment says. alone: for whoever holds `unused`, and
    need not keep others from it. Raises INVALID_ARGUMENT for another kind, FAILED_PRECONDITION where the folder's
    records are elsewhere, or newer, or not whole; UNAVAILABLE while they are moved.
    """

    def __init__(self, folder: Path, *, url: str | None = None, as_marked: bool = False, alone: bool = False) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._used = None if alone else _used(folder)
        try:
            given = os.environ.get(STORE_VARIABLE) if not as_marked or (folder / _MARK).exists() else None
            chosen = url or given or _marked(folder)
            self.engine = _sqlite(folder) if not chosen else _postgresql(chosen)
        except BaseException:
            self._let_go()
            raise
        self.shown = self.engine.url.render_as_string(hide_password=True)  # without the password
        self._sqlite = self.engine.dialect.name == "sqlite"
        self._reads = self.engine if self._sqlite else self.engine.execution_options(isolation_level="AUTOCOMMIT")
        self._writers = GroupCommit(self._begun, self._end, seconds=_BUSY_SECONDS)
        event.listen(self.engine, "before_cursor_execute", _storable, retval=True)
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    @contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """A connection that holds the write lock; commits at the end, perhaps with others, or rolls back."""
        with translated(), self._writers.writing() as connection:
            yield connection

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """A connection whose every statement sees what is committed when it begins."""
        with translated(), self._reads.connect() as connection:
            yield connection

    @contextmanager
    def snapshot(self) -> Iterator[sa.Connection]:
        """A connection on which all statements see the same moment."""
        with translated(), self.engine.connect() as connection:
            if self._sqlite:
                connection.exec_driver_sql("BEGIN")
            else:
                connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            try:
                yield connection
            finally:
                self._end(connection, "ROLLBACK")

    def close(self) -> None:
        """Close every connection."""
        self.engine.dispose()
        self._let_go()

    def _let_go(self) -> None:
        if self._used is not None:
            self._used.close()
            self._used = None

    def _begun(self) -> sa.Connection:
        """A connection on which a writing transaction has begun."""
        connection = self.engine.connect()
        try:
            self._begin(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _begin(self, connection: sa.Connection) -> None:
        if self._sqlite:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        else:
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_LOCK})")

    def _end(self, connection: sa.Connection, how: str) -> None:
        if not self._sqlite:
            connection.commit() if how == "COMMIT" else connection.rollback()
        elif how == "COMMIT" or connection.connection.driver_connection.in_transaction:  # pyright: ignore[reportOptionalMemberAccess]
            connection.exec_driver_sql(how)

    def _open(self) -> None:
        if not self._sqlite:
            if not (self._folder / _MARK).exists():
                _must_not_have_records(self._folder, self.shown)
            with self.writing() as connection:
                _newest(connection, self.shown)
            mark(self._folder, self.engine.url)
            return
        # Entering WAL mode does not wait for others as other locks do, so the first to come does it alone.
        with (self._folder / "gateway.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with self.writing() as connection:
                _newest(connection, self.shown)


@contextmanager
def unused(folder: Path) -> Iterator[None]:
    """Keeps every other process from the folder's records. Raises FAILED_PRECONDITION while one uses them."""
    _must_be_whole(folder)
    with (folder / _USERS).open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise GatewayError(
                "FAILED_PRECONDITION", f"the records of {folder} are in use by another process (a server, a run that "
                "tells this gateway, a command); stop it, or wait for it",
            ) from error  # fmt: skip
        yield


def _used(folder: Path) -> IO[bytes]:
    """The mark of a process that uses the folder's records; it ends with the process."""
    _must_be_whole(folder)
    lock = (folder / _USERS).open("ab")
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.close()
        raise GatewayError("UNAVAILABLE", f"the records of {folder} are being moved; ask again") from error
    return lock


def _must_be_whole(folder: Path) -> None:
    if (folder / RESTORING).exists():
        raise GatewayError(
            "FAILED_PRECONDITION", f"{folder} is being restored, or that was cut off, and is not whole; empty it (and "
            "the database, where it is a PostgreSQL), then restore again",
        )  # fmt: skip


@contextmanager
def translated() -> Iterator[None]:
    """Gives the database's failures their names: busy, gone or read-only is UNAVAILABLE, a full disk
    RESOURCE_EXHAUSTED."""
    try:
        yield
    except sa_errors.DBAPIError as error:
        text = str(error.orig)
        if "database is locked" in text or "lock timeout" in text:
            raise busy(_BUSY_SECONDS) from error
        if "disk is full" in text or "No space left" in text:
            raise GatewayError(
                "RESOURCE_EXHAUSTED", "the disk of the gateway's records is full; free space on it, then ask again"
            ) from error
        if any(sign in text for sign in _READ_ONLY):
            raise GatewayError(
                "UNAVAILABLE", "the gateway's records can only be read now: their disk, or database, takes no writes; "
                "see to that, then ask again", reason="STORE_READ_ONLY",
            ) from error  # fmt: skip
        if any(sign in text for sign in _BROKEN):
            raise GatewayError(
                "UNAVAILABLE", f"the disk of the gateway's records does not work ({text}); see to that, then ask again",
                reason="STORE_BROKEN",
            ) from error  # fmt: skip
        if error.connection_invalidated or (isinstance(error, sa_errors.OperationalError) and "connection" in text):
            raise GatewayError(
                "UNAVAILABLE", "the database of the gateway's records went away; ask again", reason="STORE_GONE"
            ) from error
        raise
    except sa_errors.TimeoutError as error:  # every connection is in use
        raise GatewayError(
            "UNAVAILABLE", f"no connection to the gateway's records was free for {_POOL_SECONDS} s; ask again",
            reason="STORE_BUSY",
        ) from error  # fmt: skip


def encode_json(value: Any) -> str:
    """JSON text that every database can hold and search."""
    text = json.dumps(value, separators=(",", ":"))
    if "\\u" not in text:
        return text
    return json.dumps(_mapped(value, lambda found: _UNSTORABLE.sub(_code, found)), separators=(",", ":"))


def decode_json(text: str | bytes) -> Any:
    """What `encode_json` was given."""
    value = json.loads(text)
    marked = b"\\ufdd0" if isinstance(text, bytes) else "\\ufdd0"
    return _mapped(value, _restored) if marked in text else value  # pyright: ignore[reportOperatorIssue]


def _newest(connection: sa.Connection, shown: str) -> None:
    found = schema.version(connection)
    if found is None:
        schema.create(connection)
    elif found != schema.VERSION:
        # Only an old database needs the migrations' machinery, which is slow to import.
        from trainer.gateway.migrations.upgrade import upgrade  # noqa: PLC0415

        upgrade(connection, found, shown)


def _sqlite(folder: Path) -> sa.Engine:
    engine = sa.create_engine(
        f"sqlite:///{folder / SQLITE_FILE}", connect_args={"timeout": _BUSY_SECONDS, "check_same_thread": False},
        pool_size=10, max_overflow=60, pool_timeout=_POOL_SECONDS,
        json_serializer=encode_json, json_deserializer=decode_json,
    )  # fmt: skip
    event.listen(engine, "connect", _prepare_sqlite)
    return engine


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # transactions begin where this module says so
    cursor = connection.cursor()
    settings = (
        f"busy_timeout={_BUSY_SECONDS * 1000}", "journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON",
        f"cache_size=-{_CACHE_KIB}",
    )  # fmt: skip
    for pragma in settings:
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _postgresql(text: str) -> sa.Engine:
    try:
        url = sa.make_url(text)
    except sa_errors.ArgumentError:
        url = None
    if url is None or url.drivername not in ("postgres", "postgresql", "postgresql+psycopg"):
        raise GatewayError(
            "INVALID_ARGUMENT", "the gateway's store: expected postgresql://user:password@host:port/database "
            f"({STORE_VARIABLE}); leave it out for SQLite in the state folder",
        )  # fmt: skip
    options = f"-c lock_timeout={_BUSY_SECONDS}s -c idle_in_transaction_session_timeout={_IDLE_MS}"
    try:
        return sa.create_engine(
            url.set(drivername="postgresql+psycopg"), connect_args={"options": options, "connect_timeout": 10},
            pool_size=10, max_overflow=30, pool_timeout=_POOL_SECONDS, pool_pre_ping=True,
            json_serializer=encode_json, json_deserializer=decode_json,
        )  # fmt: skip
    except ImportError as error:
        raise GatewayError(
            "FAILED_PRECONDITION", "PostgreSQL needs the package psycopg: pip install 'gateway-trainer[postgres]'"
        ) from error


def _marked(folder: Path) -> str | None:
    """The URL that the folder's mark names, if its records are not in SQLite. Raises where it needs a password."""
    path = folder / _MARK
    if not path.exists():
        return None
    noted = json.loads(path.read_bytes())
    if noted["password"]:
        raise GatewayError(
            "FAILED_PRECONDITION", f"the records of {folder} are in {noted['url']}; "
            f"set {STORE_VARIABLE} to that URL with its password",
        )  # fmt: skip
    return str(noted["url"])


def mark(folder: Path, url: sa.URL) -> None:
    """Note where the folder's records are, without the password, so that nobody takes an empty SQLite for them."""
    content = {"url": url.set(password=None).render_as_string(), "password": url.password is not None}
    write_whole(folder / _MARK, json.dumps(content).encode() + b"\n", shared=True)


def unmark(folder: Path) -> None:
    """The folder's records are in SQLite from now on."""
    (folder / _MARK).unlink(missing_ok=True)
    LOCAL_DISK.sync_folder(folder)


def set_aside(folder: Path) -> None:
    """Give the folder's SQLite files other names: what SQLite finds beside a file it takes for that file's own."""
    ends = ("-wal", "-shm", "")  # the file itself last, so that it is never without what belongs to it
    for end in ends:
        (folder / f"moved.{SQLITE_FILE}{end}").unlink(missing_ok=True)
    for end in ends:
        path = folder / f"{SQLITE_FILE}{end}"
        if path.exists():
            path.rename(folder / f"moved.{path.name}")
    LOCAL_DISK.sync_folder(folder)


def _must_not_have_records(folder: Path, shown: str) -> None:
    if (folder / SQLITE_FILE).exists():
        raise GatewayError(
            "FAILED_PRECONDITION", f"{folder / SQLITE_FILE} has this gateway's records, but {shown} is asked for; "
            f"move them first (python -m trainer gateway move --to URL), or leave {STORE_VARIABLE} out",
        )  # fmt: skip


def _storable(_c: Any, _cursor: Any, statement: str, parameters: Any, _context: Any, many: bool) -> tuple[str, Any]:
    """Bound strings as they are stored, so that conditions find what has been stored."""
    return statement, [_bound(one) for one in parameters] if many else _bound(parameters)


def _bound(parameters: Any) -> Any:
    if isinstance(parameters, dict):
        return {key: _bound_value(value) for key, value in parameters.items()}
    return tuple(_bound_value(value) for value in parameters) if parameters else parameters


def _bound_value(value: Any) -> Any:
    return _UNSTORABLE.sub(_code, value) if isinstance(value, str) else value


def _code(match: re.Match[str]) -> str:
    return f"\ufdd0{ord(match[0]):04x}"


def _restored(text: str) -> str:
    return _STORED.sub(lambda match: chr(int(match[1], 16)), text)


def _mapped(value: Any, change: Any) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [_mapped(item, change) for item in value]
    if isinstance(value, dict):
        return {change(key): _mapped(item, change) for key, item in value.items()}
    return value
