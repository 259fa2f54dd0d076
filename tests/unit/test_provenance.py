"""Provenance: every value of a configuration says where it came from."""

import pytest

from trainer import provenance
from trainer.compose import compose, for_job
from trainer.jobs import SupervisedFineTuningJob
from trainer.provenance import Layer, leaves, origins
from trainer.runs import Inputs, RunSpec

INPUTS = Inputs.model_validate({"base_model": "b", "train": {"name": "n", "path": "p"}})


def sources(*words: str) -> dict[str, str]:
    return compose(list(words)).spec("run", INPUTS, created="now").sources


@pytest.mark.parametrize(
    ("words", "key", "source"),
    [
        (["data=quickstart"], "train.seed", "configs/config.yaml"),
        (["data=quickstart", "train.seed=0"], "train.seed", "typed"),
        (["data=quickstart"], "job.epochs", "trainer default"),
        (["data=quickstart", "job.epochs=null"], "job.epochs", "typed"),
        (["experiment=quickstart"], "job.epochs", "configs/experiment/quickstart.yaml"),
        (["experiment=quickstart", "job.epochs=3"], "job.epochs", "typed"),
        (["data=quickstart"], "job.early_stop", "configs/job/sft.yaml"),
        (["data=quickstart"], "engine.dtype", "configs/engine/local.yaml"),
        (["data=quickstart", "engine={dtype: bfloat16}"], "engine.dtype", "typed"),
        (["data=quickstart", "engine={dtype: bfloat16}"], "engine.device", "configs/engine/local.yaml"),
        (["data=quickstart", "model=qwen3_0_6b"], "model.path", "configs/model/qwen3_0_6b.yaml"),
        (["data=quickstart", "model=qwen3_0_6b"], "model.lora.alpha", "configs/model/path.yaml"),
        (["data=quickstart", "model=qwen3_0_6b"], "model.lora.targets", "configs/model/qwen3_0_6b.yaml"),
        (["data=quickstart", "gateway=off"], "gateway.kind", "configs/gateway/off.yaml"),
        (["data=gsm8k"], "data.columns.prompt", "configs/data/gsm8k.yaml"),
        (["data.train=x.jsonl", "data.columns.prompt=question"], "data.columns.prompt", "typed"),
        (["data=quickstart", "~engine.head_tile"], "engine.head_tile", "trainer default"),
    ],
)
def test_a_value_says_which_file_or_word_set_it(words, key, source):
    assert sources(*words)[key] == source


@pytest.mark.parametrize(
    ("words", "key", "source"),
    [
        (["data=quickstart"], "job.dataset", "configs/data/quickstart.yaml (as data.train)"),
        (["data.train=x.jsonl"], "job.dataset", "typed (as data.train)"),
        (["data=quickstart", "job.dataset=x.jsonl"], "job.dataset", "typed"),
        (["data=quickstart", "job.dataset=x.jsonl"], "job.evaluation_dataset", "computed"),
        (["data=quickstart"], "job.base_model", "configs/model/tiny.yaml (as model.name)"),
        (["data=quickstart", "model=path", "model.path=m"], "job.base_model", "typed (as model.path)"),
        (["data=quickstart", "job.warm_start_from=mine"], "job.base_model", "computed"),
    ],
)
def test_a_reference_is_followed_to_what_it_refers_to(words, key, source):
    assert sources(*words)[key] == source


@pytest.mark.parametrize(
    ("words", "key", "source"),
    [
        ([], "hyper.epochs", "trainer default"),
        (["job.epochs=0"], "hyper.epochs", "trainer default"),
        (["job.epochs=2"], "hyper.epochs", "typed"),
        (["job.learning_rate=0"], "hyper.learning_rate", "typed"),
        (["job.lora_rank=0"], "hyper.lora_rank", "typed"),
        (["job.warm_start_from=mine"], "hyper.lora_rank", "computed"),
        ([], "hyper.lora_alpha", "computed"),
        (["model.lora.alpha=32"], "hyper.lora_alpha", "typed"),
        ([], "inputs.base_model", "computed"),
        ([], "objective.equation", "trainer default"),
    ],
)
def test_the_loops_numbers_say_it_too(words, key, source):
    assert sources("data=quickstart", *words)[key] == source


def test_every_leaf_of_the_description_has_a_source():
    spec = compose(["experiment=quickstart", "data.columns={a: b}"]).spec("run", INPUTS, created="now")
    about_the_run = {"version", "id", "created", "trainer_version", "overrides", "sources"}
    expected = {key for key, _ in leaves(spec.model_dump(exclude=about_the_run))}
    assert set(spec.sources) == expected


def test_a_job_from_the_wire():
    job = SupervisedFineTuningJob.model_validate({"dataset": "d", "baseModel": "m", "epochs": 3, "learningRate": 0.1})
    told = for_job("sft", job, base_path="/models/m").spec("run", INPUTS, created="now").sources
    assert {told[f"job.{key}"] for key in ("dataset", "base_model", "epochs")} == {"job (wire)"}
    assert (told["job.lora_rank"], told["hyper.lora_rank"]) == ("trainer default", "trainer default")
    assert (told["hyper.epochs"], told["hyper.learning_rate"]) == ("job (wire)", "job (wire)")
    assert (told["model.name"], told["model.path"]) == ("job (wire)", "computed")
    assert told["model.lora.dropout"] == "trainer default"
    assert told["train.seed"] == "configs/config.yaml"


def test_a_description_without_sources_still_loads(tmp_path):
    spec = compose(["data=quickstart"]).spec("run", INPUTS, created="now")
    spec.model_copy(update={"sources": {}}).save(tmp_path)
    path = tmp_path / "run.json"
    path.write_text(path.read_text().replace('"sources": {},\n', ""))
    assert "sources" not in path.read_text()
    assert RunSpec.load(tmp_path).sources == {}


def test_the_last_layer_that_mentions_a_key_has_it():
    layers = [
        Layer("first", "", {"a": {"b": 1, "c": 2}, "d": []}),
        Layer("second", "a", {"b": 1}),
        Layer("third", "", {"d": "${a.c}"}),
        Layer(provenance.TYPED, "e", "${a.c}"),
    ]
    expected = {"a.b": "second", "a.c": "first", "d": "first (as a.c)", "e": "typed"}
    assert origins(layers) == expected


def test_a_key_typed_in_braces_is_in_no_stored_word():
    words = ["data=quickstart", "job.wandb_config={enabled: true, api_key: topsecret}"]
    spec = compose(words).spec("run", INPUTS, created="now")
    assert "topsecret" not in spec.model_dump_json()
