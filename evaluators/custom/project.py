"""An uploaded project: `requirements.txt`, tests with `@evaluation_test`, an entry point `path::function`.

It is driven as the official worker does: the entry is called with rows that already have their answers, EP_* variables
are set, and what the test puts into `row.evaluation_result` is the score. `drive="pytest"` runs a whole pytest session
and reads the result files instead; it needs the real package and scores all rows in one process. A plain function or
one with `@reward_function` is called with the row's fields.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from evaluators.custom.running import ProgramEvaluator, entry_of, requires_real, with_standin
from evaluators.kinds.base import Runner, failed
from evaluators.protocol import Isolation, Limits, Metric, Program, Result, Score, Status, StepOutput
from evaluators.rows import Row

MODES = ("pointwise", "groupwise", "all")
DRIVER = "evaluator_drive.py"
REQUIREMENTS = "requirements.txt"
MOST_TOGETHER = 3_000  # rows of one call in the modes groupwise and all
_RESULT_BYTES = 4 << 20
_STEPS = 100_000  # as in drive.py
_TEST = re.compile(rb"^[ \t]*@(?:[\w.]+\.)?evaluation_test\b", re.MULTILINE)
_ENVIRONMENT = {
    "EP_NO_UPLOAD": "1", "EP_PRINT_SUMMARY": "0", "EP_DISABLE_AUTO_BROWSER": "1", "EP_NUM_RUNS": "1",
    "EP_USE_NO_OP_ROLLOUT_PROCESSOR": "1", "LITELLM_LOCAL_MODEL_COST_MAP": "True", "EP_OUTPUT_DIR": ".",
    "DISABLE_EP_SQLITE_LOG": "1",
}  # fmt: skip

Mode = Literal["pointwise", "groupwise", "all"]


@dataclass(frozen=True)
class ProjectEvaluator:
    """Rows through a project's `@evaluation_test`.

    isolation: of the mode pointwise. With the real package it is BATCH, as each process imports that for seconds; the
    sandbox scores some rows again alone, and all of them where that differs.
    """

    program: Program
    runner: Runner
    mode: Mode
    limits: Limits = field(default_factory=Limits.bundle)
    drive: Literal["call", "pytest"] = "call"
    isolation: Isolation = Isolation.ROW

    def evaluate(self, rows: Sequence[Row], *, groups: Sequence[Hashable] | None = None) -> list[Result]:
        """One result a row. groupwise: `groups` says which rows belong together (None = each alone)."""
        if self.drive == "call" and self.mode == "pointwise":
            return self.runner.evaluate(self.program, list(rows), limits=self.limits, isolation=self.isolation)
        together = _units(len(rows), groups if self.mode == "groupwise" else None,
                          one=self.mode == "all" or self.drive == "pytest")  # fmt: skip
        results: list[Result | None] = [None] * len(rows)
        for unit in together:
            for index, result in zip(unit, self._unit([rows[index] for index in unit]), strict=True):
                results[index] = result
        return [result for result in results if result is not None]

    def _unit(self, rows: list[Row]) -> list[Result]:
        if len(rows) > MOST_TOGETHER:
            why = f"{len(rows):,} rows in one call of mode {self.mode!r}; {MOST_TOGETHER:,} are allowed"
            return [failed(Status.ERROR, why) for _ in rows]
        limits = replace(self.limits, result_bytes=max(self.limits.result_bytes, _RESULT_BYTES))
        [found] = self.runner.evaluate(self.program, [{"__rows__": [dict(row) for row in rows]}], limits=limits)
        if found.score is None or not found.ok:
            return [found] * len(rows)
        if found.score.score != len(rows):
            why = f"the test returned {found.score.score:g} rows of {len(rows)}"
            return [replace(found, status=Status.BAD_RESULT, score=None, message=why) for _ in rows]
        return [_unpacked(found, found.score, index) for index in range(len(rows))]


def evaluator(files: Mapping[str, bytes], entry_point: str, runner: Runner, *, python: str | None = None,
              limits: Limits | None = None, drive: Literal["call", "pytest"] = "call",
              environment: Mapping[str, str] | None = None) -> ProjectEvaluator | ProgramEvaluator:  # fmt: skip
    """The evaluator of a project. python: of the environment built from its requirements (`build.py`).

    environment: granted variables. Raises `ValueError` for an entry that is not there, or a project that needs a build.
    """
    entry = entry_of(entry_point, files)
    requirements = files.get(REQUIREMENTS, b"").decode("utf-8", "replace")
    limits = limits or Limits.bundle()
    content = files[entry.partition("::")[0]]
    if drive == "pytest" and (python is None or not requires_real(requirements)):
        raise ValueError("drive='pytest' needs eval-protocol in requirements.txt, and the environment built from it")
    granted = dict(environment or {})
    if not is_test(content, entry.partition("::")[2]):
        program = Program(with_standin(files, requirements), entry, python=python, environment=granted)
        return ProgramEvaluator(program, runner, limits)
    program = driven(files, entry, requirements=requirements, python=python, environment=granted)
    if drive == "pytest":
        program = replace(program, entry=f"{DRIVER}::session")
    mode = mode_of(replace(program, entry=f"{DRIVER}::describe"), runner, limits)
    isolation = Isolation.BATCH if requires_real(requirements) else Isolation.ROW
    return ProjectEvaluator(program, runner, mode, limits, drive, isolation)


def driven(files: Mapping[str, bytes], entry: str, *, requirements: str, python: str | None,
           environment: Mapping[str, str]) -> Program:  # fmt: skip
    """The project with its driver beside it."""
    if DRIVER in files:
        raise ValueError(f"the project has a file {DRIVER!r}; that name is taken, rename it")
    driver = Path(__file__).with_name("drive.py").read_bytes()
    together = {**with_standin(files, requirements), DRIVER: driver}
    if not requires_real(requirements):
        from_standin = with_standin({"x": b"eval_protocol"})
        from_standin.pop("x")
        together = {**from_standin, **together}
    return Program(together, f"{DRIVER}::score", python=python,
                   environment={**_ENVIRONMENT, **environment, "EVALUATOR_ENTRY": entry})  # fmt: skip


def mode_of(program: Program, runner: Runner, limits: Limits) -> Mode:
    """The test's mode, told by the project in the sandbox. Raises `ValueError` where it cannot be imported."""
    [found] = runner.evaluate(program, [{}], limits=limits)
    if not found.ok or found.score is None or found.score.score not in (0, 1, 2):
        raise ValueError(f"the evaluator cannot be loaded: {found.status.value}: {found.message or 'no message'}")
    return MODES[int(found.score.score)]


def is_test(content: bytes, function: str) -> bool:
    """Whether the file decorates with @evaluation_test, right above this function or anywhere where that is unclear."""
    for match in _TEST.finditer(content):
        after = re.search(rb"^[ \t]*(?:async[ \t]+)?def[ \t]+(\w+)", content[match.end() :], re.MULTILINE)
        if after and after[1] == function.rpartition(".")[2].encode():
            return True
    return False


def entries(files: Mapping[str, bytes]) -> list[str]:
    """The entry points that a project offers: functions under @evaluation_test, in the order of files."""
    found = []
    for path, content in sorted(files.items()):
        if path.endswith(".py"):
            for match in _TEST.finditer(content):
                after = re.search(rb"^[ \t]*(?:async[ \t]+)?def[ \t]+(\w+)", content[match.end() :], re.MULTILINE)
                found += [f"{path}::{after[1].decode()}"] if after else []
    return found


def _units(count: int, groups: Sequence[Hashable] | None, *, one: bool) -> list[list[int]]:
    if one:
        return [list(range(count))] if count else []
    if groups is None:
        return [[index] for index in range(count)]
    members: dict[Hashable, list[int]] = {}
    for index, group in zip(range(count), groups, strict=True):
        members.setdefault(group, []).append(index)
    return list(members.values())


def _unpacked(whole: Result, packed: Score, index: int) -> Result:
    """Row `index` of a call with many rows."""
    own = packed.metrics.get(str(index))
    if own is None:
        return replace(
            whole, status=Status.BAD_RESULT, score=None, message=f"the test returned nothing for row {index}"
        )
    prefix = f"{index}/"
    metrics: dict[str, Metric] = {
        name.removeprefix(prefix): metric for name, metric in packed.metrics.items() if name.startswith(prefix)
    }
    steps = tuple(
        StepOutput(step.step_index - index * _STEPS, step.base_reward, step.terminated)
        for step in packed.step_outputs if step.step_index // _STEPS == index
    )  # fmt: skip
    score = Score(own.score, own.is_score_valid, own.reason, metrics, steps)
    if own.is_score_valid:
        return replace(whole, score=score)
    return replace(whole, status=Status.INVALID, score=score, message=own.reason[:300])
