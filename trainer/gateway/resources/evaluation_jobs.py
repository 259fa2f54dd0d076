"""evaluationJobs: rows of a data set through an evaluator, into another data set with their scores.

A job whose output data set is already here records an evaluation that its client has run itself (eval-protocol posts
its results so, naming an evaluator and an input data set that need not exist). There is nothing left to run, so it is
COMPLETED at once, and its metrics are the means of the scores in those rows. Any other is run by a worker, in the life
that all jobs have; its output data set is made when all rows have been scored. `evaluator` may name a revision or an
alias: `evaluatorVersion` says which revision scores, and that does not change, whatever is uploaded or moved later.
"""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic import ValidationError

from evaluators.scores import reward_weights
from trainer.evaluation_run import GRANTED_PREFIX, JUDGE_KEY_VARIABLE
from trainer.gateway import evaluating, evaluator_revisions
from trainer.gateway.errors import GatewayError, invalid, precondition
from trainer.gateway.files import URL_SECONDS
from trainer.gateway.gateway import Call, full_name
from trainer.gateway.job_families import FAMILIES, GOING
from trainer.gateway.job_secrets import sealed
from trainer.gateway.resources import jobs
from trainer.gateway.standard import new_resource
from trainer.gateway.store import Resource, body_value, resources
from trainer.jobs import JobState

_EVALUATIONS = "evaluationJobs"
_OF_THE_WORKER = ("model", "inferenceParameters", "maxInvalidFraction", "rewardWeights", "awsS3Config")
_LONGEST_ROW = 16 << 20
_MOST_SCORES = 1_000  # names in one record


def create(call: Call) -> dict[str, Any]:
    """POST {"evaluationJob": {...}, "evaluationJobId": "..."}."""
    parent, kind = call.parent(), FAMILIES[_EVALUATIONS]
    given = dict(call.body["evaluationJob"])
    named = given["evaluator"]
    given["evaluator"], wanted = evaluator_revisions.split(named, what="evaluationJob.evaluator")
    for field, collection in (("evaluator", "evaluators"), ("inputDataset", "datasets"), ("outputDataset", "datasets")):
        given[field] = full_name(given[field], collection=collection, what=f"evaluationJob.{field}")
    results = call.gateway.store.find(given["outputDataset"])
    if results is not None and results.parent == parent:
        given |= {"evaluatorVersion": f"{given['evaluator']}/versions/{wanted}"} if wanted else {}
        return _recorded(call, given, results)
    if not given["outputDataset"].startswith(f"{parent}/"):
        raise invalid("evaluationJob.outputDataset: name a data set of your own", field="evaluationJob.outputDataset")
    given.pop("outputStats", None)  # the job's own to tell
    _check_answers(given)
    revision = evaluator_revisions.named(call.gateway, named, what="evaluationJob.evaluator", parent=parent)
    given["evaluatorVersion"] = revision.name
    others = replace(kind, inputs=tuple(one for one in kind.inputs if one.path != "evaluator"))
    request = jobs.read(call.gateway, others, given, parent=parent)
    secrets = {f"{GRANTED_PREFIX}{name}": value for name, value in evaluating.granted(call.gateway, parent).items()}
    if key := evaluating.judges_key(call.gateway, parent):
        secrets[JUDGE_KEY_VARIABLE] = key
    return _inserted(call, request.body, secrets=secrets, elsewhere=request.elsewhere)


def execution_log(call: Call) -> dict[str, Any]:
    """GET :getExecutionLogEndpoint; nothing in it while there is no log."""
    job = jobs.load(call, _EVALUATIONS)
    url = jobs.file_url(call, job, jobs.LOG)
    if not url:
        return {}
    expires = datetime.now(UTC) + timedelta(seconds=URL_SECONDS)
    return {
        "executionLogSignedUri": url,
        "contentType": "text/plain",
        "expireTime": expires.isoformat(timespec="microseconds").replace("+00:00", "Z"),
    }


def _recorded(call: Call, given: dict[str, Any], results: Resource) -> dict[str, Any]:
    """An evaluation that was run by its client."""
    if results.body.get("state") != "READY":
        raise precondition(
            f"evaluationJob.outputDataset: {results.name} is {results.body.get('state')}; finish its upload first",
            name=results.name,
        )
    for field in _OF_THE_WORKER:
        if field in given:
            raise invalid(
                f"evaluationJob.{field}: outputDataset {results.name} is here already, so nothing is run; name a data "
                "set that is not there yet",
                field=f"evaluationJob.{field}",
            )
    metrics, rows = _scores(call, results)
    stats = json.dumps({"rows": rows, **{name: value for name, value in sorted(metrics.items())}})
    done = {"metrics": metrics, "outputStats": stats, "state": str(JobState.COMPLETED)}
    message = "run by its client: the output data set was here already"
    return _inserted(call, {**given, **done, "status": {"code": "OK", "message": message}})


def _check_answers(given: dict[str, Any]) -> None:
    """Raises INVALID_ARGUMENT for settings of the model's answers that cannot be honoured."""
    where = "evaluationJob.inferenceParameters"
    if given.get("inferenceParameters") and not given.get("model"):
        raise invalid(f"{where}: says how a model answers; name it in evaluationJob.model", field=where)
    if unused := evaluating.unused_ways(given):
        raise invalid(
            f"{where}.{unused[0]}: not honoured here; one answer a row is sampled, by maxOutputTokens, temperature, "
            "topP and topK",
            field=f"{where}.{unused[0]}",
        )
    try:
        evaluating.answers_of(given)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise invalid(f"{where}: {first['loc'][0]}: {first['msg']}", field=where) from error
    try:
        reward_weights(given.get("rewardWeights", []))
    except ValueError as error:
        raise invalid(f"evaluationJob.rewardWeights: {error}", field="evaluationJob.rewardWeights") from error
    fraction = given.get("maxInvalidFraction", 0)
    if not 0 <= fraction <= 1:
        raise invalid(
            f"evaluationJob.maxInvalidFraction: got {fraction:g}; expected a share from 0 to 1",
            field="evaluationJob.maxInvalidFraction",
        )


def _inserted(
    call: Call, body: dict[str, Any], *, secrets: dict[str, str] | None = None, elsewhere: dict[str, Any] | None = None
) -> dict[str, Any]:
    records = jobs.family(_EVALUATIONS)
    begun = {key: value for key, value in jobs.begun(call).items() if key not in body}
    given_id = call.body.get("evaluationJobId")
    new = new_resource(records, call, given_id=given_id, what="evaluationJobId", body={**begun, **body})
    new = new.changed(private={"elsewhere": elsewhere or {}})
    with call.gateway.store.transaction() as transaction:
        if secrets:
            new = new.changed(private={"secrets": sealed(call.gateway, new.name, secrets)})
        if body.get("state") is None:
            transaction.get(body["evaluatorVersion"])  # it may have been deleted meanwhile
        made = transaction.insert(new)
        same = body_value(["outputDataset"]).as_string() == body["outputDataset"]
        going = resources.c.state.in_(GOING)
        others = [one.name for one in transaction.every(_EVALUATIONS, going, same) if one.name != made.name]
        if others and body.get("state") is None:
            raise GatewayError(
                "ALREADY_EXISTS", f"evaluationJob.outputDataset: {others[0]} makes it; choose another name",
                metadata={"name": others[0]}, retry=False,
            )  # fmt: skip
        return records.answer(call, made)


def _scores(call: Call, results: Resource) -> tuple[dict[str, float], int]:
    """The mean of each score that the rows bear, and how many rows there are."""
    found: dict[str, array[float]] = {}
    count = 0
    for row in _rows(call, results):
        count += 1
        for name, value in _scores_of(row):
            found.setdefault(name, array("d")).append(value)
        if len(found) > _MOST_SCORES:
            raise invalid(
                f"evaluationJob.outputDataset: its rows bear more than {_MOST_SCORES:,} different scores; name fewer",
                field="evaluationJob.outputDataset",
            )
    return {name: math.fsum(values) / len(values) for name, values in found.items()}, count


def _scores_of(row: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """`evals` (name -> number), else `evaluation_result` of an evaluation row: its score and its metrics."""
    result = row.get("evaluation_result")
    named: dict[str, Any] = row["evals"] if isinstance(row.get("evals"), dict) else {}
    if not named and isinstance(result, dict):
        metrics = result.get("metrics")
        inner = metrics if isinstance(metrics, dict) else {}
        named = {"score": result.get("score")}
        named |= {key: one.get("score") for key, one in inner.items() if isinstance(one, dict)}
    for name, value in named.items():
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
            yield str(name), float(value)


def _rows(call: Call, results: Resource) -> Iterator[dict[str, Any]]:
    for filename in sorted(results.private.get("files", {})):
        with call.gateway.files.path(results.name, filename).open("rb") as stream:
            while line := stream.readline(_LONGEST_ROW):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except ValueError as error:
                    raise invalid(f"evaluationJob.outputDataset: {filename} has a row that is not JSON") from error
                yield row if isinstance(row, dict) else {}
