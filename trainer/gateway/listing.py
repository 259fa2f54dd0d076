"""Lists: page size, page token, order, filter and read mask, once for every collection."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

import sqlalchemy as sa
from pydantic.alias_generators import to_camel

from trainer.gateway.contract import Contract, Schema
from trainer.gateway.errors import invalid
from trainer.gateway.store import Page, Resource, body_value, resources

DEFAULT_PAGE, LARGEST_PAGE = 50, 200

_CONDITION = re.compile(r'\s*([A-Za-z_][A-Za-z0-9_.]*)\s*=\s*("(?:[^"\\]|\\.)*"|[^\s"()]+)\s*')
_SUPPORTED = 'this gateway filters by field="value" or field=value, joined by AND (fields may be dotted)'
_COLUMNS = {"name": "name", "createTime": "create_time", "updateTime": "update_time"}
_ORDERS = {"name": "name", "createTime": "create_time"}


def page_of(
    contract: Contract, schema: Schema | str, *, collection: str, parent: str, query: Mapping[str, Any]
) -> Page:
    """What the `query` of a list asks for. Raises INVALID_ARGUMENT naming the parameter and what is supported."""
    size = query.get("pageSize", 0)
    if size < 0:
        raise invalid(f"pageSize: got {size}; expected 0 (= {DEFAULT_PAGE}) to {LARGEST_PAGE}", field="pageSize")
    order, descending = _order(query.get("orderBy", ""))
    token = query.get("pageToken", "")
    return Page(
        collection=collection,
        parent=parent,
        conditions=conditions(contract, schema, query.get("filter", "")),
        order=order,
        descending=descending,
        after=_open_token(token, _fingerprint(parent, query)) if token else None,
        size=min(size or DEFAULT_PAGE, LARGEST_PAGE),
    )


def next_token(page: Page, last: Resource, *, query: Mapping[str, Any]) -> str:
    """The token of the page after the one that ends with `last`."""
    content = [getattr(last, page.order), last.name, _fingerprint(page.parent, query)]
    return base64.urlsafe_b64encode(json.dumps(content).encode()).decode().rstrip("=")


def conditions(contract: Contract, schema: Schema | str, text: str) -> list[sa.ColumnElement[bool]]:
    """A filter as conditions on the store."""
    if "=" not in text and "%" in text:  # the training SDK encodes filters twice
        text = unquote(text)
    found, position = [], 0
    while position < len(text.rstrip()):
        match = _CONDITION.match(text, position)
        if match is None:
            raise invalid(f"filter: cannot read {text[position : position + 60]!r}; {_SUPPORTED}", field="filter")
        found.append(_condition(contract, schema, match[1], match[2]))
        position = match.end()
        if position < len(text):
            joint = re.compile(r"AND\s+").match(text, position)
            if joint is None:
                raise invalid(f"filter: cannot read {text[position : position + 60]!r}; {_SUPPORTED}", field="filter")
            position = joint.end()
            if position == len(text):
                raise invalid(f"filter: nothing follows the last AND; {_SUPPORTED}", field="filter")
    return found


def masked(value: dict[str, Any], mask: str) -> dict[str, Any]:
    """`value` with only the fields of `mask` (comma-separated, dotted, camelCase or snake_case) and its name."""
    paths = [path.strip() for path in mask.split(",") if path.strip()]
    if not paths or "*" in paths:
        return value
    found: dict[str, Any] = {"name": value["name"]} if "name" in value else {}
    for path in paths:
        _copy(value, found, [to_camel(part) for part in path.split(".")])
    return found


def _copy(source: dict[str, Any], target: dict[str, Any], parts: list[str]) -> None:
    for part in parts[:-1]:
        source = source.get(part, {})
        if not isinstance(source, dict):
            return
        target = target.setdefault(part, {})
    if parts[-1] in source:
        target[parts[-1]] = source[parts[-1]]


def _condition(contract: Contract, schema: Schema | str, name: str, text: str) -> sa.ColumnElement[bool]:
    found = contract.field(schema, name)
    if found is None:
        raise invalid(f"filter: {name!r} is not a field of this resource; {_SUPPORTED}", field="filter")
    value = re.sub(r"\\(.)", r"\1", text[1:-1]) if text.startswith('"') else text
    path = [to_camel(part) for part in name.split(".")]
    if len(path) == 1 and path[0] in _COLUMNS:
        return resources.c[_COLUMNS[path[0]]] == value
    kind, stored = found.get("type"), body_value(path)
    if kind == "boolean" and value.lower() in ("true", "false"):
        return sa.func.coalesce(stored.as_boolean(), sa.false()) == (value.lower() == "true")
    if kind in ("integer", "number"):
        try:
            return sa.func.coalesce(stored.as_float(), 0.0) == float(value)
        except ValueError as error:
            raise invalid(f"filter: {name} is a number, got {value!r}", field="filter") from error
    if kind != "string":
        raise invalid(f"filter: {name} is a {kind}, got {value!r}; {_SUPPORTED}", field="filter")
    if found.get("enum") and value not in found["enum"]:
        raise invalid(f"filter: {name}={value!r}; expected one of {', '.join(found['enum'])}", field="filter")
    return stored.as_string() == value


def _order(text: str) -> tuple[str, bool]:
    name, _, direction = (text.strip() or "createTime").partition(" ")
    direction = direction.strip().lower() or "asc"
    key = to_camel(name)
    if key not in _ORDERS or direction not in ("asc", "desc"):
        raise invalid(
            f"orderBy: got {text!r}; this gateway orders by {' or '.join(_ORDERS)}, with 'desc' or 'asc' after it",
            field="orderBy",
        )
    return _ORDERS[key], direction == "desc"


def _fingerprint(parent: str, query: Mapping[str, Any]) -> str:
    text = json.dumps([parent, query.get("filter", ""), query.get("orderBy", "")])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _open_token(token: str, fingerprint: str) -> tuple[str, str]:
    try:
        value, name, made_for = json.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
    except (ValueError, TypeError, binascii.Error) as error:
        raise invalid(
            "pageToken: not a token of this gateway; pass nextPageToken as it was", field="pageToken"
        ) from error
    if made_for != fingerprint:
        raise invalid("pageToken: belongs to another list, filter or order; start again without it", field="pageToken")
    return str(value), str(name)
