"""What a name on the command line stands for, what a model is asked, and options that must not be ignored."""

import json
from pathlib import Path

import pytest

from evaluators.library import examples
from tests.run_folder import described
from trainer import history
from trainer.__main__ import main
from trainer.commands.chat import find_weights
from trainer.commands.train import _name_of, _quoted
from trainer.data.chat import read_prompt
from trainer.data.problem import RowProblem
from trainer.data.render import Renderer, RenderError, load_tokenizer
from trainer.errors import UsageError
from trainer.runs import shipped


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRAINER_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def make_run(folder: Path, scratch: Path) -> Path:
    scratch.mkdir(parents=True)
    described(scratch).save(folder)
    return folder


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line with which a command refuses."""
    assert main(list(words)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    return error


def test_a_sweeps_members_have_names_of_their_own(home: Path, tmp_path: Path):
    first, second = make_run(home / "one-sweep/0", tmp_path / "a"), make_run(home / "two-sweep/0", tmp_path / "b")
    assert history.find("one-sweep/0") == first
    assert history.find("two") == second
    with pytest.raises(UsageError, match="'0' names several runs: one-sweep/0, two-sweep/0"):
        history.find("0")


def test_a_run_is_named_so_that_it_is_found_again(home: Path, tmp_path: Path):
    inside, outside = make_run(home / "run", tmp_path / "a"), make_run(tmp_path / "my runs/r", tmp_path / "b")
    assert _name_of(inside) == "run" and history.find(_name_of(inside)) == inside
    assert _name_of(outside) == f"'{outside}'" and history.find(_name_of(outside).strip("'")) == outside


def test_a_prompt_is_quoted_for_a_shell():
    assert _quoted("sort 742547") == '"sort 742547"'
    assert _quoted("$HOME 'x'") == "'$HOME '\"'\"'x'\"'\"''"


def test_without_a_gateway_a_runs_name_is_a_runs_name(home: Path, tmp_path: Path):
    run = make_run(home / "some-run", tmp_path / "a")
    (run / "model").mkdir()
    (run / "model" / "config.json").write_text("{}")
    assert find_weights("some-run", "off") == (str(run / "model"), None)
    with pytest.raises(UsageError, match=r"no run .*with --gateway off no gateway is asked"):
        find_weights("no-such", "off")


def test_a_model_that_cannot_be_opened_is_one_line(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "config.json").write_text("{")
    assert f"{str(tmp_path)!r} cannot be opened: model" in refused(capsys, "chat", str(tmp_path), "hi", "--gateway=off")


def test_a_model_is_asked_what_training_would_have_shown_it():
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    asked = read_prompt(
        [{"role": "user", "content": parts}, {"role": "assistant", "content": None, "tool_calls": [call]}]
    )
    assert asked[0] == {"role": "user", "content": "ab"}
    assert asked[1]["tool_calls"][0]["function"]["arguments"] == {"a": 1}
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    with pytest.raises(
        RowProblem, match=r"messages\[0\]\.content\[0\] is of type 'image_url': the model reads text only"
    ):
        read_prompt([{"role": "user", "content": [image]}])


def test_a_templates_complaint_is_told_in_short():
    renderer = Renderer(load_tokenizer(str(shipped("models/tiny")), None))
    with pytest.raises(RenderError) as caught:
        renderer.chat_ids([{"role": "user", "content": ["x" * 100_000]}])
    assert len(str(caught.value)) < 500 and "characters)" in str(caught.value)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--dry-rn"], "unrecognized arguments: --dry-rn; did you mean --dry-run? (python -m trainer train --help"),
        (["data"], "the following arguments are required: action, path ("),
        (["chat", "--max-tokens", "few"], "argument --max-tokens: invalid int value: 'few'"),
        (["gateway", "keys", "create", "--days", "0"], "argument --days: got '0'; expected whole days, 1 to 36,500"),
        (["gateway", "keys", "list", "--port", "80"], "--port: is of gateway, and means nothing here; leave it out"),
        (["gateway", "--days", "3"], "--days: is of gateway keys, and means nothing here; leave it out"),
        (["gateway", "coverage", "more"], "gateway coverage: takes no words, got 'more'"),
        (["job=dpo", "job.epochs=2"], "job.epochs: unknown key; in job=dpo it is job.training_config.epochs"),
        (["data=quickstart", "job.training_config.epochs=2"], "unknown key; in job=sft it is job.epochs"),
        (["data=quickstart", "job.loss_config.dpo.beta=1"], "unknown key in job=sft; job=dpo and job=orpo have it"),
        (["data=quickstart", "~model"], "model: cannot be taken away, other settings are filled in from it"),
    ],
)
def test_what_means_nothing_is_refused_in_one_line(
    words: list[str], says: str, home: Path, capsys: pytest.CaptureFixture[str]
):
    assert says in refused(capsys, *words)


def test_an_evaluators_own_words_have_no_prefix(home: Path, capsys: pytest.CaptureFixture[str]):
    rows = examples()["shape"] / "rows.jsonl"
    assert json.loads(rows.read_text().splitlines()[0])
    (home / "shape").mkdir(parents=True)
    (home / "shape" / "evaluator.json").write_text('{"kind": "shape"}')
    said = refused(capsys, "evaluate", f"evaluator={home / 'shape'}", f"data={rows}")
    assert "evaluator shape: shape: asks for nothing; set shortest" in said
