"""`python -m trainer evaluate`: tables, files and refusals; with the model that ships."""

# ruff: noqa: E501 - one case a line

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.gateway_kit import opened, served
from trainer.__main__ import main


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRAINER_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("FIREWORKS_BASE_URL", raising=False)
    return tmp_path


def rows(path: Path, *answers: str, truth: str = "4") -> Path:
    lines = [
        {
            "messages": [{"role": "user", "content": "2+2?\u202e<b>"}, {"role": "assistant", "content": one}],
            "ground_truth": truth,
        }
        for one in answers
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_a_table_a_page_and_every_result(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = rows(place / "rows.jsonl", "4", "five", "<script>alert(1)</script> 5")
    assert main(["evaluate", "evaluator=maths", f"data={data}", "--out", str(place / "out")]) == 0
    printed = capsys.readouterr().out
    assert "score     0.3333  0.06149 to 0.7923       3  (Wilson)" in printed
    assert "status   ok 3" in printed
    results = [json.loads(line) for line in (place / "out/results.jsonl").read_text().splitlines()]
    assert [one["evals"]["score"] for one in results] == [1.0, 0.0, 0.0]
    assert results[0]["eval_details"]["metrics"]["marked"]["score"] == 0.0
    page = (place / "out/report.html").read_text()
    assert "<script" not in page and "&lt;script&gt;" in page and "\u202e" not in page
    assert "default-src &#39;none&#39;" in page


def test_rows_without_a_score_are_in_the_histogram_and_stop_the_command(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = place / "reward.py"
    source.write_text(
        "def score(messages, **_):\n    return {'4': 1.0, 'nan': float('nan'), 'key': {}}[messages[-1]['content']]\n"
    )
    data = rows(place / "rows.jsonl", "4", "4", "nan", "key", "boom")
    command = ["evaluate", f"evaluator={source}::score", f"data={data}", "--out", str(place / "out")]
    assert main(command) == 1
    printed = capsys.readouterr().out
    assert "status   ok 2, error 1, bad_result 2" in printed
    assert "masked   3 of 5 rows" in printed and "score         1" in printed
    assert (
        "\n3 of 5 rows (60%) have no usable score, max_invalid_fraction is 0.2: ok 2, error 1, bad_result 2" in printed
    )
    assert all("evals" not in json.loads(line) for line in (place / "out/results.jsonl").read_text().splitlines()[2:])
    assert main([*command, "--max-invalid-fraction", "0.6"]) == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["evaluator=nope"], "no example (assertions, code_tests"),
        (["data=x.jsonl"], "evaluator= is missing"),
        (["evaluator=maths", "colour=red"], "'colour' is none of evaluator, data, model, entry"),
        (["evaluator=maths", "evaluator.tolerance=2"], "tolerance: Input should be less than 1"),
        (["evaluator=maths", "data=not-there.jsonl"], "data: 'not-there.jsonl' is no file"),
        (["evaluator=maths", "data=DATA"], "1 of 2 rows have no answer (row 2 is the first)"),
        (["evaluator=maths", "data=BAD"], "bad.jsonl:2:"),
        (["evaluator=snippet", "evaluator.x=1"], "has no settings; given: x"),
        (["evaluator=maths", "data=DATA", "--again"], "--again needs model="),
        (["evaluator=maths", "evaluator=regex"], "evaluator= is given twice: maths and regex"),
        (["evaluator=maths", "data=accounts/local/datasets/none"], "accounts/local/datasets/none not found"),
        (["evaluator=maths", "data=EMPTY"], "empty.jsonl has no rows"),
        (["evaluator=maths", "data=DATA", "model=nothere"], "the gateway has no such model"),
        (["evaluator=maths", "--limit", "-1"], "--limit -1: expected 0 or more"),
        (["evaluator=maths", "--max-invalid-fraction", "7"], "--max-invalid-fraction 7: expected a share from 0 to 1"),
        (["evaluator=maths", "--max-tokens", "0"], "--max-tokens 0: input should be greater than or equal to 1"),
        (["evaluator=maths", "--out", "DATA"], "no folder can be made there"),
        (["evaluator=CODE", "data=DATA"], "name the function too"),
        (["evaluator=CODE::absent"], "reward.py has no function 'absent'"),
        (["evaluator=nope/versions/v1"], "accounts/local/evaluators/nope not found"),
        (["evaluator=maths", "data=rows", "--gateway", "elsewhere"], "--gateway elsewhere: allowed: embedded, remote, off"),
        (["evaluator=maths", "data=rows", "--gateway", "remote"], "the environment does not say which; set FIREWORKS_BASE_URL"),
        (["evaluator=accounts/other/evaluators/e"], "the gateway's account is 'local', not 'other'"),
        (["evaluator=llm_judge", "evaluator.key_env=NO_SUCH_KEY", "evaluator.base_url=http://127.0.0.1:1/v1"], "there is no secret 'NO_SUCH_KEY'"),
    ],
)  # fmt: skip
def test_refusals_are_one_line(place: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    data = rows(place / "data.jsonl", "4")
    data.write_text(data.read_text() + '{"messages": [{"role": "user", "content": "?"}]}\n')
    (place / "empty.jsonl").write_text("\n")
    (place / "reward.py").write_text("def score(messages, **_):\n    return 1.0\n")
    (place / "bad.jsonl").write_text('{"completion": "1"}\n{"a": NaN}\n')
    files = {"DATA": data, "BAD": place / "bad.jsonl", "EMPTY": place / "empty.jsonl", "CODE": place / "reward.py"}
    typed = [
        next((word.replace(name, str(path)) for name, path in files.items() if name in word), word) for word in words
    ]
    assert main(["evaluate", *typed]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_a_remote_gateway_is_the_one_that_the_environment_names(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with opened(place / "elsewhere") as (client, _):
        client.upload_dataset(rows(place / "scored.jsonl", "4", "5"), "scored")
    with served(place / "elsewhere") as (url, _):
        for name, value in (("BASE_URL", url), ("ACCOUNT_ID", "local"), ("API_KEY", "fw_local")):
            monkeypatch.setenv(f"FIREWORKS_{name}", value)
        assert (
            main(["evaluate", "evaluator=exact_match", "data=accounts/local/datasets/scored", "--gateway", "remote"])
            == 0
        )
        assert "score       0.5" in capsys.readouterr().out
        assert (
            main(["evaluate", "evaluator=exact_match", "data=accounts/local/datasets/none", "--gateway", "remote"]) == 2
        )
        assert "data" in capsys.readouterr().err


@pytest.mark.slow
def test_a_model_answers_what_has_no_answer(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = place / "prompts.jsonl"
    data.write_text(
        '{"question": "sort 321", "answer": "123"}\n{"prompt": "sort 21", "completion": "12", "ground_truth": "12"}\n'
    )
    command = [
        "evaluate",
        "evaluator=exact_match",
        f"data={data}",
        "model=tiny",
        "--max-tokens",
        "4",
        "--out",
        str(place / "out"),
    ]
    assert main(command) == 0
    assert "tiny answers 1 rows" in capsys.readouterr().out
    first, second = (json.loads(line) for line in (place / "out/results.jsonl").read_text().splitlines())
    assert first["messages"][-1]["role"] == "assistant" and first["eval_status"] == "ok"
    assert second["evals"] == {"score": 1.0}


def test_the_command_loads_no_tensors() -> None:
    code = "import sys, trainer.commands.evaluate; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
