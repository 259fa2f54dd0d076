"""Composition: every shipped configuration loads, and every mistake ends in one clear message."""

import pytest

from trainer.compose import ConfigError, compose, for_job, sweep
from trainer.jobs import SupervisedFineTuningJob
from trainer.runs import shipped


def options(group: str) -> list[str]:
    return sorted(path.stem for path in shipped("configs").joinpath(group).glob("*.yaml"))


@pytest.mark.parametrize("model", options("model"))
def test_every_model_config_loads(model):
    extra = ["model.path=somewhere"] if model == "path" else []
    composed = compose(["data=quickstart", f"model={model}", *extra])
    assert composed.job.base_model == composed.model.name
    assert composed.model.lora.targets


@pytest.mark.parametrize("group", ["job", "data", "engine", "launch", "gateway", "experiment"])
def test_every_other_config_loads(group):
    for option in options(group):
        words = ["job.dataset=rows.jsonl"] if group == "data" and option == "file" else []
        if (group, option) == ("gateway", "remote"):
            words = ["gateway.base_url=http://127.0.0.1:1", "gateway.account=me"]
        if group not in ("experiment", "data"):
            words.append("data=quickstart")
        assert compose([f"{group}={option}", *words]).job.dataset


def test_no_word_is_the_quick_start():
    composed = compose([])
    assert composed.job.dataset == str(shipped("datasets/quickstart/train.jsonl"))
    assert composed.model.path == str(shipped("models/tiny"))
    assert composed.train.score_rows == 200


def test_a_job_without_rows_says_what_to_type():
    with pytest.raises(ConfigError, match=r"job\.dataset: name the rows to train on: data\.train=FILE"):
        compose(["job.epochs=2"])


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["job.epoch=2"], "job.epoch: unknown key; did you mean epochs?"),
        (["jobs.epochs=2"], "jobs.epochs: unknown key; did you mean job?"),
        (["train.sed=3"], "train.sed: unknown key; did you mean seed?"),
        (["+job.learning_rat=3"], "job.learning_rat: unknown key; did you mean learning_rate?"),
        (["model=tinny"], "model=tinny: no such option; did you mean model=tiny?"),
        (["model=zzz"], "model=zzz: no such option (there are: gemma3_1b,"),
        (["job.learning_rate=fast"], "job.learning_rate: Input should be a valid number"),
        (["engine.kind=magic"], "engine.kind: Input should be 'local', got 'magic'"),
        (["gateway=remote"], "gateway.base_url: has no value; type gateway.base_url=VALUE"),
        (["model=path"], "model.path: has no value; type model.path=VALUE"),
        (["job.epochs=1,2"], "job.epochs=1,2: several values need --multirun"),
        (["trian"], "'trian' is neither a command"),
        (["job.is_turbo=true"], "job.is_turbo: turbo is a speed tier"),
        (["job.warm_start_from=a", "job.base_model=b"], "job: base_model and warm_start_from exclude each other"),
        (["job.early_stop=true", "job.evaluation_dataset=null"], "early_stop: needs held-out rows"),
        (["job.output_model=My_Model"], "job.output_model: 'My_Model' is not a resource id"),
        (
            ["gateway=remote", "gateway.account=a", "gateway.base_url=nonsense"],
            "gateway.base_url: 'nonsense' is no gate",
        ),
        (["job.jinja_template=/no/such.jinja"], "job.jinja_template: '/no/such.jinja' is neither a chat template"),
        (["job.epochs=2", "data.overlong=chop"], "data.overlong: Input should be 'refuse', 'drop' or 'cut'"),
    ],
)
def test_mistakes_are_named_with_the_way_out(words, says):
    with pytest.raises(ConfigError) as caught:
        compose(["data=quickstart", *words])
    assert says in str(caught.value)


def test_a_chat_template_can_be_the_name_of_a_file(tmp_path):
    text = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    (tmp_path / "chat.jinja").write_text(text)
    found = compose(["data=quickstart", f"job.jinja_template={tmp_path}/chat.jinja"])
    assert found.job.jinja_template == text
    assert f"note: job.jinja_template is the text of {tmp_path}/chat.jinja" in found.notes
    pairs = compose(["job=dpo", f"job.training_config.jinja_template={tmp_path}/chat.jinja"])
    assert pairs.job.jinja_template == text


def test_all_mistakes_are_told_at_once():
    with pytest.raises(ConfigError) as caught:
        compose(["data=quickstart", "job.epochs=x", "train.seed=-1"])
    assert "job.epochs" in str(caught.value) and "train.seed" in str(caught.value)


def test_a_warm_start_needs_no_word_about_the_base():
    composed = compose(["data=quickstart", "job.warm_start_from=accounts/local/models/mine"])
    assert (composed.job.base_model, composed.job.warm_start_from) == (None, "accounts/local/models/mine")


def test_other_rows_do_not_inherit_the_groups_held_out_rows():
    composed = compose(["data=quickstart", "job.dataset=mine.jsonl"])
    assert composed.job.evaluation_dataset is None
    assert "is not used" in composed.notes[0]


def test_columns_can_be_named_without_a_plus():
    composed = compose(["data.train=x.jsonl", "data.columns={prompt: question}", "data.columns.completion=answer"])
    assert composed.data.columns == {"prompt": "question", "completion": "answer"}


def test_the_key_is_in_no_stored_word():
    composed = compose(["data=quickstart", "job.wandb_config.enabled=true", "job.wandb_config.api_key=topsecret"])
    inputs = {"base_model": "b", "train": {"name": "n", "path": "p"}}
    from trainer.runs import Inputs

    spec = composed.spec("run", Inputs.model_validate(inputs), created="now")
    assert "topsecret" not in spec.model_dump_json() + str(spec.overrides) + str(spec.job.wire())
    assert spec.overrides[-1] == "job.wandb_config.api_key=***"


def test_a_sweep_is_the_product_of_its_lists():
    assert list(sweep(["a.b=1,2", "c=x", "d=p,q"])) == [
        ["a.b=1", "c=x", "d=p"], ["a.b=1", "c=x", "d=q"],
        ["a.b=2", "c=x", "d=p"], ["a.b=2", "c=x", "d=q"],
    ]  # fmt: skip


def test_a_job_from_the_wire_gets_the_shipped_settings():
    job = SupervisedFineTuningJob.model_validate({"dataset": "d", "baseModel": "accounts/local/models/tiny"})
    composed = for_job("sft", job, base_path="/models/tiny")
    assert composed.job is job
    assert (composed.model.path, composed.gateway.kind, composed.train.seed) == ("/models/tiny", "off", 0)
