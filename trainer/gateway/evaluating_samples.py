"""Sample rows through an evaluator while a caller waits: what previews of every generation have in common.

Few at a time run in this process, and few rows each; a job is for more. A row without an answer has no score, as in a
job. What failed says how it ended: a status never becomes a score of 0.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from evaluators.broker import SecretRefused
from evaluators.judge_desk import Desk
from evaluators.kinds.base import Evaluator, Runner, failed
from evaluators.outcomes import counts
from evaluators.protocol import Result, Status
from evaluators.rows import has_answer, question
from evaluators.sandbox import SandboxRefused
from trainer.data.problem import RowProblem
from trainer.data.strict_json import Decoder
from trainer.evaluation_run import unscored
from trainer.gateway.errors import GatewayError, invalid, precondition
from trainer.gateway.gateway import Gateway

MOST_SAMPLES = 100
_NO_ANSWER = "there is no answer to score: end messages with the assistant's, or give a completion"
Row = dict[str, Any]


@dataclass(frozen=True)
class Sampled:
    """What came of the samples. milliseconds: wall."""

    rows: list[Row]
    results: list[Result]
    milliseconds: int


def rows_of(texts: Sequence[str], *, what: str) -> list[Row]:
    """Each text as a row. Raises INVALID_ARGUMENT naming the one that is none."""
    decoder, found = Decoder(), []
    for index, text in enumerate(texts):
        try:
            found.append(decoder.decode(text))
        except RowProblem as problem:
            raise invalid(f"{what}[{index}]: {problem.message}", field=what) from problem
    if not found:
        raise invalid(f"{what}: give at least one row", field=what)
    return found


def rows_in(text: str, *, what: str) -> list[Row]:
    """The rows of a JSON array. Raises INVALID_ARGUMENT."""
    try:
        items = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise invalid(f"{what}: not JSON: {error}", field=what) from error
    if not isinstance(items, list):
        raise invalid(f"{what}: expected a JSON array of rows", field=what)
    return rows_of([json.dumps(item) for item in items], what=what)


def first(rows: list[Row], most: int, *, usual: int) -> list[Row]:
    """The rows that are run: `most` of them, `usual` where that is not given. Raises INVALID_ARGUMENT."""
    if not 0 <= most <= MOST_SAMPLES:
        raise invalid(
            f"maxSamples: got {most}; expected 0 (= {usual}) to {MOST_SAMPLES}, an evaluation job scores more",
            field="maxSamples",
        )
    return rows[: most or usual]


def run(
    gateway: Gateway, opened: Callable[[Runner], Evaluator], rows: list[Row], *, desk: Desk | None = None
) -> Sampled:
    """The rows through the evaluator that `opened` makes in this process's sandbox. desk: who answers its questions.

    Raises INVALID_ARGUMENT for one that cannot be opened, FAILED_PRECONDITION without a sandbox, RESOURCE_EXHAUSTED
    when too many others run.
    """
    if not gateway.builds.previews.acquire(blocking=False):
        raise GatewayError("RESOURCE_EXHAUSTED", "too many previews run at once; ask again in a while")
    begun = time.monotonic()
    try:
        results = _scored(opened(gateway.builds.runner.asking(desk)), rows)
    except (SandboxRefused, SecretRefused) as error:
        raise precondition(str(error)) from error
    except ValueError as error:
        raise invalid(f"evaluator: {error}", field="evaluator") from error
    finally:
        gateway.builds.previews.release()
    return Sampled(rows, results, round(1000 * (time.monotonic() - begun)))


def reason_of(result: Result) -> str:
    """Why the row has its score, or why it has none."""
    if counts(result):
        return result.score.reason if result.score else ""
    return f"{result.status.value}: {result.message or 'no message'}"


def _scored(evaluator: Evaluator, rows: list[Row]) -> list[Result]:
    whole = [unscored(row) for row in rows if has_answer(row)]
    found = iter(evaluator.evaluate(whole, groups=[question(row) for row in whole]))
    return [next(found) if has_answer(row) else failed(Status.ERROR, _NO_ANSWER) for row in rows]
