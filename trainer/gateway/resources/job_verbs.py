"""What single kinds of jobs have beside the methods of all: logs, debugging, evaluations that others have run.

An evaluation job that names an output data set which is already here records an evaluation that its client has run
itself (eval-protocol posts its results so, naming an evaluator and an input data set that need not exist). There is
nothing left to run, so it is COMPLETED at once, and its metrics are the means of the scores in those rows. Any other
needs a worker.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from trainer.gateway import jobstate
from trainer.gateway.errors import invalid, precondition
from trainer.gateway.files import URL_SECONDS
from trainer.gateway.gateway import Call, full_name
from trainer.gateway.job_families import FAMILIES
from trainer.gateway.resources import jobs
from trainer.gateway.standard import new_resource
from trainer.gateway.store import Resource
from trainer.jobs import JobState

_EVALUATIONS, _REINFORCEMENT, _TRAINERS = "evaluationJobs", "reinforcementFineTuningJobs", "rlorTrainerJobs"
_LONGEST_ROW = 16 << 20


def create_evaluation(call: Call) -> dict[str, Any]:
    """POST {"evaluationJob": {...}, "evaluationJobId": "..."}."""
    parent, kind = call.parent(), FAMILIES[_EVALUATIONS]
    given = dict(call.body["evaluationJob"])
    for field, collection in (("evaluator", "evaluators"), ("inputDataset", "datasets"), ("outputDataset", "datasets")):
        given[field] = full_name(given[field], collection=collection, what=f"evaluationJob.{field}")
    results = call.gateway.store.find(given["outputDataset"])
    if results is None or results.parent != parent:
        jobs.must_be_runnable(kind)
        return _inserted(call, jobs.read(call.gateway, kind, given, parent=parent).body)
    if results.body.get("state") != "READY":
        raise precondition(
            f"evaluationJob.outputDataset: {results.name} is {results.body.get('state')}; finish its upload first",
            name=results.name,
        )
    metrics, rows = _scores(call, results)
    stats = json.dumps({"rows": rows, **{name: value for name, value in sorted(metrics.items())}})
    done = {"metrics": metrics, "outputStats": stats, "state": str(JobState.COMPLETED)}
    message = "run by its client: the output data set was here already"
    return _inserted(call, {**given, **done, "status": {"code": "OK", "message": message}})


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


def public_logs(call: Call) -> dict[str, Any]:
    """GET of a trainer's log. Raises FAILED_PRECONDITION while there is none."""
    job = jobs.load(call, _TRAINERS)
    url = jobs.file_url(call, job, jobs.LOG)
    if not url:
        raise precondition(f"{job.name}: has written no log yet, in state {jobstate.state_of(job)}", name=job.name)
    return {"signedUrl": url}


def debug(call: Call) -> dict[str, Any]:
    """POST :debug: which job failed. Here a job is one process, so the failed one is the job itself."""
    job = jobs.load(call, _REINFORCEMENT)
    state = jobstate.state_of(job)
    if state is not JobState.FAILED:
        raise precondition(f"{job.name}: cannot debug job in state: {state}; only FAILED ones", name=job.name)
    return {"name": job.name, "failedJobName": job.name}


def _inserted(call: Call, body: dict[str, Any]) -> dict[str, Any]:
    records = jobs.family(_EVALUATIONS)
    begun = {key: value for key, value in jobs.begun(call).items() if key not in body}
    given_id = call.body.get("evaluationJobId")
    new = new_resource(records, call, given_id=given_id, what="evaluationJobId", body={**begun, **body})
    with call.gateway.store.transaction() as transaction:
        return records.answer(call, transaction.insert(new))


def _scores(call: Call, results: Resource) -> tuple[dict[str, float], int]:
    """The mean of each score that the rows bear, and how many rows there are."""
    found: dict[str, list[float]] = {}
    count = 0
    for row in _rows(call, results):
        count += 1
        for name, value in _scores_of(row):
            found.setdefault(name, []).append(value)
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
