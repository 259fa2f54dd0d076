"""Rows, their answers and their scores, chunk by chunk into journals: what an evaluation job and the command share.

Whatever is finished is on disk before it is counted, so that a later attempt in the same folder scores only rows that
have no score yet. Rows are read as they are needed; only those of one chunk, or of one call of an evaluator that wants
rows together, are held. A row's status never becomes a number: one without a usable score is in no mean.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from evaluators.custom.project import MOST_TOGETHER
from evaluators.kinds.base import Evaluator, failed
from evaluators.protocol import Result, Status
from evaluators.rows import Row, has_answer, question, with_answer
from evaluators.scores import check_weights, weighed
from trainer.evaluation_answers import Answerer
from trainer.evaluation_rows import Item, Rows
from trainer.evaluation_run import Mode, mode_of, unscored
from trainer.scored_rows import ANSWERS, SCORES, Journal, Results, Scores, line_of, result_of, scored_row

CHUNK_ROWS = 200
_FIRST_ROWS = 16
_QUICK_SECONDS, _LONG_SECONDS = 4.0, 16.0
_SPOOL = "rows.jsonl"
_NO_ANSWER = "there is no answer to score: end messages with the assistant's, or name a model"

Found = list[tuple[int, Result]]


class Unscorable(ValueError):
    """The evaluator cannot score these rows, whichever; the message says why."""


class Scoring:
    """The rows of one evaluation on their way through `evaluator`, and what came of them, in `folder`.

    answerer: loads the model that answers rows without an answer, at the first of them; None = such rows have no score.
    weights: of metrics, whose sum is the score. redact: strikes secrets out of what is kept. version: full name of the
    evaluator's revision. Close it.
    """

    def __init__(
        self,
        folder: Path,
        rows: Rows,
        evaluator: Evaluator,
        *,
        answerer: Callable[[], Answerer] | None = None,
        weights: Mapping[str, float] | None = None,
        redact: Callable[[str], str] = str,
        version: str = "",
        chunk_rows: int = CHUNK_ROWS,
    ) -> None:
        self.folder, self.rows, self.version = folder, rows, version
        self.scores = Scores(folder / SCORES)
        self._answers = Journal(folder / ANSWERS)
        self._evaluator: Evaluator = evaluator
        self._mode: Mode = mode_of(evaluator)
        self._load = answerer
        self._answerer: Answerer | None = None
        self._weights, self._redact = dict(weights or {}), redact
        self._most, self._room = chunk_rows, min(_FIRST_ROWS, chunk_rows)

    def close(self) -> None:
        """Let go of the journals."""
        self.scores.close()
        self._answers.close()

    @property
    def results(self) -> Results:
        """The results that there are, in the order of their rows; read from the disk one by one."""
        return self.scores.results()

    def run(self, total: int, *, stopped: Callable[[], bool], after: Callable[[Found], None]) -> bool:
        """Score all rows that have no score yet; False where `stopped` was true between two chunks.

        after: hears what came of each chunk, once that is saved. Raises `Unscorable` for more rows than an evaluator of
        the mode `all` takes in one call, for a weight whose name no metric has, and where the evaluator cannot work.
        """
        if self._mode == "all" and total > MOST_TOGETHER:
            raise Unscorable(
                f"its test takes all rows in one call (mode 'all'), at most {MOST_TOGETHER:,}; there are {total:,}: "
                "give fewer rows, or write it as pointwise or groupwise"
            )
        for chunk in self._chunks(self._mode):
            if stopped():
                return False
            begun = time.monotonic()
            after(self._score(chunk))
            self._fit(time.monotonic() - begun)
        return True

    def answered_rows(self) -> Iterator[Item]:
        """The rows with the answers that were scored."""
        for index, row in self.rows:
            yield index, self._with_answer(index, row)

    def write(self, path: Path) -> None:
        """Every row with its answer and its score, in order, as JSON lines; on disk when the call returns."""
        with path.open("wb") as stream:
            for index, row in self.answered_rows():
                found = scored_row(row, result_of(self.scores[index]), version=self.version)
                stream.write(json.dumps(found, ensure_ascii=False).encode("utf-8", "replace") + b"\n")
            stream.flush()
            os.fsync(stream.fileno())

    def _chunks(self, mode: Mode) -> Iterator[list[Item]]:
        """Rows without a score, in pieces; rows that are judged together stay together."""
        units: Iterable[list[Item]] = ([item] for item in self.rows)
        if mode == "all":
            units = [list(self.rows)]
        elif mode == "groupwise":
            units = self._groups()
        chunk: list[Item] = []
        for unit in units:
            if all(self.scores.counts(index) for index, _ in unit):
                continue
            chunk += unit
            if len(chunk) >= self._room:
                yield chunk
                chunk = []
        if chunk:
            yield chunk

    def _groups(self) -> Iterator[list[Item]]:
        """The rows of each question, wherever they stand: a copy on disk gives them in that order."""
        members: dict[str, list[int]] = {}
        path = self.folder / _SPOOL
        path.unlink(missing_ok=True)  # of an attempt that was killed
        spool = Journal(path)
        try:
            for index, row in self.rows:
                spool.add([{"index": index, "row": row}], durably=False)
                members.setdefault(question(row), []).append(index)
            for together in members.values():
                yield [(index, spool[index]["row"]) for index in together]
        finally:
            spool.close()
            path.unlink()

    def _fit(self, seconds: float) -> None:
        """Larger chunks while they are quick; smaller ones when a request to stop would wait for long."""
        if seconds < _QUICK_SECONDS:
            self._room = min(2 * self._room, self._most)
        elif seconds > _LONG_SECONDS:
            self._room = max(self._room // 2, 1)

    def _score(self, chunk: Sequence[Item]) -> Found:
        """Answer and score the rows of a chunk, and save what came of it."""
        found: dict[int, Result] = {}
        ready: list[Item] = []
        for index, row, problem in self._answered(chunk):
            if problem:
                found[index] = failed(Status.ERROR, problem)
            else:
                ready.append((index, row))
        rows = [unscored(row) for _, row in ready]
        try:
            results = self._evaluator.evaluate(rows, groups=[question(row) for row in rows])
            if self._weights and not self.scores.counted:  # until one row has had them all, a name may be wrong
                check_weights(results, self._weights)
        except ValueError as error:
            raise Unscorable(str(error)) from error
        found |= {index: weighed(result, self._weights) for (index, _), result in zip(ready, results, strict=True)}
        lines = [line_of(index, found[index], redact=self._redact) for index, _ in chunk]
        self.scores.add(lines)
        return [(int(line["index"]), result_of(line)) for line in lines]

    def _answered(self, chunk: Sequence[Item]) -> Iterator[tuple[int, Row, str]]:
        """Each row with its answer; or without, and why."""
        lacking = [(index, row) for index, row in chunk if not has_answer(row)]
        problems = {index: _NO_ANSWER for index, _ in lacking} if self._load is None else self._ask(lacking)
        for index, row in chunk:
            whole = self._with_answer(index, row)
            yield index, whole, "" if has_answer(whole) else problems.get(index, _NO_ANSWER)

    def _with_answer(self, index: int, row: Row) -> Row:
        if index not in self._answers or has_answer(row):
            return row
        return with_answer(row, self._answers[index]["text"])

    def _ask(self, lacking: Sequence[Item]) -> dict[int, str]:
        """Let the model answer; the rows that it cannot answer, and why."""
        new = [(index, row) for index, row in lacking if index not in self._answers]
        if not new or self._load is None:
            return {}
        if self._answerer is None:
            self._answerer = self._load()
        answers = self._answerer.answer([row for _, row in new])
        told = {index: answer for (index, _), answer in zip(new, answers, strict=True)}
        self._answers.add({"index": index, "text": text} for index, text in told.items() if isinstance(text, str))
        return {index: f"the model cannot answer: {one}" for index, one in told.items() if isinstance(one, ValueError)}
