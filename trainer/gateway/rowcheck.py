"""Checks that a data set's files are rows of one known format, before anyone trains on them.

A row is one JSON object per line: `messages` (CHAT), `prompt` and `completion`, or `text` (both COMPLETION). Lines are
read as the worker reads them: strictly, and in bounded memory however long they are. Whether a row renders and fits the
context is the worker's to check, with the model's own template.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.data.json_lines import json_lines
from trainer.data.problem import RowProblem
from trainer.gateway.errors import GatewayError, invalid
from trainer.runs import DataSettings

CHAT, COMPLETION, RL = "CHAT", "COMPLETION", "RL"
_ROLES = ("system", "developer", "user", "assistant", "tool", "function")
_FORMS = "a row has 'messages' (CHAT), 'prompt' and 'completion' (COMPLETION), or 'text' (COMPLETION)"
_LONGEST_ROW = DataSettings().max_row_bytes  # what a worker takes
_TOO_LONG = f"the row is longer than the {_LONGEST_ROW:,} bytes that a row may have here; shorten it, or leave it out"
BYTES_PER_TOKEN = 4  # the estimate used wherever no tokenizer has counted


@dataclass
class Rows:
    """What a data set's files hold."""

    count: int = 0
    bytes: int = 0
    format: str = ""

    @property
    def tokens(self) -> int:
        """An estimate: a token is about four bytes."""
        return self.bytes // BYTES_PER_TOKEN


def check(files: Iterable[Path], *, declared: str | None) -> Rows:
    """Read every row of `files`. Raises INVALID_ARGUMENT naming file and line of the first bad row.

    declared: the format that the data set claims; it must be the one found (RL rows may be of any form).
    """
    rows = Rows()
    for path in files:
        rows.bytes += path.stat().st_size
        try:
            for number, item in json_lines(path, _LONGEST_ROW):
                if isinstance(item, RowProblem):
                    raise item.at(path.name, number)
                if item is not None:
                    _take(rows, item, f"{path.name}:{number}", declared=declared)
        except RowProblem as problem:
            message = _TOO_LONG if problem.code == "too_long" else problem.message
            raise _bad(f"{path.name}:{problem.line}", f"{message} ({problem.code})") from problem
    if rows.count == 0:
        raise invalid("dataset: the files hold no rows; upload JSON lines, one object per line")
    return rows


def _take(rows: Rows, row: dict[str, Any], where: str, *, declared: str | None) -> None:
    rows.count += 1
    if declared == RL:
        rows.format = RL
        return
    found = _format(row, where)
    wanted = declared or rows.format or found
    if found != wanted:
        origin = "the data set was declared" if declared else "the rows before it are"
        raise _bad(where, f"this row is {found}, {origin} {wanted}; one data set has one format")
    rows.format = found


def _format(row: dict[str, Any], where: str) -> str:
    if "messages" in row:
        _check_messages(row["messages"], where)
        return CHAT
    for keys in (("prompt", "completion"), ("text",)):
        if all(key in row for key in keys):
            for key in keys:
                if not isinstance(row[key], str):
                    raise _bad(where, f"{key!r} is {type(row[key]).__name__}; expected a string")
            return COMPLETION
    raise _bad(where, f"keys {', '.join(sorted(map(repr, row)))[:200] or 'none'}; {_FORMS}")


def _check_messages(messages: Any, where: str) -> None:
    if not isinstance(messages, list) or not messages:
        raise _bad(where, "'messages' is not a list with at least one message")
    for index, message in enumerate(messages):
        if not isinstance(message, dict):
            raise _bad(where, f"messages[{index}] is {type(message).__name__}; expected an object")
        if message.get("role") not in _ROLES:
            raise _bad(where, f"messages[{index}].role is {message.get('role')!r}; expected one of {', '.join(_ROLES)}")
        if not isinstance(message.get("content"), (str, list, type(None))):
            raise _bad(where, f"messages[{index}].content is neither text nor parts")


def _bad(where: str, what: str) -> GatewayError:
    return GatewayError("INVALID_ARGUMENT", f"{where}: {what}", reason="DATASET_INVALID", metadata={"row": where})
