"""checkpoints:promote: a checkpoint's weights become a model of their own.

The checkpoint is found by its id below the job that wrote it; it must be promotable, still on disk, inside this
machine's runs, and byte for byte what its manifest says.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trainer import checkpoints
from trainer.gateway import jobstate, weights
from trainer.gateway.errors import GatewayError, invalid, not_found, precondition
from trainer.gateway.gateway import Call, full_name
from trainer.gateway.job_families import FAMILIES, base_model
from trainer.gateway.resources import jobs, models
from trainer.gateway.standard import Handler
from trainer.gateway.store import Resource, resources
from trainer.runs import RunSpec

RUN_FILE = "run.json"
_KIND_OF = {
    "CHECKPOINT_TYPE_INFERENCE_LORA": "HF_PEFT_ADDON",
    "CHECKPOINT_TYPE_INFERENCE_BASE": "HF_BASE_MODEL",
}


def promote(call: Call) -> dict[str, Any]:
    """POST accounts/{a}/checkpoints/{c}:promote; the job is in the body, by its full name or a fine-tuning job's id."""
    parent, job = call.parent(), call.body["trainerJobId"]
    if not job.startswith("accounts/"):
        job = full_name(job, collection="supervisedFineTuningJobs", what="trainerJobId")
    parts = job.split("/")
    if len(parts) != 4 or parts[2] not in FAMILIES or not job.startswith(f"{parent}/"):
        raise invalid(
            f"trainerJobId: {job[:200]!r} is not a job of {parent}; expected {parent}/<collection>/<id>, with "
            f"{', '.join(FAMILIES)}",
            field="trainerJobId",
        )
    return _promote(call, job)


def promote_of_job(collection: str) -> Handler:
    """POST accounts/{a}/<collection>/{job}/checkpoints/{c}:promote."""
    records = jobs.family(collection)
    return lambda call: _promote(call, records.name(call))


def _promote(call: Call, job_name: str) -> dict[str, Any]:
    gateway = call.gateway
    job = gateway.store.get(job_name)
    checkpoint_id = call.params["checkpoint_id"]
    found = gateway.store.find(f"{job_name}/checkpoints/{checkpoint_id}")
    if found is None:
        here = [one.id for one in gateway.store.every("checkpoints", resources.c.parent == job_name)]
        raise not_found(f"{job_name}/checkpoints/{checkpoint_id}", f"the job has {', '.join(here) or 'no checkpoints'}")
    name = full_name(call.body["outputModel"], collection="models", what="outputModel")
    if gateway.store.find(name) is not None:
        raise GatewayError(
            "ALREADY_EXISTS", f"outputModel: {name} already exists; choose another, or delete it first",
            metadata={"name": name}, retry=False,
        )  # fmt: skip
    checkpoint = _readable(call, found, job)
    kind = _KIND_OF[next(name for name in checkpoint.types if name in _KIND_OF)]
    base = call.body.get("baseModel") or base_model(job)
    model = models.register(gateway, name, checkpoint.weights, body=_body(call, checkpoint, kind, base), job=job_name)
    return {"model": model.shown()}


def _readable(call: Call, found: Resource, job: Resource) -> checkpoints.Checkpoint:
    """The checkpoint on disk, fit to be promoted. Raises FAILED_PRECONDITION, PERMISSION_DENIED or DATA_LOSS."""
    if not found.body.get("promotable"):
        raise precondition(
            f"{found.name} is of type {found.body.get('checkpointType')}: not promotable; "
            "only CHECKPOINT_TYPE_INFERENCE_LORA and CHECKPOINT_TYPE_INFERENCE_BASE are",
            name=found.name,
        )
    path = Path(found.private.get("path", ""))
    if not call.gateway.inside(path):
        raise GatewayError(
            "PERMISSION_DENIED",
            f"{found.name}: its files lie at {path}, outside this gateway's runs ({call.gateway.runs}); "
            "upload the folder as a model instead",
            metadata={"name": found.name},
        )
    if jobstate.is_external(job) and not _is_of_run(call, path.resolve(), job):
        raise GatewayError(
            "PERMISSION_DENIED",
            f"{found.name}: {path} is not known to be of {job.name}: no run.json above it says so; "
            "upload the folder as a model instead",
            metadata={"name": found.name},
        )
    if not path.is_dir():
        raise precondition(f"{found.name} is no longer on disk ({path}); promote a newer one", name=found.name)
    try:
        checkpoint = checkpoints.read(path)
        checkpoints.verify(checkpoint)
    except checkpoints.CheckpointCorrupt as error:
        raise GatewayError("DATA_LOSS", f"{found.name}: {error}; promote another checkpoint") from error
    if not checkpoint.promotable:
        raise precondition(f"{found.name}: its manifest says it is not promotable", name=found.name)
    return checkpoint


def _is_of_run(call: Call, path: Path, job: Resource) -> bool:
    """Whether `path` is in the folder of the run that has reported itself as `job`. What a report says of a path is
    only its sender's word, and the runs of every account lie side by side."""
    runs, own = call.gateway.runs.resolve(), call.gateway.folder.resolve()
    if not path.is_relative_to(runs) or path.is_relative_to(own):
        return False
    for folder in (above for above in path.parents if above.is_relative_to(runs)):
        if (folder / RUN_FILE).is_file():
            try:
                spec = RunSpec.load(folder)
            except (OSError, ValueError):  # another program's, or not whole
                return False
            return spec.gateway.kind != "off" and (spec.id, f"accounts/{spec.gateway.account}") == (job.id, job.parent)
    return False


def _body(call: Call, checkpoint: checkpoints.Checkpoint, kind: str, base: str) -> dict[str, Any]:
    inherited = call.gateway.store.find(base) if base.startswith("accounts/") else None
    body: dict[str, Any] = {"kind": kind}
    if inherited is not None and inherited.body.get("contextLength"):
        body["contextLength"] = inherited.body["contextLength"]
    if kind in weights.ADDON_KINDS:
        config = checkpoint.weights / "adapter_config.json"
        if not config.is_file():
            raise invalid(f"{config}: missing; the checkpoint's weights are not an adapter that peft can load")
        body["peftDetails"] = weights.peft_details({"adapter_config.json": config}, base_model=base)
    return body
