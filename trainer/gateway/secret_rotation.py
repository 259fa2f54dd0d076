"""`gateway secrets rotate`: a new key seals every secret again, and the old keys go; the gateway may be up meanwhile.

The new key is on disk before anything is sealed with it, and the old ones stay until nothing needs them, so a kill
between any two writes leaves every secret readable; the next rotation ends what this one began. The last look and the
dropping of the keys are one writing transaction: who seals holds the write lock too and reads the file anew once it was
replaced, so no value can come in under a key that has just gone. Keys from the environment change there (the new one
before the old one); then only the sealing anew is left to do, and no server may be up that has not been told.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from trainer.gateway.errors import GatewayError
from trainer.gateway.found import SERVER_LOCK
from trainer.gateway.schema import resources
from trainer.gateway.sealing import KEY_VARIABLE, SEALED, Sealer
from trainer.gateway.store import Store, Transaction

_BATCH = 200  # records sealed in one transaction: others write in between
_LOCK = "secret.lock"


@dataclass
class Rotation:
    """What was done. broken: what could not be opened, record by record; then the old keys are kept."""

    records: int = 0
    values: int = 0
    dropped: int = 0
    broken: list[str] = field(default_factory=list)


def rotate(store: Store, folder: Path, *, environment: Mapping[str, str] | None = None) -> Rotation:
    """Seal every value of the records with a new key. Raises FAILED_PRECONDITION where another rotation is at work."""
    sealer, done = Sealer(folder, environment=environment), Rotation()
    with _alone(folder):
        if sealer.from_environment:
            with _no_server(folder):
                _seal_all(store, sealer, done)
            return done
        if sealer.count == 1 or not _in_need(store, sealer):  # else the last one was cut short: go on with its key
            sealer.rotate()
        _seal_all(store, sealer, done)
        with store.transaction() as transaction:
            for name in _names(transaction):  # what came in while others wrote
                _seal(transaction, sealer, name, done)
            if not done.broken:
                done.dropped = sealer.count - 1
                sealer.forget()
    return done


def _seal_all(store: Store, sealer: Sealer, done: Rotation) -> None:
    with store.transaction() as transaction:
        names = _names(transaction)
    for start in range(0, len(names), _BATCH):
        with store.transaction() as transaction:
            for name in names[start : start + _BATCH]:
                _seal(transaction, sealer, name, done)


def _in_need(store: Store, sealer: Sealer) -> bool:
    """True when there is a value that the newest key has not sealed."""
    with store.transaction() as transaction:
        found = [transaction.find(name) for name in _names(transaction)]
    return any(not sealer.current(value) for one in found if one for value in _values(one.name, one.private).values())


def _names(transaction: Transaction) -> list[str]:
    """The records that hold sealed values, of whatever family."""
    text = sa.cast(resources.c.private, sa.String)
    return list(transaction.execute(sa.select(resources.c.name).where(text.like(f'%"{SEALED}.%'))).scalars())


def _seal(transaction: Transaction, sealer: Sealer, name: str, done: Rotation) -> None:
    found = transaction.find(name)
    if found is None:
        return
    changed: dict[str, str] = {}
    for about, value in _values(name, found.private).items():
        if sealer.current(value):
            continue
        try:
            changed[value] = sealer.seal(sealer.open(value, about=about), about=about)
        except GatewayError as error:
            if error.message not in done.broken:
                done.broken.append(error.message)
    if changed:
        done.records, done.values = done.records + 1, done.values + len(changed)
        transaction.amend(replace(found, private=_replaced(found.private, changed)))


def _values(name: str, private: Mapping[str, Any]) -> dict[str, str]:
    """The sealed values of a record's private part, by what each is about: its own, and a job's variables."""
    found = {f"{name} {variable}": value for variable, value in private.get("secrets", {}).items()}
    own = private.get("value")
    return found | ({name: own} if isinstance(own, str) else {})


def _replaced(private: Mapping[str, Any], changed: Mapping[str, str]) -> dict[str, Any]:
    new = dict(private)
    if isinstance(new.get("value"), str):
        new["value"] = changed.get(new["value"], new["value"])
    if "secrets" in new:
        new["secrets"] = {key: changed.get(value, value) for key, value in new["secrets"].items()}
    return new


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    with (folder / _LOCK).open("w") as lock:
        _take(lock.fileno(), "another rotation of this folder's secrets is at work; wait for its end")
        yield


@contextmanager
def _no_server(folder: Path) -> Iterator[None]:
    with (folder / SERVER_LOCK).open("w") as lock:
        _take(
            lock.fileno(),
            f"a server is up on {folder}, and which keys its {KEY_VARIABLE} has cannot be seen from here; stop it, "
            "rotate, and start it with the new key",
        )
        yield


def _take(descriptor: int, otherwise: str) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise GatewayError("FAILED_PRECONDITION", otherwise) from error
