"""What the tests and the long proof of filters share: records of every type, random filters, a recording driver."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import event

from trainer.gateway.filters import LONGEST
from trainer.gateway.gateway import Gateway
from trainer.gateway.store import Resource

PARENT = "accounts/local"
COLLECTION = "supervisedFineTuningJobs"
SCHEMA = "gatewaySupervisedFineTuningJob"
CANARY = "zq7x"  # in every random value: it may be in no statement

BODIES: dict[str, dict[str, Any]] = {
    "a": {
        "dataset": "d-1", "displayName": "Alpha one", "epochs": 1, "learningRate": 0.5, "earlyStop": True,
        "state": "JOB_STATE_RUNNING", "batchSize": 10, "wandbConfig": {"project": "p", "enabled": True},
        "completedTime": "2026-03-01T12:00:00.000000Z",
    },
    "b": {
        "dataset": "d-2", "displayName": "Beta %_ two", "epochs": 10, "learningRate": 2.25, "earlyStop": False,
        "state": "JOB_STATE_COMPLETED", "wandbConfig": {"project": "q"},
        "completedTime": "2026-04-01T00:00:00.500000Z", "estimatedCost": {"units": "9007199254740993", "nanos": 5},
    },
    "c": {"dataset": "d-3", "displayName": 'say "hi" \\ there', "epochs": 2, "state": "JOB_STATE_FAILED"},
    "d": {"dataset": "d-3"},
}  # fmt: skip

_FIELDS = (
    "state", "displayName", "display_name", "epochs", "learningRate", "earlyStop", "completedTime", "wandbConfig",
    "wandbConfig.project", "estimatedCost.units", "name", "createTime", "nosuch", "wandbConfig.nosuch", "epochs.x",
    "body", "private", "resources.private", "state;--", '"state"', "a" * 300, "-state", "NOT",
)  # fmt: skip
_VALUES = (
    "1", "-1", "1e999", "9" * 40, "true", "JOB_STATE_RUNNING", "*", "a*b*c*", '"*"', '""', "2026-01-01T00:00:00Z",
    "2026-13-01T00:00:00Z", "0001-01-01T00:00:00+23:59", "'; DROP TABLE resources; --", '"x\\"y"', "$.a", "NULL", "%",
    "\\", "(1)", "f(x)", "é", "\ud800", "\0", "", "null", "{}", "[0]", '"\\u0000"',
)  # fmt: skip
_SIGNS = ("=", "!=", "<", ">", "<=", ">=", ":", "==", "~", " ", "=:", "= -")
_JOINS = (" AND ", " OR ", " ", " AND NOT ", " -", "(", ")", ",", "\n", " and ")
_GOOD = (
    "state=JOB_STATE_RUNNING", f'displayName="{CANARY}*"', f'displayName:"{CANARY}"', "epochs>=2", "learningRate<1e3",
    "earlyStop!=true", "completedTime>2026-03-01T12:00:00Z", "wandbConfig:*", f"wandbConfig.project={CANARY}",
    "estimatedCost.units=9007199254740993", f"name=*{CANARY}", "(epochs=1 OR NOT epochs=2)",
)  # fmt: skip
_BOUND = re.compile(r"%\(\w+\)s")  # a bound value's place, as PostgreSQL's driver has it
_WORDS = re.compile(r"[A-Za-z_]\w*")
_SQL = frozenset(
    [
        "SELECT",
        "FROM",
        "WHERE",
        "AND",
        "OR",
        "NOT",
        "IS",
        "NULL",
        "CAST",
        "AS",
        "TEXT",
        "BIGINT",
        "FLOAT",
        "BOOLEAN",
        "INTEGER",
        "VARCHAR",
        "NUMERIC",
        "DOUBLE",
        "PRECISION",
        "JSON",
        "EXISTS",
        "ORDER",
        "BY",
        "ASC",
        "DESC",
        "LIMIT",
        "OFFSET",
        "LIKE",
        "IN",
        "coalesce",
        "length",
        "replace",
        "substr",
        "sum",
        "count",
        "json_each",
        "JSON_EXTRACT",
        "JSON_QUOTE",
        "CASE",
        "WHEN",
        "THEN",
        "ELSE",
        "END",
        "resources",
        "counts",
        "name",
        "collection",
        "parent",
        "id",
        "body",
        "private",
        "create_time",
        "update_time",
        "revision",
        "state",
        "total",
        "item",
        "value",
        "CASE",
        "COLLATE",
        "C",
        "AS",
        "anon_1",
        "coalesce_1",
        "sum_1",
        "count_1",
        "true",
        "false",
    ]
)


def fill(gateway: Gateway) -> None:
    """Add the records of `BODIES`."""
    with gateway.store.transaction() as transaction:
        for bare, body in BODIES.items():
            name = f"{PARENT}/{COLLECTION}/{bare}"
            transaction.insert(Resource(name=name, collection=COLLECTION, parent=PARENT, id=bare, body=body))


@contextmanager
def recorded(gateway: Gateway) -> Iterator[list[str]]:
    """The statements that reach the driver in this block, without their bound values."""
    found: list[str] = []

    def note(_c: Any, _cursor: Any, statement: str, *_: Any) -> None:
        found.append(statement)

    event.listen(gateway.store.database.engine, "before_cursor_execute", note)
    try:
        yield found
    finally:
        event.remove(gateway.store.database.engine, "before_cursor_execute", note)


def strange_words(statement: str) -> set[str]:
    """Words of the statement that this gateway does not write itself; quotes are strange too."""
    statement = _BOUND.sub(" ", statement)
    words = {word for word in _WORDS.findall(statement) if word not in _SQL and not re.fullmatch(r"key_\d", word)}
    return words | ({"'"} if "'" in statement else set()) | ({CANARY} if CANARY in statement else set())


def random_filter(draw: random.Random) -> str:
    """Something between a filter and noise."""
    kind = draw.randrange(10)
    if kind == 0:
        return "".join(chr(draw.randrange(draw.choice((128, 0x3000)))) for _ in range(draw.randrange(60)))
    if kind == 1:
        return draw.choice(("(", "NOT ", "-", "a=1 ", "a.", '"', "*", "state=READY AND ")) * draw.randrange(1, 2000)
    if kind == 4:
        return draw.choice((" AND ", " OR ", " ", " -")).join(draw.choice(_GOOD) for _ in range(draw.randrange(1, 8)))
    parts = []
    for _ in range(draw.randrange(1, 6)):
        value = draw.choice(_VALUES)
        if draw.random() < 0.4:
            value = f'"{value}{CANARY}"'
        parts.append(draw.choice(_FIELDS) + draw.choice(_SIGNS) + value)
        parts.append(draw.choice(_JOINS))
    text = "".join(parts[:-1])
    if kind == 2:  # cut, or with a character changed
        at = draw.randrange(len(text) + 1)
        text = text[:at] + draw.choice(("", "(", '"', "\\", "\t", ":")) + text[at + draw.randrange(2) :]
    return f"({text})" if kind == 3 else text[: LONGEST + 10]
