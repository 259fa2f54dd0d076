"""Preference rows: every shape gives the same pair, what is none is refused, and the ledger counts both sides."""

import json
from pathlib import Path

import numpy as np
import pytest

from trainer.data import gates
from trainer.data.ledger import DataRefused, Prepared, carve_out, prepare
from trainer.data.render import Renderer, load_tokenizer
from trainer.data.rows import Row, RowProblem, read_rows
from trainer.runs import DataSettings, RowSource, shipped

ASK, GOOD, BAD = (
    {"role": "user", "content": "q"}, {"role": "assistant", "content": "good"}, {"role": "assistant", "content": "bad"},
)  # fmt: skip
SHAPES = {
    "gateway": {"input": {"messages": [ASK]}, "preferred_output": [GOOD], "non_preferred_output": [BAD]},
    "conversations": {"chosen": {"messages": [ASK, GOOD]}, "rejected": {"messages": [ASK, BAD]}},
    "samples": {
        "samples": [{"messages": [ASK, BAD], "evals": {"score": 0.0}}, {"messages": [ASK, GOOD], "score": 1.0}]
    },
    "trl": {"prompt": [ASK], "chosen": [GOOD], "rejected": [BAD]},
    "trl, implicit prompt": {"chosen": [ASK, GOOD], "rejected": [ASK, BAD]},
    "trl, prompt said twice": {"prompt": "q", "chosen": [ASK, GOOD], "rejected": [ASK, BAD]},
}


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    return Renderer(load_tokenizer(str(shipped("models/tiny")), None))


def source(folder: Path, *rows: object) -> RowSource:
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return RowSource(name="pairs", path=str(path))


def read(folder: Path, row: object, **settings) -> Row | RowProblem:
    (found,) = read_rows(source(folder, row), DataSettings(**settings), pairs=True)
    return found


def prepared(folder: Path, renderer: Renderer, *rows: object, longest: int = 64, **settings) -> Prepared:
    return prepare(
        source(folder, *rows), DataSettings(**settings), renderer=renderer, max_context=longest, min_rows=1, pairs=True
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_is_the_same_pair(tmp_path, shape):
    row, first = read(tmp_path, SHAPES[shape]), read(tmp_path, SHAPES["gateway"])
    assert isinstance(row, Row) and isinstance(first, Row)
    assert [side.messages for side in row.sides] == [(ASK, GOOD), (ASK, BAD)]
    assert (row.kind, row.sha256, row.prompt_sha256) == ("pair", first.sha256, first.prompt_sha256)


def test_three_strings_are_completions(tmp_path, renderer):
    row = read(tmp_path, {"prompt": "max 12: ", "chosen": "2", "rejected": "1"})
    assert isinstance(row, Row) and [side.kind for side in row.sides] == ["completion"] * 2
    found = prepared(tmp_path, renderer, {"prompt": "max 12: ", "chosen": "2", "rejected": "1"})
    (pair,) = found.datums
    assert pair.chosen.trained == pair.rejected.trained == 2  # a digit and the stop token


def test_the_prompt_is_the_common_prefix_and_is_not_learnt(tmp_path, renderer):
    (pair,) = prepared(tmp_path, renderer, SHAPES["gateway"]).datums
    starts = [int(np.argmax(datum.weights != 0)) for datum in pair.datums]
    assert starts[0] == starts[1] == 2  # <|user|> q <|assistant|>; the next token is predicted from position 2
    np.testing.assert_array_equal(pair.chosen.tokens[:3], pair.rejected.tokens[:3])
    assert pair.length == pair.chosen.length + pair.rejected.length
    assert all(datum.weights[starts[0] :].all() for datum in pair.datums)


def test_turns_before_are_the_prompt(tmp_path, renderer):
    turns = [ASK, GOOD, {"role": "user", "content": "and?"}]
    row = {"chosen": {"messages": [*turns, GOOD]}, "rejected": {"messages": [*turns, BAD]}}
    (pair,) = prepared(tmp_path, renderer, row).datums
    assert (pair.chosen.trained, pair.rejected.trained) == (2, 3)  # only the last answer: good, b ad, stop


@pytest.mark.parametrize(
    ("row", "code", "says"),
    [
        ({"messages": [ASK, GOOD]}, "format", "no preference pair: the keys are messages"),
        ({"chosen": "a", "rejected": "b"}, "format", "so prompt must be one too"),
        ({"chosen": [ASK, GOOD], "rejected": "b"}, "format", "rejected must be"),
        ({"prompt": "x", "chosen": [GOOD], "rejected": [BAD]}, "format", "prompt must be a list of messages"),
        ({"input": {"messages": [ASK]}, "preferred_output": [GOOD]}, "format", "non_preferred_output is missing"),
        ({**SHAPES["gateway"], "preferred_output": [GOOD, ASK]}, "multi_turn", "exactly one assistant message, not 2"),
        ({**SHAPES["gateway"], "preferred_output": [ASK]}, "role", "preferred_output[0] must be a message of the ass"),
        ({**SHAPES["gateway"], "input": {"messages": [ASK, GOOD, ASK]}}, "multi_turn", "one user turn"),
        ({**SHAPES["gateway"], "non_preferred_output": [GOOD]}, "identical_pair", "nothing to prefer"),
        ({"prompt": "q", "chosen": "a", "rejected": ""}, "empty_side", "the rejected answer is empty"),
        ({**SHAPES["gateway"], "preferred_output": [{**GOOD, "content": " \n"}]}, "empty_side", "the chosen answer"),
        ({"chosen": [ASK, GOOD], "rejected": [{**ASK, "content": "z"}, BAD]}, "multi_turn", "part at messages[0]"),
        ({"chosen": [ASK, GOOD, ASK, GOOD], "rejected": [ASK, BAD]}, "multi_turn", "part at messages[1]"),
        ({"chosen": [ASK, {**GOOD, "weight": 0}], "rejected": [ASK, BAD]}, "weight", "it is what is learnt"),
        ({"samples": [{"messages": [ASK, GOOD], "score": 1}, {"messages": [ASK, BAD], "score": 0.5}]}, "score",
         "exactly one 1.0 and one 0.0"),
        ({"samples": [{"messages": [ASK, GOOD], "score": 1}, {"messages": [ASK, BAD]}]}, "score", "samples[1] must"),
        ({"samples": "two"}, "format", "samples must be an array of objects"),
        ({"chosen": [ASK, GOOD], "rejected": [ASK]}, "grammar", "it must be the assistant's"),
    ],
)  # fmt: skip
def test_what_is_no_pair_is_refused_by_name(tmp_path, row, code, says):
    found = read(tmp_path, row)
    assert isinstance(found, RowProblem) and (found.code, found.line) == (code, 1) and says in found.message


def test_kinds_of_rows_are_not_mixed(tmp_path, renderer):
    (problem,) = read_rows(source(tmp_path, SHAPES["trl"]), DataSettings())
    assert isinstance(problem, RowProblem) and "train with job=dpo" in problem.message
    with pytest.raises(
        ValueError, match=r"data\.format: chat is not what this job learns from; set it to auto or pair"
    ):
        prepared(tmp_path, renderer, SHAPES["trl"], format="chat")


def test_columns_and_unused_fields(tmp_path, renderer):
    row = {"question": "q", "better": "good", "worse": "bad", "id": 7}
    columns = {"prompt": "question", "chosen": "better", "rejected": "worse"}
    found = prepared(tmp_path, renderer, row, columns=columns)
    assert len(found.datums) == 1 and found.ledger.counts.unused_fields == {"id": 1}


def test_the_ledger_counts_both_sides_as_one_row(tmp_path, renderer):
    empty = {"prompt": "q", "chosen": "a", "rejected": ""}
    found = prepared(tmp_path, renderer, SHAPES["gateway"], SHAPES["trl"], empty, bad_rows="drop")
    totals = found.ledger.totals()
    assert totals["rows"] | {} == {"read": 3, "used": 2, "dropped": 1, "refused": 0, "held_out": 0, "duplicates": 1,
                                   "blank_lines": 0}  # fmt: skip
    # <|user|> q <|assistant|> good <|end|> and ... b ad <|end|>: 5 + 6 tokens a row, 2 + 3 learnt.
    assert totals["tokens"] == {"total": 22, "kept": 22, "masked": 12, "trained": 10, "cut": 0, "dropped": 0}
    assert totals["turns"] == {"trained": 4, "stop_trained": 4} and found.ledger.reasons == {"empty_side": 1}
    found.ledger.save(tmp_path / "ledger.json")
    measured = {gate.name: gate for gate in gates.measure(found.ledger, DataSettings().gates)}
    assert measured["dropped_rows"].measured == pytest.approx(1 / 3) and not measured["dropped_rows"].passed


@pytest.mark.parametrize(
    "case",
    [
        (5, "refuse", "overlong", "rejected: 6 tokens, max_context_length is 5"),
        (5, "drop", "overlong", "rejected: 6 tokens"),
        (3, "cut", "cut_before_answer", "chosen: 5 tokens, max_context_length is 3: no learnt token is left"),
    ],
)
def test_a_side_that_does_not_fit_takes_its_pair_along(tmp_path, renderer, case):
    longest, overlong, reason, says = case
    rows = [SHAPES["gateway"], {"prompt": "q", "chosen": "a", "rejected": "b"}]
    try:
        ledger = prepared(tmp_path, renderer, *rows, longest=longest, overlong=overlong).ledger
        assert overlong != "refuse"
    except DataRefused as refused:
        ledger = refused.ledger
        assert overlong == "refuse" and "set data.overlong=cut or drop" in str(refused)
    assert ledger.reason(0) == reason and ledger.reason(1) == ""
    assert says in str(ledger.problems)


def test_a_pair_that_the_cut_makes_the_same_is_dropped(tmp_path, renderer):
    long = {"prompt": "q", "chosen": "aaaaaaaa1", "rejected": "aaaaaaaa2"}
    other = {"prompt": "q", "chosen": "b", "rejected": "c"}
    ledger = prepared(tmp_path, renderer, long, other, longest=4, overlong="cut").ledger
    assert ledger.reason(0) == "identical_pair" and "after the cut is the same" in ledger.problems["dropped"][0]


def test_a_cut_pair_is_counted(tmp_path, renderer):
    ledger = prepared(tmp_path, renderer, SHAPES["gateway"], longest=5, overlong="cut").ledger
    assert ledger.totals()["tokens"] == {"total": 11, "kept": 10, "masked": 6, "trained": 4, "cut": 1, "dropped": 0}
    assert ledger.totals()["turns"] == {"trained": 2, "stop_trained": 1}


def test_pairs_of_one_prompt_are_carved_out_together(tmp_path, renderer):
    rows = [{"prompt": f"{n // 2}", "chosen": f"a{n}", "rejected": f"b{n}"} for n in range(20)]
    found = prepared(tmp_path, renderer, *rows)
    kept, out = carve_out(found.prompts, 0.2, max_rows=100, seed=0)
    assert len(out) == 4 and not {n // 2 for n in kept} & {n // 2 for n in out}


def test_the_shipped_pairs_are_whole(renderer):
    for name, count in (("train", 1920), ("eval", 200)):
        path = RowSource(name=name, path=str(shipped(f"datasets/pairs/{name}.jsonl")))
        found = prepare(path, DataSettings(), renderer=renderer, max_context=64, pairs=True)
        assert found.ledger.totals()["rows"]["used"] == count
        assert all(pair.chosen.trained == pair.rejected.trained for pair in found.datums)
