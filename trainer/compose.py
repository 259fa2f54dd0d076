"""From typed words to a run: compose with Hydra, check with pydantic, resolve names to places. The only home of hydra.

One schema only: Hydra knows the groups and the files, `trainer.jobs` and `trainer.runs` know what may stand in them.
Every mistake ends in one `ConfigError` that names the key, the value, what is allowed and the way out.
"""

from __future__ import annotations

import difflib
import itertools
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, OverrideParseException
from hydra.types import RunMode
from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from pydantic import BaseModel, ValidationError

from trainer import __version__, provenance
from trainer.errors import UsageError
from trainer.idle_settings import idle_settings
from trainer.jobs import JOB_KINDS, DpoJob, Job, LossMethod
from trainer.objectives import objective_of
from trainer.presets import OBJECTIVES, SETTINGS, settings_for
from trainer.provenance import COMPUTED, DEFAULT, PRESET, TYPED, WIRE, Layer
from trainer.runs import (
    DataSettings,
    EngineSettings,
    GatewaySettings,
    Hyperparameters,
    Inputs,
    LaunchSettings,
    ModelSettings,
    RunSpec,
    TrainSettings,
    shipped,
)

_SETTINGS: dict[str, type[BaseModel]] = {
    "model": ModelSettings,
    "data": DataSettings,
    "train": TrainSettings,
    "engine": EngineSettings,
    "launch": LaunchSettings,
    "gateway": GatewaySettings,
}
_QUICKSTART = "experiment=quickstart"
_SHIPPED_JOBS = ("dpo", "orpo")  # job=dpo alone is experiment=dpo
_JOB_FILES = ("sft", *_SHIPPED_JOBS)
_NAMES_ROWS = {"data", "data.train", "job.dataset", "experiment", "model"}
_TOP = ("kind", "job", "name", "output_dir", "objective")  # beside the groups
_ONLY_DPO = {"data.carveout": "job.eval_auto_carveout", "train.early_stop": "job.early_stop"}


class ConfigError(UsageError):
    """The configuration cannot be run."""


class Composed(BaseModel):
    """A checked configuration, before names are resolved to places on this machine."""

    kind: str
    name: str | None
    output_dir: str | None
    job: Job
    model: ModelSettings
    data: DataSettings
    train: TrainSettings
    engine: EngineSettings
    launch: LaunchSettings
    gateway: GatewaySettings
    overrides: list[str]
    notes: list[str]
    sources: dict[str, str]
    preset: str | None = None  # an objective asked for by name, whose settings are filled in

    def spec(self, run_id: str, inputs: Inputs, *, created: str) -> RunSpec:
        """The run's description, once its inputs are known."""
        settings = {name: getattr(self, name) for name in _SETTINGS}
        lora = self.model.lora.asked_by(self.job)
        settings["model"] = self.model.model_copy(update={"lora": lora})
        objective, sources = self.objective, dict(self.sources)
        for ours, theirs in _FROM_JOB.items():
            if sources.get(theirs, DEFAULT) != DEFAULT:
                sources[ours] = sources[theirs]
        sources |= provenance.of_hyper(self.job, lora, sources)
        sources |= {key: COMPUTED for key, _ in provenance.leaves({"inputs": inputs})}
        sources.pop("objective", None)
        for key, _ in provenance.leaves({"objective": objective}):
            sources[key] = self.sources.get(_CONSTANTS_FROM.get(key, ""), DEFAULT)
        return RunSpec(
            id=run_id, kind=self.kind, created=created, trainer_version=__version__, job=self.job, inputs=inputs,
            hyper=Hyperparameters.of(self.job, lora), objective=objective,
            overrides=_without_secrets(self.overrides), sources=sources, **settings,
        )  # fmt: skip

    @property
    def objective(self) -> dict[str, Any]:
        """What the job trains, expanded. Raises `ValueError` where its settings do not fit its method."""
        expanded = objective_of(self.job, **self.train.dpo.model_dump())
        return {**expanded, "preset": self.preset} if self.preset else expanded


_FROM_JOB = {  # the adapter's settings that a job may have
    "model.lora.alpha": "job.training_config.lora_alpha",
    "model.lora.dropout": "job.training_config.lora_dropout",
    "model.lora.targets": "job.training_config.lora_target_modules",
}
_CONSTANTS_FROM = {
    "objective.constants.beta": "job.loss_config.dpo.beta",
    "objective.constants.orpo_lambda": "job.loss_config.orpo.lambda_",
    "objective.constants.nll_weight": "train.dpo.nll_weight",
    "objective.constants.label_smoothing": "train.dpo.label_smoothing",
    "objective.name": "train.dpo.loss",
    "objective.method": "job.loss_config.method",
    "objective.preset": "objective",
}


def compose(overrides: Sequence[str]) -> Composed:
    """Compose and check. No override at all is the quick start. Raises `ConfigError`."""
    # The one open dictionary takes new keys without Hydra's plus sign.
    typed = _started([f"++{word}" if word.startswith("data.columns") else word for word in overrides])
    config = _container(typed)
    if broken := _not_a_job(config, typed):
        raise ConfigError("\n".join(broken))
    origins = _origins(typed, config)
    problems = _said_twice(config, origins)
    notes = _untie_evaluation(config)
    if notes:
        origins["job.evaluation_dataset" if "evaluation_dataset" in config["job"] else "data.evaluation"] = COMPUTED
    notes += _fill_in_preset(config, origins, problems=problems)
    checked: dict[str, Any] = {}
    for name, model in _SETTINGS.items():
        values = _data_of(config) if name == "data" else config[name]
        checked[name] = _check(model, values, at=name, problems=problems)
    job = _prune(config["job"])
    settings, at = (job["training_config"], "job.training_config") if "training_config" in job else (job, "job")
    notes += _read_template(settings, at, problems)
    if settings.get("warm_start_from") and settings.get("base_model") == config["model"]["name"]:
        del settings["base_model"]  # filled in by the model group, not typed
        origins[f"{at}.base_model"] = COMPUTED
    if not job.get("dataset"):
        problems.append(
            "job.dataset: name the rows to train on: data.train=FILE, a hub id, a gateway data set, or data=quickstart"
        )
        job["dataset"] = "unset"
    checked["job"] = _check(JOB_KINDS[config["kind"]].model, job, at="job", problems=problems)
    problems += [] if problems else _problems_together(config, checked)
    if problems:
        raise ConfigError("\n".join(problems))
    typed_keys = {key for key, origin in origins.items() if origin == TYPED}
    notes += _typed_twice(typed)
    notes += [f"note: {one}" for one in idle_settings(checked["job"], checked, typed_keys)]
    origins = {key.replace(".orpo.lambda", ".orpo.lambda_"): name for key, name in origins.items()}
    named = {"objective": config["objective"]} if config["objective"] else {}
    sources = provenance.of_settings({"kind": config["kind"], **named, **checked}, origins)
    return Composed(
        kind=config["kind"], name=config["name"], output_dir=config["output_dir"],
        overrides=list(overrides), notes=notes, sources=sources, preset=config["objective"], **checked,
    )  # fmt: skip


def _not_a_job(config: dict[str, Any], words: Sequence[str]) -> list[str]:
    """What was typed beside the groups, or takes away what every job has."""
    keys = [word.lstrip("+").partition("=")[0] for word in words if not word.startswith("~")]
    known = {*_SETTINGS, *_TOP}
    problems = [f"{key}: cannot be taken away; leave ~{key} out" for key in sorted(known - set(config))]
    problems += [f"{key}: unknown key{_did_you_mean(key, sorted(known))}" for key in sorted(set(config) - known)]
    problems += [
        f"{key}: is Hydra's own, which has no say here; leave it out" for key in keys if key.startswith("hydra")
    ]
    for key in ("name", "output_dir"):
        if not isinstance(config.get(key), str | None):
            problems.append(f"{key}: {config[key]!r} is no text; put quotes around it: {key}='\"{config[key]}\"'")
    if "kind" in keys:
        problems.append(f"kind: comes with the job's file; choose job={' or job='.join(JOB_KINDS)} instead")
    return problems


def _started(words: list[str]) -> list[str]:
    """What was typed, with the shipped experiment where nothing was, or a job that has one and no rows for it."""
    if not words:
        return [_QUICKSTART]
    keys = {word.lstrip("+").partition("=")[0] for word in words}
    job = next((word.partition("=")[2] for word in words if word.startswith("job=")), "")
    return [f"experiment={job}", *words] if job in _SHIPPED_JOBS and not keys & _NAMES_ROWS else words


def _fill_in_preset(config: dict[str, Any], origins: dict[str, str], *, problems: list[str]) -> list[str]:
    """Set what an objective asked for by name stands for, over files but not over typed words; returns notes."""
    name, method = config["objective"], _method(config)
    if name is None or method not in SETTINGS:  # a method that no job has is refused with the job
        return []
    notes = []
    try:
        settings = settings_for(str(name), method)
    except ValueError as error:
        problems.append(str(error))
        return []
    for key, value in settings.items():
        place, last = _place_of(key, config)
        had, origin = place.get(last), origins.get(key, DEFAULT)
        if had not in (None, value) and origin.startswith(TYPED):
            problems.append(f"{key}: {had} was typed, and objective={name} is {value}; leave one of them out")
        elif had not in (None, value):
            notes.append(f"note: {key} is {value}, as objective={name} has it, and not {had} as in {origin}")
        place[last], origins[key] = value, f"{PRESET}{name}"
    remarks = OBJECTIVES[str(name)].also
    return [*notes, *(f"note: {name}, beside its objective: {remark}; not so here" for remark in remarks)]


def _typed_twice(words: Sequence[str]) -> list[str]:
    """A note for each key that stands there more than once: the last one counts."""
    last = {word.lstrip("+").partition("=")[0]: word.lstrip("+") for word in words if not word.startswith("~")}
    counts = Counter(word.lstrip("+").partition("=")[0] for word in words if not word.startswith("~"))
    return [f"note: {key} is typed {count} times; {last[key]} counts" for key, count in counts.items() if count > 1]


def _said_twice(config: dict[str, Any], origins: dict[str, str]) -> list[str]:
    """Rows that were typed both as the job's field and as the data group's: only the former would count."""
    job, data = config["job"], config["data"]
    return [
        f"{ours}: {data[key]!r}, and job.{field} is {job[field]!r}; type one of them"
        for ours, key, field in (
            ("data.train", "train", "dataset"),
            ("data.evaluation", "evaluation", "evaluation_dataset"),
        )
        if origins.get(ours) == TYPED and origins.get(f"job.{field}") == TYPED and job[field] != data[key]
    ]


def _method(config: dict[str, Any]) -> str:
    """The method of the job, in small letters: sft, dpo, orpo."""
    if config["kind"] != "dpo":
        return config["kind"]
    loss = config["job"].get("loss_config")
    asked = loss.get("method") if isinstance(loss, dict) else None
    return "dpo" if asked in (None, LossMethod.UNSPECIFIED) else str(asked).lower()


def _place_of(key: str, config: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """The group in which `key` stands, made where it was left out, and its last part."""
    *groups, last = key.split(".")
    place = config
    for part in groups:
        if place.get(part) is None:
            place[part] = {}
        if not isinstance(place[part], dict):
            return {}, last  # what stands there is refused where it is checked
        place = place[part]
    return place, last


def _data_of(config: dict[str, Any]) -> dict[str, Any]:
    """The data group without what the job's own fields say."""
    mine = {"train"} | ({"evaluation"} if "evaluation_dataset" in config["job"] else set())
    return {key: value for key, value in config["data"].items() if key not in mine}


def _problems_together(config: dict[str, Any], checked: dict[str, Any]) -> list[str]:
    """What is wrong with the groups beside each other, each being right by itself."""
    job, data, train = checked["job"], checked["data"], checked["train"]
    problems = []
    if not isinstance(job, DpoJob):
        for key, field in _ONLY_DPO.items():
            group, _, name = key.partition(".")
            if getattr(checked[group], name):
                problems.append(f"{key}: an {config['kind']} job has a field for that; set {field}")
    elif train.early_stop and not (data.evaluation or data.carveout):
        problems.append("train.early_stop: needs held-out pairs to judge by; set data.evaluation or data.carveout=true")
    for name in ("aws_s3_config", "azure_blob_storage_config"):
        if getattr(job, name):
            problems.append(
                f"job.{name}: names a secret of a gateway, for jobs that are posted to one; leave it out, a run here "
                "reads s3:// and az:// with your environment's credentials (AWS_*, AZURE_STORAGE_*)"
            )
    try:
        objective_of(job, **train.dpo.model_dump())
        checked["model"].lora.asked_by(job)
    except ValueError as error:
        problems.append(str(error))
    return problems


def for_job(kind: str, job: Job, *, base_path: str) -> Composed:
    """The shipped configuration around a job that came over the wire; `base_path` is where its base model is."""
    words = [f"job={kind}", "gateway=off"]
    config = _container(words)
    groups = {**config, "data": _data_of(config)}
    settings: dict[str, Any] = {name: model.model_validate(groups[name]) for name, model in _SETTINGS.items()}
    settings["model"] = ModelSettings(name=job.base_model or job.warm_start_from or "", path=base_path)
    origins = {key: name for key, name in _origins(words, config).items() if not key.startswith("model.")}
    origins |= provenance.of_wire(job) | {"kind": WIRE, "model.name": WIRE, "model.path": COMPUTED}
    sources = provenance.of_settings({"kind": kind, "job": job, **settings}, origins)
    return Composed(kind=kind, name=None, output_dir=None, job=job, overrides=[], notes=[], sources=sources, **settings)


def sweep(overrides: Sequence[str]) -> Iterator[list[str]]:
    """The combinations of a multirun: every comma list spread out, the last one turning fastest."""
    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    except HydraException as error:
        raise ConfigError(_hydra_words(error, overrides)) from error
    choices = []
    for text, override in zip(overrides, parsed, strict=True):
        if override.is_sweep_override():
            key = override.get_key_element()
            choices.append([f"{key}={value}" for value in override.sweep_string_iterator()])
        else:
            choices.append([text])
    for combination in itertools.product(*choices):
        yield list(combination)


def _container(overrides: Sequence[str]) -> dict[str, Any]:
    OmegaConf.register_new_resolver("shipped", lambda relative: str(shipped(relative)), replace=True)
    try:
        for override in OverridesParser.create().parse_overrides(list(overrides)):
            if override.is_sweep_override():
                raise ConfigError(f"{override.input_line}: several values need --multirun (or quotes around the comma)")
        with initialize_config_dir(str(shipped("configs")), version_base="1.3"):
            config = hydra_compose("config", overrides=list(overrides))
        container = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except (HydraException, OmegaConfBaseException, FileNotFoundError, ValueError) as error:
        raise ConfigError(_hydra_words(error, overrides)) from error
    assert isinstance(container, dict)
    return container  # type: ignore[return-value]


def _origins(overrides: Sequence[str], config: dict[str, Any]) -> dict[str, str]:
    """Where each key's value came from; `overrides` have been composed to `config` before."""
    root = shipped("configs")
    layers = []
    with initialize_config_dir(str(root), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        merged = loader.compute_defaults_list("config", list(overrides), RunMode.RUN)
    for one in merged.defaults:  # in the order in which Hydra merges them
        if one.config_path is None or one.config_path.startswith("hydra/"):
            continue
        content = OmegaConf.to_container(OmegaConf.load(root / f"{one.config_path}.yaml"), resolve=False)
        assert isinstance(content, dict)
        content.pop("defaults", None)
        layers.append(Layer(f"configs/{one.config_path}.yaml", one.package or "", content))
    typed = [one for one in merged.config_overrides if not one.is_delete()]
    layers += [Layer(TYPED, one.key_or_group, one.value()) for one in typed]
    found = provenance.origins(layers)
    return {key: found[key] for key, _ in provenance.leaves(config) if key in found}  # without what ~key removed


def _untie_evaluation(config: dict[str, Any]) -> list[str]:
    """Held-out rows that a data group brings belong to that group's rows, not to others typed in their place."""
    job, data = config["job"], config["data"]
    has_field = "evaluation_dataset" in job
    place, name = (job, "evaluation_dataset") if has_field else (data, "evaluation")
    evaluation, carveout = data["evaluation"], job["eval_auto_carveout"] if has_field else data["carveout"]
    if not evaluation or place[name] != evaluation:
        return []
    if job["dataset"] != data["train"]:
        place[name] = None
        return [f"note: {evaluation} belongs to {data['train']}, which is not trained on; it is not used"]
    if carveout:
        place[name] = None
        return [f"note: held-out rows are carved out; {evaluation} is not used"]
    return []


def _read_template(settings: dict[str, Any], at: str, problems: list[str]) -> list[str]:
    """Put a chat template's text in the place of the name of its file; returns a note. Templates have braces."""
    given = settings.get("jinja_template")
    if not isinstance(given, str) or "{" in given:
        return []
    path = Path(given).expanduser()
    try:
        settings["jinja_template"] = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        problems.append(
            f"{at}.jinja_template: {given[:200]!r} is neither a chat template ({{{{ .. }}}}, {{% .. %}}) nor a file "
            f"with one ({why})"
        )
        return []
    return [f"note: {at}.jinja_template is the text of {path}"]


def _prune(job: dict[str, Any]) -> dict[str, Any]:
    """Without the nulls, which mean "as the default is"; a W&B block that is off is no block."""
    kept = {}
    for key, value in job.items():
        inner = _prune(value) if isinstance(value, dict) else value
        emptied = inner == {} and value != {}  # all it held were nulls; an empty one that was typed is checked
        if inner is not None and not emptied and not (key == "wandb_config" and inner == {"enabled": False}):
            kept[key] = inner
    return kept


def _check(model: type[BaseModel], values: Any, *, at: str, problems: list[str]) -> Any:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        problems.extend(_pydantic_words(model, error, at))
        return None


def _pydantic_words(model: type[BaseModel], error: ValidationError, at: str) -> list[str]:
    words = []
    for one in error.errors(include_url=False):
        path = ".".join([at, *(_snake(str(part)) for part in one["loc"])])
        if one["type"] == "extra_forbidden":
            known = _fields_at(model, one["loc"][:-1])
            words.append(f"{path}: unknown key{_did_you_mean(str(one['loc'][-1]), known)}")
            continue
        message = one["msg"].removeprefix("Value error, ")
        if one["type"] == "value_error":
            message = message.removeprefix(f"{path.rsplit('.', 1)[-1]}: ")  # a field's own check may name it, too
            words.append(f"{path}.{message}" if re.match(r"[a-z_.]+: ", message) else f"{path}: {message}")
        else:
            words.append(f"{path}: {message}, got {one['input']!r}")
    return words


def _fields_at(model: type[BaseModel], path: Sequence[Any]) -> list[str]:
    """Names of the fields of what stands at `path` in `model`."""
    for part in path:
        found = [f for name, f in model.model_fields.items() if part in (name, f.alias)]
        kinds = [found[0].annotation, *get_args(found[0].annotation)] if found else []
        inner = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if not inner:
            return []
        model = inner[0]
    return [name.strip("_") for name in model.model_fields]


def _hydra_words(error: Exception, overrides: Sequence[str]) -> str:  # noqa: PLR0911  (one way out for each mistake)
    text = str(error).strip()
    unknown = re.search(r"Could not override '([\w.]+)'", text)
    if unknown:
        return _unknown_key(unknown[1], _job_of(overrides))
    gone = [word for word in overrides if word.startswith("~")]
    if gone and text.startswith("Interpolation key"):
        return f"{gone[0].lstrip('~')}: cannot be taken away, other settings are filled in from it; leave {gone[0]} out"
    group = re.search(r"Could not find '([\w/]+)/([\w.\-]+)'", text)
    if group:
        folder = shipped("configs") / group[1]
        options = sorted(path.stem for path in folder.glob("*.yaml"))
        close = difflib.get_close_matches(group[2], options, n=1)
        hint = f"; did you mean {group[1]}={close[0]}?" if close else ""
        return f"{group[1]}={group[2]}: no such option{hint} (there are: {', '.join(options)})"
    if text.startswith("Config group override must be"):
        groups = sorted(path.name for path in shipped("configs").iterdir() if path.is_dir())
        values = ((word, *word.partition("=")[::2]) for word in overrides)
        words = ", ".join(word for word, key, value in values if key in ("", *groups) and not value[:1].isalpha())
        words = words or ", ".join(overrides)
        return f"{words}: a group takes the name of one of its files, as data=quickstart (see configs/)"
    merged = re.match(r"Error merging override \+*([\w.]+)=(.*)", text)
    if merged:
        return f"{merged[1]}: {merged[2]} cannot stand there; it takes key: value pairs, {merged[1]}={{key: value}}"
    missing = re.search(r"Missing mandatory value: ([\w.]+)", text)
    if missing:
        key = (isinstance(error, MissingMandatoryValue) and error.full_key) or missing[1]
        return f"{key}: has no value; type {key}=VALUE"
    bare = [word for word in overrides if "=" not in word and not word.startswith("~")]
    if bare:
        return f"{bare[0]!r} is neither a command (see python -m trainer --help) nor key=value"
    if isinstance(error, OverrideParseException):
        return (
            f"{error.override}: cannot be read ({text.splitlines()[0]}); a value with signs such as = ; {{ ( stands in "
            "quotes, within the shell's: 'key=\"value\"'"
        )
    return text.splitlines()[0]


def _unknown_key(key: str, job: str) -> str:
    """Names the first part of `key` that a configuration with this job does not have, and what it has there."""
    place: Any = _container([f"job={job}"])
    first, _, rest = key.partition(".")
    if first == "job":
        moved = f"job.training_config.{rest}" if "training_config" in place["job"] else f"job.{rest.split('.', 1)[-1]}"
        if moved != key and _has(place, moved):
            return f"{key}: unknown key; in job={job} it is {moved}"
    for part in key.split("."):
        if not isinstance(place, dict) or part not in place:
            others = [name for name in _JOB_FILES if name != job and _has(_container([f"job={name}"]), key)]
            if others:
                return f"{key}: unknown key in job={job}; job={' and job='.join(others)} have it"
            return f"{key}: unknown key{_did_you_mean(part, list(place) if isinstance(place, dict) else [])}"
        place = place[part]
    return f"{key}: cannot be set this way"


def _has(place: Any, key: str) -> bool:
    for part in key.split("."):
        if not isinstance(place, dict) or part not in place:
            return False
        place = place[part]
    return True


def _job_of(words: Sequence[str]) -> str:
    """The job that was chosen, sft where none was or none of that name."""
    asked = [value for key, _, value in (word.lstrip("+").partition("=") for word in words) if key == "job"]
    asked += [value for key, _, value in (word.partition("=") for word in words) if key == "experiment"]
    return next((one for one in asked if one in _JOB_FILES), "sft")


def _did_you_mean(word: str, known: Any) -> str:
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]}?"
    return f" (there are: {', '.join(known)})" if known else ""


def _snake(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


def _without_secrets(overrides: Sequence[str]) -> list[str]:
    return [re.sub(r"(api_key\s*[=:]).*", r"\1***", text) for text in overrides]
