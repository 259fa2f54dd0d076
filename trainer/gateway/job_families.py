"""The seven collections of jobs, as one table, and what every record of them has in common.

A family says where its records keep what all jobs have: inputs, the output model, training settings (flat in a
supervised job, under `trainingConfig` elsewhere). Whatever handles jobs asks here and does not know the kinds. A kind
that `trainer.jobs.JOB_KINDS` has not is one that nothing here can train yet: its records have their whole life, but
none is created. Evaluation jobs train nothing and have a worker of their own (`trainer.evaluation_worker`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from trainer.evaluation_run import EvaluationRun
from trainer.gateway.gateway import Gateway
from trainer.gateway.store import Resource, Transaction, body_value, resources
from trainer.jobs import JOB_KINDS, RESUMABLE, Job, JobState

CHAT_ROWS = frozenset({"CHAT", "COMPLETION"})
PREFERENCE_ROWS = frozenset({"PREFERENCE"})  # `private["rows"]` has the word, which the contract lacks
PROMPT_ROWS = frozenset({"RL", "CHAT"})
ANY_ROWS = frozenset({"CHAT", "COMPLETION", "RL", "PREFERENCE"})
# Fields that this gateway keeps in every job, and that some kinds' schemas lack.
OURS = frozenset({"createTime", "updateTime", "completedTime", "createdBy", "jobProgress", "status", "state"})
GOING = tuple(str(state) for state in JobState if not state.terminal)


@dataclass(frozen=True)
class Input:
    """A field (dotted path) of a job that names a resource it reads. rows: the formats a data set may have there."""

    path: str
    collection: str
    rows: frozenset[str] = ANY_ROWS


@dataclass(frozen=True)
class JobFamily:
    """A collection of jobs.

    singular: in the query of a create (`<singular>Id`). param: the id in paths. settings: the field that holds the
    training settings, "" for the job itself, None where there are none. output: whether a job makes a model.
    resumable: states that a resume leaves. tombstone: a deleted job stays readable, as DELETED.
    """

    kind: str
    collection: str
    singular: str
    schema: str
    param: str
    inputs: tuple[Input, ...]
    settings: str | None = "trainingConfig"
    output: bool = True
    resumable: frozenset[JobState] = RESUMABLE
    tombstone: bool = False

    @property
    def runnable(self) -> bool:
        """True when there is a worker for such jobs."""
        return self.kind in JOB_KINDS or self.kind == EvaluationRun.kind

    def setting(self, name: str) -> str:
        """The dotted path of the training setting `name`."""
        return f"{self.settings}.{name}" if self.settings else name


_BASE = Input("trainingConfig.baseModel", "models")
_WARM_START = Input("trainingConfig.warmStartFrom", "models")

FAMILIES: dict[str, JobFamily] = {
    family.collection: family
    for family in (
        JobFamily(
            "sft", "supervisedFineTuningJobs", "supervisedFineTuningJob", "gatewaySupervisedFineTuningJob",
            "supervised_fine_tuning_job_id",
            (
                Input("dataset", "datasets", CHAT_ROWS), Input("evaluationDataset", "datasets", CHAT_ROWS),
                Input("baseModel", "models"), Input("warmStartFrom", "models"),
            ),
            settings="",
        ),
        JobFamily(
            "dpo", "dpoJobs", "dpoJob", "gatewayDpoJob", "dpo_job_id",
            (Input("dataset", "datasets", PREFERENCE_ROWS), _BASE, _WARM_START),
        ),
        JobFamily(
            "rft", "reinforcementFineTuningJobs", "reinforcementFineTuningJob", "gatewayReinforcementFineTuningJob",
            "reinforcement_fine_tuning_job_id",
            (
                Input("dataset", "datasets", PROMPT_ROWS), Input("evaluationDataset", "datasets", PROMPT_ROWS),
                Input("evaluator", "evaluators"), _BASE, _WARM_START,
            ),
        ),
        JobFamily(
            "rlor", "rlorTrainerJobs", "rlorTrainerJob", "gatewayRlorTrainerJob", "rlor_trainer_job_id",
            (Input("dataset", "datasets"), Input("evaluationDataset", "datasets"), _BASE, _WARM_START),
            output=False, resumable=RESUMABLE | {JobState.COMPLETED}, tombstone=True,
        ),
        JobFamily(
            "training_session", "trainingSessionJobs", "trainingSessionJob", "gatewayTrainingSessionJob",
            "training_session_job_id", (Input("baseModel", "models"),), settings=None, output=False,
        ),
        JobFamily(
            "evaluation", "evaluationJobs", "evaluationJob", "gatewayEvaluationJob", "evaluation_job_id",
            (Input("evaluator", "evaluators"), Input("inputDataset", "datasets"), Input("model", "models")),
            settings=None, output=False,
        ),
        JobFamily(
            "batch_inference", "batchInferenceJobs", "batchInferenceJob", "gatewayBatchInferenceJob",
            "batch_inference_job_id", (Input("model", "models"), Input("inputDatasetId", "datasets")),
            settings=None, output=False,
        ),
    )
}  # fmt: skip


def family_of(job: Resource) -> JobFamily:
    """The family of the record `job`; a tombstone's is that of its name."""
    return FAMILIES[job.name.split("/")[2]]


def trained() -> list[JobFamily]:
    """The families whose jobs the scheduler runs."""
    return [family for family in FAMILIES.values() if family.runnable]


def value_at(body: Mapping[str, Any], path: str) -> Any:
    """What lies at the dotted `path`, or None."""
    found: Any = body
    for part in path.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def with_value(body: Mapping[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy of `body` with `value` at the dotted `path`."""
    first, _, rest = path.partition(".")
    inner = body.get(first)
    return {**body, first: with_value(inner if isinstance(inner, Mapping) else {}, rest, value) if rest else value}


def base_model(job: Resource) -> str:
    """The full name of the base model that the job names, or ""."""
    return value_at(job.body, family_of(job).setting("baseModel")) or ""


def warm_start(job: Resource) -> str:
    """The full name of the adapter that the job goes on from, or ""."""
    return value_at(job.body, family_of(job).setting("warmStartFrom")) or ""


def output_model(job: Resource) -> str:
    """The full name of the model that the job makes, or ""."""
    return value_at(job.body, family_of(job).setting("outputModel")) or ""


def with_output_model(job: Resource, name: str) -> Resource:
    """The record with `name` as its output model."""
    return job.changed(with_value(job.body, family_of(job).setting("outputModel"), name))


def typed(gateway: Gateway, job: Resource) -> Job:
    """The job that a record holds, as its kind's model has it; secrets are not in it.

    Raises pydantic's ValidationError where the record is not a job that can be run.
    """
    family = family_of(job)
    written = gateway.contract.read(family.schema, job.body).value
    known = without_empty(gateway.contract.known(family.schema, written))
    return JOB_KINDS[family.kind].model.model_validate(known)


def unknown_fields(gateway: Gateway, job: Resource) -> list[str]:
    """Paths of what the client has sent and the contract does not know: kept and shown, never acted on.

    Parameters of a query, which no record keeps, begin with `?`.
    """
    found = set(gateway.contract.read(family_of(job).schema, job.body).unknown)
    return sorted(path for path in found | set(job.private.get("unknown", [])) if path not in OURS)


def without_empty(body: dict[str, Any]) -> dict[str, Any]:
    """`body` less the empty strings, which on this wire mean "not given"."""
    return {
        key: without_empty(value) if isinstance(value, dict) else value for key, value in body.items() if value != ""
    }


def using(transaction: Transaction, name: str) -> list[str]:
    """Names of jobs, of any kind and not yet ended, that read the resource `name`."""
    found: list[str] = []
    for family in FAMILIES.values():
        paths = [one.path.split(".") for one in family.inputs]
        reads = sa.or_(*(body_value(path).as_string() == name for path in paths))
        going = resources.c.state.in_(GOING)
        found += [job.name for job in transaction.every(family.collection, going, reads)]
    return found
