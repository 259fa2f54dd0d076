"""The rows of an evaluation that have been scored: a journal that survives a crash, and the rows as they are handed on.

One line of JSON a row, appended and made durable chunk by chunk; a torn last line is cut off when the journal is opened
again. A row may be scored again later: its last line counts. Answers that a model gave are in a journal of their own,
so that a row is never answered twice.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from evaluators.outcomes import counts
from evaluators.protocol import Isolation, Result, Status, Tier
from evaluators.scores import score_of, to_json
from trainer.evaluation_run import unscored

SCORES, ANSWERS, OUTPUT = "scores.jsonl", "answers.jsonl", "output.jsonl"
Details = dict[str, Any]


class Journal:
    """Lines of JSON, each with the `index` of its row."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stream = path.open("ab")
        whole = _whole(path)
        if whole < path.stat().st_size:
            self._stream.truncate(whole)

    def __iter__(self) -> Iterator[Details]:
        with self._path.open("rb") as stream:
            for line in stream:
                yield json.loads(line)

    def add(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Append, durably."""
        for line in lines:
            self._stream.write(json.dumps(line, ensure_ascii=True).encode() + b"\n")
        self._stream.flush()
        os.fsync(self._stream.fileno())

    def close(self) -> None:
        """No more is added."""
        self._stream.close()


def line_of(index: int, result: Result) -> Details:
    """How the row `index` ended, as a line."""
    return {
        "index": index, "status": result.status.value, "score": None if result.score is None else to_json(result.score),
        "message": result.message, "seconds": round(result.seconds, 6), "tier": result.tier.value,
        "isolation": result.isolation.value, "attempts": result.attempts,
        "stateful": bool(result.details.get("stateful_evaluator")),
    }  # fmt: skip


def result_of(line: Mapping[str, Any]) -> Result:
    """The result that a line holds."""
    score = None if line["score"] is None else score_of(line["score"])
    return Result(
        Status(line["status"]), score, line["message"], seconds=line["seconds"], tier=Tier(line["tier"]),
        isolation=Isolation(line["isolation"]), attempts=line["attempts"],
    )  # fmt: skip


def scored_row(row: Mapping[str, Any], result: Result) -> Details:
    """The row as it is handed on: `evals` where its score counts, and always `eval_details` and how it ended."""
    details = to_json(result.score) if result.score is not None else {"score": None, "metrics": {}}
    if not counts(result):
        reason = result.message or result.status.value
        details = {**details, "is_score_valid": False, "reason": details.get("reason") or reason}
    found = {**unscored(row), "eval_details": details, "eval_status": result.status.value}
    if result.message:
        found["eval_message"] = result.message
    if counts(result) and result.score is not None:
        found["evals"] = {"score": result.score.score}
    return found


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
