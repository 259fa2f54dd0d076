"""What every evaluator is: rows in, one `Result` a row out; and how a plain function of a row becomes one.

Built-in kinds that only compare texts are code of ours and run in this process, on rows that are only read. Whatever
runs what somebody else wrote (a user's pattern, code, a project) goes through a `Runner`, that is a sandbox.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict

from evaluators.protocol import Isolation, Limits, Program, Result, Score, Status
from evaluators.rows import Row, RowError

_MESSAGE = 300


class Evaluator(Protocol):
    """Rows in, one result a row out, in order. Never raises for a row; raises where it cannot work at all."""

    def evaluate(self, rows: Sequence[Row], *, groups: Sequence[Hashable] | None = None) -> list[Result]:
        """groups: one a row, what belongs together (one prompt's rollouts)."""
        ...


class CodeResult(Protocol):
    """How a program that the model wrote ended."""

    @property
    def status(self) -> Status: ...
    @property
    def stdout(self) -> str: ...
    @property
    def stderr(self) -> str: ...


class Runner(Protocol):
    """The sandbox, as evaluators see it."""

    def evaluate(
        self,
        program: Program,
        rows: Sequence[Any],
        *,
        limits: Limits,
        isolation: Isolation = Isolation.ROW,
        groups: Sequence[int] | None = None,
    ) -> list[Result]:
        """Run a program on rows."""
        ...

    def run_code(self, code: str, stdin: str, limits: Limits) -> Any:
        """Run code that the model wrote; a `CodeResult`."""
        ...


@dataclass(frozen=True)
class Tools:
    """What kinds may need beside the rows. runner: the sandbox. judge: how to reach a judge model."""

    runner: Runner | None = None
    judge: Any = None

    def sandbox(self, kind: str) -> Runner:
        """The sandbox. Raises `ValueError` where there is none."""
        if self.runner is None:
            raise ValueError(f"the evaluator kind {kind!r} runs code and needs a sandbox; none was given")
        return self.runner


class Settings(BaseModel):
    """Settings of a kind: closed, an unknown name is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True)
class OfRows:
    """An evaluator from a function of one row, run in this process."""

    score: Callable[[Row], Score]

    def evaluate(self, rows: Sequence[Row], *, groups: Sequence[Hashable] | None = None) -> list[Result]:
        """One result a row; a row that lacks what is needed ends with `error`."""
        return [self._one(row) for row in rows]

    def _one(self, row: Row) -> Result:
        begun = time.perf_counter()
        try:
            score = self.score(row)
        except RowError as error:
            return Result(Status.ERROR, message=str(error)[:_MESSAGE], seconds=time.perf_counter() - begun)
        return scored(score, seconds=time.perf_counter() - begun)


def scored(score: Score, *, seconds: float = 0.0) -> Result:
    """The result of a score that was reached: ok, or invalid where it says so itself."""
    status = Status.OK if score.is_score_valid else Status.INVALID
    return Result(status, score, message="" if score.is_score_valid else score.reason[:_MESSAGE], seconds=seconds)


def failed(status: Status, message: str, *, seconds: float = 0.0) -> Result:
    """The result of a row that has no score."""
    return Result(status, message=message[:_MESSAGE], seconds=seconds)
