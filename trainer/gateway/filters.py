"""Filters by AIP-160: the grammar, from text to a tree.

A lexer of one regular expression that cannot back-track and a recursive descent with a bounded depth: time is linear in
the text, and every refusal names the place. As the AIP has it, OR binds tighter than AND, and terms side by side are
ANDed. Functions and bare words (search) are refused. `filter_sql` gives a tree its meaning for one kind of resource.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import unquote

from trainer.gateway.errors import GatewayError, invalid

LONGEST = 10_000  # characters
DEEPEST = 32  # parentheses and negations inside one another
MOST_TERMS = 200  # comparisons in one filter: databases bound the depth of an expression
_MOST_TOKENS = 1200
_SHOWN = 40
_TOKEN = re.compile(
    r"""(?P<space>\s+)
    | (?P<string>"(?:[^"\\]|\\.)*" | '(?:[^'\\]|\\.)*')
    | (?P<time>\d{4}-\d\d-\d\d[Tt][0-9:.]+(?:[Zz]|[+-]\d\d:\d\d)?(?![^\s(),]))
    | (?P<operator><=|>=|!=|<|>|=|:)
    | (?P<open>\() | (?P<close>\)) | (?P<comma>,)
    | (?P<text>[^\s"'()<>=!:,\\]+)
    """,
    re.VERBOSE | re.DOTALL,
)
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_KEYWORDS = frozenset({"AND", "OR", "NOT"})


@dataclass(frozen=True)
class Value:
    """The right side of a comparison. quoted: a string in quotes, where `*` still is a wildcard."""

    text: str
    quoted: bool


@dataclass(frozen=True)
class Restriction:
    """`path operator value`, the path split at its dots."""

    path: tuple[str, ...]
    operator: str
    value: Value

    @property
    def shown(self) -> str:
        """The path as it was written."""
        return ".".join(self.path)


@dataclass(frozen=True)
class Not:
    """The opposite."""

    part: Node


@dataclass(frozen=True)
class And:
    """All of the parts."""

    parts: Sequence[Node]


@dataclass(frozen=True)
class Or:
    """Any of the parts."""

    parts: Sequence[Node]


Node = Restriction | Not | And | Or


class _Token(NamedTuple):
    kind: str
    text: str
    start: int
    end: int


def parse(text: str) -> Node | None:
    """The tree of `text`; None where it is blank. Raises INVALID_ARGUMENT naming the place and the way out."""
    if len(text) > LONGEST:
        raise _wrong(f"{len(text)} characters; at most {LONGEST} are read")
    if "=" not in text and "%" in text:  # the training SDK encodes filters twice
        text = unquote(text)
    if "\0" in text:
        raise _wrong("holds a NUL character")
    tokens = _tokens(text)
    if not tokens:
        return None
    parser = _Parser(text, tokens)
    tree = parser.expression(0)
    parser.end()
    return tree


def _tokens(text: str) -> list[_Token]:
    found, position = [], 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise _wrong(f"cannot read {_near(text, position)} at character {position}")
        kind, token = match.lastgroup or "", match[0]
        if kind != "space":
            kind = token if kind == "text" and token in _KEYWORDS else kind
            found.append(_Token(kind, token, position, match.end()))
            if len(found) > _MOST_TOKENS:
                raise _wrong(f"more than {_MOST_TOKENS} words and signs")
        position = match.end()
    return found


class _Parser:
    """Recursive descent over the tokens."""

    def __init__(self, text: str, tokens: list[_Token]) -> None:
        self._text, self._tokens, self._at, self._terms = text, tokens, 0, 0

    def expression(self, depth: int) -> Node:
        """Sequences joined by AND, or standing side by side."""
        if depth > DEEPEST:
            raise _wrong(f"nested more than {DEEPEST} deep")
        parts = [self._factor(depth)]
        while (token := self._peek()) is not None and token.kind not in ("close", "comma"):
            if token.kind == "AND":
                self._at += 1
            parts.append(self._factor(depth))
        return parts[0] if len(parts) == 1 else And(parts)

    def end(self) -> None:
        """Nothing may follow. Raises INVALID_ARGUMENT."""
        token = self._peek()
        if token is not None:
            raise self._unexpected(token)

    def _factor(self, depth: int) -> Node:
        parts = [self._term(depth)]
        while (token := self._peek()) is not None and token.kind == "OR":
            self._at += 1
            parts.append(self._term(depth))
        return parts[0] if len(parts) == 1 else Or(parts)

    def _term(self, depth: int) -> Node:
        token = self._next("a comparison")
        if token.kind == "NOT":
            return Not(self._simple(self._next("a comparison after NOT"), depth))
        if token.kind == "text" and token.text == "-":
            return Not(self._simple(self._next("a comparison after '-'"), depth))
        if token.kind == "text" and token.text.startswith("-"):
            return Not(self._simple(_Token("text", token.text[1:], token.start + 1, token.end), depth))
        return self._simple(token, depth)

    def _simple(self, token: _Token, depth: int) -> Node:
        if token.kind == "open":
            inner = self.expression(depth + 1)
            if self._next("')'").kind != "close":
                raise self._unexpected(self._tokens[self._at - 1])
            return inner
        return self._restriction(token)

    def _restriction(self, token: _Token) -> Restriction:
        path = self._member(token)
        operator = self._peek()
        if operator is not None and operator.kind == "open" and operator.start == self._tokens[self._at - 1].end:
            raise _wrong(f"functions such as {_near(self._text, token.start)} are not supported; compare a field")
        if operator is None or operator.kind != "operator":
            raise _wrong(f"{_near(self._text, token.start)} stands alone; write field=value, as in state=READY")
        self._at += 1
        self._terms += 1
        if self._terms > MOST_TERMS:
            raise _wrong(f"more than {MOST_TERMS} comparisons")
        return Restriction(path, operator.text, self._value(operator))

    def _member(self, token: _Token) -> tuple[str, ...]:
        """A dotted path; a part may be in quotes, as a map's key with dots must be."""
        if token.kind != "text":
            raise self._unexpected(token)
        parts, end = token.text.split("."), token.end
        while parts[-1] == "" and (follow := self._peek()) is not None and follow.start == end:
            if follow.kind != "string":
                break
            parts[-1], end = _unquoted(follow.text), follow.end
            self._at += 1
            more = self._peek()
            if more is not None and more.kind == "text" and more.start == end and more.text.startswith("."):
                parts += more.text[1:].split(".")
                end = more.end
                self._at += 1
        if "" in parts:
            raise _wrong(f"{_near(self._text, token.start)} has an empty part in its field path")
        return tuple(parts)

    def _value(self, operator: _Token) -> Value:
        token = self._next(f"a value after {operator.text!r}")
        if token.kind == "string":
            return Value(_unquoted(token.text), quoted=True)
        if token.kind in ("text", "time"):
            return Value(token.text, quoted=False)
        if token.kind == "open":
            raise _wrong(f"a list of values at character {token.start}; write field=a OR field=b")
        raise self._unexpected(token)

    def _peek(self) -> _Token | None:
        return self._tokens[self._at] if self._at < len(self._tokens) else None

    def _next(self, wanted: str) -> _Token:
        token = self._peek()
        if token is None:
            raise _wrong(f"ends where {wanted} is expected")
        self._at += 1
        return token

    def _unexpected(self, token: _Token) -> GatewayError:
        return _wrong(f"{_near(self._text, token.start)} is not expected at character {token.start}")


def _unquoted(text: str) -> str:
    return _ESCAPE.sub(r"\1", text[1:-1])


def _near(text: str, position: int) -> str:
    return repr(text[position : position + _SHOWN])


def _wrong(what: str) -> GatewayError:
    return invalid(f"filter: {what}", field="filter")
