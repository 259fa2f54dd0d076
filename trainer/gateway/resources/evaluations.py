"""evaluations: the older generation, assertions (code, or a judge model) over rows that have their answers.

Code runs in the sandbox. A judge is reached as the operator says: TRAINER_JUDGE_URL is an OpenAI-compatible endpoint,
TRAINER_JUDGE_SECRET the key name of the account's secret that is its key. The providers of an evaluation answer nothing
here, so rows bring their answers with them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from evaluators.broker import Broker
from evaluators.custom import assertions
from evaluators.kinds.base import Evaluator, Runner, Tools
from evaluators.kinds.llm_judge import JudgeTools
from evaluators.outcomes import counts
from evaluators.protocol import Result
from evaluators.sandbox import SandboxRefused
from trainer.gateway import evaluating, evaluating_samples
from trainer.gateway.errors import invalid, precondition
from trainer.gateway.gateway import Call
from trainer.gateway.standard import Family, new_resource

FAMILY = Family(collection="evaluations", schema="gatewayEvaluation", param="evaluation_id")
JUDGE_URL, JUDGE_SECRET = "TRAINER_JUDGE_URL", "TRAINER_JUDGE_SECRET"
_USUAL = 5
_PROVIDERS = "its providers answer nothing here: rows bring their answers with them"
_KINDS = {"ASSERTION_TYPE_CODE": "codeAssertion", "ASSERTION_TYPE_LLM": "llmAssertion"}


def create(call: Call) -> dict[str, Any]:
    """POST {"evaluation": {...}, "evaluationId": "..."}."""
    call.parent()  # another account's is not found, whatever else is wrong
    given = call.body["evaluation"]
    body = {
        **given, "status": {"code": "OK", "message": _PROVIDERS if given.get("providers") else ""},
        "createdBy": call.principal.email or call.gateway.options.email,
    }  # fmt: skip
    _check(body["assertions"])
    new = new_resource(FAMILY, call, given_id=call.body.get("evaluationId"), what="evaluationId", body=body)
    with call.gateway.store.transaction() as transaction:
        return FAMILY.answer(call, transaction.insert(new))


def preview(call: Call) -> dict[str, Any]:
    """POST :preview {"sampleData": "[<row>, ...]", "maxSamples": 5}."""
    evaluation = FAMILY.load(call)
    rows = evaluating_samples.rows_in(call.body["sampleData"], what="sampleData")
    rows = evaluating_samples.first(rows, call.body.get("maxSamples", 0), usual=_USUAL)
    return _previewed(call, evaluation.body["assertions"], rows)


def test(call: Call) -> dict[str, Any]:
    """POST :testeval {"evaluation": {...}, "sampleData": "[<row>, ...]"}: as a preview, of a draft."""
    call.parent()
    given = call.body["evaluation"]["assertions"]
    _check(given)
    rows = evaluating_samples.rows_in(call.body["sampleData"], what="sampleData")
    if len(rows) > evaluating_samples.MOST_SAMPLES:
        raise invalid(f"sampleData: {len(rows)} rows; at most {evaluating_samples.MOST_SAMPLES}", field="sampleData")
    return _previewed(call, given, rows)


def validate(call: Call) -> dict[str, Any]:
    """POST evaluations:validateAssertions: what is wrong with each; code is compiled in the sandbox, not run."""
    call.parent()
    given = call.body["assertions"]
    if not given:
        raise invalid("assertions: give at least one", field="assertions")
    try:
        tools = _tools(call, call.gateway.builds.runner)
        found = assertions.validate(given, tools, judge=_judge())
    except SandboxRefused as error:
        raise precondition(str(error)) from error
    for name, one in zip(_names(given), given, strict=True):
        if problem := _mismatch(one):
            found.setdefault(name, []).insert(0, problem)
    errors = {name: {"errorMessages": found.get(name, [])} for name in _names(given)}
    return {"status": "INVALID" if found else "OK", "metricToErrors": errors}


def _previewed(call: Call, given: Sequence[Mapping[str, Any]], rows: list[dict[str, Any]]) -> dict[str, Any]:
    def opened(runner: Runner) -> Evaluator:
        return assertions.evaluator(given, _tools(call, runner), judge=_judge())

    sampled = evaluating_samples.run(call.gateway, opened, rows)
    pairs = zip(sampled.rows, sampled.results, strict=True)
    return {
        "results": [_result(row, result) for row, result in pairs],
        "totalSamples": len(rows),
        "totalRuntimeMs": str(sampled.milliseconds),
    }


def _result(row: Mapping[str, Any], result: Result) -> dict[str, Any]:
    """`success` is whether the row has a usable score; without one there is no score either."""
    messages = row.get("messages")
    found: dict[str, Any] = {
        "success": counts(result), "reason": evaluating_samples.reason_of(result),
        "messages": messages if isinstance(messages, list) else [], "metrics": {},
    }  # fmt: skip
    if counts(result) and result.score is not None:
        found["score"] = result.score.score
        found["metrics"] = {name: one.score for name, one in result.score.metrics.items() if one.is_score_valid}
    return found


def _tools(call: Call, runner: Runner) -> Tools:
    name = os.environ.get(JUDGE_SECRET, "")
    parent = call.parent()
    broker = Broker(lambda key: evaluating.secret_of(call.gateway, parent, key), usable=[name] if name else [])
    return Tools(runner, JudgeTools(broker.spend))


def _judge() -> dict[str, Any]:
    """How the operator's judge is reached; empty where there is none."""
    url = os.environ.get(JUDGE_URL)
    return {"base_url": url, "key_env": os.environ.get(JUDGE_SECRET, "")} if url else {}


def _check(given: Sequence[Mapping[str, Any]]) -> None:
    if not given:
        raise invalid("evaluation.assertions: give at least one", field="evaluation.assertions")
    for index, one in enumerate(given):
        if problem := _mismatch(one):
            raise invalid(f"evaluation.assertions[{index}]: {problem}", field="evaluation.assertions")


def _mismatch(assertion: Mapping[str, Any]) -> str:
    """What is wrong with an assertion's type; "" when it says what it holds."""
    kind = assertion["assertionType"]
    wanted = _KINDS.get(kind)
    if wanted is None:
        return f"assertionType {kind} is none of {', '.join(_KINDS)}"
    return "" if assertion.get(wanted) else f"assertionType is {kind}, and {wanted} is missing"


def _names(given: Sequence[Mapping[str, Any]]) -> list[str]:
    return [one.get("metricName") or f"assertion{number}" for number, one in enumerate(given, 1)]
