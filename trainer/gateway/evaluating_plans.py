"""What an evaluation job runs as, and what it takes of this machine.

A job scores with the version of the evaluator that it began with, whatever becomes of the evaluator later.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from evaluators.scores import reward_weights
from trainer import __version__
from trainer.evaluation_run import EVALUATION_FILE, GRANTED_PREFIX, EvaluationRun, ModelPlace
from trainer.gateway import base_models, external_inputs, jobstate
from trainer.gateway.capacity import Capacity
from trainer.gateway.errors import GatewayError
from trainer.gateway.evaluating import answers_of
from trainer.gateway.evaluator_revisions import source_at
from trainer.gateway.fitting import Need
from trainer.gateway.gateway import Gateway, ready
from trainer.gateway.store import Resource
from trainer.shapes import read_shapes

_WORKER_BYTES = 512 << 20  # the process and its jails' supervisors
_BYTES_EACH = 4  # the engine holds weights in float32


def plan(gateway: Gateway, job: Resource, here: Capacity) -> tuple[EvaluationRun, Need]:
    """What the job runs as, and what it takes. Raises NOT_FOUND or FAILED_PRECONDITION for an input that is gone."""
    folder = jobstate.run_of(job).get("folder")
    if folder and (Path(folder) / EVALUATION_FILE).exists():
        spec = EvaluationRun.load(Path(folder))
        _revision(gateway, job)
    else:
        spec = described(gateway, job)
    if spec.model is None:
        return spec, Need(memory=_WORKER_BYTES)
    shapes = read_shapes(spec.model.base)
    weights = shapes.parameters * _BYTES_EACH if shapes else 0
    return spec, Need(memory=_WORKER_BYTES + weights, gpus=1 if here.gpus else 0)


# Kinds of jobs that train nothing: how their run and their need are found.
PLANS: dict[str, Callable[[Gateway, Resource, Capacity], tuple[EvaluationRun, Need]]] = {EvaluationRun.kind: plan}


def described(gateway: Gateway, job: Resource) -> EvaluationRun:
    """The job's run, made from its record."""
    body = job.body
    kept = job.private.get("secrets", {})
    names = sorted(key.removeprefix(GRANTED_PREFIX) for key in kept if key.startswith(GRANTED_PREFIX))
    return EvaluationRun(
        id=job.id, created=datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        trainer_version=__version__, rows=_rows(gateway, job),
        evaluator=source_at(gateway, _revision(gateway, job)).model_copy(update={"granted": names}),
        input_dataset=body["inputDataset"], output_dataset=body["outputDataset"],
        model=_model(gateway, job), answers=answers_of(body),
        reward_weights=reward_weights(body.get("rewardWeights", [])),
        **({"max_invalid_fraction": body["maxInvalidFraction"]} if "maxInvalidFraction" in body else {}),
    )  # fmt: skip


def _revision(gateway: Gateway, job: Resource) -> Resource:
    """The revision that the job was created with; it goes on with no other. Raises NOT_FOUND."""
    was = "it was there when the job was created; create a job with another revision"
    name = job.body.get("evaluatorVersion")
    if name is None:  # a record of before revisions were noted in jobs
        evaluator = gateway.store.get(job.body["evaluator"], was)
        name = f"{evaluator.name}/versions/{evaluator.private.get('version')}"
    return gateway.store.get(name, was)


def _rows(gateway: Gateway, job: Resource) -> list[str]:
    if fetched := external_inputs.brought(gateway, job, "inputDataset"):
        return [str(fetched.path)]
    name = job.body["inputDataset"]
    ready(gateway, name, what="inputDataset", way_out="upload it first")
    return [str(gateway.files.path(name, one)) for one in sorted(gateway.store.get(name).private["files"])]


def _model(gateway: Gateway, job: Resource) -> ModelPlace | None:
    name = job.body.get("model")
    if not name:
        return None
    found = base_models.body_of(gateway, name, parent=job.parent)
    if found is None:
        raise GatewayError("NOT_FOUND", f"model: {name} not found", metadata={"field": "model", "name": name})
    base = (found.get("peftDetails") or {}).get("baseModel", "")
    if not base:
        return ModelPlace(name=name, base=base_models.place(gateway, name))
    if base_models.body_of(gateway, base, parent=job.parent) is None:
        raise GatewayError("NOT_FOUND", f"model: {name} is an adapter of {base}, which is not here")
    return ModelPlace(name=name, base=base_models.place(gateway, base), adapter=str(gateway.files.folder(name)))
