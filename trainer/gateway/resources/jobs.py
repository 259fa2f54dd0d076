"""The methods that every kind of job has: create, get, list, patch, delete, cancel, resume, metrics and logs.

A create checks the job by the same model that the command line uses, finds each resource that it names (there, READY,
and of the right kind), and takes secrets out of what is shown. The scheduler does the work, so a kind that it cannot
run is refused when it is created; whatever record there is has its whole life all the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic import ValidationError
from pydantic.alias_generators import to_camel

from trainer.gateway import (
    base_models,
    contract,
    dataset_rows,
    external_inputs,
    job_families,
    jobstate,
    standard,
    uploads,
    weights,
)
from trainer.gateway.errors import GatewayError, invalid, not_found, precondition
from trainer.gateway.gateway import Call, Gateway, full_name
from trainer.gateway.job_families import FAMILIES, OURS, Input, JobFamily, value_at, with_value, without_empty
from trainer.gateway.job_secrets import sealed
from trainer.gateway.resources import external_rows
from trainer.gateway.standard import Family, Handler, new_resource
from trainer.gateway.store import Resource, resources
from trainer.jobs import (
    JOB_KINDS,
    AwsS3Config,
    AzureBlobStorageConfig,
    BucketAccess,
    DpoConfig,
    Job,
    JobState,
    LossConfig,
    TrainerShardingScheme,
    TrainingConfig,
    WandbConfig,
)

METRICS, LOG = "metrics.jsonl", "trainer.log"
TOMBSTONE_DAYS = 30  # how long a deleted trainer can still be read and promoted from
CHECKPOINTS = Family(collection="checkpoints", schema="trainerJobCheckpoint", param="checkpoint_id")
_CHANGEABLE = frozenset({"displayName", "purpose"})  # what a patch may touch: the rest has gone into the run
_SNAKE = re.compile(r"[a-z]+(?:_[a-z]+)+")
_UPLOAD = "create and upload it first (POST .../datasets, then :upload)"


@dataclass(frozen=True)
class Request:
    """A checked create: the typed job (None for a kind without a model), its body as stored, and what is not shown.

    elsewhere: as `external_inputs.resolved` gives it.
    """

    job: Job | None
    body: dict[str, Any]
    secrets: dict[str, str] = field(default_factory=dict)
    elsewhere: dict[str, dict[str, str]] = field(default_factory=dict)


def family(collection: str) -> Family:
    """The collection as the standard methods know it."""
    kind = FAMILIES[collection]
    return Family(
        collection=collection,
        schema=kind.schema,
        param=kind.param,
        present=lambda call, job: present(call, kind, job),
        immutable=_fixed_fields(kind),
    )


def present(call: Call, kind: JobFamily, job: Resource) -> dict[str, Any]:
    """The job as an answer shows it: the contract's fields, what the client sent besides, signed URLs of its files."""
    shown = job.shown()
    known = call.gateway.contract.schema(kind.schema)["properties"]
    for name, filename in (("metricsFileSignedUrl", METRICS), ("trainerLogsSignedUrl", LOG)):
        if name in known and (url := file_url(call, job, filename)):
            shown[name] = url
    return {key: value for key, value in shown.items() if key in known or key not in OURS}


def create(collection: str, *, prices: Callable[[Gateway, Request], dict[str, Any]] | None = None) -> Handler:
    """POST of the job itself; its id comes in the query."""
    kind, records = FAMILIES[collection], family(collection)
    what = f"{kind.singular}Id"

    def handle(call: Call) -> dict[str, Any]:
        parent = call.parent()
        must_be_runnable(kind)
        request = read(call.gateway, kind, call.body, parent=parent)
        new = new_resource(records, call, given_id=call.query.get(what), what=what, body=request.body)
        body = {**request.body, **begun(call)}
        if prices is not None and "dataset" not in request.elsewhere:
            body["estimatedCost"] = prices(call.gateway, request)
        output = ""
        if kind.output:
            path = kind.setting("outputModel")
            output = output_name(value_at(body, path) or new.id, what=path, parent=parent)
            body = with_value(body, path, output)
        with call.gateway.store.transaction() as transaction:
            if output and transaction.find(new.name) is None and transaction.find(output) is not None:
                raise GatewayError(
                    "ALREADY_EXISTS", f"outputModel: {output} already exists; choose another, or delete it first",
                    metadata={"field": "outputModel", "name": output}, retry=False,
                )  # fmt: skip
            hidden = {"secrets": sealed(call.gateway, new.name, request.secrets), "elsewhere": request.elsewhere}
            new = transaction.insert(new.changed(body, hidden))
        return records.answer(call, new)

    return handle


def output_name(value: str, *, what: str, parent: str) -> str:
    """The full name of the model to make, which is the account's own. Raises INVALID_ARGUMENT."""
    name = full_name(value, collection="models", what=what, account=parent)
    if not name.startswith(f"{parent}/"):
        raise invalid(f"{what}: {name} is not of {parent}; name a model of your own", field=what)
    return name


def begun(call: Call) -> dict[str, Any]:
    """The fields that a new job has from the gateway."""
    return {
        "state": str(JobState.CREATING), "createdBy": call.principal.email or call.gateway.options.email,
        "status": {"code": "OK", "message": ""}, "jobProgress": {"percent": 0, "epoch": 0},
    }  # fmt: skip


def must_be_runnable(kind: JobFamily) -> None:
    """Raises UNIMPLEMENTED for a kind that no worker here runs."""
    if not kind.runnable:
        able = ", ".join(family.collection for family in job_families.trained())
        raise GatewayError(
            "UNIMPLEMENTED",
            f"{kind.collection}: this gateway has no worker for jobs of kind {kind.kind!r} yet, so none is created; "
            f"it runs {able}",
            metadata={"kind": kind.kind},
        )


def get(collection: str) -> Handler:
    """GET of one job."""
    records = family(collection)
    return lambda call: records.answer(call, load(call, collection))


def patch(collection: str) -> Handler:
    """PATCH of one job: what people call it, and its place in the queue."""
    return standard.patch(family(collection))


def load(call: Call, collection: str) -> Resource:
    """The job that the path speaks of. Raises NOT_FOUND, also for a tombstone that is too old."""
    job = family(collection).load(call)
    if jobstate.state_of(job) is JobState.DELETED and _age(job) > timedelta(days=TOMBSTONE_DAYS):
        remove(call.gateway, job.name)
        raise not_found(job.name)
    return job


def delete(collection: str) -> Handler:
    """DELETE: a running job is stopped first (DELETING until then); its run folder stays.

    Where the gateway is set to cancel trainers instead, one that has not ended is cancelled, and can be resumed.
    """
    kind, records = FAMILIES[collection], family(collection)

    def handle(call: Call) -> dict[str, Any]:
        load(call, collection)
        with call.gateway.store.transaction() as transaction:
            job = transaction.get(records.name(call))
            if (state := jobstate.state_of(job)) is JobState.DELETED:
                return {}
            if kind.tombstone and call.gateway.options.trainer_delete_state == "cancelled":
                if not state.terminal and state is not JobState.DELETING:
                    transaction.save(jobstate.cancelled(job))
                return {}
            if jobstate.is_active(job):
                transaction.save(jobstate.moved(job, JobState.DELETING, "the worker is being stopped"))
                return {}
        remove(call.gateway, job.name, tombstone=kind.tombstone)
        return {}

    return handle


def remove(gateway: Gateway, name: str, *, tombstone: bool | None = None) -> None:
    """Take a job whose worker has ended out of the records, or make a tombstone of it (None: as its kind wants).

    A tombstone leaves its collection, so that no list and no queue has it, and keeps its name and its checkpoints.
    """
    with gateway.store.transaction() as transaction:
        job = transaction.get(name)
        already = jobstate.state_of(job) is JobState.DELETED
        if tombstone is None:
            tombstone = job_families.family_of(job).tombstone and not already
        if tombstone:
            buried = jobstate.moved(job, JobState.DELETED, "deleted; its checkpoints can be promoted for 30 days")
            # Removed and added, not changed: lists count records by their collection as they come and go.
            transaction.execute(resources.delete().where(resources.c.name == name))
            transaction.insert(replace(buried, collection=f"{job.collection}/deleted"))
            return
        uploads.condemn(transaction, name)
    uploads.remove(gateway, name)


def cancel(collection: str) -> Handler:
    """POST :cancel."""
    records = family(collection)

    def handle(call: Call) -> dict[str, Any]:
        with call.gateway.store.transaction() as transaction:
            transaction.save(jobstate.cancelled(transaction.get(records.name(call))))
        return {}

    return handle


def resume(collection: str) -> Handler:
    """POST :resume of a job that has stopped: the worker goes on from its newest checkpoint."""
    kind, records = FAMILIES[collection], family(collection)

    def handle(call: Call) -> dict[str, Any]:
        with call.gateway.store.transaction() as transaction:
            job = transaction.get(records.name(call))
            job = transaction.save(jobstate.resumed(job, resumable=kind.resumable))
        return records.answer(call, job)

    return handle


def metrics_endpoint(collection: str) -> Handler:
    """GET :getMetricsFileEndpoint: a signed URL. Raises FAILED_PRECONDITION while there are no metrics."""

    def handle(call: Call) -> dict[str, Any]:
        job = load(call, collection)
        url = file_url(call, job, METRICS)
        if not url:
            raise precondition(
                f"{job.name}: has written no metrics yet, in state {jobstate.state_of(job)}; ask again once it has run",
                name=job.name,
            )
        return {"signedUrl": url}

    return handle


def file_url(call: Call, job: Resource, filename: str) -> str:
    """A signed URL of the job's file, or "" where it has not been written."""
    files = call.gateway.files
    if not files.path(job.name, filename).is_file():
        return ""
    return files.url("GET", job.name, filename, base_url=call.base_url)


def list_checkpoints(collection: str, *, records: Family = CHECKPOINTS) -> Handler:
    """GET of a job's checkpoints."""
    jobs = family(collection)
    listing = standard.list_all(records, parent=jobs.name)

    def handle(call: Call) -> dict[str, Any]:
        load(call, collection)
        return listing(call)

    return handle


def read(gateway: Gateway, kind: JobFamily, body: dict[str, Any], *, parent: str, external: bool = False) -> Request:
    """Check a job's body (canonical). An external job's names are not looked up: its inputs are not ours.

    Raises INVALID_ARGUMENT naming the camelCase field, NOT_FOUND or FAILED_PRECONDITION naming the resource.
    """
    body = {key: value for key, value in body.items() if key != "metricsFileSignedUrl"}
    job = None
    known = without_empty(gateway.contract.known(kind.schema, body))
    try:
        if kind.kind in JOB_KINDS:
            job = JOB_KINDS[kind.kind].model.model_validate(known)
        else:
            BucketAccess.model_validate({key: value for key, value in known.items() if key in _BUCKETS})
    except ValidationError as error:
        raise readable(error) from error
    secrets, elsewhere = {}, {}
    if wandb := body.get("wandbConfig"):
        _no_stray_key(wandb)
        if wandb.get("apiKey"):
            secrets["WANDB_API_KEY"] = wandb["apiKey"]
        body["wandbConfig"] = {key: value for key, value in wandb.items() if key != "apiKey"}
    if not external:
        for one in kind.inputs:
            if value := value_at(body, one.path):
                body = with_value(body, one.path, _resolved(gateway, kind, one, value, parent=parent))
        body, elsewhere = external_inputs.resolved(gateway, kind, body, parent=parent)
    return Request(job, body, secrets, elsewhere)


def _no_stray_key(wandb: dict[str, Any]) -> None:
    """A key under a name that the contract does not know would be kept and shown, as all unknown fields are."""
    for name in wandb:
        if name != "apiKey" and re.fullmatch(r"(wandb)?[_-]?(api)?[_-]?(key|token|secret)", name, re.IGNORECASE):
            raise invalid(
                f"wandbConfig.{name}: is not a field; the key goes into wandbConfig.apiKey, and is never shown",
                field=f"wandbConfig.{name}",
            )


def readable(error: ValidationError) -> GatewayError:
    """The model's complaints with the wire's field names, and without the values (one may be a key)."""
    lines, first = [], ""
    for problem in error.errors(include_url=False, include_input=False, include_context=False):
        path = ".".join(to_camel(str(part)) for part in problem["loc"])
        message = problem["msg"].removeprefix("Value error, ")
        message = _SNAKE.sub(lambda match: to_camel(match[0]) if match[0] in _FIELDS else match[0], message)
        lines.append(message if not path or message.startswith(path) else f"{path}: {message}")
        first = first or path or message.split(":", 1)[0]
    return invalid("; ".join(lines), field=first)


_INNER = (
    TrainingConfig,
    TrainerShardingScheme,
    LossConfig,
    DpoConfig,
    WandbConfig,
    AwsS3Config,
    AzureBlobStorageConfig,
)
_MODELS = (*(kind.model for kind in JOB_KINDS.values()), *_INNER)
_FIELDS = {name for model in _MODELS for name in model.model_fields}
_BUCKETS = {to_camel(name) for name in BucketAccess.model_fields}


def _resolved(gateway: Gateway, kind: JobFamily, one: Input, value: str, *, parent: str) -> str:
    """The full name of the input, which is there and fit for this kind of job."""
    name = full_name(value, collection=one.collection, what=one.path, account=parent)
    if one.collection == "models":
        _check_model(gateway, kind, one, name, parent=parent)
        return name
    found = gateway.store.find(name) if name.startswith(f"{parent}/") else None
    if found is None:
        way_out = _UPLOAD if one.collection == "datasets" else f"create it first (POST .../{one.collection})"
        raise _missing(one.path, name, way_out)
    if one.collection == "datasets":
        _check_rows(one, found)
    elif found.body.get("state") != "ACTIVE":
        raise precondition(
            f"{one.path}: {name} is in state {found.body.get('state', 'STATE_UNSPECIFIED')}, not ACTIVE; upload its "
            "source and wait for its build",
            field=one.path, name=name,
        )  # fmt: skip
    return name


def _check_rows(one: Input, found: Resource) -> None:
    if found.body.get("state") != "READY" and external_rows.lie_elsewhere(found):
        declared = found.body.get("format", "FORMAT_UNSPECIFIED")  # what it holds is known when it has been fetched
        if declared != "FORMAT_UNSPECIFIED" and not dataset_rows.HELD[declared] & one.rows:
            raise invalid(
                f"{one.path}: {found.name} was declared {declared}; this job takes {' or '.join(sorted(one.rows))}",
                field=one.path,
            )
        return
    if found.body.get("state") != "READY":
        raise precondition(
            f"{one.path}: {found.name} is in state {found.body.get('state')}, not READY; "
            "finish its upload (:getUploadEndpoint, PUT, :validateUpload)",
            field=one.path, name=found.name,
        )  # fmt: skip
    held = found.private.get("rows") or found.body.get("format")
    if held not in one.rows:
        raise invalid(
            f"{one.path}: {found.name} holds {held} rows; this job takes {' or '.join(sorted(one.rows))}",
            field=one.path,
        )


def _check_model(gateway: Gateway, kind: JobFamily, one: Input, name: str, *, parent: str) -> None:
    found = base_models.body_of(gateway, name, parent=parent)
    if found is None:
        raise _missing(one.path, name, base_models.known_here(gateway, parent=parent))
    if found.get("state") != "READY":
        raise precondition(
            f"{one.path}: {name} is in state {found.get('state')}, not READY; "
            "finish its upload (:getUploadEndpoint, PUT, :validateUpload)",
            field=one.path, name=name,
        )  # fmt: skip
    is_addon, last = found.get("kind") in weights.ADDON_KINDS, one.path.rsplit(".", 1)[-1]
    if last in ("baseModel", "warmStartFrom") and is_addon != (last == "warmStartFrom"):
        other = "warmStartFrom" if is_addon else "baseModel"
        way_out = f"name it as {kind.setting(other)}" if kind.settings is not None else "name its base model"
        raise invalid(f"{one.path}: {name} is of kind {found.get('kind')}; {way_out}", field=one.path)


def _missing(path: str, name: str, way_out: str) -> GatewayError:
    return GatewayError("NOT_FOUND", f"{path}: {name} not found; {way_out}", metadata={"field": path, "name": name})


def _fixed_fields(kind: JobFamily) -> frozenset[str]:
    document = contract.load()
    properties = document.schema(kind.schema)["properties"]
    written = {name for name, item in properties.items() if not document.schema(item).get("readOnly")}
    return frozenset(written - _CHANGEABLE)


def _age(job: Resource) -> timedelta:
    return datetime.now(UTC) - datetime.fromisoformat(job.update_time)
