"""Regular expression: 1 where the pattern is found in the answer; with a group, where the group's text is right.

Python's engine backtracks, so a pattern can run for ever on some answer. Patterns therefore run in the sandbox, which
ends such a row with `timeout`; never in this process, not even to try them.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from evaluators.kinds.base import OfRows, Runner, Settings, Tools, failed
from evaluators.protocol import Isolation, Limits, Program, Result, Status
from evaluators.rows import Row, RowError, accepted, answer

MAX_PATTERN = 2_000  # characters: a longer one costs more to compile than an evaluation may
_SECONDS = 1.0  # for one answer, wall and CPU

_SOURCE = """
import json
import re

SETTINGS = json.loads({settings!r})


def score(text=None, accepted=None, **_):
    found = getattr(re, SETTINGS["how"])(SETTINGS["pattern"], text, SETTINGS["flags"])
    if found is None:
        return {{"score": 0.0, "reason": "the pattern is not found"}}
    group = SETTINGS["group"]
    if group is None:
        return {{"score": 1.0, "reason": "the pattern is found"}}
    given = found[int(group) if group.isdigit() else group]
    right = given is not None and given.strip() in [one.strip() for one in accepted]
    return {{"score": float(right), "reason": "the group is right" if right else "the group is not right"}}
"""


class Regex(Settings):
    """The pattern and how it is applied."""

    pattern: str = Field(min_length=1, max_length=MAX_PATTERN, description="a pattern of Python's re")
    how: Literal["search", "match", "fullmatch"] = Field("search", description="anywhere, at the start, or all of it")
    group: str | None = Field(
        None, description="group (number or name) compared with the truth; None = found is enough"
    )
    field: str = Field("ground_truth", description="field of the row with the accepted text, for `group`")
    ignore_case: bool = Field(False, description="re.IGNORECASE")
    multiline: bool = Field(False, description="re.MULTILINE")
    dot_all: bool = Field(False, description="re.DOTALL")


@dataclass(frozen=True)
class RegexEvaluator:
    """Rows through the pattern, in the sandbox."""

    settings: Regex
    runner: Runner

    def evaluate(self, rows: Sequence[Row], *, groups: Sequence[Hashable] | None = None) -> list[Result]:
        """One result a row; an answer on which the pattern runs too long ends with `timeout`."""
        results: list[Result | None] = [None] * len(rows)
        asked: dict[int, dict[str, object]] = {}
        for index, row in enumerate(rows):
            try:
                truths = accepted(row, self.settings.field) if self.settings.group is not None else []
                asked[index] = {"text": answer(row), "accepted": truths}
            except RowError as error:
                results[index] = failed(Status.ERROR, str(error))
        limits = Limits(wall_seconds=_SECONDS, cpu_seconds=_SECONDS)
        done = self.runner.evaluate(self.program(), list(asked.values()), limits=limits, isolation=Isolation.ROW)
        for index, result in zip(asked, done, strict=True):
            results[index] = result
        return [result for result in results if result is not None]

    def program(self) -> Program:
        """What runs in the jail."""
        one = self.settings
        flags = 2 * one.ignore_case + 8 * one.multiline + 16 * one.dot_all  # re.IGNORECASE, MULTILINE, DOTALL
        settings = json.dumps({"pattern": one.pattern, "how": one.how, "group": one.group, "flags": flags})
        return Program({"main.py": _SOURCE.format(settings=settings).encode()}, "main.py::score")


def build(settings: Regex, tools: Tools) -> RegexEvaluator | OfRows:
    """The evaluator. Raises `ValueError` without a sandbox."""
    return RegexEvaluator(settings, tools.sandbox("regex"))
