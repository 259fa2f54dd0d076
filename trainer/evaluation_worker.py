"""One attempt at an evaluation job: rows, their answers, and their scores, chunk by chunk, into `output.jsonl`.

`evaluation.json` in its folder is its only input. Whatever is finished is on disk before it is counted, so that a later
attempt scores only rows that have no score yet. A row's status never becomes a number: rows without a usable score are
in no mean, and when more of them than `max_invalid_fraction` are certain the job pauses with the histogram.
It writes files and tells nobody: the scheduler reads its journal. `trainer.worker` is the process around it.
"""

from __future__ import annotations

import json
import os
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from evaluators.broker import Broker, SecretRefused
from evaluators.kinds.base import failed
from evaluators.outcomes import Interval, Summary, TooManyInvalid, check_invalid_fraction, counts, summarise
from evaluators.protocol import Result, Status
from evaluators.rows import Row, has_answer, question, with_answer
from evaluators.sandbox import SandboxRefused
from evaluators.sandboxed import SandboxRunner
from trainer.data.json_lines import json_lines
from trainer.data.problem import RowProblem
from trainer.disk import is_full
from trainer.evaluation_answers import Answerer
from trainer.evaluation_run import GRANTED_PREFIX, EvaluationRun, Opened, files_of, open_evaluator, unscored
from trainer.evaluation_sandbox import new_runner
from trainer.jobs import JobState
from trainer.launch.status import EXIT_DONE, EXIT_PAUSED, EXIT_REFUSED
from trainer.loops.stop import Stop
from trainer.runs import DataSettings
from trainer.scored_rows import ANSWERS, OUTPUT, SCORES, Journal, line_of, result_of, scored_row
from trainer.tracking import Journal as Events

EXIT_CRASH = 1
_FIRST_ROWS = 16
_QUICK_SECONDS, _LONG_SECONDS = 4.0, 16.0
_TOLD_ROWS = 100  # rows without a score that the log names one by one
_NO_ANSWER = "there is no answer to score: end messages with the assistant's, or name a model in the job's `model`"

Item = tuple[int, Row]


def main(*, stop: Stop, folder: Path) -> int:
    """Make the attempt and return the worker's exit status; `stop` hears signals already."""
    return EvaluationWorker(EvaluationRun.load(folder), folder, stop=stop).run()


class Refused(Exception):
    """The job cannot be run as it is; the message says why."""


class EvaluationWorker:
    """One attempt at the evaluation in `folder`. environment: where the values of granted secrets are."""

    def __init__(
        self, run: EvaluationRun, folder: Path, *, stop: Stop, environment: Mapping[str, str] | None = None
    ) -> None:
        self.spec, self.folder, self.stop = run, folder, stop
        values = os.environ if environment is None else environment
        self._broker = Broker(lambda name: values.get(GRANTED_PREFIX + name), granted=run.evaluator.granted)
        self._events = Events(folder)
        self._scores, self._answers = Journal(folder / SCORES), Journal(folder / ANSWERS)
        self._results: dict[int, Result] = {}
        self._masked = 0  # of them
        self._texts: dict[int, str] = {int(line["index"]): line["text"] for line in self._answers}
        self._answerer: Answerer | None = None
        self._told = 0
        self._room = min(_FIRST_ROWS, run.chunk_rows)  # rows of the next chunk

    def run(self) -> int:
        """Read, score, hand over; every way out is a state in the journal."""
        try:
            with new_runner() as runner:
                return self._run(runner)
        except (Refused, RowProblem) as error:
            self._events.state(JobState.FAILED, str(error), code="INVALID_ARGUMENT")
            return EXIT_REFUSED
        except (SandboxRefused, SecretRefused) as error:
            self._events.state(JobState.FAILED, str(error), code="FAILED_PRECONDITION")
            return EXIT_REFUSED
        except TooManyInvalid as error:
            self._events.state(JobState.PAUSED, str(error), code="FAILED_PRECONDITION")
            return EXIT_PAUSED
        except Exception as error:  # noqa: BLE001  (the boundary: recorded as the job's state and in error.txt)
            if is_full(error):
                self._events.state(
                    JobState.PAUSED, f"{self.folder}: the disk is full ({error})", code="RESOURCE_EXHAUSTED"
                )
                return EXIT_PAUSED
            trace = self.folder / "error.txt"
            trace.write_text(traceback.format_exc(), encoding="utf-8")
            self._events.state(
                JobState.FAILED, f"{type(error).__name__}: {error} (traceback: {trace})", code="INTERNAL"
            )
            return EXIT_CRASH
        finally:
            for one in (self._scores, self._answers, self._events):
                one.close()

    def _run(self, runner: SandboxRunner) -> int:
        self._events.state(JobState.VALIDATING, f"reading {self.spec.input_dataset}")
        total = sum(1 for _ in self._rows())
        if not total:
            raise Refused(f"{self.spec.input_dataset} has no rows")
        opened = self._opened(runner)
        kept = {int(line["index"]): result_of(line) for line in self._scores}
        self._results = {index: result for index, result in kept.items() if counts(result)}
        done = f"; {len(self._results):,} have a score already" if self._results else ""
        self._events.log(f"{total:,} rows of {self.spec.input_dataset}{done}")
        self._events.state(JobState.RUNNING, f"{total:,} rows")
        for chunk in self._chunks(opened):
            if self.stop.requested:
                self._events.state(JobState.PAUSED, f"after {len(self._results):,} of {total:,} rows, all saved")
                return EXIT_PAUSED
            begun = time.monotonic()
            self._score(opened, chunk)
            self._fit(time.monotonic() - begun)
            self._check(total, final=False)
            self._events.progress(100.0 * len(self._results) / total)
        self._check(total, final=True)
        self._events.state(JobState.WRITING_RESULTS)
        summary = self._hand_over()
        self._events.state(JobState.COMPLETED, _words(summary))
        return EXIT_DONE

    def _opened(self, runner: SandboxRunner) -> Opened:
        source = self.spec.evaluator
        environment = self._broker.environment(source.granted)
        try:
            return open_evaluator(source, files_of(source), runner, environment=environment)
        except ValueError as error:
            raise Refused(f"{source.name}: {self._broker.redact(str(error))}") from error

    def _rows(self) -> Iterator[Item]:
        index = 0
        for path in map(Path, self.spec.rows):
            for number, row in json_lines(path, DataSettings().max_row_bytes):
                if isinstance(row, RowProblem):
                    raise row.at(path.name, number)
                if row is not None:
                    yield index, row
                    index += 1

    def _chunks(self, opened: Opened) -> Iterator[list[Item]]:
        """Rows without a score, in pieces; rows that are judged together stay together."""
        units: Iterable[list[Item]] = ([item] for item in self._rows())
        if opened.mode == "all":
            units = [list(self._rows())]
        elif opened.mode == "groupwise":
            groups: dict[str, list[Item]] = {}
            for item in self._rows():
                groups.setdefault(question(item[1]), []).append(item)
            units = groups.values()
        chunk: list[Item] = []
        for unit in units:
            if all(index in self._results for index, _ in unit):
                continue
            chunk += unit
            if len(chunk) >= self._room:
                yield chunk
                chunk = []
        if chunk:
            yield chunk

    def _fit(self, seconds: float) -> None:
        """Larger chunks while they are quick; smaller ones when a request to stop would wait for long."""
        if seconds < _QUICK_SECONDS:
            self._room = min(2 * self._room, self.spec.chunk_rows)
        elif seconds > _LONG_SECONDS:
            self._room = max(self._room // 2, 1)

    def _score(self, opened: Opened, chunk: Sequence[Item]) -> None:
        """Answer and score the rows of a chunk, and save what came of it."""
        found: dict[int, Result] = {}
        ready: list[Item] = []
        for index, row, problem in self._answered(chunk):
            if problem:
                found[index] = failed(Status.ERROR, problem)
            else:
                ready.append((index, row))
        rows = [unscored(row) for _, row in ready]
        results = opened.evaluator.evaluate(rows, groups=[question(row) for row in rows])
        found |= {index: result for (index, _), result in zip(ready, results, strict=True)}
        lines = [_struck(line_of(index, found[index]), self._broker.redact) for index, _ in chunk]
        self._scores.add(lines)
        for line in lines:
            before, result = self._results.get(int(line["index"])), result_of(line)
            self._results[int(line["index"])] = result
            self._masked += (not counts(result)) - (before is not None and not counts(before))
            if not counts(result) and self._told < _TOLD_ROWS:
                self._told += 1
                self._events.log(f"row {int(line['index']) + 1}: {result.status.value}: {result.message}")

    def _answered(self, chunk: Sequence[Item]) -> Iterator[tuple[int, Row, str]]:
        """Each row with its answer; or without, and why."""
        lacking = [(index, row) for index, row in chunk if not has_answer(row)]
        problems = {index: _NO_ANSWER for index, _ in lacking} if self.spec.model is None else self._ask(lacking)
        for index, row in chunk:
            text = self._texts.get(index)
            if text is not None and not has_answer(row):
                yield index, with_answer(row, text), ""
            else:
                yield index, row, problems.get(index, "")

    def _ask(self, lacking: Sequence[Item]) -> dict[int, str]:
        """Let the model answer; the rows that it cannot answer, and why."""
        new = [(index, row) for index, row in lacking if index not in self._texts]
        if not new or self.spec.model is None:
            return {}
        if self._answerer is None:
            self._events.log(f"loading {self.spec.model.name}")
            try:
                self._answerer = Answerer(self.spec.model, self.spec.answers)
            except ValueError as error:
                raise Refused(f"model: {self.spec.model.name}: {error}") from error
        answers = self._answerer.answer([row for _, row in new])
        told = {index: answer for (index, _), answer in zip(new, answers, strict=True)}
        texts = {index: answer for index, answer in told.items() if isinstance(answer, str)}
        self._answers.add({"index": index, "text": text} for index, text in texts.items())
        self._texts |= texts
        return {index: f"the model cannot answer: {one}" for index, one in told.items() if isinstance(one, ValueError)}

    def _check(self, total: int, *, final: bool) -> None:
        """Raise `TooManyInvalid` once it is certain that too many rows of all have no usable score."""
        if final or self._masked > self.spec.max_invalid_fraction * total:
            check_invalid_fraction(list(self._results.values()), self.spec.max_invalid_fraction)

    def _hand_over(self) -> Summary:
        """The output data set's file, and what the job is told of it."""
        path = self.folder / OUTPUT
        with path.open("wb") as stream:
            for index, row in self._rows():
                text = self._texts.get(index)
                whole = with_answer(row, text) if text is not None and not has_answer(row) else row
                line = json.dumps(scored_row(whole, self._results[index]), ensure_ascii=False)
                stream.write(line.encode() + b"\n")
            stream.flush()
            os.fsync(stream.fileno())
        summary = summarise([self._results[index] for index in sorted(self._results)])
        for line in _table(summary):
            self._events.log(line)
        self._events.results({"path": str(path), "metrics": _means(summary), "stats": _stats(summary, self.spec)})
        return summary


def _means(summary: Summary) -> dict[str, float]:
    found = {name: interval.mean for name, interval in summary.metrics.items()}
    return {**found, "score": summary.score.mean} if summary.score else found


def _stats(summary: Summary, run: EvaluationRun) -> dict[str, Any]:
    """The job's `outputStats`."""
    return {
        "rows": summary.rows, "scored": summary.rows - summary.masked, "masked": summary.masked,
        "statuses": summary.histogram, "score": _interval(summary.score) if summary.score else None,
        "metrics": {name: _interval(one) for name, one in summary.metrics.items()},
        "evaluator": run.evaluator.name, "evaluatorVersion": run.evaluator.version,
        **({"model": run.model.name} if run.model else {}),
    }  # fmt: skip


def _interval(found: Interval) -> dict[str, Any]:
    return {"mean": found.mean, "low": found.low, "high": found.high, "count": found.count, "method": found.method}


def _table(summary: Summary) -> Iterator[str]:
    for name, found in (("score", summary.score), *summary.metrics.items()):
        if found is not None:
            yield f"{name}: mean {found.mean:.6g}, 95 % from {found.low:.6g} to {found.high:.6g}, {found.count:,} rows"
    yield "status: " + ", ".join(f"{name} {count:,}" for name, count in summary.histogram.items())


def _words(summary: Summary) -> str:
    mean = f", mean score {summary.score.mean:.4g}" if summary.score else ""
    masked = f", {summary.masked:,} without a usable score" if summary.masked else ""
    return f"{summary.rows:,} rows{mean}{masked}"


def _struck(value: Any, redact: Callable[[str], str]) -> Any:
    """`value` with no secret in any of its texts."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, list):
        return [_struck(one, redact) for one in value]
    return {redact(key): _struck(one, redact) for key, one in value.items()} if isinstance(value, dict) else value
