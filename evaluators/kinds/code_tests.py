"""Code tests: the answer is a program, scored by the share of the row's tests that it passes.

A test is `{"stdin", "stdout"}` (what the program prints, but for white space at line ends) or a text of Python with
asserts (`code_asserts.py` splits those). The program runs alone in a jail of lower trust; what it should have said
never enters that jail, so it cannot read, patch or skip its own judgement. What the program does wrong (an exception, a
time-out, too much memory) fails the test; what we do wrong masks the row.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from evaluators.kinds.base import Runner, Settings, Tools, failed
from evaluators.kinds.code_asserts import (
    ANSWER_HARNESS,
    JUDGE_HARNESS,
    Check,
    SplitTest,
    answer_job,
    judge_job,
    split,
    unpack,
)
from evaluators.protocol import Limits, Metric, Result, Score, Status
from evaluators.rows import Row, RowError, answer
from evaluators.scores import BadResult, decode

_BLOCK = re.compile(r"```(?:python3?|py)?[ \t]*\n(.*?)```", re.DOTALL | re.IGNORECASE)
_OURS = {Status.INFRA_ERROR}
_VALUES_BYTES = 256 << 10


class CodeTests(Settings):
    """Where the tests are, and what passing some of them is worth."""

    field: str = Field("tests", description="field of the row with its tests: a list, or one text of asserts")
    setup_field: str = Field(
        "test_setup", description="field of the row with code that runs before the answer; may lack"
    )
    credit: Literal["share", "all"] = Field("share", description="share: of the tests passed; all: 1 only if all pass")
    seconds: float = Field(4.0, gt=0, le=60, description="wall and CPU, for one test")
    memory_mib: int = Field(512, ge=64, le=8_192, description="for one test")
    most_tests: int = Field(50, ge=1, le=1_000, description="a row with more tests ends with `error`")


class _Ours(RuntimeError):
    """The sandbox failed, not the answer."""


@dataclass(frozen=True)
class CodeTestsEvaluator:
    """Programs through their tests."""

    settings: CodeTests
    runner: Runner

    def evaluate(self, rows: Sequence[Row], *, groups: Sequence[Hashable] | None = None) -> list[Result]:
        """One result a row."""
        return [self._row(row) for row in rows]

    def _row(self, row: Row) -> Result:
        begun = time.perf_counter()
        try:
            source, tests = program_of(answer(row)), self._tests(row)
            setup = row.get(self.settings.setup_field) or ""
            if not isinstance(setup, str):
                raise RowError(f"{self.settings.setup_field!r} is not a text")
            outcomes = [self._test(setup + "\n" + source if setup else source, test) for test in tests]
        except RowError as error:
            return failed(Status.ERROR, str(error), seconds=time.perf_counter() - begun)
        except _Ours as error:
            return failed(Status.INFRA_ERROR, str(error), seconds=time.perf_counter() - begun)
        passed = sum(outcome == "" for outcome in outcomes)
        share = passed / len(outcomes)
        first = next((f"test {index}: {words}" for index, words in enumerate(outcomes, 1) if words), "all pass")
        score = share if self.settings.credit == "share" else float(passed == len(outcomes))
        metrics = {"passed": Metric(share, reason=f"{passed} of {len(outcomes)}")}
        return Result(Status.OK, Score(score, reason=first[:300], metrics=metrics), seconds=time.perf_counter() - begun)

    def _tests(self, row: Row) -> list[Any]:
        """What the row is tested with, each checked before anything runs. Raises `RowError`."""
        name = self.settings.field
        tests = row.get(name)
        tests = [tests] if isinstance(tests, str) else tests
        if not isinstance(tests, list) or not tests:
            raise RowError(f"the row has no {name!r}: a list of tests, or a text of asserts")
        if len(tests) > self.settings.most_tests:
            raise RowError(f"{len(tests)} tests; most_tests is {self.settings.most_tests}")
        return [_checked(test) for test in tests]

    def _test(self, source: str, test: Any) -> str:
        """ "" where the test passes, else why not."""
        if isinstance(test, SplitTest):
            return self._asserts(source, test)
        ended = self._run(source, test["stdin"])
        if ended.status is not Status.OK:
            return f"{ended.status.value}{_last_line(ended.stderr)}"
        given, expected = _lines(ended.stdout), _lines(test["stdout"])
        return "" if given == expected else f"printed {_short(given)}, not {_short(expected)}"

    def _asserts(self, source: str, test: SplitTest) -> str:
        ended = self._run(ANSWER_HARNESS, answer_job(source, test))
        if ended.status is not Status.OK:
            return f"{ended.status.value}{_last_line(ended.stderr)}"
        try:
            values = _values(ended.stdout)
        except (BadResult, ValueError) as error:
            return f"its values cannot be read: {error}"
        asked = sum(kind == "value" for kind, _ in test.steps)
        if len(values) != asked or any("value" not in value for value in values):
            wrong = next((value["error"] for value in values if "error" in value), "values are missing")
            return str(wrong)[:200]
        packed = [value["value"] for value in values]
        literal = [check for check in test.checks if check.is_literal]
        for check in literal:
            if not _equals(packed[check.values[0]], check.literal):
                return f"assert {check.judgement[:120]} fails"
        return self._judged([check for check in test.checks if not check.is_literal], packed, test.modules)

    def _judged(self, checks: list[Check], packed: list[Any], modules: tuple[str, ...]) -> str:
        """The judgements that are more than a comparison with a literal, in a jail without the answer."""
        if not checks:
            return ""
        ended = self._run(JUDGE_HARNESS, judge_job(checks, packed, modules))
        if ended.status is not Status.OK:
            return f"the assert itself ends with {ended.status.value}{_last_line(ended.stderr)}"
        verdicts = decode(ended.stdout.encode(), max_bytes=_VALUES_BYTES)
        wrong = next((check for check, right in zip(checks, verdicts, strict=True) if right is not True), None)
        return "" if wrong is None else f"assert {wrong.judgement[:120]} fails"

    def _run(self, code: str, stdin: str) -> Any:
        one = self.settings
        limits = Limits(wall_seconds=one.seconds, cpu_seconds=one.seconds, memory_bytes=one.memory_mib << 20,
                        stdout_kept_bytes=_VALUES_BYTES)  # fmt: skip
        ended = self.runner.run_code(code, stdin, limits)
        if ended.status in _OURS:
            raise _Ours(f"the sandbox failed: {_last_line(ended.stderr)}")
        return ended


def build(settings: CodeTests, tools: Tools) -> CodeTestsEvaluator:
    """The evaluator. Raises `ValueError` without a sandbox."""
    return CodeTestsEvaluator(settings, tools.sandbox("code_tests"))


def program_of(text: str) -> str:
    """The last fenced block of Python in the answer, else all of it."""
    blocks = _BLOCK.findall(text)
    return blocks[-1] if blocks else text


def _checked(test: Any) -> Any:
    if isinstance(test, str):
        return split(test)
    if isinstance(test, Mapping) and isinstance(test.get("stdout"), str) and isinstance(test.get("stdin", ""), str):
        return {"stdin": test.get("stdin", ""), "stdout": test["stdout"]}
    raise RowError("a test is neither a text of asserts nor an object with 'stdout' (and 'stdin')")


def _values(stdout: str) -> list[dict[str, Any]]:
    found = decode(stdout.encode("utf-8", "replace"), max_bytes=_VALUES_BYTES)
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise BadResult("not a list of values")
    return found


def _equals(packed: Any, literal: Any) -> bool:
    try:
        return bool(unpack(packed) == literal)
    except (ValueError, RecursionError):
        return False


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().splitlines()]


def _short(lines: list[str]) -> str:
    return repr(json.dumps("\n".join(lines))[1:-1][:60])


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return f": {lines[-1][:160]}" if lines else ""
