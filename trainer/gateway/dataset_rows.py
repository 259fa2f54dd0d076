"""What the files of a data set hold: the format of its rows, how many, and how long they are.

Every row is read, strictly and in bounded memory, as a worker reads them. One data set has one format: CHAT
(`messages`), RL (`messages` that end with the question, as prompts do), COMPLETION (`prompt` and `completion`, or
`text`) or PREFERENCE (a pair of answers, in any of the shapes of `trainer.data.pairs`), for which the contract has no
word: the published recipes declare pairs as CHAT. Whether a row fits a model's context is the worker's to say, with the
model's own template.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.data.json_lines import json_lines
from trainer.data.pairs import read_pair
from trainer.data.problem import RowProblem
from trainer.gateway import file_names
from trainer.gateway.errors import GatewayError, invalid
from trainer.runs import DataSettings

CHAT, COMPLETION, RL, PREFERENCE = "CHAT", "COMPLETION", "RL", "PREFERENCE"
# What a data set may hold that declares a format of the contract.
HELD = {CHAT: frozenset({CHAT, RL, PREFERENCE}), COMPLETION: frozenset({COMPLETION}), RL: frozenset({RL})}
BYTES_PER_TOKEN = 4  # the estimate used wherever no tokenizer has counted
_ROLES = ("system", "developer", "user", "assistant", "tool", "function")
_FORMS = (
    "a row has 'messages' (CHAT, RL), 'prompt' and 'completion' or 'text' (COMPLETION), or a preference pair "
    "('input', 'preferred_output' and 'non_preferred_output'; 'chosen' and 'rejected'; or 'samples')"
)
_PAIRS = ({"input", "preferred_output", "non_preferred_output"}, {"chosen", "rejected"}, {"samples"})
_LONGEST_ROW = DataSettings().max_row_bytes  # what a worker takes
_TOO_LONG = f"the row is longer than the {_LONGEST_ROW:,} bytes that a row may have here; shorten it, or leave it out"


@dataclass
class Rows:
    """What a data set's files hold. turns: of users, in all rows; prompts: rows that end with a question.

    declared: the format that the data set claims, "" where it claims none.
    """

    count: int = 0
    bytes: int = 0
    turns: int = 0
    prompts: int = 0
    found: str = ""
    declared: str = ""

    @property
    def format(self) -> str:
        """The format of all rows."""
        return RL if self.found == CHAT and self.prompts == self.count else self.found

    def body(self) -> dict[str, Any]:
        """The contract's fields. A token is taken for four bytes."""
        return {
            "exampleCount": str(self.count),
            "format": self.declared or "FORMAT_UNSPECIFIED" if self.format == PREFERENCE else self.format,
            "estimatedTokenCount": str(self.bytes // BYTES_PER_TOKEN),
            "averageTurnCount": round(self.turns / self.count, 4),
        }


def check(files: Iterable[Path], *, declared: str | None) -> Rows:
    """Read every row of `files`. Raises INVALID_ARGUMENT naming file and line of the first bad row.

    declared: the format that the data set claims; it must allow (`HELD`) the one found.
    """
    rows = Rows(declared=declared or "")
    for path in files:
        rows.bytes += path.stat().st_size
        for where, row in read(path):
            _take(rows, row, where)
    if rows.count == 0:
        raise invalid("dataset: the files hold no rows; upload JSON lines, one object per line")
    if declared and rows.format not in HELD[declared]:
        raise GatewayError(
            "INVALID_ARGUMENT",
            f"the rows are {rows.format}, the data set was declared {declared}; declare what it holds, or leave it out",
            reason="DATASET_INVALID",
        )
    return rows


def read(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each row with its place, FILE:LINE. Raises INVALID_ARGUMENT for one that is none."""
    name = file_names.shown(path.name)
    try:
        for number, item in json_lines(path, _LONGEST_ROW):
            if isinstance(item, RowProblem):
                raise item.at(name, number)
            if item is not None:
                yield f"{name}:{number}", item
    except RowProblem as problem:
        message = _TOO_LONG if problem.code == "too_long" else problem.message
        raise _bad(f"{name}:{problem.line}", f"{message} ({problem.code})") from problem


def _take(rows: Rows, row: dict[str, Any], where: str) -> None:
    found, turns, asks = _kind(row, where)
    if rows.found not in ("", found):
        raise _bad(where, f"this row is {found}, the rows before it are {rows.found}; one data set has one format")
    rows.found = found
    rows.count += 1
    rows.turns += turns
    rows.prompts += asks


def _kind(row: dict[str, Any], where: str) -> tuple[str, int, bool]:
    """A row's format, its users' turns, and whether it ends with a question."""
    if any(keys <= row.keys() for keys in _PAIRS):
        try:
            chosen, _ = read_pair({key: value for key, value in row.items() if value is not None}, Counter())
        except RowProblem as problem:
            raise _bad(where, f"{problem.message} ({problem.code})") from problem
        return PREFERENCE, sum(message.get("role") == "user" for message in chosen.messages) or 1, False
    if "messages" in row:
        messages = _messages(row["messages"], where)
        return CHAT, sum(one["role"] == "user" for one in messages), messages[-1]["role"] != "assistant"
    for keys in (("prompt", "completion"), ("text",)):
        if all(key in row for key in keys):
            for key in keys:
                if not isinstance(row[key], str):
                    raise _bad(where, f"{key!r} is {type(row[key]).__name__}; expected a string")
            return COMPLETION, 1, False
    raise _bad(where, f"keys {', '.join(sorted(map(repr, row)))[:200] or 'none'}; {_FORMS}")


def _messages(messages: Any, where: str) -> list[dict[str, Any]]:
    if not isinstance(messages, list) or not messages:
        raise _bad(where, "'messages' is not a list with at least one message")
    for index, message in enumerate(messages):
        if not isinstance(message, dict):
            raise _bad(where, f"messages[{index}] is {type(message).__name__}; expected an object")
        if message.get("role") not in _ROLES:
            raise _bad(where, f"messages[{index}].role is {message.get('role')!r}; expected one of {', '.join(_ROLES)}")
        if not isinstance(message.get("content"), (str, list, type(None))):
            raise _bad(where, f"messages[{index}].content is neither text nor parts")
    return messages


def _bad(where: str, what: str) -> GatewayError:
    return GatewayError("INVALID_ARGUMENT", f"{where}: {what}", reason="DATASET_INVALID", metadata={"row": where})
