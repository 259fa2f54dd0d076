"""The job kinds, typed: a job is exactly what the gateway's schema says it is.

Every writable field of the contract's schema is a field here, honoured or refused with its reason; the few that
are not exposed stand in `NOT_EXPOSED` with theirs, and `tests/contract/` proves the two lists complete. Names are
snake_case in Python and YAML, camelCase on the wire; unknown keys are errors. Nothing here imports torch.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Self, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator
from pydantic.alias_generators import to_camel

RESOURCE_ID = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
RESOURCE_NAME = re.compile(r"accounts/(?P<account>[a-z0-9-]+)/(?P<collection>[A-Za-z]+)/(?P<id>[A-Za-z0-9._-]+)")

DEFAULT_EPOCHS = 1
DEFAULT_LEARNING_RATE = 1e-4
DEFAULT_LORA_RANK = 8
DEFAULT_BATCH_TOKENS = 32_768
DEFAULT_MAX_CONTEXT = 8_192
DEFAULT_WEIGHT_DECAY = 0.01
DEFAULT_PREFERENCE_LEARNING_RATE = 1e-5
DEFAULT_DPO_BETA = 0.1
DEFAULT_ORPO_LAMBDA = 1.0  # the hosted gateway's; the paper's, TRL's and the loss's own is 0.1
DEFAULT_REFERENCE_PAIRS = 64


class JobState(StrEnum):
    """The contract's `gatewayJobState`."""

    UNSPECIFIED = "JOB_STATE_UNSPECIFIED"
    CREATING = "JOB_STATE_CREATING"
    RUNNING = "JOB_STATE_RUNNING"
    COMPLETED = "JOB_STATE_COMPLETED"
    FAILED = "JOB_STATE_FAILED"
    CANCELLED = "JOB_STATE_CANCELLED"
    DELETING = "JOB_STATE_DELETING"
    WRITING_RESULTS = "JOB_STATE_WRITING_RESULTS"
    VALIDATING = "JOB_STATE_VALIDATING"
    DELETING_CLEANING_UP = "JOB_STATE_DELETING_CLEANING_UP"
    PENDING = "JOB_STATE_PENDING"
    EXPIRED = "JOB_STATE_EXPIRED"
    RE_QUEUEING = "JOB_STATE_RE_QUEUEING"
    CREATING_INPUT_DATASET = "JOB_STATE_CREATING_INPUT_DATASET"
    IDLE = "JOB_STATE_IDLE"
    CANCELLING = "JOB_STATE_CANCELLING"
    EARLY_STOPPED = "JOB_STATE_EARLY_STOPPED"
    PAUSED = "JOB_STATE_PAUSED"
    DELETED = "JOB_STATE_DELETED"

    @property
    def terminal(self) -> bool:
        """True when the job will not move again unless someone resumes it."""
        return self in _TERMINAL


_TERMINAL = frozenset(
    {
        JobState.COMPLETED,
        JobState.FAILED,
        JobState.CANCELLED,
        JobState.EARLY_STOPPED,
        JobState.EXPIRED,
        JobState.DELETED,
    }
)
RESUMABLE = frozenset({JobState.FAILED, JobState.CANCELLED, JobState.PAUSED})


class Purpose(StrEnum):
    """The contract's `gatewayPurpose`: PILOT jobs go first in the embedded gateway's queue."""

    UNSPECIFIED = "PURPOSE_UNSPECIFIED"
    PILOT = "PURPOSE_PILOT"


def refuse_booleans(model: type[BaseModel], values: Any) -> Any:
    """`values` as they are. Raises `ValueError` where true or false stands for a number, which pydantic takes as 1 or
    0."""
    for name, field in model.model_fields.items() if isinstance(values, dict) else ():
        given = next((values[key] for key in (name, field.alias) if key in values), None)
        if isinstance(given, bool) and not _takes_booleans(field.annotation):
            raise ValueError(f"{name.strip('_')}: {str(given).lower()} is a boolean, and no value of this field")
    return values


def _takes_booleans(annotation: Any) -> bool:
    return annotation in (bool, Any) or any(map(_takes_booleans, get_args(annotation)))


class Wire(BaseModel):
    """A closed, frozen model: snake_case in Python and YAML, camelCase on the wire."""

    model_config = ConfigDict(extra="forbid", frozen=True, alias_generator=to_camel, populate_by_name=True)

    @model_validator(mode="before")
    @classmethod
    def _booleans_are_no_numbers(cls, values: Any) -> Any:
        return refuse_booleans(cls, values)

    def wire(self) -> dict[str, Any]:
        """This object as the wire has it: camelCase, only the fields that differ from unset, secrets left out."""
        return self.model_dump(mode="json", by_alias=True, exclude_defaults=True, exclude=self._secrets())

    def _secrets(self) -> Any:
        return None


class WandbConfig(Wire):
    """Weights & Biases logging (`gatewayWandbConfig`)."""

    enabled: bool = Field(default=False, description="Log this job to Weights & Biases.")
    api_key: SecretStr | None = Field(
        default=None,
        description="The key; None = the environment's WANDB_API_KEY. Never stored in run.json, printed or returned.",
    )
    project: str | None = Field(default=None, description="Project; None = 'trainer'.")
    entity: str | None = Field(default=None, description="Entity; None = the key's own.")
    run_id: str | None = Field(default=None, description="Run id; None = the run's own id.")

    def _secrets(self) -> Any:
        return {"api_key"}


def _no_federation(value: str | None) -> str | None:
    if value:
        raise ValueError(
            "a gateway of one's own has no cloud identity that another cloud could trust; put keys that may read the "
            "rows into a secret, and name it in credentials_secret"
        )
    return value


_Federated = Annotated[str | None, AfterValidator(_no_federation)]


class _Credentials(Wire):
    """What opens the rows that lie elsewhere: a secret of the job's own account, by name."""

    credentials_secret: str | None = Field(default=None, description="accounts/{account}/secrets/{secret}.")

    @model_validator(mode="after")
    def _names_a_secret(self) -> Self:
        if not self.credentials_secret:
            raise ValueError("names no credentials; set credentials_secret to accounts/{account}/secrets/{secret}")
        return self


class AwsS3Config(_Credentials):
    """S3 access to data sets whose externalUrl is s3:// (`gatewayAwsS3Config`)."""

    iam_role_arn: _Federated = Field(default=None, description="Role to assume: refused here.")


class AzureBlobStorageConfig(_Credentials):
    """Azure Blob access to data sets whose externalUrl is there (`gatewayAzureBlobStorageConfig`)."""

    managed_identity_client_id: _Federated = Field(default=None, description="Managed identity: refused here.")
    tenant_id: _Federated = Field(default=None, description="Of a managed identity: refused here.")


class BucketAccess(Wire):
    """What every kind of job has of buckets, as far as its schema has it."""

    aws_s3_config: AwsS3Config | None = Field(default=None, description="As in a supervised job.")
    azure_blob_storage_config: AzureBlobStorageConfig | None = Field(default=None, description="Likewise.")


Count = Annotated[int, Field(ge=0, le=2**31 - 1)]
Epochs = Annotated[int, Field(ge=0, le=100_000)]  # the batches of each are planned before the first step
Rate = Annotated[float, Field(ge=0, lt=float("inf"), allow_inf_nan=False)]


class SupervisedFineTuningJob(Wire):
    """A supervised fine-tuning job (`gatewaySupervisedFineTuningJob`), its writable fields.

    Raises `pydantic.ValidationError` for unknown keys, values out of range and impossible combinations; each message
    names the way out. None, and 0 where a field says so, mean the default.
    """

    settings_at: ClassVar[str] = "job"  # where the training settings stand

    dataset: str = Field(min_length=1, description="A gateway data set, a local file or folder, or a hub id.")
    display_name: str | None = Field(default=None, max_length=63, description="A name for people.")
    output_model: str | None = Field(default=None, description="Model id to promote to; None = the job's id.")
    base_model: str | None = Field(default=None, description="Model to fine-tune. Excludes warm_start_from.")
    warm_start_from: str | None = Field(default=None, description="LoRA model to go on from. Excludes base_model.")
    jinja_template: str | None = Field(default=None, description="Chat template; None = the base model's own.")
    epochs: Epochs | None = Field(default=None, description=f"Passes over the rows; None or 0 = {DEFAULT_EPOCHS}.")
    learning_rate: Rate | None = Field(default=None, description=f"Peak rate; None = {DEFAULT_LEARNING_RATE}.")
    max_context_length: Count | None = Field(
        default=None, description=f"Longest row in tokens; None or 0 = min({DEFAULT_MAX_CONTEXT}, the model's)."
    )
    lora_rank: Count | None = Field(
        default=None, description=f"Rank of the adapter; 0 = train all parameters; None = {DEFAULT_LORA_RANK}."
    )
    batch_size: Count | None = Field(
        default=None, description=f"Tokens per packed batch; None or 0 = {DEFAULT_BATCH_TOKENS}."
    )
    batch_size_samples: Count | None = Field(
        default=None, description="Rows per gradient batch; None or 0 = as many as fill batch_size tokens."
    )
    gradient_accumulation_steps: Count | None = Field(
        default=None, description="Gradient batches per optimizer step; None or 0 = 1."
    )
    learning_rate_warmup_steps: Count | None = Field(
        default=None, description="Optimizer steps of linear warm-up; None or 0 = none."
    )
    optimizer_weight_decay: Rate | None = Field(
        default=None, description=f"AdamW decoupled decay; None = {DEFAULT_WEIGHT_DECAY}."
    )
    evaluation_dataset: str | None = Field(default=None, description="Held-out rows. Excludes eval_auto_carveout.")
    eval_auto_carveout: bool = Field(default=False, description="Hold out a share of the rows, chosen by row hash.")
    early_stop: bool = Field(default=False, description="Stop when the held-out loss no longer falls.")
    wandb_config: WandbConfig | None = Field(default=None, description="Weights & Biases logging; None = off.")
    purpose: Purpose = Field(default=Purpose.UNSPECIFIED, description="PILOT jobs go first in the gateway's queue.")
    nodes: Count | None = Field(default=None, description="Machines; only None, 0 and 1 are possible here.")
    is_turbo: bool = Field(default=False, description="Hosted turbo mode: refused here.")
    mtp_enabled: bool = Field(default=False, description="Multi-token prediction: refused here.")
    mtp_num_draft_tokens: Count | None = Field(default=None, description="Multi-token prediction: refused here.")
    mtp_freeze_base_model: bool = Field(default=False, description="Multi-token prediction: refused here.")
    aws_s3_config: AwsS3Config | None = Field(default=None, description="Opens data sets with an s3:// externalUrl.")
    azure_blob_storage_config: AzureBlobStorageConfig | None = Field(
        default=None, description="Opens data sets whose externalUrl is in Azure Blob Storage."
    )

    @field_validator("output_model")
    @classmethod
    def _output_model_is_an_id(cls, value: str | None) -> str | None:
        if value is not None:
            resource_id(value, collection="models", what="output_model")
        return value

    @model_validator(mode="after")
    def _refuse_what_cannot_be_honoured(self) -> SupervisedFineTuningJob:
        refused = {
            "nodes": (self.nodes or 0) > 1
            and "one job trains on one machine here; leave nodes unset or 1 (the hosted gateway ignores it too)",
            "is_turbo": self.is_turbo
            and "turbo is a speed tier of the hosted gateway; here speed is set by the engine group, leave it false",
            "mtp_enabled": self.mtp_enabled and _NO_MTP,
            "mtp_num_draft_tokens": self.mtp_num_draft_tokens and _NO_MTP,
            "mtp_freeze_base_model": self.mtp_freeze_base_model and _NO_MTP,
        }
        for name, reason in refused.items():
            if reason:
                raise ValueError(f"{name}: {reason}")
        return self

    @model_validator(mode="after")
    def _combinations(self) -> SupervisedFineTuningJob:
        _check_start(self.base_model, self.warm_start_from, self.lora_rank)
        if self.evaluation_dataset and self.eval_auto_carveout:
            raise ValueError(
                "evaluation_dataset and eval_auto_carveout exclude each other: name the held-out rows or have "
                "them carved out, not both"
            )
        if self.early_stop and not (self.evaluation_dataset or self.eval_auto_carveout):
            raise ValueError(
                "early_stop: needs held-out rows to judge by; set evaluation_dataset or eval_auto_carveout=true"
            )
        return self

    def _secrets(self) -> Any:
        return {"wandb_config": {"api_key"}}


def _check_start(base_model: str | None, warm_start_from: str | None, lora_rank: int | None) -> None:
    """Raise `ValueError` unless a job says once from where it starts."""
    if base_model and warm_start_from:
        raise ValueError(
            "base_model and warm_start_from exclude each other: a warm start already names its base; "
            "unset base_model to go on from the adapter, or warm_start_from to start fresh"
        )
    if not base_model and not warm_start_from:
        raise ValueError("base_model: name the model to fine-tune, or warm_start_from an adapter")
    if warm_start_from and lora_rank is not None:
        raise ValueError(
            "lora_rank: a warm start keeps the adapter's own rank; leave lora_rank unset, or start from base_model"
        )


_NO_MTP = "multi-token prediction is not supported (the hosted gateway's current stack has dropped it too); unset it"


class TrainerShardingScheme(Wire):
    """How one model is spread over devices (`gatewayTrainerShardingScheme`). Training here is one process, so only
    degrees of None, 0 and 1 can be honoured."""

    tensor_parallelism: Count | None = Field(default=None, description="Only None, 0 and 1 are possible here.")
    pipeline_parallelism: Count | None = Field(default=None, description="Only None, 0 and 1 are possible here.")
    context_parallelism: Count | None = Field(default=None, description="Only None, 0 and 1 are possible here.")
    expert_parallelism: Count | None = Field(default=None, description="Only None, 0 and 1 are possible here.")
    sequence_parallelism: bool = Field(default=False, description="Only false is possible here.")

    @model_validator(mode="after")
    def _one_process(self) -> TrainerShardingScheme:
        for name, degree in self:
            if degree and (degree is True or degree > 1):
                raise ValueError(
                    f"{name}: {degree} spreads the model over several devices, and a job trains in one process here; "
                    "leave trainer_sharding_scheme unset (the hosted gateway's own choice is 1, too)"
                )
        return self


class TrainingConfig(Wire):
    """What the job kinds with nested settings train by (`gatewayBaseTrainingConfig`).

    None, and 0 where a field says so, mean the default.
    """

    output_model: str | None = Field(default=None, description="Model id to promote to; None = the job's id.")
    base_model: str | None = Field(default=None, description="Model to fine-tune. Excludes warm_start_from.")
    warm_start_from: str | None = Field(default=None, description="LoRA model to go on from. Excludes base_model.")
    jinja_template: str | None = Field(default=None, description="Chat template; None = the base model's own.")
    learning_rate: Rate | None = Field(default=None, description="Peak rate; None = the job kind's default.")
    max_context_length: Count | None = Field(
        default=None, description=f"Longest sequence in tokens; None or 0 = min({DEFAULT_MAX_CONTEXT}, the model's)."
    )
    lora_rank: Count | None = Field(
        default=None, description=f"Rank of the adapter; 0 = train all parameters; None = {DEFAULT_LORA_RANK}."
    )
    epochs: Epochs | None = Field(default=None, description=f"Passes over the rows; None or 0 = {DEFAULT_EPOCHS}.")
    batch_size: Count | None = Field(
        default=None, description=f"Tokens per packed batch; None or 0 = {DEFAULT_BATCH_TOKENS}."
    )
    gradient_accumulation_steps: Count | None = Field(
        default=None, description="Gradient batches per optimizer step; None or 0 = 1."
    )
    learning_rate_warmup_steps: Count | None = Field(
        default=None, description="Optimizer steps of linear warm-up; None or 0 = none."
    )
    batch_size_samples: Count | None = Field(
        default=None, description="Rows (pairs) per gradient batch; None or 0 = as many as fill batch_size tokens."
    )
    optimizer_weight_decay: Rate | None = Field(
        default=None, description=f"AdamW decoupled decay; None = {DEFAULT_WEIGHT_DECAY}."
    )
    trainer_sharding_scheme: TrainerShardingScheme | None = Field(
        default=None, description="Spread over devices: refused here beyond one process."
    )
    lora_alpha: Count | None = Field(
        default=None, description="Scale numerator; None or 0 = model.lora.alpha, or twice the rank."
    )
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        default=None, description="Dropout on the adapter's input; None = model.lora.dropout."
    )
    lora_target_modules: list[str] | None = Field(
        default=None, description="Module names (q_proj, ...); None or [] = model.lora.targets."
    )

    @field_validator("output_model")
    @classmethod
    def _output_model_is_an_id(cls, value: str | None) -> str | None:
        if value is not None:
            resource_id(value, collection="models", what="output_model")
        return value

    @model_validator(mode="after")
    def _adapter_settings_need_a_new_adapter(self) -> TrainingConfig:
        _check_start(self.base_model, self.warm_start_from, self.lora_rank)
        given = [name for name in ("lora_alpha", "lora_dropout", "lora_target_modules") if getattr(self, name)]
        if given and self.warm_start_from:
            raise ValueError(f"{given[0]}: a warm start keeps the adapter's own settings; leave {given[0]} unset")
        if given and self.lora_rank == 0:
            raise ValueError(
                f"{given[0]}: with lora_rank=0 all parameters are trained and there is no adapter; "
                f"leave {given[0]} unset, or set lora_rank"
            )
        return self


class LossMethod(StrEnum):
    """The contract's `ReinforcementLearningLossConfigMethod`."""

    UNSPECIFIED = "METHOD_UNSPECIFIED"
    GRPO = "GRPO"
    DAPO = "DAPO"
    DPO = "DPO"
    ORPO = "ORPO"
    GSPO_TOKEN = "GSPO_TOKEN"  # noqa: S105


_Positive = Annotated[float, Field(gt=0, lt=float("inf"), allow_inf_nan=False)]


class DpoConfig(Wire):
    """DPO's settings (`gatewayDpoConfig`)."""

    beta: _Positive | None = Field(
        default=None, description=f"Weight of the reference; None = {DEFAULT_DPO_BETA}; the hosted gateway: below 0.5."
    )
    ref_cache_concurrency: Count | None = Field(
        default=None, description="Reference passes under way at once, which the engine packs into one; None or 0 = 1."
    )
    ref_cache_batch_size: Count | None = Field(
        default=None, description=f"Pairs in one reference pass; None or 0 = {DEFAULT_REFERENCE_PAIRS}."
    )


class OrpoConfig(Wire):
    """ORPO's settings (`gatewayOrpoConfig`)."""

    lambda_: Rate | None = Field(
        default=None, alias="lambda", description=f"Weight of the odds-ratio term; None = {DEFAULT_ORPO_LAMBDA}."
    )


class LossConfig(Wire):
    """The loss of a job with a choice of them (`gatewayReinforcementLearningLossConfig`)."""

    method: LossMethod = Field(default=LossMethod.UNSPECIFIED, description="Unspecified = the job kind's own.")
    kl_beta: Rate | None = Field(default=None, description="KL coefficient of GRPO-like methods.")
    dpo: DpoConfig | None = Field(default=None, description="Settings of method DPO.")
    orpo: OrpoConfig | None = Field(default=None, description="Settings of method ORPO.")


class DpoJob(Wire):
    """A preference job (`gatewayDpoJob`), its writable fields: DPO, or ORPO where the loss says so.

    The schema has no place for held-out rows or early stopping: `data.evaluation`, `data.carveout` and
    `train.early_stop` are theirs. Raises `pydantic.ValidationError` as `SupervisedFineTuningJob`.
    """

    settings_at: ClassVar[str] = "job.training_config"

    dataset: str = Field(min_length=1, description="Pairs: a gateway data set, a local file or folder, or a hub id.")
    display_name: str | None = Field(default=None, max_length=63, description="A name for people.")
    training_config: TrainingConfig | None = Field(default=None, description="What to train, and by which numbers.")
    loss_config: LossConfig | None = Field(default=None, description="The method and its settings; None = DPO.")
    wandb_config: WandbConfig | None = Field(default=None, description="Weights & Biases logging; None = off.")
    aws_s3_config: AwsS3Config | None = Field(default=None, description="Opens data sets with an s3:// externalUrl.")
    azure_blob_storage_config: AzureBlobStorageConfig | None = Field(
        default=None, description="Opens data sets whose externalUrl is in Azure Blob Storage."
    )
    purpose: Purpose = Field(default=Purpose.UNSPECIFIED, description="PILOT jobs go first in the gateway's queue.")

    @model_validator(mode="after")
    def _refuse_what_cannot_be_honoured(self) -> DpoJob:
        if self.training_config is None:
            raise ValueError("training_config: name the model to fine-tune in training_config.base_model")
        self._check_loss(self.loss_config or LossConfig())
        return self

    @staticmethod
    def _check_loss(loss: LossConfig) -> None:
        method = LossMethod.DPO if loss.method is LossMethod.UNSPECIFIED else loss.method
        if method not in (LossMethod.DPO, LossMethod.ORPO):
            raise ValueError(
                f"loss_config.method: {method} learns from rewards, and this job from pairs; use DPO or ORPO here, or "
                "a reinforcement fine-tuning job (reinforcementFineTuningJobs) for GRPO, DAPO and GSPO_TOKEN"
            )
        if loss.kl_beta is not None:
            raise ValueError(
                f"loss_config.kl_beta: {method} has no KL term (klBeta is of GRPO-like methods); unset it, and set "
                "loss_config.dpo.beta to hold DPO closer to the reference"
            )
        mine, other = ("dpo", "orpo") if method is LossMethod.DPO else ("orpo", "dpo")
        settings = getattr(loss, other)
        for name in settings.model_fields_set if settings else ():
            if getattr(settings, name) is not None:
                raise ValueError(
                    f"loss_config.{other}.{name.strip('_')}: means nothing for {method}; unset it, use "
                    f"loss_config.{mine}, or set loss_config.method={other.upper()}"
                )

    @property
    def method(self) -> LossMethod:
        """DPO or ORPO."""
        given = self.loss_config.method if self.loss_config else LossMethod.UNSPECIFIED
        return LossMethod.DPO if given is LossMethod.UNSPECIFIED else given

    @property
    def settings(self) -> TrainingConfig:
        """The training settings."""
        assert self.training_config is not None  # the validator has seen to it
        return self.training_config

    @property
    def output_model(self) -> str | None:
        """As `training_config.output_model`."""
        return self.settings.output_model

    @property
    def base_model(self) -> str | None:
        """As `training_config.base_model`."""
        return self.settings.base_model

    @property
    def warm_start_from(self) -> str | None:
        """As `training_config.warm_start_from`."""
        return self.settings.warm_start_from

    @property
    def jinja_template(self) -> str | None:
        """As `training_config.jinja_template`."""
        return self.settings.jinja_template

    @property
    def max_context_length(self) -> int | None:
        """As `training_config.max_context_length`."""
        return self.settings.max_context_length

    def _secrets(self) -> Any:
        return {"wandb_config": {"api_key"}}


Job = SupervisedFineTuningJob | DpoJob


def settings_of(job: Job) -> SupervisedFineTuningJob | TrainingConfig:
    """What the job trains by: epochs, learning_rate, lora_rank, batch sizes; the same names in every kind."""
    return job.settings if isinstance(job, DpoJob) else job


# Writable by the letter of the contract, yet not a user's to write.
NOT_EXPOSED: dict[str, dict[str, str]] = {
    "gatewaySupervisedFineTuningJob": {
        "metricsFileSignedUrl": "the gateway signs it when asked; a client's value is dropped like other output",
    },
}


@dataclass(frozen=True)
class JobKind:
    """One kind of job: its model (a `Job`), its collection in the gateway, its schema in the contract."""

    name: str
    model: type[Any]
    collection: str
    schema: str


JOB_KINDS: dict[str, JobKind] = {
    "sft": JobKind("sft", SupervisedFineTuningJob, "supervisedFineTuningJobs", "gatewaySupervisedFineTuningJob"),
    "dpo": JobKind("dpo", DpoJob, "dpoJobs", "gatewayDpoJob"),
}


def resource_id(value: str, *, collection: str, what: str) -> str:
    """The bare id of `value`, which is an id or a full resource name of `collection`.

    Raises `ValueError` naming `what` when the id is not 1 to 63 of `[a-z0-9-]` or the name is of another collection.
    """
    bare = value
    if value.startswith("accounts/"):
        match = RESOURCE_NAME.fullmatch(value)
        if match is None or match["collection"] != collection:
            raise ValueError(f"{what}: {value!r} is not a name of the form accounts/{{account}}/{collection}/{{id}}")
        bare = match["id"]
    if not RESOURCE_ID.fullmatch(bare):
        raise ValueError(
            f"{what}: {bare!r} is not a resource id (1 to 63 of lower-case letters, digits and '-', "
            "beginning and ending with a letter or digit)"
        )
    return bare
