"""JSON by a schema: 1 where the answer is JSON that the schema admits. Metrics: `parses`, `valid`.

A subset of JSON Schema 2020-12, checked by code of ours: no reference leaves the schema and no pattern runs. A keyword
that is not understood refuses the evaluator by name; it is never ignored.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

from pydantic import Field, field_validator

from evaluators.kinds.base import OfRows, Settings, Tools
from evaluators.protocol import Metric, Score
from evaluators.rows import Row, RowError, answer

MAX_DEPTH = 40
MAX_CHECKS = 50_000
_MAX_DIGITS = 300
_FENCE = re.compile(r"```(?:json)?\s*\n(.*?)```", re.DOTALL | re.IGNORECASE)
_NOTES = {"$schema", "$id", "$comment", "title", "description", "default", "examples", "deprecated", "readOnly",
          "writeOnly", "format", "$defs", "definitions"}  # fmt: skip
_TYPES: dict[str, Callable[[Any], bool]] = {
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "integer": lambda value: not isinstance(value, bool) and isinstance(value, int | float) and value == int(value),
}


class JsonSchema(Settings):
    """The schema, here or in the row, and where the JSON stands."""

    json_schema: dict[str, Any] | None = Field(None, description="the schema; None = the row's own, in `schema_field`")
    schema_field: str = Field("json_schema", description="field of the row that has its schema")
    fenced: bool = Field(True, description="a ```json block may stand around the JSON; the last one counts")

    @field_validator("json_schema")
    @classmethod
    def _understood(cls, schema: dict[str, Any] | None) -> dict[str, Any] | None:
        if schema is not None:
            check_schema(schema)
        return schema


def build(settings: JsonSchema, _: Tools) -> OfRows:
    """The evaluator."""

    def score(row: Row) -> Score:
        schema = settings.json_schema if settings.json_schema is not None else row.get(settings.schema_field)
        if not isinstance(schema, dict):
            raise RowError(
                f"there is no schema: neither the setting json_schema nor the field {settings.schema_field!r}"
            )
        if settings.json_schema is None:
            try:
                check_schema(schema)
            except ValueError as error:
                raise RowError(f"{settings.schema_field}: {error}") from None
        text = answer(row)
        fenced = _FENCE.findall(text) if settings.fenced else []
        try:
            value = json.loads(fenced[-1] if fenced else text, parse_constant=_no_constant, parse_float=_float,
                               parse_int=_int)  # fmt: skip
        except (ValueError, RecursionError) as error:
            parses = Metric(0.0, reason=f"not JSON: {str(error)[:100]}")
            return Score(0.0, reason=parses.reason, metrics={"parses": parses, "valid": Metric(0.0, reason="not JSON")})
        problem = next(problems(value, schema), None)
        valid = Metric(float(problem is None), reason=problem or "valid")
        return Score(valid.score, reason=valid.reason, metrics={"parses": Metric(1.0, reason="JSON"), "valid": valid})

    return OfRows(score)


def check_schema(schema: Any, where: str = "$", depth: int = 0) -> None:
    """Raise `ValueError` naming the first keyword that is not understood."""
    if isinstance(schema, bool):
        return
    if not isinstance(schema, dict):
        raise ValueError(f"the schema at {where} is neither an object nor true or false")
    if depth > MAX_DEPTH:
        raise ValueError(f"the schema is nested deeper than {MAX_DEPTH}")
    for keyword, value in schema.items():
        if keyword not in _KEYWORDS and keyword not in _NOTES and keyword != "$ref":
            known = ", ".join(sorted(_KEYWORDS))
            raise ValueError(f"{where}: the keyword {keyword!r} is not understood; understood: $ref, {known}")
        if keyword == "$ref" and not (isinstance(value, str) and (value == "#" or value.startswith("#/"))):
            raise ValueError(f"{where}: $ref {value!r} leaves the schema; only #/... is followed")
        if keyword in _SHAPES and not _SHAPES[keyword](value):
            raise ValueError(f"{where}: {keyword} cannot be {str(value)[:60]!r}")
    for place, inner in _inner(schema):
        check_schema(inner, f"{where}.{place}", depth + 1)


class _Root:
    """The whole schema, for references, and how many checks are left: alternatives of alternatives multiply."""

    def __init__(self, schema: Any) -> None:
        self.schema, self.left = schema, MAX_CHECKS

    def count(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise RowError(f"the schema takes more than {MAX_CHECKS:,} checks on this answer")


def problems(value: Any, schema: Any, *, root: Any = None, where: str = "$", depth: int = 0) -> Iterator[str]:
    """Why `value` is not admitted, in words, one by one; nothing where it is. Raises `RowError` past `MAX_CHECKS`."""
    root = _Root(schema) if root is None else root
    root.count()
    if schema is True or schema is False:
        if schema is False:
            yield f"{where}: nothing is allowed here"
        return
    if depth > MAX_DEPTH:
        yield f"{where}: nested deeper than {MAX_DEPTH}"
        return
    if "$ref" in schema:
        yield from problems(value, _found(root.schema, schema["$ref"]), root=root, where=where, depth=depth + 1)
    for keyword, check in _KEYWORDS.items():
        if keyword in schema:
            yield from check(value, schema, root, where, depth)


def _type(value: Any, schema: Any, _root: Any, where: str, _depth: int) -> Iterator[str]:
    names = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    if not any(_TYPES[name](value) for name in names if name in _TYPES):
        yield f"{where}: not {' or '.join(map(str, names))}"


def _enum(value: Any, schema: Any, _root: Any, where: str, _depth: int) -> Iterator[str]:
    if not any(_same(value, one) for one in schema["enum"]):
        yield f"{where}: none of the {len(schema['enum'])} allowed values"


def _const(value: Any, schema: Any, _root: Any, where: str, _depth: int) -> Iterator[str]:
    if not _same(value, schema["const"]):
        yield f"{where}: not the one allowed value"


def _required(value: Any, schema: Any, _root: Any, where: str, _depth: int) -> Iterator[str]:
    if isinstance(value, dict):
        yield from (f"{where}: {name!r} is missing" for name in schema["required"] if name not in value)


def _properties(value: Any, schema: Any, root: Any, where: str, depth: int) -> Iterator[str]:
    if isinstance(value, dict):
        for name, inner in schema["properties"].items():
            if name in value:
                yield from problems(value[name], inner, root=root, where=f"{where}.{name}", depth=depth + 1)


def _additional(value: Any, schema: Any, root: Any, where: str, depth: int) -> Iterator[str]:
    if isinstance(value, dict):
        for name in value.keys() - schema.get("properties", {}).keys():
            inner = schema["additionalProperties"]
            yield from problems(value[name], inner, root=root, where=f"{where}.{name}", depth=depth + 1)


def _items(value: Any, schema: Any, root: Any, where: str, depth: int) -> Iterator[str]:
    if isinstance(value, list):
        first = len(schema.get("prefixItems", []))
        for index, one in enumerate(value[first:], first):
            yield from problems(one, schema["items"], root=root, where=f"{where}[{index}]", depth=depth + 1)


def _prefix(value: Any, schema: Any, root: Any, where: str, depth: int) -> Iterator[str]:
    if isinstance(value, list):
        for index, (one, inner) in enumerate(zip(value, schema["prefixItems"], strict=False)):
            yield from problems(one, inner, root=root, where=f"{where}[{index}]", depth=depth + 1)


def _unique(value: Any, schema: Any, _root: Any, where: str, _depth: int) -> Iterator[str]:
    if isinstance(value, list) and schema["uniqueItems"]:
        texts = [json.dumps(one, sort_keys=True) for one in value]
        if len(set(texts)) != len(texts):
            yield f"{where}: an item stands twice"


def _bound(keyword: str, fits: Callable[[float, float], bool], measure: Callable[[Any], float | None]) -> Any:
    def check(value: Any, schema: Any, _root: Any, where: str, _depth: int) -> Iterator[str]:
        size = measure(value)
        if size is not None and not fits(size, schema[keyword]):
            yield f"{where}: {keyword} is {schema[keyword]}, this is {size:g}"

    return check


def _any_of(value: Any, schema: Any, root: Any, where: str, depth: int) -> Iterator[str]:
    if not any(_fits(value, inner, root, depth) for inner in schema["anyOf"]):
        yield f"{where}: none of anyOf"


def _one_of(value: Any, schema: Any, root: Any, where: str, depth: int) -> Iterator[str]:
    fitting = sum(_fits(value, inner, root, depth) for inner in schema["oneOf"])
    if fitting != 1:
        yield f"{where}: {fitting} of oneOf"


def _all_of(value: Any, schema: Any, root: Any, where: str, depth: int) -> Iterator[str]:
    for inner in schema["allOf"]:
        yield from problems(value, inner, root=root, where=where, depth=depth + 1)


def _not(value: Any, schema: Any, root: Any, where: str, depth: int) -> Iterator[str]:
    if _fits(value, schema["not"], root, depth):
        yield f"{where}: what `not` excludes"


def _fits(value: Any, schema: Any, root: Any, depth: int) -> bool:
    return next(problems(value, schema, root=root, depth=depth + 1), None) is None


def _size(kind: type) -> Callable[[Any], float | None]:
    return lambda value: len(value) if isinstance(value, kind) else None


def _amount(value: Any) -> float | None:
    return value if _TYPES["number"](value) else None


_KEYWORDS: dict[str, Callable[[Any, Any, Any, str, int], Iterator[str]]] = {
    "type": _type, "enum": _enum, "const": _const, "required": _required, "properties": _properties,
    "additionalProperties": _additional, "items": _items, "prefixItems": _prefix, "uniqueItems": _unique,
    "anyOf": _any_of, "oneOf": _one_of, "allOf": _all_of, "not": _not,
    "minimum": _bound("minimum", lambda size, bound: size >= bound, _amount),
    "maximum": _bound("maximum", lambda size, bound: size <= bound, _amount),
    "exclusiveMinimum": _bound("exclusiveMinimum", lambda size, bound: size > bound, _amount),
    "exclusiveMaximum": _bound("exclusiveMaximum", lambda size, bound: size < bound, _amount),
    "multipleOf": _bound("multipleOf", lambda size, part: math.isclose(size / part, round(size / part)), _amount),
    "minLength": _bound("minLength", lambda size, bound: size >= bound, _size(str)),
    "maxLength": _bound("maxLength", lambda size, bound: size <= bound, _size(str)),
    "minItems": _bound("minItems", lambda size, bound: size >= bound, _size(list)),
    "maxItems": _bound("maxItems", lambda size, bound: size <= bound, _size(list)),
    "minProperties": _bound("minProperties", lambda size, bound: size >= bound, _size(dict)),
    "maxProperties": _bound("maxProperties", lambda size, bound: size <= bound, _size(dict)),
}  # fmt: skip


def _is_size(value: Any) -> bool:
    return _TYPES["integer"](value) and value >= 0


def _is_type(value: Any) -> bool:
    return isinstance(value, str) and value in _TYPES


_SHAPES: dict[str, Callable[[Any], bool]] = {
    "type": lambda value: _is_type(value) or (isinstance(value, list) and all(map(_is_type, value))),
    "enum": _TYPES["array"],
    "required": lambda value: isinstance(value, list) and all(isinstance(one, str) for one in value),
    "uniqueItems": _TYPES["boolean"],
    "multipleOf": lambda value: _TYPES["number"](value) and value > 0,
    **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"), _TYPES["number"]),
    **dict.fromkeys(("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"), _is_size),
}


def _inner(schema: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for keyword in ("properties", "$defs", "definitions"):
        if not isinstance(schema.get(keyword, {}), dict):
            raise ValueError(f"{keyword} is not an object")
        yield from ((f"{keyword}.{name}", inner) for name, inner in schema.get(keyword, {}).items())
    for keyword in ("anyOf", "oneOf", "allOf", "prefixItems"):
        if not isinstance(schema.get(keyword, []), list):
            raise ValueError(f"{keyword} is not an array")
        yield from ((f"{keyword}[{index}]", inner) for index, inner in enumerate(schema.get(keyword, [])))
    for keyword in ("additionalProperties", "items", "not"):
        if keyword in schema:
            yield keyword, schema[keyword]


def _found(root: Any, reference: str) -> Any:
    if reference == "#":
        return root
    at = root
    for part in (one.replace("~1", "/").replace("~0", "~") for one in reference[2:].split("/")):
        if not isinstance(at, dict) or part not in at:
            return False
        at = at[part]
    return at


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[name], other[name]) for name in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    return one == other


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:40]} is beyond what a float holds")
    return value


def _int(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise ValueError(f"an integer of {len(text)} digits")
    return int(text)
