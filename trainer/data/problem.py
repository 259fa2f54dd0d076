"""What is wrong with one row: a reason code for counting, words for people, and the place in the file.

What messages quote from a row is cut short by `shown`: a row may be megabytes, what is said about it is one line.
"""

from __future__ import annotations

from reprlib import Repr
from typing import Any

_SHORT = Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 60


class RowProblem(ValueError):
    """What is wrong with one row: `file`, `line` (counted from 1), a reason `code` and a `message` for people."""

    def __init__(self, code: str, message: str, *, file: str = "", line: int = 0) -> None:
        self.code, self.message, self.file, self.line = code, message, file, line
        super().__init__(code, message)

    def at(self, file: str, line: int) -> RowProblem:
        """This problem with its place, and without the frames it was raised in, which would keep the row alive."""
        self.file, self.line = file, line
        self.__traceback__ = self.__cause__ = self.__context__ = None
        return self

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.message} ({self.code})"


def shown(value: Any) -> str:
    """`value` as Python writes it, cut to some 60 characters."""
    return _SHORT.repr(value)


def string(value: Any, where: str) -> str:
    """`value` if it is a string. Raises `RowProblem`."""
    if not isinstance(value, str):
        raise RowProblem("type", f"{where} must be a string, not {json_type(value)}")
    return value


def json_type(value: Any) -> str:
    """What JSON calls the type of `value`, with its article."""
    names = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    empty = "an empty array" if value == [] else None
    return empty or names.get(type(value)) or ("a number" if isinstance(value, int | float) else type(value).__name__)
