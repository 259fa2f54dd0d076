"""Strict JSON: RFC 8259 and no more, in bounded memory. No NaN, no duplicate keys, no lone surrogates, objects only.

A row has three bounds: its length (`data.max_row_bytes`, applied where it is read), the values in it and their depth,
since a short text can still become a large or deep structure. A text over a bound is refused before it is parsed.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any, TextIO

from trainer.data.problem import RowProblem, json_type, shown

MAX_VALUES = 1 << 17  # a value costs up to some 200 bytes once parsed, however short its text
MAX_DEPTH = 100  # templates and JSON writers recurse; the deepest tool schemas nest some 20 levels
_MAX_DIGITS = 1000  # far below Python's own limit on digits
_CHUNK = 1 << 16  # characters read at a time from a JSON array
_NEAR = 32  # a fault so many characters before the end of what was read may come from the end
_SPACE = re.compile(r"[ \t\r\n]*")
_STRING = re.compile(r'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)


class Decoder:
    """Decodes rows. What a hook finds is kept and raised by `judge`, so that an array is read on after the value."""

    def __init__(self) -> None:
        self._found: RowProblem | None = None
        self._json = json.JSONDecoder(
            object_pairs_hook=self._object,
            parse_constant=self._not_a_number,
            parse_float=self._float,
            parse_int=self._int,
        )

    def decode(self, text: str) -> dict[str, Any]:
        """The object that `text` is. Raises `RowProblem`."""
        check_values(text)
        self._found = None
        try:
            value = self._json.decode(text)
        except json.JSONDecodeError as error:
            raise RowProblem("json", f"not JSON: {_words(error)} at column {error.colno}") from None
        except RecursionError:
            raise _too_deep() from None
        return self.judge(value)

    def raw_decode(self, text: str, at: int) -> tuple[Any, int]:
        """The value that begins at `at`, and where it ends; `judge` it next."""
        self._found = None
        return self._json.raw_decode(text, at)

    def judge(self, value: Any) -> dict[str, Any]:
        """`value` if it was sound and an object. Raises `RowProblem`."""
        found, self._found = self._found, None
        if found is not None:
            raise found
        if not isinstance(value, dict):
            raise RowProblem("not_an_object", f"a row is a JSON object, this is {json_type(value)}{_not_rows(value)}")
        _check_inside(value)
        return value

    def _keep(self, code: str, message: str) -> None:
        self._found = self._found or RowProblem(code, message)

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
            self._keep("duplicate_key", f"the key {shown(twice)} stands twice in one object; keep one of them")
        return result

    def _not_a_number(self, name: str) -> float:
        self._keep("not_finite", f"{name} is not JSON; write null or a number")
        return 0.0

    def _float(self, text: str) -> float:
        value = float(text)
        if not math.isfinite(value):
            self._keep("not_finite", f"the number {text[:40]} is beyond what a float holds")
        return value

    def _int(self, text: str) -> int:
        if len(text) <= _MAX_DIGITS:
            return int(text)
        self._keep("not_finite", f"an integer of {len(text)} digits")
        return 0


class ArrayReader:
    """Reads the items of a JSON array one by one; `line` is where reading stands. No item is longer than `longest`."""

    def __init__(self, stream: TextIO, longest: int) -> None:
        self._stream, self._longest = stream, longest
        self._text, self._at, self.line = "", 0, 1
        self._decoder = Decoder()

    def items(self) -> Iterator[tuple[int, Any]]:
        """Each item with its first line; a sound JSON value that is no row comes as its `RowProblem`.

        Raises `RowProblem` where the text stops being a JSON array: nothing after that place can be read.
        """
        self._take()
        if self.peek() == "]":
            self._take()
        else:
            while True:
                self.peek()
                line = self.line
                yield line, self._item()
                mark = self.peek()
                if mark not in (",", "]"):
                    raise RowProblem(
                        "json", f"after an item comes ',' or ']', not {shown(mark)}; the rest cannot be read"
                    )
                self._take()
                if mark == "]":
                    break
        if self.peek():
            raise RowProblem("json", "text after the array's end")

    def peek(self) -> str:
        """The next character that is not space, "" at the end."""
        while True:
            end = _SPACE.match(self._text, self._at).end()  # type: ignore[union-attr]  (it matches nothing, too)
            self._move(end)
            if end < len(self._text) or not self._more():
                return self._text[end : end + 1]

    def _item(self) -> dict[str, Any] | RowProblem:
        try:
            return self._decoder.judge(self._value())
        except _Damage as damage:
            raise RowProblem(damage.code, f"{damage.message}; the rest of the file cannot be read") from None
        except RowProblem as problem:
            return problem

    def _value(self) -> Any:
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                words = f"not JSON: {_words(error)}"
                if len(self._text) - error.pos > _NEAR and not error.msg.startswith("Unterminated string"):
                    raise _Damage("json", words) from None
            except RecursionError:
                raise _Damage(*_too_deep().args) from None
            else:
                if end < len(self._text) or not self._more():
                    self._move(end)
                    return value
                continue
            self._check_rest()
            if not self._more():  # it may only be that the item goes on
                raise _Damage("json", words)

    def _check_rest(self) -> None:
        """What is held of an unfinished item must be within the bounds, before more is read."""
        if len(self._text) - self._at > self._longest:
            raise _Damage("too_long", too_long(self._longest))
        try:
            check_values(self._text[self._at :])
        except RowProblem as problem:
            raise _Damage(problem.code, problem.message) from None

    def _take(self) -> None:
        self._move(self._at + 1)

    def _move(self, to: int) -> None:
        self.line += self._text.count("\n", self._at, to)
        self._at = to

    def _more(self) -> bool:
        kept = self._text[self._at :]
        self._text, self._at = kept, 0
        chunk = self._stream.read(max(_CHUNK, min(len(kept), self._longest)))  # doubling keeps a long item linear
        self._text = kept + chunk
        return bool(chunk)


class _Damage(RowProblem):
    """A fault after which the next item of an array cannot be found."""


def check_values(text: str) -> None:
    """Raise `RowProblem` where `text` holds more values than a row may; strings do not count by their commas."""
    if _marks(text) > MAX_VALUES and _marks(_STRING.sub("", text)) > MAX_VALUES:
        raise RowProblem("too_many_values", f"more than {MAX_VALUES:,} values in one row; leave the row out")


def too_long(longest: int, length: int | None = None) -> str:
    """In words: a row is longer than `data.max_row_bytes`."""
    size = f"of {length:,} bytes" if length else "longer"
    return f"a row {size}, data.max_row_bytes is {longest:,}: leave it out, or raise data.max_row_bytes"


def _marks(text: str) -> int:
    return text.count(",") + text.count("[") + text.count("{")


def _check_inside(value: Any) -> None:
    """Every string must be writable as UTF-8, and no value deeper than `MAX_DEPTH`."""
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        for one in level:
            if isinstance(one, str) and not one.isascii():
                _check_text(one)
        level = [inner for one in level if isinstance(one, dict | list) for inner in _inside(one)]
        if not level:
            return
    raise _too_deep()


def _inside(value: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return value if isinstance(value, list) else chain(value, value.values())


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise RowProblem("surrogate", "holds half of a surrogate pair (\\ud800 to \\udfff alone)") from None


def _too_deep() -> RowProblem:
    return RowProblem("json", f"nested too deeply to be read; {MAX_DEPTH} levels are allowed")


def _not_rows(value: Any) -> str:
    return "; a file that is one array of rows is named .json" if isinstance(value, list) else ""


def _words(error: json.JSONDecodeError) -> str:
    """The parser's words, and what it mostly is when they are met."""
    rest = error.doc[error.pos : error.pos + 2]
    before = error.doc[max(0, error.pos - 40) : error.pos].rstrip()[-1:]
    if error.msg.startswith("Extra data"):
        return f"{error.msg} (one object per line, and lines end in \\n)"
    if rest[:1] == "\0":
        return f"{error.msg} (a NUL byte)"
    if rest[:1] == "#" or rest in ("//", "/*"):
        return f"{error.msg} (JSON has no comments)"
    if rest[:1] == "'":
        return f"{error.msg} (strings stand in double quotes)"
    if before == "," and rest[:1] in ("]", "}"):
        return f"{error.msg} (a comma after the last one)"
    return error.msg
