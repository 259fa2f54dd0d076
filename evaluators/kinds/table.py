"""The built-in kinds in one table: name, settings, what they are for, and how they are made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from evaluators.kinds import code_tests, exact_match, json_schema, llm_judge, maths, regex, shape
from evaluators.kinds.base import Evaluator, Settings, Tools


@dataclass(frozen=True)
class Kind:
    """One kind. build: (settings, tools) -> evaluator."""

    settings: type[Settings]
    build: Callable[[Any, Tools], Evaluator]
    about: str


KINDS: dict[str, Kind] = {
    "exact_match": Kind(exact_match.ExactMatch, exact_match.build, "the answer is one of the accepted texts"),
    "regex": Kind(regex.Regex, regex.build, "a pattern is found in the answer, or captures the right text"),
    "maths": Kind(maths.Maths, maths.build, "a number or an expression has the right value"),
    "json_schema": Kind(json_schema.JsonSchema, json_schema.build, "the answer is JSON that a schema admits"),
    "code_tests": Kind(code_tests.CodeTests, code_tests.build, "the answer is a program that passes tests"),
    "shape": Kind(shape.Shape, shape.build, "length and format of the answer"),
    "llm_judge": Kind(llm_judge.LlmJudge, llm_judge.build, "a judge model scores the answer by a rubric"),
}


def make(kind: str, settings: Mapping[str, Any], tools: Tools) -> Evaluator:
    """The evaluator of this kind. Raises `ValueError` that names what is wrong and what is allowed."""
    if kind not in KINDS:
        raise ValueError(f"there is no evaluator kind {kind!r}; the kinds are {', '.join(KINDS)}")
    entry = KINDS[kind]
    try:
        checked = entry.settings.model_validate(dict(settings))
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, one['loc'])) or kind}: {one['msg'].removeprefix('Value error, ')}"
            for one in error.errors()
        )
        allowed = ", ".join(entry.settings.model_fields)
        raise ValueError(f"evaluator {kind}: {problems} (settings: {allowed})") from None
    return entry.build(checked, tools)
