"""Lists: page size, page token, order, filter and read mask, once for every collection.

A page is found by the values of its order at the end of the page before (never by counting), so a list that is read
while others write shows every record that was there all along exactly once. A token holds those values and a digest of
the query it was made for, and no authority.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from pydantic.alias_generators import to_camel

from trainer.gateway.contract import Contract, Schema
from trainer.gateway.errors import invalid
from trainer.gateway.filter_sql import LARGEST, SMALLEST, Place, condition, place
from trainer.gateway.schema import counts
from trainer.gateway.store import Resource, resources

if TYPE_CHECKING:
    from trainer.gateway.gateway import Gateway

DEFAULT_PAGE, LARGEST_PAGE = 50, 200
LONGEST_TOKEN = 16_384
_MOST_ORDERS = 5
_SORTABLE = frozenset({"string", "enum", "time", "integer", "number", "boolean"})
_TYPES: Mapping[str, tuple[type, ...]] = {"integer": (int,), "number": (int, float), "boolean": (int,)}
_RECORD = tuple(column for column in resources.c if column.name != "state")


@dataclass(frozen=True)
class Order:
    """One field of an order."""

    place: Place
    descending: bool


@dataclass(frozen=True)
class Listed:
    """A page of records, the token of the next ("" = there is none), and how many there are in all."""

    resources: list[Resource]
    next_page_token: str
    total: int


def listed(
    gateway: Gateway, schema: Schema | str, *, collection: str, parent: str, query: Mapping[str, Any],
    default_order: str = "createTime", records: Sequence[Resource] | None = None,
) -> Listed:  # fmt: skip
    """The page that `query` (pageSize, pageToken, filter, orderBy) asks for.

    parent: a name in which `-` may stand for any id. records: what there is, instead of what the store has.
    Raises INVALID_ARGUMENT naming the parameter.
    """
    contract = gateway.contract
    size = page_size(query)
    orders = _orders(contract, schema, query.get("orderBy", "") or default_order)
    fingerprint = _fingerprint(collection, parent, query)
    token = query.get("pageToken", "")
    after = _open_token(token, fingerprint, orders) if token else None
    wanted = condition(contract, schema, query.get("filter", ""))
    inside = [resources.c.collection == collection, *_below(resources, parent)]
    where = inside if wanted is None else [*inside, wanted]
    keys = [order.place.sorted() for order in orders]
    here = where if after is None else [*where, _after(keys, orders, after)]
    by = [key.desc() if order.descending else key for key, order in zip(keys, orders, strict=True)]
    shown = [key.label(f"key_{number}") for number, key in enumerate(keys)]
    statement = sa.select(*_RECORD, *shown).where(*here).order_by(*by).limit(size + 1)
    counted = where if wanted is not None or records is not None else None
    with gateway.store.database.reading() if records is None else _holding(records) as connection:
        rows = connection.execute(statement).all()
        total = connection.execute(_total(collection, parent, counted)).scalar_one()
    found = [Resource(*row[: len(_RECORD)]) for row in rows[:size]]
    more = len(rows) > size
    return Listed(found, _token(rows[size - 1][len(_RECORD) :], fingerprint) if more else "", int(total))


@contextmanager
def _holding(records: Sequence[Resource]) -> Iterator[sa.Connection]:
    """A database in memory of just these: what is no record is then filtered and ordered as records are."""
    engine = sa.create_engine("sqlite://", poolclass=sa.StaticPool)
    try:
        with engine.begin() as connection:
            resources.create(connection)
            if records:
                connection.execute(resources.insert(), [asdict(record) for record in records])
            yield connection
    finally:
        engine.dispose()


def page_size(query: Mapping[str, Any], default: int = DEFAULT_PAGE) -> int:
    """How many a page holds: pageSize, `default` where it is not given, at most 200. Raises INVALID_ARGUMENT."""
    size = query.get("pageSize", 0)
    if size < 0:
        raise invalid(f"pageSize: got {size}; expected 0 (= {default}) to {LARGEST_PAGE}", field="pageSize")
    return min(size or default, LARGEST_PAGE)


def masked(value: dict[str, Any], mask: str) -> dict[str, Any]:
    """`value` with only the fields of `mask` (comma-separated, dotted, camelCase or snake_case) and its name."""
    paths = [path.strip() for path in mask.split(",") if path.strip()]
    if not paths or "*" in paths:
        return value
    found: dict[str, Any] = {"name": value["name"]} if "name" in value else {}
    for path in paths:
        _copy(value, found, path.split("."))
    return found


def checked_mask(contract: Contract, schema: Schema | str, mask: str, *, what: str) -> None:
    """Every path of `mask` must be a field. Raises INVALID_ARGUMENT naming `what`."""
    for path in filter(None, (path.strip() for path in mask.split(","))):
        if path != "*":
            place(contract, schema, path.split("."), what=what)


def _copy(source: dict[str, Any], target: dict[str, Any], parts: list[str]) -> None:
    for given in parts[:-1]:
        part = _key(source, given)
        source = source.get(part, {})
        if not isinstance(source, dict):
            return
        if target.get(part) is source:  # the whole message is there already
            return
        target = target.setdefault(part, {})
    last = _key(source, parts[-1])
    if last in source:
        target[last] = source[last]


def _key(source: Mapping[str, Any], part: str) -> str:
    """A field's name may be written with `_`; the key of a map is as it is."""
    return part if part in source else to_camel(part)


def _orders(contract: Contract, schema: Schema | str, text: str) -> list[Order]:
    """The fields of an orderBy, the name added as the last, so that no two records are equal."""
    parts = text.split(",")
    if len(parts) > _MOST_ORDERS:
        raise invalid(f"orderBy: {len(parts)} fields; at most {_MOST_ORDERS} are ordered by", field="orderBy")
    orders: list[Order] = []
    for part in parts:
        name, *rest = part.split() or [""]
        direction = " ".join(rest).lower() or "asc"
        if not name or direction not in ("asc", "desc"):
            raise invalid(f"orderBy: got {part.strip()[:80]!r}; write 'field', or 'field desc'", field="orderBy")
        found = place(contract, schema, name.split("."), what="orderBy")
        if found.kind not in _SORTABLE:
            raise invalid(f"orderBy: {name[:80]} is a {found.kind}, which has no order", field="orderBy")
        orders.append(Order(found, direction == "desc"))
    name = Place("string", "name", resources.c.name, ("name",))
    return [*orders, Order(name, orders[-1].descending)]


def _after(keys: Sequence[Any], orders: Sequence[Order], values: Sequence[Any]) -> sa.ColumnElement[bool]:
    """True for what follows `values` in the order."""
    options: list[sa.ColumnElement[bool]] = []
    same: list[sa.ColumnElement[bool]] = []
    for key, order, value in zip(keys, orders, values, strict=True):
        options.append(sa.and_(*same, key < value if order.descending else key > value))
        same.append(key == value)
    first = keys[0] <= values[0] if orders[0].descending else keys[0] >= values[0]  # what an index can begin at
    return sa.and_(first, sa.or_(*options))


def _total(collection: str, parent: str, where: Sequence[sa.ColumnElement[bool]] | None) -> sa.Select[int]:
    """How many there are: kept by the database for a whole collection, counted where there is a filter."""
    if where is not None:
        return sa.select(sa.func.count()).select_from(resources).where(*where)
    inside = (counts.c.collection == collection, *_below(counts, parent))
    return sa.select(sa.func.coalesce(sa.func.sum(counts.c.total), 0)).where(*inside)


def _below(table: sa.Table, parent: str) -> Iterator[sa.ColumnElement[bool]]:
    """That a row is of `parent`, in which `-` stands for any id."""
    parts = parent.split("/")
    if "-" not in parts:
        yield table.c.parent == parent
        return
    prefix = "/".join(parts[: parts.index("-")]) + "/"
    yield table.c.parent > prefix
    yield table.c.parent < prefix[:-1] + "0"  # what follows "/"
    slashes = sa.func.length(table.c.parent) - sa.func.length(sa.func.replace(table.c.parent, "/", ""))
    yield slashes == parent.count("/")
    rest = "/".join(parts[len(parts) - parts[::-1].index("-") :])
    if rest:
        ending = sa.func.substr(table.c.parent, sa.func.length(table.c.parent) - len(rest), len(rest) + 1)
        yield ending == f"/{rest}"


def _fingerprint(collection: str, parent: str, query: Mapping[str, Any]) -> str:
    text = json.dumps([collection, parent, query.get("filter", ""), query.get("orderBy", "")])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _token(values: Sequence[Any], fingerprint: str) -> str:
    return base64.urlsafe_b64encode(json.dumps([fingerprint, *values]).encode()).decode().rstrip("=")


def _open_token(token: str, fingerprint: str, orders: Sequence[Order]) -> list[Any]:
    try:
        if len(token) > LONGEST_TOKEN:
            raise ValueError("too long")
        made_for, *values = json.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
    except (ValueError, TypeError, RecursionError, binascii.Error) as error:
        raise invalid(
            "pageToken: not a token of this gateway; pass nextPageToken as it was", field="pageToken"
        ) from error
    if made_for != fingerprint:
        raise invalid("pageToken: belongs to another list, filter or order; start again without it", field="pageToken")
    kinds = [_TYPES.get(order.place.kind, (str,)) for order in orders]
    if len(values) != len(kinds) or not all(_fits(v, kind) for v, kind in zip(values, kinds, strict=True)):
        raise invalid("pageToken: not a token of this gateway; pass nextPageToken as it was", field="pageToken")
    return values


def _fits(value: Any, kinds: tuple[type, ...]) -> bool:
    """True for a value of one of `kinds` that a database can compare."""
    if type(value) not in kinds:  # by `isinstance`, True would be an integer
        return False
    return not isinstance(value, int) or SMALLEST <= value <= LARGEST
