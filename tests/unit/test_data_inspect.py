"""`data inspect`: rows as tokens with what is learnt, problems in their place, totals, gates, and one clear error."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from trainer.__main__ import main
from trainer.runs import shipped

ROOT = Path(__file__).parents[2]


def chat(question: str, answer: str, **fields) -> dict:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer, **fields}]}


def inspect(capsys: pytest.CaptureFixture, path: object, *words: str) -> tuple[int, str, str]:
    status = main(["data", "inspect", str(path), *words])
    out, err = capsys.readouterr()
    return status, out, err


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "it's rows.jsonl"
    lines = [json.dumps(chat("12", "34")), "{", json.dumps(chat("1\x1b[2J", "3456")), json.dumps(chat("9", "8"))]
    path.write_text("\n".join(lines))
    return path


def test_rows_are_shown_as_tokens_with_what_is_learnt(rows, capsys):
    status, out, _ = inspect(capsys, rows, "data.bad_rows=drop", "data.gates.dropped_rows=0.25")
    assert status == 0
    assert "stop tokens of the model: <|end|> (id 1)" in out
    assert f"{rows}:1  chat  7 tokens, 3 learnt; 1 of 1 learnt turns ends with a stop token" in out
    assert "    <|user|>·1·2·<|assistant|>·[3·4]·[stop:<|end|>]\n" in out
    assert f"\n{rows}:2: not JSON:" in out
    assert "\x1b" not in out and "\\x1b·[·2·J" in out
    assert "rows: 4 read, 3 used, 1 dropped" in out
    assert "gates (measured/allowed): dropped_rows 0.25/0.25," in out


def test_what_is_cut_off_is_marked(rows, capsys):
    words = ["data.bad_rows=drop", "data.overlong=cut", "job.max_context_length=9", "--from", "3", "--rows", "1"]
    status, out, _ = inspect(capsys, rows, *words)
    assert status == 2
    shown = out.split("\n\n")[1]
    assert f"{rows}:3  chat  12 tokens, 2 learnt, 3 cut off; 0 of 1 learnt turns end with a stop token" in shown
    assert shown.endswith("·<|assistant|>·[3·4]·{cut:5·6·<|end|>}")
    assert "a run would refuse these rows" in out
    assert re.search(r"cut_tokens: 0\.\d+ measured \(3 of \d+\), 0\.1 allowed", out)
    assert "untrained_stops: 0.3333 measured (1 of 3), 0.1 allowed" in out


def test_colours_say_the_same(rows, capsys):
    _, out, _ = inspect(capsys, rows, "--color", "always", "--rows", "2")
    dot = "\x1b[2m·\x1b[0m"
    learnt = f"\x1b[32m3{dot}\x1b[32m4\x1b[0m{dot}\x1b[1;35m<|end|>\x1b[0m\n"
    assert f"    <|user|>{dot}1{dot}2{dot}<|assistant|>{dot}{learnt}" in out
    assert f"\x1b[31m{rows}:2: not JSON" in out


def test_rows_that_a_run_refuses(rows, capsys):
    status, out, _ = inspect(capsys, rows)
    assert status == 2
    assert "a run would refuse these rows: dataset" in out
    assert "1 of 4 rows cannot be used (1 x json)" in out
    assert "gates (measured/allowed)" in out


def test_a_damaged_file_is_shown_up_to_the_damage(tmp_path, capsys):
    path = tmp_path / "rows.json"
    path.write_text(f"[{json.dumps(chat('1', '2'))},\n{{")
    status, out, _ = inspect(capsys, path)
    assert status == 2
    assert "[2]·[stop:<|end|>]" in out
    assert f"{path}:2: not JSON" in out


def test_a_template_of_ones_own(rows, tmp_path, capsys):
    template = tmp_path / "chat.jinja"
    template.write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    status, out, _ = inspect(capsys, rows, "--template", str(template), "--rows", "1", "data.bad_rows=drop")
    assert status == 2
    assert "    1·2·[3·4]\n" in out
    assert "0 of 1 learnt turns end with a stop token" in out
    assert "untrained_stops: 1 measured (3 of 3)" in out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["absent.jsonl"], "'absent.jsonl' is no file, folder, hub id or gateway data set"),
        (["ROWS", "--model", "tyni"], "--model tyni: no folder, no hub id"),
        (["ROWS", "--model", "FOLDER"], "its configuration cannot be read"),
        (["ROWS", "--template", "absent.jinja"], "--template absent.jinja: cannot be read"),
        (["FOLDER/rows.csv"], "files of rows end in .jsonl, .json, .parquet, this one in '.csv'"),
        (["ROWS", "job.epoch=2"], "job.epoch: unknown key; did you mean epochs?"),
        (["ROWS", "data.gates.dropped=1"], "data.gates.dropped: unknown key; did you mean dropped_rows?"),
        (["ROWS", "data.gates.cut_tokens=2"], "data.gates.cut_tokens: Input should be less than or equal to 1"),
        (["ROWS", "job.max_context_length=100000"], "is more than the"),
    ],
)
def test_what_cannot_be_done_is_one_clear_error(rows, capsys, words, says):
    (rows.parent / "rows.csv").write_text("a,b")
    given = [word.replace("ROWS", str(rows)).replace("FOLDER", str(rows.parent)) for word in words]
    status, out, err = inspect(capsys, *given)
    assert (status, err.startswith("error: ")) == (2, True)
    assert says in err
    assert "Traceback" not in out + err


def test_the_quick_start(capsys):
    status, out, _ = inspect(capsys, shipped("datasets/quickstart/train.jsonl"), "--rows", "1", "--model", "tiny")
    assert status == 0
    assert "rows: 4,000 read, 4,000 used" in out


def test_the_command_imports_no_tensor_library():
    program = """
import sys
import trainer.commands.data
assert not {"torch", "transformers", "datasets", "numpy"} & set(sys.modules), sorted(sys.modules)
"""
    command = [sys.executable, "-W", "error", "-c", program]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_pairs_are_known_by_their_rows_and_both_sides_are_shown(tmp_path, capsys):
    path = tmp_path / "pairs.jsonl"
    turns = chat("12", "34")["messages"]
    rows = [{"prompt": turns[:1], "chosen": turns[1:], "rejected": [{**turns[1], "content": say}]} for say in "567"]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    status, out, _ = inspect(capsys, path, "--rows", "1")
    assert status == 0
    assert f"{path}:1  chosen  7 tokens, 3 learnt" in out and f"{path}:1  rejected  6 tokens, 2 learnt" in out
    assert "[3·4]·[stop:<|end|>]" in out and "[5]·[stop:<|end|>]" in out
    assert "rows: 3 read, 3 used" in out and "tokens: 39 = 39 kept (15 trained, 24 masked)" in out


def test_a_template_holds_for_pairs_too(tmp_path, capsys):
    (tmp_path / "t.jinja").write_text(
        "{% for m in messages %}{{ '@' if m.role == 'user' else '#' }}{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}#{% endif %}"
    )
    asked, good, bad = (
        {"role": role, "content": text} for role, text in (("user", "1"), *[("assistant", c) for c in "23"])
    )
    rows = tmp_path / "pairs.jsonl"
    rows.write_text(json.dumps({"chosen": [asked, good], "rejected": [asked, bad]}) + "\n")
    _, out, _ = inspect(capsys, rows, "--template", str(tmp_path / "t.jinja"))
    assert "    @·1·#·[2]\n" in out and "    @·1·#·[3]\n" in out
