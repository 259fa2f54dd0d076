"""Legacy evaluations: code assertions and LLM assertions, each one metric; the score is the mean of the metrics."""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from evaluators.custom.criteria import joined
from evaluators.custom.running import ProgramEvaluator
from evaluators.kinds.base import Evaluator, Runner, Tools
from evaluators.kinds.llm_judge import LlmJudge
from evaluators.kinds.llm_judge import build as build_judge
from evaluators.protocol import Limits, Program, Result
from evaluators.rows import Row

DRIVER = "assertion_drive.py"
_LONGEST_MS, _MOST_MIB = 300_000, 1_024  # as the contract says
_KEPT_BACK = ("LD_", "PYTHON", "PATH", "HOME")


@dataclass(frozen=True)
class AssertionsEvaluator:
    """Rows through every assertion, by metric name."""

    assertions: Mapping[str, Evaluator]

    def evaluate(self, rows: Sequence[Row], *, groups: Sequence[Hashable] | None = None) -> list[Result]:
        """One result a row; the first assertion that fails to score a row decides how the row ended."""
        each = {name: one.evaluate(rows, groups=groups) for name, one in self.assertions.items()}
        return [joined({name: found[index] for name, found in each.items()}) for index in range(len(rows))]


def evaluator(assertions: Sequence[Mapping[str, Any]], tools: Tools, *, judge: Mapping[str, Any] | None = None
              ) -> AssertionsEvaluator:  # fmt: skip
    """The evaluator of an evaluation's `assertions`.

    judge: settings of `LlmJudge` that the operator gives to LLM assertions (base_url, key_env, budget). Raises
    `ValueError` naming the assertion and what is wrong with it.
    """
    if not assertions:
        raise ValueError("assertions is empty; an evaluation needs at least one")
    made: dict[str, Evaluator] = {}
    for number, assertion in enumerate(assertions, 1):
        name = assertion.get("metricName") or f"assertion{number}"
        if name in made:
            raise ValueError(f"two assertions are named {name!r}")
        if "codeAssertion" in assertion:
            made[name] = _code(assertion["codeAssertion"], name, tools.sandbox("codeAssertion"))
        elif "llmAssertion" in assertion:
            made[name] = _llm(assertion["llmAssertion"], name, tools, judge or {})
        else:
            raise ValueError(f"assertion {name!r} has neither codeAssertion nor llmAssertion")
    return AssertionsEvaluator(made)


def validate(assertions: Sequence[Mapping[str, Any]], tools: Tools, *, judge: Mapping[str, Any] | None = None
             ) -> dict[str, list[str]]:  # fmt: skip
    """What is wrong with each assertion, by metric name; those without fault are left out. Code is only compiled."""
    found: dict[str, list[str]] = {}
    for number, assertion in enumerate(assertions, 1):
        name = assertion.get("metricName") or f"assertion{number}"
        try:
            made = evaluator([{**assertion, "metricName": name}], tools, judge=judge).assertions[name]
        except ValueError as error:
            found.setdefault(name, []).append(str(error))
            continue
        if isinstance(made, ProgramEvaluator):
            checked = replace(made, program=replace(made.program, entry=f"{DRIVER}::check"))
            [result] = checked.evaluate([{}])
            if not (result.ok and result.score is not None and result.score.score == 1.0):
                reason = result.score.reason if result.score else result.message
                found.setdefault(name, []).append(reason or result.status.value)
    return found


def _code(assertion: Mapping[str, Any], name: str, runner: Runner) -> ProgramEvaluator:
    language = str(assertion.get("language") or "python").lower()
    if language not in ("python", "python3", "py"):
        raise ValueError(f"assertion {name!r}: the language {language!r} is not run here; write it in python")
    code = assertion.get("code")
    if not isinstance(code, str) or not code.strip():
        raise ValueError(f"assertion {name!r} has no code")
    expected = assertion.get("expectedOutput") or None
    files = {
        DRIVER: Path(__file__).with_name(DRIVER).read_bytes(),
        "assertion.py": code.encode("utf-8", "surrogatepass"),
        "expected.json": json.dumps(expected).encode(),
    }
    options = assertion.get("options") or {}
    environment = {str(key): str(value) for key, value in (options.get("envVars") or {}).items()}
    for key in environment:
        if key.startswith(_KEPT_BACK) or not key.isidentifier():
            raise ValueError(f"assertion {name!r}: the variable {key!r} cannot be set here")
    return ProgramEvaluator(Program(files, f"{DRIVER}::score", environment=environment), runner, _limits(options, name))


def _limits(options: Mapping[str, Any], name: str) -> Limits:
    limits = Limits.snippet()
    milliseconds, mebibytes = options.get("timeoutMs") or 0, options.get("memoryLimitMb") or 0
    if not 0 <= milliseconds <= _LONGEST_MS:
        raise ValueError(f"assertion {name!r}: timeoutMs is {milliseconds}, at most {_LONGEST_MS:,} is allowed")
    if not 0 <= mebibytes <= _MOST_MIB:
        raise ValueError(f"assertion {name!r}: memoryLimitMb is {mebibytes}, at most {_MOST_MIB:,} is allowed")
    if milliseconds:
        limits = replace(limits, wall_seconds=milliseconds / 1000, cpu_seconds=milliseconds / 1000)
    return replace(limits, memory_bytes=mebibytes << 20) if mebibytes else limits


def _llm(assertion: Mapping[str, Any], name: str, tools: Tools, judge: Mapping[str, Any]) -> Evaluator:
    """A judge with the assertion's prompt as rubric; the first provider names the model."""
    providers = assertion.get("providers") or []
    if len(providers) > 1:
        raise ValueError(f"assertion {name!r} names {len(providers)} providers; one judge is asked, name one")
    if assertion.get("evaluateOptions"):
        raise ValueError(f"assertion {name!r}: evaluateOptions are not honoured; concurrency is the operator's setting")
    rubric = "\n\n".join(text for text in (assertion.get("llmEvaluatorPrompt"), *assertion.get("prompts", [])) if text)
    model = providers[0].get("id", "").rpartition(":")[2] if providers else ""
    settings = {**judge, "rubric": rubric, **({"model": model} if model else {})}
    try:
        checked = LlmJudge.model_validate(settings)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, one['loc']))}: {one['msg'].removeprefix('Value error, ')}" for one in error.errors()
        )
        raise ValueError(f"assertion {name!r} cannot be judged: {problems} (the operator configures a judge)") from None
    return build_judge(checked, tools)
