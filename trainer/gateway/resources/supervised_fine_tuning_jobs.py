"""supervisedFineTuningJobs: created, watched, cancelled, resumed, priced. The scheduler does the work.

A create validates by the same model that the command line uses; data set and base model must be here and READY. The
wandb key goes to the private column and to the worker's environment, never into an answer.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from pydantic import ValidationError
from pydantic.alias_generators import to_camel

from trainer.gateway import jobstate, weights
from trainer.gateway.errors import GatewayError, invalid, not_found
from trainer.gateway.gateway import Call, Gateway, full_name, ready
from trainer.gateway.rowcheck import BYTES_PER_TOKEN
from trainer.gateway.standard import Family, list_all, new_resource
from trainer.gateway.store import Resource
from trainer.jobs import DEFAULT_EPOCHS, JOB_KINDS, JobState, SupervisedFineTuningJob
from trainer.prices import read_prices

KIND = JOB_KINDS["sft"]
METRICS, LOG = "metrics.jsonl", "trainer.log"
_SNAKE = re.compile(r"[a-z]+(?:_[a-z]+)+")
_NANOS = 1_000_000_000


@dataclass(frozen=True)
class Request:
    """A checked create: the job, its body as it is stored, and what must not be shown."""

    job: SupervisedFineTuningJob
    body: dict[str, Any]
    secrets: dict[str, str]


def present(call: Call, resource: Resource) -> dict[str, Any]:
    """The job as an answer shows it, with signed URLs for the files there are."""
    shown = resource.shown()
    for field, filename in (("metricsFileSignedUrl", METRICS), ("trainerLogsSignedUrl", LOG)):
        if call.gateway.files.path(resource.name, filename).is_file():
            shown[field] = call.gateway.files.url("GET", resource.name, filename, base_url=call.base_url)
    return shown


FAMILY = Family(collection=KIND.collection, schema=KIND.schema, param="supervised_fine_tuning_job_id", present=present)
CHECKPOINTS = Family(collection="checkpoints", schema="trainerJobCheckpoint", param="checkpoint_id")


def create(call: Call) -> dict[str, Any]:
    """POST of the job itself; its id comes in the query."""
    request = read(call.gateway, call.body)
    new = new_resource(
        FAMILY, call, given_id=call.query.get("supervisedFineTuningJobId"), what="supervisedFineTuningJobId",
        body=request.body,
    )  # fmt: skip
    output = full_name(request.job.output_model or new.id, collection="models", what="outputModel")
    body = {
        **request.body, "outputModel": output, "state": str(JobState.CREATING), "createdBy": call.gateway.options.email,
        "status": {"code": "OK", "message": ""}, "jobProgress": {"percent": 0, "epoch": 0},
        "estimatedCost": _cost(call.gateway, request),
    }  # fmt: skip
    with call.gateway.store.transaction() as transaction:
        if transaction.find(new.name) is None and transaction.find(output) is not None:
            raise GatewayError(
                "ALREADY_EXISTS", f"outputModel: {output} already exists; choose another, or delete it first",
                metadata={"field": "outputModel", "name": output}, retry=False,
            )  # fmt: skip
        new = transaction.insert(new.changed(body, {"secrets": request.secrets}))
    return FAMILY.answer(call, new)


def delete(call: Call) -> dict[str, Any]:
    """DELETE: a running job is stopped first (DELETING until then); its run folder stays."""
    with call.gateway.store.transaction() as transaction:
        job = transaction.get(FAMILY.name(call))
        if jobstate.is_active(job):
            transaction.save(jobstate.moved(job, JobState.DELETING, "the worker is being stopped"))
            return {}
        transaction.delete(job.name)
    call.gateway.files.remove(job.name)
    return {}


def cancel(call: Call) -> dict[str, Any]:
    """POST :cancel."""
    with call.gateway.store.transaction() as transaction:
        transaction.save(jobstate.cancelled(transaction.get(FAMILY.name(call))))
    return {}


def resume(call: Call) -> dict[str, Any]:
    """POST :resume from FAILED, CANCELLED or PAUSED: the worker goes on from its newest checkpoint."""
    with call.gateway.store.transaction() as transaction:
        job = transaction.save(jobstate.resumed(transaction.get(FAMILY.name(call))))
    return FAMILY.answer(call, job)


def estimate_cost(call: Call) -> dict[str, Any]:
    """POST :estimateCost of a job that is not created."""
    call.parent()
    return {"estimatedCost": _cost(call.gateway, read(call.gateway, call.body))}


def list_checkpoints(call: Call) -> dict[str, Any]:
    """GET of a job's checkpoints."""
    FAMILY.load(call)
    return list_all(CHECKPOINTS, parent=FAMILY.name)(call)


def read(gateway: Gateway, body: dict[str, Any], *, external: bool = False) -> Request:
    """Check a job's body (canonical). An external job's names are not looked up: its inputs are not ours.

    Raises INVALID_ARGUMENT naming the camelCase field, NOT_FOUND or FAILED_PRECONDITION naming the resource.
    """
    body = {key: value for key, value in body.items() if key != "metricsFileSignedUrl"}
    known = {key: value for key, value in gateway.contract.known(KIND.schema, body).items() if value != ""}
    try:
        job = KIND.model.model_validate(known)
    except ValidationError as error:
        raise readable(error) from error
    secrets = {}
    if job.wandb_config is not None:
        if job.wandb_config.api_key is not None:
            secrets["WANDB_API_KEY"] = job.wandb_config.api_key.get_secret_value()
        body["wandbConfig"] = {key: value for key, value in body["wandbConfig"].items() if key != "apiKey"}
    if not external:
        body = {**body, **_resolved(gateway, job)}
    return Request(job, body, secrets)


def job_of(gateway: Gateway, resource: Resource) -> SupervisedFineTuningJob:
    """The job that a record holds; its wandb key is not in it."""
    written = gateway.contract.read(KIND.schema, resource.body).value
    return read(gateway, written, external=True).job


def remove(gateway: Gateway, name: str) -> None:
    """Take a job whose worker has ended out of the records."""
    with gateway.store.transaction() as transaction:
        transaction.delete(name)
    gateway.files.remove(name)


def _resolved(gateway: Gateway, job: SupervisedFineTuningJob) -> dict[str, str]:
    """Full names of the job's inputs, each of them there and READY."""
    names: dict[str, str] = {}
    upload = "create and upload it first (POST .../datasets, then :upload)"
    for field, value in (("dataset", job.dataset), ("evaluationDataset", job.evaluation_dataset)):
        if value:
            names[field] = full_name(value, collection="datasets", what=field)
            found = ready(gateway, names[field], what=field, way_out=upload)
            if found.get("format") not in ("CHAT", "COMPLETION"):
                raise invalid(
                    f"{field}: {names[field]} holds {found.get('format')} rows; this job takes CHAT or COMPLETION"
                )
    for field, value in (("baseModel", job.base_model), ("warmStartFrom", job.warm_start_from)):
        if value:
            names[field] = full_name(value, collection="models", what=field)
            found = ready(gateway, names[field], what=field, way_out=_models_here(gateway))
            is_addon = found.get("kind") in weights.ADDON_KINDS
            if is_addon != (field == "warmStartFrom"):
                other = "warmStartFrom" if is_addon else "baseModel"
                raise invalid(
                    f"{field}: {names[field]} is of kind {found.get('kind')}; name it as {other}", field=field
                )
    return names


def _models_here(gateway: Gateway) -> str:
    names = [model.id for model in gateway.store.every("models") if model.body.get("state") == "READY"]
    return f"models that are here: {', '.join(names[:10]) or 'none'}; others must be uploaded (POST .../models) first"


def _cost(gateway: Gateway, request: Request) -> dict[str, Any]:
    """Tokens x epochs x price: counted tokens where there are any, else four bytes each; prices of `trainer.prices`."""
    name = full_name(request.job.dataset, collection="datasets", what="dataset")
    found = gateway.store.find(name)
    if found is None:
        raise not_found(name)
    size = sum(entry["size"] for entry in found.private.get("files", {}).values())
    tokens = int(found.body.get("estimatedTokenCount") or size // BYTES_PER_TOKEN)
    prices = read_prices()
    price = (
        gateway.options.price_per_token or Decimal(str(prices.per_million(_parameters(gateway, request)))) / 1_000_000
    )
    nanos = int(tokens * (request.job.epochs or DEFAULT_EPOCHS) * price * _NANOS)
    return {"currencyCode": prices.currency, "units": str(nanos // _NANOS), "nanos": nanos % _NANOS}


def _parameters(gateway: Gateway, request: Request) -> int | None:
    """Of the base model, None where its record does not say."""
    name = request.job.base_model or request.job.warm_start_from or ""
    found = gateway.store.find(full_name(name, collection="models", what="baseModel"))
    count = (found.body.get("baseModelDetails") or {}).get("parameterCount") if found else None
    return int(count) if count else None


def readable(error: ValidationError) -> GatewayError:
    """The model's complaints with the wire's field names, and without the values (one may be a key)."""
    fields = set(KIND.model.model_fields)
    lines, first = [], ""
    for problem in error.errors(include_url=False, include_input=False, include_context=False):
        path = ".".join(to_camel(str(part)) for part in problem["loc"])
        message = problem["msg"].removeprefix("Value error, ")
        message = _SNAKE.sub(lambda match: to_camel(match[0]) if match[0] in fields else match[0], message)
        lines.append(message if not path or message.startswith(path) else f"{path}: {message}")
        first = first or path or message.split(":", 1)[0]
    return invalid("; ".join(lines), field=first)
