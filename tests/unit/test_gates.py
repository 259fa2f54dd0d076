"""Gates: what each one measures, that it refuses with rows and setting, and that it lets honest data through."""

import json
from pathlib import Path

import pytest

from trainer.compose import compose
from trainer.data import gates
from trainer.data.ledger import DataRefused, Ledger, Outcome, carve_out
from trainer.data.rows import Row
from trainer.loops.material import HELD_OUT_LEDGER, TRAIN_LEDGER, Prepared, read_material
from trainer.runs import DataSettings, GateSettings, Inputs, RowSource, shipped

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the public data files are not on this machine")
NAMES = list(GateSettings.model_fields)
USED = Outcome("used", total=10, kept=10, trained=4, turns=1, stop_turns=1)


def ledger(*outcomes: Outcome, hashes: str = "") -> Ledger:
    found = Ledger(RowSource(name="rows", path="rows.jsonl"), DataSettings(), max_context=50)
    for line, outcome in enumerate(outcomes, start=1):
        sha256 = hashes[line - 1] if hashes else str(line)
        message = "it is bad" if outcome.status == "dropped" else ""
        found.add("rows.jsonl", line, outcome=outcome, sha256=sha256, message=message)
    return found


def test_each_gate_measures_its_share():
    found = ledger(
        USED,
        Outcome("used", "cut", total=10, kept=6, trained=2, turns=2, stop_turns=1),
        Outcome("dropped", "json"),
        Outcome("dropped", "no_trained_token", total=10),
        Outcome("dropped", "cut_before_answer", total=10),
        USED,
        USED,
        USED,
        hashes="abcdeaab",
    )
    measured = {gate.name: (gate.count, gate.of, gate.rows) for gate in gates.measure(found, GateSettings())}
    assert measured == {
        "dropped_rows": (3, 8, ["rows.jsonl:3: it is bad (json)", "rows.jsonl:4: it is bad (no_trained_token)",
                                "rows.jsonl:5: it is bad (cut_before_answer)"]),
        "cut_tokens": (4, 70, ["rows.jsonl:2: 4 of 10 tokens cut off"]),
        "untrained_rows": (2, 8, ["rows.jsonl:4: no_trained_token", "rows.jsonl:5: cut_before_answer"]),
        "untrained_stops": (1, 6, ["rows.jsonl:2: a turn ends without a stop token"]),
        "duplicate_rows": (3, 5, ["rows.jsonl:6: equals rows.jsonl:1", "rows.jsonl:7: equals rows.jsonl:1",
                                  "rows.jsonl:8: equals rows.jsonl:2"]),
    }  # fmt: skip
    assert all(gate.measured == gate.count / gate.of for gate in gates.measure(found, GateSettings()))
    assert [gate.measured for gate in gates.measure(ledger(), GateSettings())] == [0] * 5


CUT = Outcome("used", "cut", total=10, kept=6, trained=2, turns=1, stop_turns=0)
RUINED = {  # rows that exceed the gate, and what it measures of them
    "dropped_rows": ([Outcome("dropped", "json")] * 2 + [USED] * 8, 0.2),
    "cut_tokens": ([CUT] * 3 + [USED] * 7, 0.12),
    "untrained_rows": ([Outcome("dropped", "no_trained_token", total=3)] + [USED] * 9, 0.1),
    "untrained_stops": ([CUT] * 2 + [USED] * 8, 0.2),
}


@pytest.mark.parametrize("name", RUINED)
def test_an_exceeded_gate_names_value_threshold_rows_and_setting(name):
    outcomes, measured = RUINED[name]
    others = {other: 1.0 for other in NAMES if other != name}
    found = ledger(*outcomes)
    with pytest.raises(DataRefused) as caught:
        gates.check(found, GateSettings(**others))
    allowed = GateSettings().model_dump()[name]
    message = str(caught.value)
    assert f"  {name}: {measured:g} measured (" in message and f"), {allowed:g} allowed\n" in message
    assert "    rows.jsonl:1: " in message
    assert message.endswith(f"or set data.gates.{name}={measured:g}.")
    assert caught.value.ledger is found
    assert [gate.name for gate in found.gates if not gate.passed] == [name]
    gates.check(found, GateSettings(**{**others, name: measured}))


def test_all_exceeded_gates_are_told_at_once_and_rows_are_few():
    found = ledger(*[CUT] * 9, hashes="a" * 9)
    with pytest.raises(DataRefused) as caught:
        gates.check(found, GateSettings())
    message = str(caught.value)
    assert [name for name in NAMES if f"{name}:" in message] == ["cut_tokens", "untrained_stops", "duplicate_rows"]
    assert "0.8889 measured (8 of 9)" in message and "data.gates.duplicate_rows=0.889." in message
    assert message.count("equals rows.jsonl:1") == 5


def test_the_ledger_and_its_summary_have_what_was_measured(tmp_path):
    found = ledger(USED, USED, USED)
    assert "gates" not in "".join(found.summary())
    gates.check(found, GateSettings())
    saved = json.loads(found.save(tmp_path / "ledger.json").read_text())
    assert saved["gates"][0] == {
        "name": "dropped_rows", "measured": 0.0, "allowed": 0.1, "passed": True, "count": 0, "of": 3, "rows": [],
    }  # fmt: skip
    assert [gate["name"] for gate in saved["gates"]] == NAMES[:5]
    assert "gates (measured/allowed): dropped_rows 0/0.1, cut_tokens 0/0.1," in "\n".join(found.summary())


def chat(*texts: str, line: int = 1, tools: tuple = ()) -> Row:
    roles = ("user", "assistant")
    messages = tuple({"role": roles[number % 2], "content": text} for number, text in enumerate(texts))
    return Row("f", line, "chat", sha256="|".join(texts), messages=messages, tools=tools, trained=(1,))


def test_overlap_is_by_row_and_by_prompt():
    trained = [chat("q", "a", line=7), chat("q", "a", line=8), chat("p", "a", "q", "b"), Row("f", 3, "text", "t")]
    held_out = [
        chat("q", "a"),
        chat("q", "other"),
        chat("p", "a", "q", "c"),
        chat("new", "a"),
        Row("f", 5, "text", "t"),
    ]
    rows, prompts = gates.overlap(trained, held_out, GateSettings(overlap_prompts=0.8))
    assert (rows.name, rows.count, rows.of, rows.passed) == ("overlap_rows", 2, 5, False)
    assert rows.rows == ["f:1: equals f:7", "f:5: equals f:3"]
    assert (prompts.name, prompts.count, prompts.of, prompts.passed) == ("overlap_prompts", 4, 5, True)
    assert gates.overlap(trained, [], GateSettings()) == []


def test_a_prompt_is_what_a_sampler_is_given():
    assert chat("q", "a").prompt_sha256 == chat("q", "b").prompt_sha256
    assert chat("q", "a").prompt_sha256 != chat("q", "a", tools=({"name": "f"},)).prompt_sha256
    asked = Row("f", 1, "completion", "h", prompt="p", completion="c")
    assert asked.prompt_sha256 == Row("f", 2, "completion", "i", prompt="p", completion="d").prompt_sha256
    assert Row("f", 1, "completion", "h", completion="c").prompt_sha256 == "h"


def material(folder: Path, *words: str, train: object, evaluation: object = None) -> Prepared:
    composed = compose(["data.train=train.jsonl", *words])
    sources = {}
    for name, rows in (("train", train), ("evaluation", evaluation)):
        path = rows if isinstance(rows, Path) else folder / f"{name}.jsonl"
        if isinstance(rows, list):
            path.write_text("\n".join(json.dumps(row) for row in rows))
        sources[name] = rows and RowSource(name=path.name, path=str(path))
    inputs = Inputs(base_model=str(shipped("models/tiny")), **sources)
    return read_material(composed.spec("run", inputs, created=""))


def pair(prompt: object, completion: object) -> dict:
    return {"prompt": f"p {prompt}", "completion": f"c {completion}"}


def test_a_run_is_refused_before_it_starts(tmp_path):
    rows = [pair(number, number) for number in range(10)]
    found = material(tmp_path, train=rows, evaluation=[pair("new", 1)])
    assert [gate.name for gate in found.ledgers[TRAIN_LEDGER].gates] == NAMES
    assert [gate.name for gate in found.ledgers[HELD_OUT_LEDGER].gates] == NAMES[:5]
    with pytest.raises(DataRefused, match=r"overlap_rows: 0\.5 (.|\n)*evaluation.jsonl:2: equals .*train.jsonl:4\n"):
        material(tmp_path, train=rows, evaluation=[pair("new", 1), pair(3, 3)])
    with pytest.raises(DataRefused, match=r"overlap_prompts: 1 measured \(1 of 1\), 0 allowed"):
        material(tmp_path, train=rows, evaluation=[pair(3, "else")])
    assert material(
        tmp_path, "data.gates.overlap_prompts=1", train=rows, evaluation=[pair(3, "else")]
    ).material.held_out
    with pytest.raises(DataRefused, match=r"duplicate_rows: 0\.9 measured"):
        material(tmp_path, train=rows[:1] * 10)
    with pytest.raises(DataRefused, match=r"evaluation\.jsonl' is refused by its gates:\n  duplicate_rows: 0\.75"):
        material(tmp_path, train=rows, evaluation=[pair("new", 1)] * 4)


def test_prompts_longer_than_the_context_refuse_to_launch(tmp_path):
    rows = [pair("x" * 400, number) for number in range(3)] + [pair(number, number) for number in range(20)]
    for overlong in ("cut", "drop"):
        with pytest.raises(DataRefused, match=r"dropped_rows: 0\.1304 measured \(3 of 23\)"):
            material(tmp_path, "job.max_context_length=64", f"data.overlong={overlong}", train=rows)


def test_a_template_without_a_stop_token_refuses_to_launch(tmp_path):
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    rows = [
        {"messages": [{"role": "user", "content": str(n)}, {"role": "assistant", "content": "a"}]} for n in range(9)
    ]
    with pytest.raises(DataRefused, match=r"untrained_stops: 1 measured \(9 of 9\)(.|\n)*chat template"):
        material(tmp_path, f"job.jinja_template='{template}'", train=rows)


def test_the_carve_out_keeps_the_rows_of_a_prompt_together(tmp_path):
    rows = [pair(number // 4, number) for number in range(80)]
    found = material(tmp_path, "job.eval_auto_carveout=true", train=rows)
    assert len(found.material.held_out) == 8
    assert [gate.measured for gate in found.ledgers[TRAIN_LEDGER].gates[5:]] == [0, 0]
    same = [pair("same", number) for number in range(20)]
    with pytest.raises(ValueError, match=r"data\.gates\.overlap_prompts=1"):
        material(tmp_path, "job.eval_auto_carveout=true", train=same)
    words = ["job.eval_auto_carveout=true", "data.gates.overlap_prompts=1"]
    assert len(material(tmp_path, *words, train=same).material.held_out) == 2
    assert carve_out(["a", "a", "b"], 0.4, max_rows=5, seed=0) == ([0, 1], [2])


def test_the_quick_start_is_let_through():
    folder = shipped("datasets/quickstart")
    found = material(folder, train=folder / "train.jsonl", evaluation=folder / "eval.jsonl")
    assert all(gate.measured == 0 for ledger in found.ledgers.values() for gate in ledger.gates)


@needs_data
def test_real_files_are_let_through(tmp_path):
    words = ["data=gsm8k", "data.max_rows=2000"]
    found = material(tmp_path, *words, train=DATA / "gsm8k/train.jsonl", evaluation=DATA / "gsm8k/test.jsonl")
    assert [gate.measured for gate in found.ledgers[TRAIN_LEDGER].gates] == [0] * 7
    found = material(tmp_path, "job.eval_auto_carveout=true", train=DATA / "text2sql/train.jsonl")
    assert [gate.measured for gate in found.ledgers[TRAIN_LEDGER].gates] == [0] * 7
