"""A run's folder that somebody has changed: a file that cannot be read is named in one line, nothing is made up."""

import json

import pytest

from trainer import attempt, environment, history
from trainer.commands import runs as runs_command
from trainer.commands import show
from trainer.compose import compose
from trainer.data.ledger import prepare
from trainer.data.render import Renderer, load_tokenizer
from trainer.data.rows import Row, read_rows
from trainer.errors import UsageError
from trainer.jobs import JobState
from trainer.runs import DataSettings, Inputs, RowSource, shipped
from trainer.times import lines_of
from trainer.tracking import Journal, MetricsFiles


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv("TRAINER_HOME", str(tmp_path))
    folder = tmp_path / "one"
    inputs = Inputs(base_model="/models/base", train=RowSource(name="rows", path="rows.jsonl"))
    compose([]).spec("one", inputs, created="").save(folder)
    journal = Journal(folder)
    journal.state(JobState.RUNNING)
    journal.close()
    return folder


def put(path, how):
    if how == "folder":
        path.unlink(missing_ok=True)
        path.mkdir()
    else:
        path.write_text({"garbage": "{not json\n", "older": '{"version": 0}\n'}[how])


@pytest.mark.parametrize(
    ("name", "how", "says"),
    [
        ("run.json", "garbage", "cannot be read by this version"),
        ("run.json", "older", "cannot be read by this version"),
        ("sync.jsonl", "garbage", r"its files cannot be read \(sync.jsonl, line 1: "),
        ("sync.jsonl", "folder", "its files cannot be read"),
        ("metrics.jsonl", "folder", "its files cannot be read"),
    ],
)
def test_a_changed_file_is_named_in_one_line_and_the_list_goes_on(run, capsys, name, how, says):
    put(run / name, how)
    with pytest.raises(UsageError, match=says) as refused:
        history.read(run)
    assert "\n" not in str(refused.value)
    assert runs_command.run(None) == 0
    assert says.split(r" \(")[0] in capsys.readouterr().out


@pytest.mark.parametrize("name", ["metrics.jsonl", "perf.jsonl", "sync.jsonl"])
def test_a_worker_that_cannot_write_names_the_file_in_one_line(run, capsys, name):
    put(run / name, "folder")
    assert attempt.main([str(run)]) == attempt.EXIT_CRASH
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {run / name}: cannot be written (")


def test_show_tells_which_files_it_cannot_read(run, capsys):
    put(run / "ledger.json", "garbage")
    put(run / "samples.json", "garbage")
    assert show.run(_options(run)) == 0
    out = capsys.readouterr().out
    assert "ledger.json: cannot be read" in out
    assert "samples.json: cannot be read" in out


def test_metrics_that_are_shorter_than_the_checkpoint_says_are_not_filled_up(tmp_path):
    files = MetricsFiles(tmp_path)
    files.metrics(1, {"loss": 1.0})
    position = files.position()
    files.metrics(2, {"loss": 2.0})
    assert files.cut(position) == 0
    assert files.cut(position + 100) == 100
    files.metrics(2, {"loss": 3.0})
    files.close()
    lines = (tmp_path / "metrics.jsonl").read_bytes().splitlines()
    assert [json.loads(line) for line in lines] == [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 3.0}]


def test_lines_that_are_no_objects_are_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n{not json\n\x00\x00\xff\n[1]\n{"step": 2}\n{"step"')
    assert lines_of(path) == [{"step": 1}, {"step": 2}]


def test_rows_that_spell_control_tokens_are_counted(tmp_path):
    path = tmp_path / "rows.jsonl"
    texts = ["plain", "an end: <|end|>", "two: <|end|><|user|>", "no < | token"]
    path.write_text("".join(json.dumps({"prompt": "p", "completion": text}) + "\n" for text in texts))
    renderer = Renderer(load_tokenizer(str(shipped("models/tiny")), None))
    ledger = prepare(RowSource(name="r", path=str(path)), DataSettings(), renderer=renderer, max_context=64).ledger
    assert ledger.spelling == 2
    assert ledger.spelled == {"<|end|>": 2, "<|user|>": 1}
    assert "2 rows spell control tokens in their text (<|end|>, <|user|>)" in "\n".join(ledger.warnings())


def test_control_tokens_in_tools_and_their_calls_are_counted_too(tmp_path):
    call = {"type": "function", "function": {"name": "f", "arguments": {"at": ["<|user|>"]}}}
    tool = {"type": "function", "function": {"name": "f", "description": "ends <|end|>"}}
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "tool_calls": [call]}]
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"messages": messages, "tools": [tool]}) + "\n")
    renderer = Renderer(load_tokenizer(str(shipped("models/tiny")), None))
    [row] = read_rows(RowSource(name="r", path=str(path)), DataSettings())
    assert isinstance(row, Row)
    assert renderer.spelled(row) == {"<|end|>", "<|user|>"}


def _options(folder):
    import argparse

    return argparse.Namespace(run=str(folder), report=False)


def test_other_rows_and_another_base_than_the_run_began_with_are_named(tmp_path):
    rows, base, folder = tmp_path / "rows", tmp_path / "base", tmp_path / "run"
    for place in (rows, base, folder):
        place.mkdir()
    (rows / "a.jsonl").write_text("{}\n")
    (base / "model.safetensors").write_bytes(b"weights")
    (base / "README.md").write_text("a paper")
    (folder / "run.json").write_text("{}")
    inputs = Inputs(base_model=str(base), train=RowSource(name="rows", path=str(rows)))
    spec = compose([]).spec("one", inputs, created="")

    def changed():
        return environment.changed_inputs(spec, folder, cache=tmp_path / "digests")

    assert changed() == []  # nothing is known yet
    told = environment.lineage(spec, folder, cache=tmp_path / "digests")
    (folder / "lineage.json").write_text(json.dumps(told))
    (base / "README.md").write_text("another paper")
    assert changed() == []
    (base / "model.safetensors").write_bytes(b"others")
    (rows / "a.jsonl").rename(rows / "b.jsonl")
    assert changed() == [
        f"{rows / 'a.jsonl'} is gone", f"{rows / 'b.jsonl'} is new", f"{base / 'model.safetensors'} has changed"
    ]  # fmt: skip
    (folder / "lineage.json").write_text("[]")
    with pytest.raises(ValueError, match=r"lineage\.json: cannot be read"):
        changed()
