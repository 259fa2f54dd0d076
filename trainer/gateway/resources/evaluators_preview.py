"""POST evaluators:previewEvaluator: sample rows through an evaluator, by its name or as a draft with criteria."""

from __future__ import annotations

from typing import Any

from evaluators.kinds.base import Evaluator, Runner
from evaluators.outcomes import counts
from evaluators.protocol import Result
from trainer.evaluation_run import EvaluatorSource, files_of, open_evaluator
from trainer.gateway import evaluating, evaluating_samples, evaluator_revisions
from trainer.gateway.errors import invalid
from trainer.gateway.gateway import Call

_USUAL = 10
_WHICH = "evaluator: give criteria (a draft), or the name of an evaluator or of a revision of it (.../versions/V)"


def preview(call: Call) -> dict[str, Any]:
    """POST {"evaluator": {...}, "sampleData": ["<row>", ...], "maxSamples": 10}."""
    parent = call.parent()
    rows = evaluating_samples.rows_of(call.body["sampleData"], what="sampleData")
    rows = evaluating_samples.first(rows, call.body.get("maxSamples", 0), usual=_USUAL)
    source = _source(call, call.body["evaluator"], parent)
    granted = evaluating.granted(call.gateway, parent)

    def opened(runner: Runner) -> Evaluator:
        return open_evaluator(source, files_of(source), runner, environment=granted)

    sampled = evaluating_samples.run(call.gateway, opened, rows, desk=evaluating.desk_of(call.gateway, parent))
    return evaluating.struck(_answer(sampled), list(granted.values()))


def _source(call: Call, given: dict[str, Any], parent: str) -> EvaluatorSource:
    checked = call.gateway.contract.read("gatewayEvaluator", given, where="evaluator").value
    name = given.get("name") or ""
    if criteria := checked.get("criteria"):
        requirements = checked.get("requirements", "")
        try:
            python = call.gateway.builds.python_of(requirements)
        except ValueError as error:
            raise invalid(f"evaluator.{error}", field="evaluator.requirements") from error
        return EvaluatorSource(criteria=criteria, requirements=requirements, python=python)
    if not isinstance(name, str) or not name:
        raise invalid(_WHICH, field="evaluator")
    revision = evaluator_revisions.named(call.gateway, name, what="evaluator.name", parent=parent)
    return evaluator_revisions.source_at(call.gateway, revision)


def _answer(sampled: evaluating_samples.Sampled) -> dict[str, Any]:
    numbered = list(enumerate(sampled.results, 1))
    return {
        "results": [_result(one) for one in sampled.results],
        "totalSamples": len(sampled.results),
        "totalRuntimeMs": str(sampled.milliseconds),
        "stdout": [one.stdout for one in sampled.results if one.stdout],
        "stderr": [
            f"sample {number}: {evaluating_samples.reason_of(one)}" for number, one in numbered if not counts(one)
        ],
    }


def _result(result: Result) -> dict[str, Any]:
    """`success` is whether the row has a usable score; without one there is no score either."""
    found: dict[str, Any] = {
        "success": "true" if counts(result) else "false", "reason": evaluating_samples.reason_of(result),
        "perMetricEvals": {},
    }  # fmt: skip
    if counts(result) and result.score is not None:
        found["score"] = result.score.score
        found["perMetricEvals"] = {
            name: {"score": one.score, "is_score_valid": one.is_score_valid, "reason": one.reason}
            for name, one in result.score.metrics.items()
        }
    return found
