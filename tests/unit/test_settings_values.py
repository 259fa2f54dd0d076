"""Settings: every field is read by some code, odd values and words are refused in one line, idle ones are told."""

import ast
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import pytest
from pydantic import BaseModel

import trainer
from trainer.__main__ import main
from trainer.attempt import _foresee
from trainer.commands.train import describe
from trainer.compose import ConfigError, compose
from trainer.errors import UsageError
from trainer.estimate import Workload
from trainer.jobs import DpoJob, SupervisedFineTuningJob
from trainer.loops.training import Material
from trainer.machine import check_device, this_machine
from trainer.runs import DataSettings, EngineSettings, GatewaySettings, LaunchSettings, ModelSettings, TrainSettings
from trainer.shapes import Architecture, Shapes

ROWS = "data=quickstart"
# Refused whatever they hold, by a validator that goes through all fields, or by their type.
REFUSED = {
    "iam_role_arn", "managed_identity_client_id", "tenant_id", "tensor_parallelism", "pipeline_parallelism",
    "context_parallelism", "expert_parallelism", "sequence_parallelism",
}  # fmt: skip


def fields_of(model: type[BaseModel]) -> set[str]:
    found = set()
    for name, field in model.model_fields.items():
        kinds = [one for one in (field.annotation, *get_args(field.annotation)) if isinstance(one, type)]
        inner = [one for one in kinds if issubclass(one, BaseModel)]
        found |= fields_of(inner[0]) if inner else {name}
    return found


def names_read() -> set[str]:
    """Attributes that any code of the package reads, and the texts by which it asks for one."""
    found: set[str] = set()
    for path in Path(trainer.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                found.add(node.attr)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(node.value)
    return found


def test_no_field_is_accepted_that_no_code_reads():
    models = (SupervisedFineTuningJob, DpoJob, ModelSettings, DataSettings, TrainSettings, EngineSettings,
              LaunchSettings, GatewaySettings)  # fmt: skip
    fields = set().union(*map(fields_of, models))
    assert len(fields) > 100
    assert fields - names_read() - REFUSED == set()


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("job.epochs=true", "job.epochs: true is a boolean, and no value of this field"),
        ("job.learning_rate=true", "job.learning_rate: true is a boolean"),
        ("data.gates.cut_tokens=false", "data.gates.cut_tokens: false is a boolean"),
        ("job.epochs={}", "job.epochs: Input should be a valid integer, got {}"),
        ("job.epochs=2147483647", "job.epochs: Input should be less than or equal to 100000"),
        ("train.adam_eps=inf", "train.adam_eps: Input should be a finite number, got inf"),
        ("train.max_grad_norm=nan", "train.max_grad_norm: Input should be"),
        ("model.lora.alpha=inf", "model.lora.alpha: Input should be a finite number"),
        ("train.seed=99999999999999999999", "train.seed: Input should be less than"),
        ("engine.threads=99999999999999999999", "engine.threads: Input should be less than"),
        ("data.max_row_bytes=99999999999999999999", "data.max_row_bytes: Input should be less than"),
        ("engine.device=abc", "engine.device: 'abc' is no device; allowed are auto, cpu, cuda, cuda:N and mps"),
        ("model.lora.targets=[]", "model.lora.targets: [] names no modules; give all-linear, or a list"),
        ("model.lora.targets='['", "model.lora.targets: '[' is no regular expression"),
        ("gateway.account=' '", "gateway.account: String should match pattern"),
        ("data.columns=[]", "data.columns: [] cannot stand there; it takes key: value pairs"),
        ("data.gates=[]", "data.gates: [] cannot stand there"),
        ("engine=5", "engine=5: a group takes the name of one of its files"),
        ("data.train=a;b", "data.train=a;b: cannot be read"),
        ("+foo=1", "foo: unknown key (there are: data, engine"),
        ("~train", "train: cannot be taken away; leave ~train out"),
        ("hydra.run.dir=x", "hydra.run.dir: is Hydra's own"),
        ("kind=grpo", "kind: comes with the job's file; choose job=sft or job=dpo instead"),
        ("name=5", "name: 5 is no text; put quotes around it"),
    ],
)
def test_an_odd_value_is_refused_in_one_line(word, says):
    with pytest.raises(ConfigError) as refused:
        compose([ROWS, word])
    assert str(refused.value).startswith(says)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["data.train=a", "job.dataset=b"], "data.train: 'a', and job.dataset is 'b'; type one of them"),
        (["data.train=a", "data.evaluation=b", "job.evaluation_dataset=c"], "data.evaluation: 'b', and job.evaluation"),
        (["job=dpo", "model.lora.dropout=0.1", "job.training_config.lora_dropout=0"], "model.lora.dropout: 0.1, and"),
    ],
)
def test_what_is_said_twice_is_refused(words, says):
    with pytest.raises(ConfigError) as refused:
        compose(words)
    assert str(refused.value).startswith(says)


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (["data.carveout_fraction=0.2"], "data.carveout_fraction"),
        (["train.score_rows=5"], "train.score_rows"),
        (["train.evaluate_every_steps=5"], "train.evaluate_every_steps"),
        (["train.early_stop_patience=5"], "train.early_stop_patience"),
        (["train.max_skipped_steps=5"], "train.max_skipped_steps"),
        (["train.scheduler=constant", "train.min_lr_ratio=0"], "train.min_lr_ratio"),
        (["train.parity_prompts=0", "train.parity_max_gap=1"], "train.parity_max_gap"),
        (["job.lora_rank=0", "model.lora.alpha=4"], "model.lora.alpha"),
        (["gateway.base_url=http://127.0.0.1:1"], "gateway.base_url"),
        (["job.wandb_config.project=p"], "job.wandb_config.project"),
        (["model=tiny", "model.revision=main"], "model.revision"),
        (["data.split=test"], "data.split"),
    ],
)
def test_a_typed_setting_without_effect_is_told(words, key):
    told = compose(["data.train=rows.jsonl", *words]).notes
    assert [note.split(" has no effect here: ")[0] for note in told] == [f"note: {key}"]


def test_a_typed_setting_with_an_effect_is_not_told():
    told = compose(["data.train=owner/rows", "data.split=test", "model=path", "model.path=owner/m", "model.revision=v"])
    assert not [note for note in told.notes if "no effect" in note]
    assert compose(["data.train=rows.jsonl", "data.max_row_bytes=4096"]).notes == []
    (note,) = compose(["data.train=rows.parquet", "data.max_row_bytes=4096"]).notes
    assert note.startswith("note: data.max_row_bytes has no effect here: ")


def test_a_key_that_is_typed_twice_is_told():
    assert compose([ROWS, "job.epochs=1", "job.epochs=2"]).notes == [
        "note: job.epochs is typed 2 times; job.epochs=2 counts"
    ]


def test_what_has_an_effect_is_not_called_idle():
    words = ["job.eval_auto_carveout=true", "job.early_stop=true", "train.early_stop_patience=3", "train.score_rows=2",
             "data.carveout_fraction=0.2", "train.min_lr_ratio=0", "model.lora.alpha=4"]  # fmt: skip
    assert compose(["data.train=rows.jsonl", *words]).notes == []
    assert compose([]).notes == compose(["job=dpo"]).notes == []  # what a file sets is no word of the user's


def test_targets_that_the_model_does_not_have_are_named():
    shapes = Shapes(Architecture(4, 4, 4, 4, 1, 8), {"model.layers.0.self_attn.q_proj.weight": (4, 4)}, 0, "a test")
    shapes.check_targets(["q_proj"])
    shapes.check_targets("all-linear")
    with pytest.raises(
        ValueError, match=r"model\.lora\.targets: abc is no linear layer of this model; there are q_proj"
    ):
        shapes.check_targets(["q_proj", "abc"])


def test_a_place_that_cannot_be_written_is_refused_in_words(tmp_path):
    (tmp_path / "file").write_text("x")
    spec = compose([]).spec("run", _inputs(), created="")
    with pytest.raises(UsageError, match=r"no run can be written there .*; choose another place by TRAINER_HOME"):
        describe(spec, tmp_path / "file" / "run")


def test_the_base_of_a_warm_start_has_its_own_name():
    plain = compose([]).spec("run", _inputs(), created="")
    assert plain.base_name == "accounts/local/models/tiny"
    job = plain.job.model_copy(update={"base_model": None, "warm_start_from": "adapter"})
    warm = plain.model_copy(update={"job": job})
    assert warm.base_name == "/models/base"  # the adapter's, which the model group has not named
    named = warm.model_copy(update={"model": warm.model.model_copy(update={"path": "/models/base", "name": "mine"})})
    assert named.base_name == "mine"


def _inputs():
    from trainer.runs import Inputs, RowSource

    return Inputs(base_model="/models/base", train=RowSource(name="rows", path="rows.jsonl"))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--temperature", "nan"], "--temperature nan: expected 0 or more"),
        (["--top-p", "2"], "--top-p 2.0: expected above 0 and at most 1"),
        (["--max-tokens", "0"], "--max-tokens 0: expected 1 or more"),
        (["--seed", "-1"], "--seed -1: expected 0 or more"),
    ],
)
def test_odd_settings_of_a_chat_are_refused_before_a_model_is_sought(capsys, words, says):
    assert main(["chat", "nosuch", "hi", *words]) == 2
    assert capsys.readouterr().err == f"error: {says}\n"


def test_a_budget_that_is_no_number_is_refused(capsys):
    assert main([ROWS, "--multirun", "job.epochs=1,2", "--max-minutes", "nan"]) == 2
    assert "--max-minutes: nan is no finite number" in capsys.readouterr().err


def test_a_gateway_without_its_key_refuses_before_anything_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TRAINER_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("FIREWORKS_API_KEY", raising=False)
    words = ["gateway=remote", "gateway.base_url=http://127.0.0.1:1", "gateway.account=x"]
    assert main([ROWS, *words]) == 2
    assert "FIREWORKS_API_KEY is not set" in capsys.readouterr().err
    assert not (tmp_path / "home").exists()


def test_what_is_best_is_checked_by_a_dry_run_too():
    spec = compose([ROWS, "train.best_metric=abc"]).spec("run", _inputs(), created="")
    prepared = SimpleNamespace(material=Material(train=[]), context_length=64)
    with pytest.raises(ValueError, match=r"train\.best_metric: 'abc' is not logged by this run"):
        _foresee(spec, prepared, None, look=this_machine, tell=print)  # type: ignore[arg-type]


def test_answers_count_as_long_as_the_model_can_make_them():
    load = Workload(
        steps=1, tokens=1, trained_tokens=1, largest_batch=1, longest_row=1, held_out_tokens=0, longest_held_out=0,
        questions=3, longest_prompt=10, evaluations=0, checkpoints=1, context=64,
    )  # fmt: skip
    assert load.answered(20) == 3 * 30
    assert load.answered(10**20) == 3 * 64


def test_a_device_that_is_not_here_is_named():
    class Torch:
        __version__ = "2.0"
        cuda = SimpleNamespace(device_count=lambda: 1)
        backends = SimpleNamespace(mps=SimpleNamespace(is_available=lambda: False))

    for device in ("auto", "cpu", "cuda", "cuda:0"):
        check_device(Torch, device)
    for device, seen in (("cuda:1", "1 CUDA devices"), ("mps", "no MPS device")):
        with pytest.raises(ValueError, match=f"engine.device: {device} is not here: torch 2.0 sees {seen}"):
            check_device(Torch, device)
