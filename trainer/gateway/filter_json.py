"""What a filter means on JSON of any shape: rows of data sets.

Numbers are compared as numbers, all else as text, where `*` at an end stands for anything; `field:value` asks a list
for an element, an object for a key, and `field:*` whether the field is there. A field that is not there meets nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic.alias_generators import to_camel

from trainer.gateway.errors import invalid
from trainer.gateway.filters import And, Node, Not, Or, Restriction

_NOTHING = object()
_WHOLE = re.compile(r"[+-]?\d{1,1000}", re.ASCII)


def meets(value: Mapping[str, Any], node: Node) -> bool:
    """Whether `value` meets the filter. Raises INVALID_ARGUMENT for a comparison that cannot be made."""
    if isinstance(node, And):
        return all(meets(value, part) for part in node.parts)
    if isinstance(node, Or):
        return any(meets(value, part) for part in node.parts)
    if isinstance(node, Not):
        return not meets(value, node.part)
    return _compared(value, node)


def _compared(value: Mapping[str, Any], node: Restriction) -> bool:
    found: Any = value
    for part in node.path:
        inner = found if isinstance(found, Mapping) else {}
        found = inner.get(part, inner.get(to_camel(part), _NOTHING))
    if found is _NOTHING or found is None:
        return False
    text, operator = node.value.text, node.operator
    if operator == ":":
        return _has(found, text)
    if isinstance(found, (list, Mapping)):
        raise invalid(f"filter: {node.shown[:80]} is a list or an object; ask with ':' what is in it", field="filter")
    if isinstance(found, bool) or not isinstance(found, (int, float)):
        return _text(str(found).lower() if isinstance(found, bool) else found, operator, text)
    try:
        return _ordered(found, operator, int(text) if _WHOLE.fullmatch(text) else float(text))
    except ValueError as error:
        raise invalid(f"filter: {node.shown[:80]} is a number, got {text[:40]!r}", field="filter") from error


def _has(found: Any, text: str) -> bool:
    if text == "*":
        return True
    if isinstance(found, (list, Mapping)):
        return any(str(one) == text for one in found)
    return text in str(found)


def _text(found: str, operator: str, text: str) -> bool:
    if operator not in ("=", "!=") or "*" not in (text[:1], text[-1:]):
        return _ordered(found, operator, text)
    core = text.removeprefix("*").removesuffix("*")
    starts, ends = text.endswith("*"), text.startswith("*")
    same = core in found if starts and ends else found.startswith(core) if starts else found.endswith(core)
    return same == (operator == "=")


def _ordered(left: Any, operator: str, right: Any) -> bool:
    return {
        "=": left == right, "!=": left != right, "<": left < right, "<=": left <= right, ">": left > right,
        ">=": left >= right,
    }[operator]  # fmt: skip
