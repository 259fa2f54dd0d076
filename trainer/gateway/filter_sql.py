"""Filters and orders as SQL: a tree of `filters` becomes bound SQLAlchemy expressions over a record's JSON body.

The contract's schema decides what each field is: unknown fields and values of the wrong type are INVALID_ARGUMENT. A
field that is not set has its type's default (proto3's rule), except times and messages, which then meet no comparison.
Values reach the database as bound parameters only; nothing the client sends is a pattern: `*` at the ends of a string
becomes comparisons of substrings.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from pydantic.alias_generators import to_camel
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from trainer.gateway.contract import Contract, Schema
from trainer.gateway.errors import GatewayError, invalid
from trainer.gateway.filters import And, Node, Not, Or, Restriction, Value, parse
from trainer.gateway.schema import resources
from trainer.gateway.timestamps import canonical

Condition = sa.ColumnElement[bool]

COLUMNS = {"name": "name", "createTime": "create_time", "updateTime": "update_time"}
_ORDERED: Mapping[str, Callable[[Any, Any], Any]] = {
    "=": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip
_NUMBER = re.compile(r"[+-]?\d{1,30}(\.\d{1,30})?([eE][+-]?\d{1,3})?")
_INTEGER = re.compile(r"[+-]?\d{1,20}")
_KEY = re.compile(r"[A-Za-z0-9_.:/@+ -]{1,256}")  # keys of maps that a JSON path can name in every database
SMALLEST, LARGEST = -(2**63), 2**63 - 1  # what a column of integers holds


@dataclass(frozen=True)
class Place:
    """A field that filters and orders may speak of: where it is stored, and what it holds."""

    kind: str  # string, enum, time, integer, number, boolean, list, message, map
    shown: str
    stored: sa.ColumnElement[Any] | None  # a column of the table, or None: `path` in the body
    path: tuple[str, ...]
    key: str | None = None  # of a map
    schema: Mapping[str, Any] | None = None

    def json(self) -> Any:
        """The JSON value at the path, for `.as_string()` and its like."""
        body: Any = resources.c.body
        found = body[self.path if len(self.path) > 1 else ".".join(self.path)]
        return found if self.key is None else found[self.key]

    def typed(self) -> sa.ColumnElement[Any]:
        """The value as SQL compares and orders it, its type's default where it is not set. Times may be NULL."""
        if self.stored is not None:
            return self.stored
        text = self.json().as_string()
        if self.kind == "integer":
            return sa.func.coalesce(sa.cast(text, sa.BigInteger), 0)
        if self.kind == "number":
            return sa.func.coalesce(self.json().as_float(), 0.0)
        if self.kind == "boolean":
            return sa.func.coalesce(self.json().as_boolean(), sa.false())
        if self.kind == "enum":
            return sa.func.coalesce(text, _first(self.schema or {}))
        return sa.func.coalesce(text, "")

    def sorted(self) -> sa.ColumnElement[Any]:
        """The value as lists order it, and go on from it."""
        return sa.case((self.typed(), 1), else_=0) if self.kind == "boolean" else self.typed()

    def present(self) -> Condition:
        """True where the field has a value of its own."""
        return (self.stored if self.stored is not None else self.json().as_string()).is_not(None)


class list_has(FunctionElement[bool]):
    """True where the JSON array of the first argument has the text of the second among its elements."""

    type = sa.Boolean()
    name = "list_has"
    inherit_cache = True


@compiles(list_has, "sqlite")
def _list_has_sqlite(element: Any, compiler: Any, **kwargs: Any) -> str:
    array, value = [compiler.process(clause, **kwargs) for clause in element.clauses]
    return f"EXISTS (SELECT 1 FROM json_each({array}) AS item WHERE CAST(item.value AS TEXT) = {value})"  # noqa: S608


@compiles(list_has, "postgresql")
def _list_has_postgresql(element: Any, compiler: Any, **kwargs: Any) -> str:
    array, value = [compiler.process(clause, **kwargs) for clause in element.clauses]
    elements = f"jsonb_array_elements_text(CAST({array} AS jsonb))"
    return f"EXISTS (SELECT 1 FROM {elements} AS item(value) WHERE item.value = {value})"  # noqa: S608


def condition(contract: Contract, schema: Schema | str, text: str) -> Condition | None:
    """The filter `text` on resources of `schema`; None where it is blank. Raises INVALID_ARGUMENT."""
    tree = parse(text)
    return None if tree is None else _meaning(contract, schema, tree)


def place(contract: Contract, schema: Schema | str, path: Sequence[str], *, what: str) -> Place:
    """Where the dotted `path` (camelCase or snake_case) is stored. Raises INVALID_ARGUMENT beginning with `what`."""
    shown = ".".join(path)
    column = COLUMNS.get(to_camel(shown)) if len(path) == 1 else None
    if column is not None:  # every record has them, whether the schema says so or not
        return Place("string" if column == "name" else "time", shown, resources.c[column], (to_camel(shown),))
    found, keys, key = contract.schema(schema), [], None
    for part in path:
        if key is not None:
            raise invalid(f"{what}: {shown!r} goes on below a map's value", field=what)
        properties, more = found.get("properties", {}), found.get("additionalProperties")
        name = part if part in properties else to_camel(part)
        if name in properties:
            keys.append(name)
            found = contract.schema(properties[name])
        elif more is not None and not properties:
            if not _KEY.fullmatch(part):
                raise invalid(f"{what}: the key {part[:40]!r} in {shown[:80]!r} cannot be asked for", field=what)
            key, found = part, contract.schema(more) if isinstance(more, dict) else {}
        else:
            inside = "" if len(path) == 1 or not keys else f" ({'.'.join(keys)} has no {part!r})"
            raise invalid(f"{what}: {shown[:80]!r} is not a field of this resource{inside}", field=what)
    kind = _kind(found) if key is None or found else "string"
    return Place(kind, shown, None, tuple(keys), key, found)


def _kind(schema: Mapping[str, Any]) -> str:
    kind, form = schema.get("type"), schema.get("format")
    if kind == "string" and form == "int64":
        return "integer"
    if kind == "string" and form == "date-time":
        return "time"
    if kind == "string" and schema.get("enum"):
        return "enum"
    if kind == "array":
        return "list"
    if kind == "object" or "properties" in schema:
        return "map" if schema.get("additionalProperties") is not None and not schema.get("properties") else "message"
    return kind if isinstance(kind, str) else "other"


def _meaning(contract: Contract, schema: Schema | str, node: Node) -> Condition:
    if isinstance(node, And):
        return sa.and_(*(_meaning(contract, schema, part) for part in node.parts))
    if isinstance(node, Or):
        return sa.or_(*(_meaning(contract, schema, part) for part in node.parts))
    if isinstance(node, Not):
        return sa.not_(_meaning(contract, schema, node.part))
    return _restriction(contract, schema, node)


def _restriction(contract: Contract, schema: Schema | str, node: Restriction) -> Condition:
    found = place(contract, schema, node.path, what="filter")
    if node.operator == ":" and node.value == Value("*", quoted=False):
        return found.present()
    if found.kind in ("map", "message", "list", "other"):
        return _has(contract, found, node)
    return _COMPARE[found.kind](found, "=" if node.operator == ":" and found.kind != "string" else node.operator, node)


def _has(contract: Contract, found: Place, node: Restriction) -> Condition:
    """`:` on a list (an element), a map (a key) or a message (presence)."""
    if node.operator != ":":
        raise _wrong(node, f"is a {found.kind}; only ':' asks about it")
    if found.kind == "list" and _kind(contract.schema((found.schema or {}).get("items", {}))) in ("string", "enum"):
        return list_has(found.json(), sa.literal(node.value.text, sa.String))
    if found.kind == "map" and _KEY.fullmatch(node.value.text):
        return found.json()[node.value.text].as_string().is_not(None)
    raise _wrong(node, f"is a {found.kind}; ask for one of its fields, or {node.shown}:* for whether it is set")


def _string(found: Place, sign: str, node: Restriction) -> Condition:
    text, stored = node.value.text, found.typed()
    if sign == ":":
        return _contains(stored, text.strip("*"))
    if "*" in text and sign in ("=", "!="):
        same = _wild(stored, text, node)
        return same if sign == "=" else sa.not_(same)
    return _ORDERED[sign](stored, text)


def _wild(stored: sa.ColumnElement[Any], text: str, node: Restriction) -> Condition:
    """`*` at the beginning, the end, both, or once between: each is a comparison of substrings, linear in length."""
    first, *middle, last = text.split("*")
    if len(middle) == 1 and not first and not last:
        return _contains(stored, middle[0])
    if middle:
        raise _wrong(node, "has too many '*': one, or one at each end, can be used")
    length = sa.func.length(stored)
    parts: list[Condition] = [length >= len(first) + len(last)]
    if first:
        parts.append(sa.func.substr(stored, 1, len(first)) == first)
    if last:
        parts.append(sa.func.substr(stored, length - (len(last) - 1), len(last)) == last)
    return sa.and_(*parts)


def _contains(stored: sa.ColumnElement[Any], text: str) -> Condition:
    if not text:
        return sa.func.length(stored) > 0
    return sa.func.replace(stored, sa.literal(text, sa.String), "") != stored


def _enum(found: Place, sign: str, node: Restriction) -> Condition:
    allowed = (found.schema or {}).get("enum", ())
    if sign not in ("=", "!=") or node.value.text not in allowed:
        names = ", ".join(map(str, allowed))
        raise _wrong(node, f"compares by = or != with one of {names}; got {node.operator}{node.value.text[:80]!r}")
    if found.path == ("state",) and sign == "=" and node.value.text != _first(found.schema or {}):
        return resources.c.state == node.value.text  # the indexed column
    return _ORDERED[sign](found.typed(), node.value.text)


def _time(found: Place, sign: str, node: Restriction) -> Condition:
    text = canonical(node.value.text)
    if text is None:
        raise _wrong(node, f"is a time such as 2026-01-31T12:00:00Z; got {node.value.text[:80]!r}")
    return sa.and_(found.present(), _ORDERED[sign](found.typed(), text))


def _integer(found: Place, sign: str, node: Restriction) -> Condition:
    text = node.value.text
    value = int(text) if _INTEGER.fullmatch(text) else None
    if value is None or not SMALLEST <= value <= LARGEST:
        raise _wrong(node, f"is an integer; got {text[:80]!r}")
    return _ORDERED[sign](found.typed(), sa.literal(value, sa.BigInteger))


def _number(found: Place, sign: str, node: Restriction) -> Condition:
    text = node.value.text
    if not _NUMBER.fullmatch(text) or not math.isfinite(float(text)):
        raise _wrong(node, f"is a number; got {text[:80]!r}")
    return _ORDERED[sign](found.typed(), sa.literal(float(text), sa.Float))


def _boolean(found: Place, sign: str, node: Restriction) -> Condition:
    text = node.value.text.lower()
    if sign not in ("=", "!=") or text not in ("true", "false"):
        raise _wrong(node, f"compares by = or != with true or false; got {node.operator}{node.value.text[:80]!r}")
    wanted = (text == "true") == (sign == "=")
    return found.typed() == (sa.true() if wanted else sa.false())


_COMPARE: Mapping[str, Callable[[Place, str, Restriction], Condition]] = {
    "string": _string, "enum": _enum, "time": _time, "integer": _integer, "number": _number, "boolean": _boolean,
}  # fmt: skip


def _first(schema: Mapping[str, Any]) -> str:
    return str(schema.get("default") or schema["enum"][0])


def _wrong(node: Restriction, what: str) -> GatewayError:
    return invalid(f"filter: {node.shown[:80]} {what}", field="filter")
