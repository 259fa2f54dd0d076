"""Criteria: code snippets of an evaluator (`gatewayCriterion`), each a metric named after it.

One criterion's own score is the evaluator's; of several it is their mean, and a row in which one fails has no score.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from evaluators.custom.running import ProgramEvaluator, with_standin
from evaluators.kinds.base import Runner
from evaluators.protocol import Limits, Metric, Program, Result, Score, Status
from evaluators.rows import Row

DEFAULT_FILE, DEFAULT_FUNCTION = "main.py", "evaluate"
_LANGUAGES = ("python", "python3", "py")
_TYPES = ("CODE_SNIPPETS", "TYPE_UNSPECIFIED")
_PATH = re.compile(r"(?:[\w-][\w.-]*/)*[\w-][\w.-]*")
_MOST_FILES, _MOST_BYTES = 100, 1 << 20


@dataclass(frozen=True)
class CriteriaEvaluator:
    """Rows through every criterion, in the order given."""

    criteria: Mapping[str, ProgramEvaluator]

    def evaluate(self, rows: Sequence[Row], *, groups: Sequence[Hashable] | None = None) -> list[Result]:
        """One result a row; the first criterion that fails on a row decides how the row ended."""
        each = {name: one.evaluate(rows, groups=groups) for name, one in self.criteria.items()}
        return [joined({name: found[index] for name, found in each.items()}) for index in range(len(rows))]


def evaluator(criteria: Sequence[Mapping[str, Any]], runner: Runner, *, requirements: str = "",
              python: str | None = None, limits: Limits | None = None) -> CriteriaEvaluator:  # fmt: skip
    """The evaluator of the gateway's `criteria`. Raises `ValueError` naming the criterion and what is wrong with it."""
    if not criteria:
        raise ValueError("criteria is empty; an evaluator without an upload needs at least one")
    limits = limits or Limits.snippet()
    made: dict[str, ProgramEvaluator] = {}
    for number, criterion in enumerate(criteria, 1):
        name = criterion.get("name") or f"criterion{number}"
        if name in made:
            raise ValueError(f"two criteria are named {name!r}")
        found = program(criterion, name, requirements=requirements, python=python)
        made[name] = ProgramEvaluator(found, runner, limits)
    return CriteriaEvaluator(made)


def program(criterion: Mapping[str, Any], name: str, *, requirements: str = "", python: str | None = None) -> Program:
    """One criterion as a program. Raises `ValueError`."""
    kind = criterion.get("type", "CODE_SNIPPETS")
    if kind not in _TYPES:
        raise ValueError(f"criterion {name!r}: type {kind!r} is none of {', '.join(_TYPES)}")
    snippets = criterion.get("codeSnippets") or {}
    language = (snippets.get("language") or "python").lower()
    if language not in _LANGUAGES:
        raise ValueError(f"criterion {name!r}: the language {language!r} is not run here; write it in python")
    contents = snippets.get("fileContents")
    if not isinstance(contents, Mapping) or not contents:
        raise ValueError(f"criterion {name!r}: codeSnippets.fileContents has no files")
    files = {path: _content(path, text, name) for path, text in contents.items()}
    if len(files) > _MOST_FILES or sum(map(len, files.values())) > _MOST_BYTES:
        raise ValueError(
            f"criterion {name!r}: more than {_MOST_FILES} files or {_MOST_BYTES:,} bytes; upload a project"
        )
    entry = snippets.get("entryFile") or (DEFAULT_FILE if DEFAULT_FILE in files else next(iter(files)))
    function = snippets.get("entryFunc") or DEFAULT_FUNCTION
    if entry not in files:
        raise ValueError(f"criterion {name!r}: entryFile {entry!r} is none of its files ({', '.join(sorted(files))})")
    if not function.isidentifier():
        raise ValueError(f"criterion {name!r}: entryFunc {function!r} is no name of a function")
    return Program(with_standin(files, requirements), f"{entry}::{function}", python=python)


def _content(path: str, text: Any, name: str) -> bytes:
    if not _PATH.fullmatch(path) or len(path) > 255:
        raise ValueError(f"criterion {name!r}: {path[:80]!r} is no plain relative path")
    if not isinstance(text, str):
        raise ValueError(f"criterion {name!r}: the content of {path!r} is not a text")
    return text.encode("utf-8", "surrogatepass")


def joined(results: Mapping[str, Result]) -> Result:
    """One result of several metrics: the mean of their scores, or how the first that failed ended."""
    if len(results) == 1:
        ((name, result),) = results.items()
        if result.score is None:
            return result
        own = Metric(result.score.score, result.score.is_score_valid, result.score.reason)
        return replace(result, score=replace(result.score, metrics={name: own, **result.score.metrics}))
    failed = next(((name, one) for name, one in results.items() if not one.ok), None)
    if failed is not None:
        name, result = failed
        return replace(result, message=f"criterion {name!r}: {result.message}"[:300])
    scores = {name: one.score for name, one in results.items() if one.score is not None}
    metrics: dict[str, Metric] = {}
    for name, score in scores.items():
        metrics[name] = Metric(score.score, score.is_score_valid, score.reason)
        metrics.update({f"{name}/{inner}": metric for inner, metric in score.metrics.items()})
    mean = sum(score.score for score in scores.values()) / len(scores)
    first = next(iter(results.values()))
    return replace(
        first, status=Status.OK, score=Score(mean, reason=f"mean of {len(scores)} criteria", metrics=metrics),
        seconds=sum(one.seconds for one in results.values()),
        stdout="".join(one.stdout for one in results.values()),
        attempts=max(one.attempts for one in results.values()),
    )  # fmt: skip
