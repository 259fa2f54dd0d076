"""Where the inputs of a job lie on this machine, found by the table of job families: nothing here knows one kind."""

from __future__ import annotations

from trainer.gateway import base_models, external_inputs, job_families
from trainer.gateway.errors import GatewayError
from trainer.gateway.gateway import Gateway, ready
from trainer.gateway.store import Resource
from trainer.runs import Inputs, RowSource


def inputs_of(gateway: Gateway, job: Resource) -> Inputs:
    """The job's inputs. Raises NOT_FOUND or FAILED_PRECONDITION for one that is no longer there, or no longer READY."""
    family = job_families.family_of(job)
    found = {one.path: job_families.value_at(job.body, one.path) for one in family.inputs}
    base, adapter = base_of(gateway, job), job_families.warm_start(job) or None
    _there(gateway, job, base, what=family.setting("baseModel"))
    if adapter:
        _there(gateway, job, adapter, what=family.setting("warmStartFrom"))
    evaluation = found.get("evaluationDataset")
    return Inputs(
        base_model=base_models.place(gateway, base),
        train=_rows(gateway, job, found["dataset"], what="dataset"),
        evaluation=_rows(gateway, job, evaluation, what="evaluationDataset") if evaluation else None,
        warm_start=str(gateway.files.folder(adapter)) if adapter else None,
    )


def base_of(gateway: Gateway, job: Resource) -> str:
    """The full name of the model at the bottom: the job's own, or that of the adapter it goes on from."""
    base = job_families.base_model(job)
    if base:
        return base
    adapter = gateway.store.get(job_families.warm_start(job), "it was there when the job was created")
    return adapter.body["peftDetails"]["baseModel"]


def _there(gateway: Gateway, job: Resource, name: str, *, what: str) -> None:
    body = base_models.body_of(gateway, name, parent=job.parent)
    if body is None:
        raise GatewayError(
            "NOT_FOUND", f"{what}: {name} not found; upload it as a model first", metadata={"field": what, "name": name}
        )
    if body.get("state") != "READY":
        raise GatewayError(
            "FAILED_PRECONDITION", f"{what}: {name} is in state {body.get('state')}, not READY; finish its upload",
            metadata={"field": what, "name": name},
        )  # fmt: skip


def _rows(gateway: Gateway, job: Resource, name: str, *, what: str) -> RowSource:
    if fetched := external_inputs.brought(gateway, job, what):
        return RowSource(name=name, path=str(fetched.path), sha256=fetched.sha256)
    ready(gateway, name, what=what, way_out="upload it first")
    files = gateway.store.get(name).private["files"]
    if len(files) > 1:
        return RowSource(name=name, path=str(gateway.files.folder(name)))
    ((filename, entry),) = files.items()
    return RowSource(name=name, path=str(gateway.files.path(name, filename)), sha256=entry["sha256"])
