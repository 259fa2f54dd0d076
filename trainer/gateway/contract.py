"""The contract as data: routes, validates and encodes by `contract.json`, the OpenAPI document of the Gateway API.

The document is read once, at first use; nothing is generated from it. Server and client share this module: what the
one checks on arrival the other checks before sending. Reading is by proto3 JSON's rules, narrowed: camelCase or
snake_case keys, null is absent, int64 as string or number (always a string on the way out), unknown keys kept and
listed.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from pydantic.alias_generators import to_camel

from trainer.gateway.errors import GatewayError, invalid
from trainer.gateway.extensions import FIELDS, PATHS, SCHEMAS
from trainer.gateway.timestamps import canonical

Schema = Mapping[str, Any]

_METHODS = ("get", "post", "put", "patch", "delete")
_REF = "#/components/schemas/"
_SECRET = re.compile(r"apikey|api_key|secret|token|password|^value$", re.IGNORECASE)
_DEFAULT_ORDER = re.compile(r'default (?:order is by )?"(\w+)( desc)?"')
_INTEGER = re.compile(r"-?\d{1,20}", re.ASCII)
_BITS = {"int32": 31, "int64": 63}
_FEWER = re.compile(r"Must be fewer than (\d{1,6}) characters long")  # how the contract's texts say it
_LONGEST = "x-longest"
_SHOWN = 80  # characters of a wrong value that a message repeats


@dataclass(frozen=True)
class Operation:
    """One method on one path of the contract.

    id_param: the query parameter in which a create takes the client's id, where the contract has one.
    default_order: what a list is ordered by when the client does not say.
    """

    id: str
    method: str
    path: str
    query: Mapping[str, Schema]
    body: Schema | None
    body_required: bool
    body_type: str
    response: Schema | None
    id_param: str = ""
    default_order: str = "createTime"


@dataclass(frozen=True)
class Match:
    """A request's operation and the ids in its path."""

    operation: Operation
    params: dict[str, str]


@dataclass
class Checked:
    """A value brought to canonical form, and the paths of its keys that the contract does not know."""

    value: Any
    unknown: list[str] = field(default_factory=list)


class Contract:
    """The document and its routes."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self.schemas: dict[str, Schema] = {**document["components"]["schemas"], **SCHEMAS}
        for name, added in FIELDS.items():
            old = self.schemas[name]
            self.schemas[name] = {**old, "properties": {**old["properties"], **added}}
        self.schemas = {name: _with_limits(schema) for name, schema in self.schemas.items()}
        self.operations: dict[str, Operation] = {}
        self._routes: dict[tuple[int, str], list[tuple[list[str], dict[str, Operation]]]] = {}
        for path, item in {**document["paths"], **PATHS}.items():
            self._add(path, item)

    def _add(self, path: str, item: Mapping[str, Any]) -> None:
        by_method = {}
        for method in _METHODS:
            if method in item:
                operation = _operation(path, method, item[method])
                by_method[method.upper()] = self.operations[operation.id] = operation
        segments, verb = _split(path)
        routes = self._routes.setdefault((len(segments), verb), [])
        routes.append((segments, by_method))
        routes.sort(key=lambda route: [segment.startswith("{") for segment in route[0]])  # literals first

    def match(self, method: str, path: str) -> Match:
        """The operation of `method` on the raw (still percent-encoded) `path`. Raises NOT_FOUND or HTTP 405."""
        segments, verb = _split(path)
        allowed: set[str] = set()
        for template, by_method in self._routes.get((len(segments), verb), []):
            params = _bind(template, segments)
            if params is None:
                continue
            if method in by_method:
                return Match(by_method[method], params)
            allowed |= set(by_method)
        if allowed:
            way_out = ", ".join(sorted(allowed))
            raise GatewayError(
                "UNIMPLEMENTED", f"{method} is not possible on {path}; the contract has {way_out} there",
                reason="METHOD_NOT_ALLOWED", metadata={"allow": way_out}, http_status=405,
            )  # fmt: skip
        raise GatewayError(
            "NOT_FOUND",
            f"{path} is not a path of the gateway's contract",
            reason="UNKNOWN_PATH",
            metadata={"path": path},
        )

    def url(self, operation_id: str, params: Mapping[str, str]) -> str:
        """The path of operation `operation_id` with `params` filled in."""
        path = self.operations[operation_id].path
        return re.sub(r"{(\w+)}", lambda match: quote(params[match[1]], safe=""), path)

    def schema(self, schema: Schema | str) -> Schema:
        """`schema` (or the one of that name) with its `$ref` followed; keys beside the `$ref` stay."""
        found: Schema = self.schemas[schema] if isinstance(schema, str) else schema
        while "$ref" in found:
            beside = {key: value for key, value in found.items() if key != "$ref"}
            found = {**self.schemas[found["$ref"].removeprefix(_REF)], **beside}
        return found

    def read(self, schema: Schema | str, value: Any, *, partial: bool = False, where: str = "") -> Checked:
        """Check a request's JSON `value` and bring it to canonical form.

        Read-only fields are dropped; `partial` waives the required fields of the top level (a patch). `where` prefixes
        the field paths in messages. Raises INVALID_ARGUMENT naming the field's path.
        """
        unknown: list[str] = []
        reader = _Reader(self, unknown, keep_read_only=False)
        return Checked(reader.read(self.schema(schema), value, where, partial=partial), unknown)

    def check_answer(self, schema: Schema | str, value: Any) -> list[str]:
        """Check an answer; returns the paths of keys the contract does not know. Raises like `read`."""
        unknown: list[str] = []
        _Reader(self, unknown, keep_read_only=True).read(self.schema(schema), value, "", partial=False)
        return unknown

    def emit(self, schema: Schema | str, value: Any) -> Any:
        """`value` as the wire has it: int64 as strings, nulls left out."""
        found = self.schema(schema)
        if isinstance(value, dict):
            properties = found.get("properties", {})
            more = found.get("additionalProperties")
            rest = more if isinstance(more, dict) else {}
            return {k: self.emit(properties.get(k, rest), v) for k, v in value.items() if v is not None}
        if isinstance(value, list):
            return [self.emit(found.get("items", {}), item) for item in value]
        if found.get("format") == "int64" and found.get("type") == "string" and isinstance(value, int):
            return str(value)
        return value

    def known(self, schema: Schema | str, value: Any) -> Any:
        """`value` (canonical) without the keys that the contract does not know."""
        found = self.schema(schema)
        if isinstance(value, dict) and "properties" in found:
            properties = found["properties"]
            if found.get("additionalProperties") is not None:
                return value
            return {k: self.known(properties[k], v) for k, v in value.items() if k in properties}
        if isinstance(value, list):
            return [self.known(found.get("items", {}), item) for item in value]
        return value

    def field(self, schema: Schema | str, path: str) -> Schema | None:
        """The schema of the dotted `path` (camelCase or snake_case) inside `schema`, or None."""
        found = self.schema(schema)
        for part in path.split("."):
            properties = found.get("properties", {})
            key = part if part in properties else to_camel(part)
            if key not in properties:
                return None
            found = self.schema(properties[key])
        return found

    def query(self, operation: Operation, pairs: Iterable[tuple[str, str]]) -> Checked:
        """The operation's query parameters from the URL, typed. Unknown ones are kept as strings and listed."""
        value: dict[str, Any] = {}
        unknown: list[str] = []
        for name, text in pairs:
            key = name if name in operation.query else to_camel(name)
            if key not in operation.query:
                value[key] = text
                unknown.append(name)
                continue
            schema = self.schema(operation.query[key])
            if schema.get("type") == "array":
                value.setdefault(key, []).append(_from_text(self.schema(schema.get("items", {})), text, name))
                continue
            if key in value:
                raise invalid(f"{name}: given twice; give it once", field=key)
            value[key] = _from_text(schema, text, name)
        return Checked(value, unknown)


@cache
def load() -> Contract:
    """The committed contract with this project's extensions."""
    return Contract(json.loads((Path(__file__).parent / "contract.json").read_bytes()))


@dataclass
class _Reader:
    """Walks a value beside its schema."""

    contract: Contract
    unknown: list[str]
    keep_read_only: bool

    def read(self, schema: Schema, value: Any, where: str, *, partial: bool = False) -> Any:
        options = schema.get("anyOf") or schema.get("oneOf")
        if options:
            return self._read_any(options, value, where)
        kinds = schema.get("type", "object" if "properties" in schema else None)
        for kind in kinds if isinstance(kinds, list) else [kinds]:
            reader = _KINDS.get(kind)
            if reader is None or reader is _null:
                continue
            if isinstance(kinds, list) and not isinstance(value, _PYTHON[kind]):
                continue
            found = (
                reader(self, schema, value, where, partial) if kind == "object" else reader(self, schema, value, where)
            )
            _limits(schema, found, where)
            return found
        if isinstance(kinds, list):
            raise _wrong(where, value, " or ".join(kinds))
        return value

    def _read_any(self, options: list[Schema], value: Any, where: str) -> Any:
        problems = []
        for option in options:
            try:
                return self.read(self.contract.schema(option), value, where)
            except GatewayError as error:
                problems.append(error.message)
        raise invalid(
            f"{where or 'body'}: fits none of {len(options)} forms; the first says: {problems[0]}", field=where
        )

    def object(self, schema: Schema, value: Any, where: str, partial: bool) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise _wrong(where, value, "object")
        properties, more = schema.get("properties", {}), schema.get("additionalProperties")
        found: dict[str, Any] = {}
        for name, item in value.items():
            if more is not None and name not in properties and to_camel(name) not in properties:
                item_schema = self.contract.schema(more) if isinstance(more, dict) else {}
                found[name] = self.read(item_schema, item, f"{where}[{name!r}]")
                continue
            key = name if name in properties else to_camel(name)
            path = f"{where}.{key}" if where else key
            if key not in properties:
                if properties:
                    self.unknown.append(f"{where}.{name}" if where else name)
                found[name] = item
            elif item is not None:
                if key in found:
                    raise invalid(f"{path}: given twice, as {key} and as {name}; give it once", field=path)
                item_schema = self.contract.schema(properties[key])
                if self.keep_read_only or not item_schema.get("readOnly"):
                    found[key] = self.read(item_schema, item, path)
        self._required(schema, found, where, partial=partial)
        return found

    def _required(self, schema: Schema, found: dict[str, Any], where: str, *, partial: bool) -> None:
        for name in () if partial else schema.get("required", ()):
            if name not in found:
                path = f"{where}.{name}" if where else name
                raise invalid(f"{path}: required, and missing", field=path)

    def array(self, schema: Schema, value: Any, where: str) -> list[Any]:
        if not isinstance(value, list):
            raise _wrong(where, value, "array")
        items = self.contract.schema(schema.get("items", {}))
        return [self.read(items, item, f"{where}[{index}]") for index, item in enumerate(value)]

    def string(self, schema: Schema, value: Any, where: str) -> str:
        form = schema.get("format")
        if form == "int64":
            return str(_integer(value, where, text=True, form="int64"))
        if not isinstance(value, str):
            raise _wrong(where, value, "string")
        longest = schema.get(_LONGEST)
        if longest is not None and len(value) > longest and not self.keep_read_only:
            raise invalid(f"{where}: longer than {longest} characters ({len(value)})", field=where)
        if form != "date-time":
            return value
        time = canonical(value)
        if time is None:
            raise _wrong(where, value, "RFC 3339 time such as 2026-01-31T12:00:00Z")
        return value if self.keep_read_only else time

    def integer(self, schema: Schema, value: Any, where: str) -> int:
        return _integer(value, where, text=False, form=schema.get("format", "int64"))

    def number(self, _schema: Schema, value: Any, where: str) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise _wrong(where, value, "number")
        return value

    def boolean(self, _schema: Schema, value: Any, where: str) -> bool:
        if not isinstance(value, bool):
            raise _wrong(where, value, "boolean")
        return value


def _null(_reader: _Reader, _schema: Schema, _value: Any, _where: str) -> None:
    return None


_KINDS: dict[Any, Any] = {
    "object": _Reader.object,
    "array": _Reader.array,
    "string": _Reader.string,
    "integer": _Reader.integer,
    "number": _Reader.number,
    "boolean": _Reader.boolean,
    "null": _null,
}
_PYTHON: dict[str, type | tuple[type, ...]] = {
    "object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "boolean": bool,
}  # fmt: skip


def _integer(value: Any, where: str, *, text: bool, form: str) -> int:
    if text and isinstance(value, str) and _INTEGER.fullmatch(value):
        value = int(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise _wrong(where, value, f"integer ({form}{', as string or number' if text else ''})")
    bits = _BITS.get(form, 63)
    if not -(2**bits) <= value < 2**bits:
        raise _wrong(where, value, f"integer ({form}: from -2^{bits} to 2^{bits}-1)")
    return value


def _limits(schema: Schema, value: Any, where: str) -> None:
    enum = schema.get("enum")
    if enum and value not in enum:
        raise _wrong(where, value, f"one of {', '.join(map(str, enum))}")
    if "const" in schema and value != schema["const"]:
        raise _wrong(where, value, repr(schema["const"]))
    size = len(value) if isinstance(value, str) else value
    if isinstance(size, (int, float)) and not isinstance(size, bool):
        least, most = ("minLength", "maxLength") if isinstance(value, str) else ("minimum", "maximum")
        if size < schema.get(least, -math.inf) or size > schema.get(most, math.inf):
            bounds = ", ".join(f"{key} {schema[key]}" for key in (least, most) if key in schema)
            raise _wrong(where, value, f"{schema.get('type')} with {bounds}")
    if isinstance(value, str) and "pattern" in schema and not re.search(schema["pattern"], value):
        raise _wrong(where, value, f"string matching {schema['pattern']}")


def _wrong(where: str, value: Any, expected: str) -> GatewayError:
    place = where or "body"
    shown = "a value of the wrong kind" if _SECRET.search(place) else repr(value)
    shown = shown if len(shown) <= _SHOWN else shown[:_SHOWN] + "..."
    return invalid(f"{place}: got {shown} ({type(value).__name__}); expected {expected}", field=place)


def _from_text(schema: Schema, text: str, name: str) -> Any:
    kind = schema.get("type")
    if kind == "integer":
        if not _INTEGER.fullmatch(text):
            raise _wrong(name, text, "integer")
        return _integer(int(text), name, text=False, form=schema.get("format", "int64"))
    if kind == "boolean":
        if text.lower() not in ("true", "false"):
            raise _wrong(name, text, "true or false")
        return text.lower() == "true"
    _limits(schema, text, name)
    return text


def _with_limits(schema: Schema) -> Schema:
    """The schema, with the lengths of its fields' texts where their descriptions limit them."""
    fields = schema.get("properties", {})
    found = {name: _FEWER.search(item.get("description", "")) for name, item in fields.items()}
    limited = {name: {**fields[name], _LONGEST: int(match[1]) - 1} for name, match in found.items() if match}
    return {**schema, "properties": {**fields, **limited}} if limited else schema


def _operation(path: str, method: str, item: Mapping[str, Any]) -> Operation:
    content = item.get("requestBody", {}).get("content", {})
    body_type = next(iter(content), "application/json")
    answers = item["responses"]["200"].get("content", {})
    queries = [p for p in item.get("parameters", []) if p["in"] == "query"]
    ids = [p["name"] for p in queries if p["name"].endswith("Id")] if method == "post" else []
    return Operation(
        id=item["operationId"],
        method=method.upper(),
        path=path,
        query={p["name"]: p["schema"] for p in queries},
        body=_with_limits(content[body_type]["schema"]) if "schema" in content.get(body_type, {}) else None,
        body_required=bool(item.get("requestBody", {}).get("required")),
        body_type=body_type,
        response=answers.get("application/json", {}).get("schema"),
        id_param=next(iter(ids), ""),
        default_order=_default_order(queries),
    )


def _default_order(queries: Iterable[Mapping[str, Any]]) -> str:
    """What the contract's text on orderBy says the default is; the time of creation where it says nothing."""
    for parameter in queries:
        found = _DEFAULT_ORDER.search(parameter.get("description", "")) if parameter["name"] == "orderBy" else None
        if found and found[1] == "name":
            return "name"
        if found:
            return f"createTime{found[2] or ''}"
    return "createTime"


def _split(path: str) -> tuple[list[str], str]:
    """Segments and custom verb: '/v1/a/{b}:cancel' -> (['v1', 'a', '{b}'], 'cancel')."""
    head, colon, verb = path.rpartition(":")
    if not colon or "/" in verb:
        head, verb = path, ""
    return head.strip("/").split("/"), verb


def _bind(template: list[str], segments: list[str]) -> dict[str, str] | None:
    params = {}
    for wanted, segment in zip(template, segments, strict=True):
        if wanted.startswith("{"):
            value = unquote(segment)
            if not value or "/" in value or not value.isprintable():
                return None
            if params.setdefault(wanted[1:-1], value) != value:  # a path that names the account twice
                return None
        elif wanted != segment:
            return None
    return params
