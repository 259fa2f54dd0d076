"""A run: one attempt at a job, owner of one folder; `run.json` in it is the worker's only input.

    outputs/<run>/run.json         what to do, resolved (this module's `RunSpec`)
    outputs/<run>/ledger.json      what became of every row and token
    outputs/<run>/metrics.jsonl    one line per optimizer step and evaluation
    outputs/<run>/sync.jsonl       everything the run reported, in order (`trainer.report.Event`)
    outputs/<run>/checkpoints/     step-<n>/manifest.json + safetensors
    outputs/<run>/model/           the output model's files, once there is one
    outputs/<run>/worker.log       the worker's standard output and error
    outputs/<run>/report.html      all of it on one page

The home folder (`TRAINER_HOME`, `./outputs` unless set) holds the runs and the embedded gateway's state.
"""

from __future__ import annotations

import json
import os
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from trainer.disk import write_whole
from trainer.jobs import (
    DEFAULT_BATCH_TOKENS,
    DEFAULT_EPOCHS,
    DEFAULT_LEARNING_RATE,
    DEFAULT_LORA_RANK,
    DEFAULT_MAX_CONTEXT,
    DEFAULT_PREFERENCE_LEARNING_RATE,
    DEFAULT_WEIGHT_DECAY,
    JOB_KINDS,
    DpoJob,
    Job,
    refuse_booleans,
    settings_of,
)

_PACKAGE = Path(__file__).resolve().parent
_REPOSITORY = _PACKAGE.parent


class Closed(BaseModel):
    """A closed, frozen group of settings."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _booleans_are_no_numbers(cls, values: Any) -> Any:
        return refuse_booleans(cls, values)


class LoraSettings(Closed):
    """The adapter beside its rank, which is the job's."""

    alpha: float | None = Field(default=None, gt=0, description="Scale numerator; None = twice the rank.")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="Dropout on the adapter's input.")
    targets: str | list[str] = Field(default="all-linear", description="Module names, or 'all-linear' (not the head).")
    rslora: bool = Field(default=False, description="Scale alpha/sqrt(rank) instead of alpha/rank (2312.03732).")

    @field_validator("targets", mode="before")
    @classmethod
    def _targets_are_names(cls, value: Any) -> Any:
        names = value if isinstance(value, list | tuple) else [value]
        if not names or not all(isinstance(name, str) and name.strip() for name in names):
            raise ValueError(f"{value!r} names no modules; give all-linear, or a list such as [q_proj, v_proj]")
        try:
            re.compile(value if isinstance(value, str) else "")
        except re.error as error:
            raise ValueError(f"{value!r} is no regular expression ({error}); give all-linear, or a list") from error
        return value

    def asked_by(self, job: Job) -> LoraSettings:
        """These settings with what the job says of its adapter. Raises `ValueError` where both say something else."""
        if not isinstance(job, DpoJob):
            return self
        asked = {"alpha": job.settings.lora_alpha, "dropout": job.settings.lora_dropout,
                 "targets": job.settings.lora_target_modules}  # fmt: skip
        given = {name: value for name, value in asked.items() if value or (name == "dropout" and value is not None)}
        for name, value in given.items():
            mine = getattr(self, name)
            if mine not in (type(self).model_fields[name].default, value):
                raise ValueError(
                    f"model.lora.{name}: {mine!r}, and the job's {_JOBS_NAMES[name]} is {value!r}; set one of them"
                )
        return self.model_copy(update=given)


_JOBS_NAMES = {"alpha": "lora_alpha", "dropout": "lora_dropout", "targets": "lora_target_modules"}


class ModelSettings(Closed):
    """The base model: where `from_pretrained` finds it and how adapters attach."""

    name: str = Field(description="The gateway's name for it, or any label.")
    path: str = Field(description="A folder or hub id that from_pretrained takes.")
    revision: str | None = Field(default=None, description="Hub revision; None = the newest.")
    lora: LoraSettings = LoraSettings()


def _share(default: float, description: str) -> float:
    return Field(default=default, ge=0, le=1, description=description)


class GateSettings(Closed):
    """What a run's data may measure before it is refused. All are shares from 0 (none allowed) to 1 (no gate)."""

    dropped_rows: float = _share(0.1, "Rows left out, of the rows read: bad_rows=drop and overlong=drop have a bound.")
    cut_tokens: float = _share(0.1, "Tokens cut off by overlong=cut, of the tokens read: answers lose their ends.")
    untrained_rows: float = _share(
        0.05, "Rows without a token to learn (weight 0, or cut before the answer), of the rows read."
    )
    untrained_stops: float = _share(
        0.1, "Turns learnt without their stop token, of the turns learnt: the model runs on after such answers."
    )
    duplicate_rows: float = _share(0.5, "Rows equal to an earlier one, of the rows used: 0.5 lets each stand twice.")
    overlap_rows: float = _share(0.0, "Held-out rows that are trained on too, of the held-out rows.")
    overlap_prompts: float = _share(0.0, "Held-out rows whose prompt is trained on too, whatever the answer.")


class DataSettings(Closed):
    """How rows are read; which rows is the job's `dataset`."""

    format: Literal["auto", "chat", "completion", "text", "pair"] = Field(
        default="auto", description="auto = by its keys, of those that the job can learn from."
    )
    evaluation: str | None = Field(
        default=None, description="Held-out rows, where the job has no field for them (dpo); like job.dataset."
    )
    carveout: bool = Field(
        default=False, description="Hold out a share of the rows, where the job has no field for that (dpo)."
    )
    split: str = Field(default="train", description="Split of a hub data set.")
    subset: str | None = Field(default=None, description="Configuration of a hub data set, where it has several.")
    columns: dict[str, str] = Field(
        default_factory=dict, description="Which column each field is read from: {'prompt': 'question', ...}."
    )
    overlong: Literal["refuse", "drop", "cut"] = Field(
        default="refuse", description="Rows over max_context_length: refuse the job, drop the row, or cut its end."
    )
    bad_rows: Literal["refuse", "drop"] = Field(default="refuse", description="Rows that cannot be used.")
    max_rows: int | None = Field(default=None, ge=1, description="Use only the first n rows to train on; None = all.")
    max_row_bytes: int = Field(
        default=2 << 20,
        ge=1024,
        le=1 << 40,
        description="Longest row of a .jsonl or .json file; reading holds up to 20 times that.",
    )
    shuffle: bool = Field(default=True, description="New order in every epoch, from the seed.")
    carveout_fraction: float = Field(
        default=0.1, gt=0, lt=1, description="Share held out by eval_auto_carveout or data.carveout."
    )
    carveout_max_rows: int = Field(default=100, ge=1, description="At most so many rows are held out.")
    gates: GateSettings = GateSettings()


class WatchdogSettings(Closed):
    """How long each stage may take before it counts as hung, in seconds; 0 = for ever."""

    policy: Literal["warn", "stop"] = Field(
        default="warn", description="warn = hang.txt and a log line; stop = then end the worker with status 76."
    )
    reading_seconds: float = Field(default=3600.0, ge=0, description="Reading and rendering all rows.")
    loading_seconds: float = Field(default=3600.0, ge=0, description="Loading the base model.")
    step_seconds: float = Field(default=1800.0, ge=0, description="One optimizer step.")
    evaluation_seconds: float = Field(default=7200.0, ge=0, description="One evaluation, or answering held-out rows.")
    save_seconds: float = Field(default=3600.0, ge=0, description="Writing a checkpoint or the output model.")


class PreferenceSettings(Closed):
    """What a DPO job's schema does not have: which of the losses of a margin, and its constants (`loss_specs`)."""

    loss: Literal["dpo", "dpo_ipo", "dpo_hinge", "dpo_robust", "dpo_sigmoid_norm"] = Field(
        default="dpo", description="The loss of the margin; dpo = the paper's (sigmoid)."
    )
    label_smoothing: float | None = Field(default=None, ge=0, description="None = the loss's own.")
    nll_weight: float = Field(
        default=0.0, ge=0, description="Weight of -(mean log-prob of chosen); the paper's DPO has none."
    )


class TrainSettings(Closed):
    """Settings of the loop that the gateway's job does not have."""

    seed: int = Field(
        default=0, ge=0, lt=2**63, description="Order of rows, adapter initialisation, dropout, sampling."
    )
    scheduler: Literal["constant", "linear", "cosine"] = Field(default="cosine", description="After the warm-up.")
    min_lr_ratio: float = Field(default=0.1, ge=0, le=1, description="Last rate over the peak (linear, cosine).")
    max_grad_norm: float = Field(default=1.0, ge=0, description="Clip the global norm; 0 = no clipping.")
    adam_beta1: float = Field(default=0.9, ge=0, lt=1, description="AdamW first moment.")
    adam_beta2: float = Field(default=0.95, ge=0, lt=1, description="AdamW second moment.")
    adam_eps: float = Field(default=1e-8, gt=0, description="AdamW epsilon.")
    checkpoint_every_steps: int = Field(default=0, ge=0, description="0 = one per epoch; always one at the end.")
    keep_checkpoints: int = Field(default=3, ge=1, description="Newest checkpoints kept; the best one is kept too.")
    evaluate_every_steps: int = Field(default=0, ge=0, description="Held-out loss; 0 = once per epoch.")
    async_checkpoints: bool = Field(
        default=False, description="Digest and fsync checkpoints in the background; the numbers are the same."
    )
    early_stop: bool = Field(
        default=False, description="Stop when best_metric gets no better, where the job has no field for that (dpo)."
    )
    early_stop_patience: int = Field(default=2, ge=1, description="Evaluations without a better one before stopping.")
    best_metric: str = Field(default="eval/loss", description="Logged metric that early stopping judges by.")
    best_mode: Literal["min", "max"] = Field(default="min", description="Whether less or more of it is better.")
    best_min_delta: float = Field(default=0.0, ge=0, description="Better counts only by more than this.")
    best_confidence: float = Field(
        default=0.0, ge=0, description="Shares: better counts only by so many standard errors (1.96 = 95 %); 0 = any."
    )
    score_every_evaluation: bool = Field(
        default=False, description="Log eval/exact_match over the score_rows at every evaluation."
    )
    on_nonfinite: Literal["stop", "skip"] = Field(
        default="stop", description="A NaN or infinite loss or gradient fails the run, or leaves that step out."
    )
    max_skipped_steps: int = Field(default=10, ge=0, description="With on_nonfinite=skip: one more fails the run.")
    parity_prompts: int = Field(
        default=2, ge=0, description="Prompts on which trainer, sampler and saved files must agree; 0 = no check."
    )
    parity_max_gap: float | None = Field(
        default=None, ge=0, description="Largest log-prob gap in nats; None = 1e-3 in float32, 0.15 in bfloat16."
    )
    watchdog: WatchdogSettings = WatchdogSettings()
    over_memory: Literal["refuse", "try"] = Field(
        default="refuse", description="A run whose estimated peak this machine cannot hold: refuse it, or start it."
    )
    dpo: PreferenceSettings = PreferenceSettings()
    score_rows: int = Field(
        default=0,
        ge=0,
        description="Held-out rows answered before and after training and scored by exact match; at least sample_rows.",
    )
    sample_rows: int = Field(default=3, ge=0, description="Held-out rows whose answers are shown before and after.")
    sample_max_tokens: int = Field(default=64, ge=1, description="Longest answer, in tokens.")


class EngineSettings(Closed):
    """Where and how the tensors live."""

    kind: Literal["local"] = Field(default="local", description="local = this process, CPU or one GPU.")
    device: str = Field(default="auto", description="auto | cpu | cuda | cuda:N | mps.")
    dtype: Literal["float32", "bfloat16"] = Field(default="float32", description="Of the base weights; adapters: fp32.")
    gradient_checkpointing: bool = Field(default=False, description="Recompute activations: less memory, more time.")
    attention: Literal["auto", "varlen", "sdpa"] = Field(
        default="auto", description="varlen = packed rows, each by itself; sdpa = torch's plain SDPA."
    )
    layout: Literal["auto", "packed", "padded"] = Field(
        default="auto",
        description="packed = rows end to end; padded = buckets of about one length, always plain SDPA; auto = padded "
        "with attention=sdpa, whose mask would be block-diagonal over packed rows, else packed.",
    )
    head_tile: int = Field(default=1024, ge=1, description="Positions per tile of the LM head.")
    threads: int | None = Field(default=None, ge=1, le=4096, description="Torch threads; None = torch's own choice.")

    @field_validator("device")
    @classmethod
    def _device_is_known(cls, value: str) -> str:
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?|mps", value):
            raise ValueError(f"{value!r} is no device; allowed are auto, cpu, cuda, cuda:N and mps")
        return value

    @model_validator(mode="after")
    def _layout_has_its_attention(self) -> EngineSettings:
        if self.layout == "padded" and self.attention == "varlen":
            raise ValueError(
                "layout: 'padded' rows have plain SDPA only, and attention is 'varlen'; set engine.attention=auto or "
                "sdpa, or engine.layout=packed"
            )
        return self

    @property
    def laid_out(self) -> Literal["packed", "padded"]:
        """The layout that `auto` stands for; measured in docs/performance.md."""
        if self.layout != "auto":
            return self.layout
        return "padded" if self.attention == "sdpa" else "packed"


class LaunchSettings(Closed):
    """Where the worker starts."""

    kind: Literal["here"] = Field(default="here", description="here = a process on this machine.")


class GatewaySettings(Closed):
    """Which gateway is told."""

    kind: Literal["embedded", "remote", "off"] = Field(default="embedded", description="Which gateway is told.")
    base_url: str | None = Field(default=None, description="Of a remote gateway.")
    account: str = Field(default="local", pattern="^[a-z0-9-]+$", description="Account the resources belong to.")
    api_key_env: str = Field(
        default="FIREWORKS_API_KEY", min_length=1, description="Environment variable with the remote key."
    )

    @field_validator("base_url")
    @classmethod
    def _base_url_is_a_url(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"https?://[^/\s?#@]+(/[^\s?#]*)?", value):
            raise ValueError(f"{value!r} is no gateway's address; give https://HOST or http://HOST:PORT, without a key")
        return value


class Hyperparameters(Closed):
    """The job's numbers with every default filled in: what the loop trains by."""

    epochs: int = Field(description="Passes over the rows.")
    learning_rate: float = Field(description="Peak rate.")
    warmup_steps: int = Field(description="Optimizer steps of linear warm-up.")
    weight_decay: float = Field(description="AdamW decoupled decay.")
    lora_rank: int | None = Field(description="0 = all parameters; None = that of the adapter started from.")
    lora_alpha: float | None = Field(description="None where no adapter is made.")
    batch_tokens: int = Field(description="Most tokens in one packed batch.")
    batch_rows: int = Field(description="Rows per gradient batch; 0 = as many as fill batch_tokens.")
    accumulation: int = Field(description="Gradient batches per optimizer step.")
    max_context: int = Field(description="Longest row in tokens, before the model's own limit.")

    @classmethod
    def of(cls, job: Job, lora: LoraSettings) -> Hyperparameters:
        """Fill in the defaults of `job`; alpha defaults to twice the rank."""
        given = settings_of(job)
        rate = DEFAULT_PREFERENCE_LEARNING_RATE if isinstance(job, DpoJob) else DEFAULT_LEARNING_RATE
        decay = given.optimizer_weight_decay
        rank = None if given.warm_start_from else DEFAULT_LORA_RANK if given.lora_rank is None else given.lora_rank
        return cls(
            epochs=given.epochs or DEFAULT_EPOCHS,
            learning_rate=rate if given.learning_rate is None else given.learning_rate,
            warmup_steps=given.learning_rate_warmup_steps or 0,
            weight_decay=DEFAULT_WEIGHT_DECAY if decay is None else decay,
            lora_rank=rank,
            lora_alpha=(lora.asked_by(job).alpha or 2.0 * rank) if rank else None,
            batch_tokens=given.batch_size or DEFAULT_BATCH_TOKENS,
            batch_rows=given.batch_size_samples or 0,
            accumulation=given.gradient_accumulation_steps or 1,
            max_context=given.max_context_length or DEFAULT_MAX_CONTEXT,
        )


class RowSource(Closed):
    """Where rows are read from on this machine."""

    name: str = Field(description="As the job names it.")
    path: str = Field(description="A file, a folder, or a hub id.")
    sha256: str | None = Field(default=None, description="Of the file's bytes; None for a folder or a hub id.")


class Inputs(Closed):
    """The job's names resolved to places on this machine; the job itself stays as the gateway has it."""

    base_model: str = Field(description="Folder or hub id of the base model.")
    train: RowSource
    evaluation: RowSource | None = None
    warm_start: str | None = Field(default=None, description="Folder of the adapter to go on from.")


class RunSpec(Closed):
    """All that a worker needs to know, as `run.json` stores it."""

    version: Literal[1] = 1
    id: str = Field(description="The run's id, and the job's id in the gateway.")
    kind: str = Field(description="A key of `trainer.jobs.JOB_KINDS`.")
    created: str
    trainer_version: str
    job: Job
    model: ModelSettings
    data: DataSettings
    train: TrainSettings
    engine: EngineSettings
    launch: LaunchSettings
    gateway: GatewaySettings
    inputs: Inputs
    hyper: Hyperparameters
    objective: dict[str, Any] = Field(description="The expanded objective: every constant of the loss.")
    overrides: list[str] = Field(default_factory=list, description="What was typed on the command line.")
    sources: dict[str, str] = Field(
        default_factory=dict, description="Where each value came from, by dotted key (`trainer.provenance`)."
    )

    @model_validator(mode="before")
    @classmethod
    def _job_is_of_its_kind(cls, values: Any) -> Any:
        """The job is read by the model of its kind, which says best what is wrong with it."""
        kind = JOB_KINDS.get(str(values.get("kind"))) if isinstance(values, dict) else None
        if kind is None or not isinstance(values.get("job"), dict):
            return values
        return {**values, "job": kind.model.model_validate(values["job"])}

    @field_validator("kind")
    @classmethod
    def _kind_is_known(cls, value: str) -> str:
        if value not in JOB_KINDS:
            raise ValueError(f"{value!r} is no kind of job; there are {', '.join(JOB_KINDS)}")
        return value

    def save(self, folder: Path) -> Path:
        """Write `run.json` into `folder` (made if absent) and return its path. Secrets are left out."""
        folder.mkdir(parents=True, exist_ok=True)
        document = self.model_dump(mode="json", exclude={"job"}) | {"job": self.job.wire()}
        path = folder / "run.json"
        write_whole(path, json.dumps(document, indent=2, ensure_ascii=False).encode() + b"\n")
        return path

    @classmethod
    def load(cls, folder: Path) -> RunSpec:
        """Read `run.json` of the run `folder`. Raises `FileNotFoundError` or `pydantic.ValidationError`."""
        return cls.model_validate_json((folder / "run.json").read_text(encoding="utf-8"))

    @property
    def output_model(self) -> str:
        """The id the finished model gets in the gateway."""
        return (self.job.output_model or self.id).rsplit("/", 1)[-1]

    @property
    def base_name(self) -> str:
        """The base model's name: as the job has it, or the model group where it is that of a warm start; else its
        place."""
        if self.job.base_model:
            return self.job.base_model
        mine = str(Path(self.model.path).expanduser().absolute())
        return self.model.name if self.inputs.base_model in (self.model.path, mine) else self.inputs.base_model

    @property
    def early_stop(self) -> bool:
        """Whether training stops when it gets no better, by the job or, where it has no field for that, the loop."""
        return self.train.early_stop if isinstance(self.job, DpoJob) else self.job.early_stop

    @property
    def carveout(self) -> bool:
        """Whether a share of the rows is held out, by the job or, where it has no field for that, the data group."""
        return self.data.carveout if isinstance(self.job, DpoJob) else self.job.eval_auto_carveout

    @property
    def collection(self) -> str:
        """The gateway collection this run's job belongs to."""
        return JOB_KINDS[self.kind].collection


def home() -> Path:
    """The folder of runs and of the embedded gateway's state: `TRAINER_HOME`, or `./outputs`."""
    return Path(os.environ.get("TRAINER_HOME") or "outputs").expanduser().absolute()


def gateway_folder() -> Path:
    """The embedded gateway's state folder inside `home()`."""
    return home() / "gateway"


def shipped(relative: str) -> Path:
    """A file that ships with the package: `configs/...`, `datasets/...` or `models/...`.

    In a checkout the first two stand beside the package; in a wheel they stand in `trainer/shipped/`.
    """
    for candidate in (_PACKAGE / "shipped" / relative, _PACKAGE / relative, _REPOSITORY / relative):
        if candidate.exists():
            return candidate
    raise FileNotFoundError(f"{relative} does not ship with this installation of trainer")


def new_run_id(label: str) -> str:
    """An id for a new run: the time to the second and `label`, fit to be a gateway resource id."""
    slug = "".join(c if c.isalnum() else "-" for c in label.lower() if c.isascii()).strip("-")[:32].strip("-")
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{slug or 'run'}"


def find_runs(root: Path) -> list[Path]:
    """Folders below `root` that hold a `run.json`, oldest first; sweeps nest one level."""
    found = [path.parent for pattern in ("*/run.json", "*/*/run.json") for path in root.glob(pattern) if path.is_file()]
    return sorted(found, key=lambda folder: (folder / "run.json").stat().st_mtime)
