"""One attempt at an evaluation job: its rows through its evaluator, into `output.jsonl`.

`evaluation.json` in its folder is its only input, and names the revision of the evaluator, which so never changes.
When more rows than `max_invalid_fraction` certainly have no usable score the job pauses with the histogram.
It writes files and tells nobody: the scheduler reads its journal. `trainer.worker` is the process around it,
`trainer.evaluation_scoring` what it does with the rows.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from evaluators.broker import Broker, SecretRefused
from evaluators.outcomes import (
    MOST_METRICS,
    Interval,
    Summary,
    TooManyInvalid,
    check_invalid_fraction,
    counts,
    summarise,
)
from evaluators.sandbox import SandboxRefused
from evaluators.sandboxed import SandboxRunner
from trainer.data.problem import RowProblem
from trainer.disk import is_full
from trainer.evaluation_answers import Answerer
from trainer.evaluation_rows import Rows
from trainer.evaluation_run import (
    GRANTED_PREFIX,
    JUDGE_KEY_VARIABLE,
    AnyEvaluator,
    EvaluationRun,
    ModelPlace,
    files_of,
    open_evaluator,
)
from trainer.evaluation_sandbox import judge_of, new_runner
from trainer.evaluation_scoring import Found, Scoring, Unscorable
from trainer.jobs import JobState
from trainer.launch.status import EXIT_DONE, EXIT_PAUSED, EXIT_REFUSED
from trainer.loops.stop import Stop
from trainer.scored_rows import OUTPUT
from trainer.tracking import Journal as Events

EXIT_CRASH = 1
_TOLD_ROWS = 100  # rows without a score that the log names one by one


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
        self._judge = judge_of(values, JUDGE_KEY_VARIABLE)
        self._broker = Broker(lambda name: values.get(GRANTED_PREFIX + name), granted=run.evaluator.granted)
        self._events = Events(folder)
        self._told = 0

    def run(self) -> int:
        """Read, score, hand over; every way out is a state in the journal."""
        try:
            with self._runner() as runner:
                return self._run(runner)
        except (Refused, RowProblem) as error:
            self._events.state(JobState.FAILED, str(error), code="INVALID_ARGUMENT")
            return EXIT_REFUSED
        except (SandboxRefused, SecretRefused) as error:
            self._events.state(JobState.FAILED, str(error), code="FAILED_PRECONDITION")
            return EXIT_REFUSED
        except TooManyInvalid as error:
            stays = f"this job stays with {self.spec.evaluator.revision}: a mended evaluator is another job's"
            self._events.state(JobState.PAUSED, f"{error}; {stays}", code="FAILED_PRECONDITION")
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
            self._events.close()

    def _runner(self) -> SandboxRunner:
        try:
            return new_runner(judge=self._judge)
        except ValueError as error:
            raise Refused(f"the gateway's operator has set {error}") from error

    def _run(self, runner: SandboxRunner) -> int:
        spec = self.spec
        self._events.state(JobState.VALIDATING, f"reading {spec.input_dataset}")
        rows = Rows([Path(path) for path in spec.rows])
        total = sum(1 for _ in rows)
        if not total:
            raise Refused(f"{spec.input_dataset} has no rows")
        scoring = Scoring(
            self.folder, rows, self._opened(runner), answerer=partial(self._loaded, spec.model) if spec.model else None,
            weights=spec.reward_weights, redact=self._broker.redact, version=spec.evaluator.revision,
            chunk_rows=spec.chunk_rows,
        )  # fmt: skip
        try:
            return self._scored(scoring, total)
        finally:
            scoring.close()

    def _scored(self, scoring: Scoring, total: int) -> int:
        scores = scoring.scores
        done = f"; {scores.counted:,} have a score already" if scores.counted else ""
        self._events.log(f"{total:,} rows of {self.spec.input_dataset}{done}")
        self._events.state(JobState.RUNNING, f"{total:,} rows")

        def after(found: Found) -> None:
            self._tell(found)
            if scores.masked > self.spec.max_invalid_fraction * total:  # whatever becomes of the others
                check_invalid_fraction(scoring.results, self.spec.max_invalid_fraction)
            self._events.progress(100.0 * (scores.counted + scores.masked) / total)

        try:
            whole = scoring.run(total, stopped=lambda: self.stop.requested, after=after)
        except Unscorable as error:
            raise Refused(f"{self.spec.evaluator.name}: {self._broker.redact(str(error))}") from error
        if not whole:
            self._events.state(JobState.PAUSED, f"after {scores.counted:,} of {total:,} rows, all saved")
            return EXIT_PAUSED
        check_invalid_fraction(scoring.results, self.spec.max_invalid_fraction)
        self._events.state(JobState.WRITING_RESULTS)
        summary = self._hand_over(scoring)
        self._events.state(JobState.COMPLETED, _words(summary))
        return EXIT_DONE

    def _opened(self, runner: SandboxRunner) -> AnyEvaluator:
        source = self.spec.evaluator
        environment = self._broker.environment(source.granted)
        try:
            return open_evaluator(source, files_of(source), runner, environment=environment)
        except ValueError as error:
            raise Refused(f"{source.name}: {self._broker.redact(str(error))}") from error

    def _loaded(self, model: ModelPlace) -> Answerer:
        self._events.log(f"loading {model.name}")
        try:
            return Answerer(model, self.spec.answers)
        except ValueError as error:
            raise Refused(f"model: {model.name}: {error}") from error

    def _tell(self, found: Found) -> None:
        for index, result in found:
            if not counts(result) and self._told < _TOLD_ROWS:
                self._told += 1
                self._events.log(f"row {index + 1}: {result.status.value}: {result.message}")

    def _hand_over(self, scoring: Scoring) -> Summary:
        """The output data set's file, and what the job is told of it."""
        path = self.folder / OUTPUT
        scoring.write(path)
        summary = summarise(scoring.results)
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
        **({"metricValuesLeftOut": summary.left_out} if summary.left_out else {}),
        **({"rewardWeights": run.reward_weights} if run.reward_weights else {}),
        "evaluator": run.evaluator.name, "evaluatorVersion": run.evaluator.version,
        **({"model": run.model.name} if run.model else {}),
    }  # fmt: skip


def _interval(found: Interval) -> dict[str, Any]:
    return {"mean": found.mean, "low": found.low, "high": found.high, "count": found.count, "method": found.method}


def _table(summary: Summary) -> Iterator[str]:
    for name, found in (("score", summary.score), *summary.metrics.items()):
        if found is not None:
            yield f"{name}: mean {found.mean:.6g}, 95 % from {found.low:.6g} to {found.high:.6g}, {found.count:,} rows"
    if summary.left_out:
        yield f"{summary.left_out:,} values of metrics beyond the first {MOST_METRICS} names stand in the rows alone"
    yield "status: " + ", ".join(f"{name} {count:,}" for name, count in summary.histogram.items())


def _words(summary: Summary) -> str:
    mean = f", mean score {summary.score.mean:.4g}" if summary.score else ""
    masked = f", {summary.masked:,} without a usable score" if summary.masked else ""
    return f"{summary.rows:,} rows{mean}{masked}"
