"""The rows of an evaluation that have been scored: a journal that survives a crash, and the rows as they are handed on.

One line of JSON a row, appended and made durable chunk by chunk; a torn last line is cut off when the journal is opened
again. A row may be scored again later: its last line counts. Of each row only the place of its line is held in memory,
and a byte for how it ended. Answers that a model gave are in a journal of their own, so that a row is never answered
twice.
"""

from __future__ import annotations

import json
import os
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

from evaluators.outcomes import counts
from evaluators.protocol import Isolation, Result, Status, Tier
from evaluators.rows import Row
from evaluators.scores import score_of, to_json
from trainer.evaluation_run import unscored

SCORES, ANSWERS, OUTPUT = "scores.jsonl", "answers.jsonl", "output.jsonl"
_PRINTED = 1_500  # characters kept of what an evaluator printed about a row
_MASKED, _COUNTS = 1, 2  # how a row stands; 0 = it has no line
Details = dict[str, Any]


class Journal:
    """Lines of JSON, each with the `index` of its row; the last line of a row is the one that is found."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stream = path.open("ab")
        whole = _whole(path)
        if whole < path.stat().st_size:
            self._stream.truncate(whole)
        self._places: array[int] = array("q")  # byte at which a row's line begins; -1 = it has none
        self._reading = path.open("rb")
        place = 0
        for line in self._reading:
            self._note(json.loads(line), place)
            place += len(line)
        self._end = place

    def __contains__(self, index: int) -> bool:
        return 0 <= index < len(self._places) and self._places[index] >= 0

    def __getitem__(self, index: int) -> Details:
        """The line of row `index`. Raises `KeyError`."""
        if index not in self:
            raise KeyError(index)
        self._reading.seek(self._places[index])
        return json.loads(self._reading.readline())

    def indices(self) -> Iterator[int]:
        """The rows that have a line, in their order."""
        return (index for index, place in enumerate(self._places) if place >= 0)

    def add(self, lines: Iterable[Mapping[str, Any]], *, durably: bool = True) -> None:
        """Append; on disk when the call returns."""
        for line in lines:
            self._note(line, self._end)
            self._end += self._stream.write(json.dumps(line, ensure_ascii=True).encode() + b"\n")
        self._stream.flush()
        if durably:
            os.fsync(self._stream.fileno())

    def close(self) -> None:
        """No more is added or read."""
        self._stream.close()
        self._reading.close()

    def _note(self, line: Mapping[str, Any], place: int) -> None:
        index = int(line["index"])
        if index >= len(self._places):
            self._places.extend([-1] * (index + 1 - len(self._places)))
        self._places[index] = place


class Scores(Journal):
    """The journal of scores. masked: rows without a usable score; counted: rows with one."""

    def __init__(self, path: Path) -> None:
        self._standing = bytearray()
        self.masked = self.counted = 0
        super().__init__(path)

    def counts(self, index: int) -> bool:
        """True where the row has a usable score."""
        return index < len(self._standing) and self._standing[index] == _COUNTS

    def results(self) -> Results:
        """What there is now, in the order of the rows."""
        return Results(self)

    def _note(self, line: Mapping[str, Any], place: int) -> None:
        super()._note(line, place)
        index = int(line["index"])
        self._standing.extend(bytes(max(0, index + 1 - len(self._standing))))
        standing = _COUNTS if line["status"] == Status.OK and line["score"] is not None else _MASKED
        before, self._standing[index] = self._standing[index], standing
        self.masked += (standing == _MASKED) - (before == _MASKED)
        self.counted += (standing == _COUNTS) - (before == _COUNTS)


class Results(Sequence[Result]):
    """Results that lie in a journal, in the order of their rows; each is read when it is asked for."""

    def __init__(self, scores: Scores) -> None:
        self._scores, self._indices = scores, array("q", scores.indices())

    def __len__(self) -> int:
        return len(self._indices)

    @overload
    def __getitem__(self, place: int) -> Result: ...
    @overload
    def __getitem__(self, place: slice) -> list[Result]: ...
    def __getitem__(self, place: int | slice) -> Result | list[Result]:
        if isinstance(place, slice):
            return [result_of(self._scores[index]) for index in self._indices[place]]
        return result_of(self._scores[self._indices[place]])


def line_of(index: int, result: Result, *, redact: Callable[[str], str] = str) -> Details:
    """How the row `index` ended, as a line, without the secrets that `redact` strikes out."""
    found = {
        "status": result.status.value, "score": None if result.score is None else to_json(result.score),
        "message": result.message, "seconds": round(result.seconds, 6), "tier": result.tier.value,
        "isolation": result.isolation.value, "attempts": result.attempts,
        "stateful": bool(result.details.get("stateful_evaluator")),
        **({"judge": result.details["judge"]} if "judge" in result.details else {}),
    }  # fmt: skip
    printed = redact(result.stdout)[:_PRINTED]  # in this order: half a secret would not be known as one
    return {"index": index, **struck(found, redact), "printed": printed}


def result_of(line: Mapping[str, Any]) -> Result:
    """The result that a line holds."""
    score = None if line["score"] is None else score_of(line["score"])
    return Result(
        Status(line["status"]), score, line["message"], seconds=line["seconds"], tier=Tier(line["tier"]),
        isolation=Isolation(line["isolation"]), attempts=line["attempts"], stdout=line.get("printed", ""),
        details={"judge": line["judge"]} if "judge" in line else {},
    )  # fmt: skip


def scored_row(row: Row, result: Result, *, version: str = "") -> Details:
    """The row as it is handed on: `evals` where its score counts, and always `eval_details` and how it ended.

    version: full name of the evaluator's revision that scored it; "" = one that has no revisions.
    """
    details = to_json(result.score) if result.score is not None else {"score": None, "metrics": {}}
    if not counts(result):
        reason = result.message or result.status.value
        details = {**details, "is_score_valid": False, "reason": details.get("reason") or reason}
    found = {**unscored(row), "eval_details": details, "eval_status": result.status.value}
    found["eval_tier"] = result.tier.value
    if version:
        found["eval_version"] = version
    if result.message:
        found["eval_message"] = result.message
    if counts(result) and result.score is not None:
        found["evals"] = {"score": result.score.score}
    return found


def struck(value: Any, redact: Callable[[str], str]) -> Any:
    """`value` with no secret in any of its texts; `redact` strikes them out of one."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, list):
        return [struck(one, redact) for one in value]
    return {redact(key): struck(one, redact) for key, one in value.items()} if isinstance(value, dict) else value


def _whole(path: Path) -> int:
    """The length of the lines that are whole."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        end = size
        while end > 0:
            begin = max(0, end - (1 << 16))
            stream.seek(begin)
            found = stream.read(end - begin).rfind(b"\n")
            if found >= 0:
                return begin + found + 1
            end = begin
    return 0
