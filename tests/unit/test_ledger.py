"""The ledger: every row has its fate, counts add up, refusals name rows and the way out; the carve-out is stable."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.data.ledger import DataRefused, Ledger, Outcome, Prepared, carve_out, prepare
from trainer.data.render import Renderer, load_tokenizer
from trainer.runs import DataSettings, RowSource

TINY = Path(__file__).parents[2] / "trainer" / "models" / "tiny"
DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the public data files are not on this machine")


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    return Renderer(load_tokenizer(str(TINY), None))


def chat(question: str, answer: str, **fields) -> dict:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer, **fields}]}


def ready(
    folder: Path, renderer: Renderer, *lines: object, max_context: int = 100, min_rows: int = 1, **fields
) -> Prepared:
    path = folder / "rows.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    source = RowSource(name="rows", path=str(path))
    return prepare(source, DataSettings(**fields), renderer=renderer, max_context=max_context, min_rows=min_rows)


# With the tiny tokenizer "12" -> <|user|> 1 2 <|assistant|>, "34" -> 3 4 <|end|>: 7 tokens, 3 of them learnt.
SEVEN = chat("12", "34")


def test_every_row_and_token_is_accounted_for(tmp_path, renderer):
    found = ready(
        tmp_path,
        renderer,
        SEVEN,
        "",
        "not json",
        chat("12", "34567"),  # 10 tokens
        chat("12345678", "9"),  # 12 tokens, the answer begins at the 10th
        chat("12", "34", weight=0),
        {**SEVEN, "id": 1},
        max_context=8,
        overlong="cut",
        bad_rows="drop",
    )
    assert [datum.length for datum in found.datums] == [6, 7, 6]  # shifted by one
    assert [datum.trained for datum in found.datums] == [3, 4, 3]
    assert [row.line for row in found.rows] == [1, 4, 7]
    assert found.hashes[0] == found.hashes[2]
    ledger = found.ledger
    assert ledger.totals() == {
        "rows": {"read": 6, "used": 3, "dropped": 3, "refused": 0, "held_out": 0, "duplicates": 1, "blank_lines": 1},
        "tokens": {"total": 43, "kept": 22, "masked": 12, "trained": 10, "cut": 2, "dropped": 19},
        "turns": {"trained": 3, "stop_trained": 2},
    }
    assert ledger.reasons == {"json": 1, "cut": 1, "cut_before_answer": 1, "no_trained_token": 1}
    ledger.hold_out([1])
    saved = json.loads(ledger.save(tmp_path / "ledger.json").read_text())
    assert list(saved)[:4] == ["version", "source", "settings", "totals"]
    assert saved["totals"] == ledger.totals()
    rows, codes = saved["rows"], saved["codes"]
    assert [codes["status"][code] for code in rows["status"]] == [
        "used",
        "dropped",
        "used",
        "dropped",
        "dropped",
        "used",
    ]
    assert [codes["reason"][code] for code in rows["reason"]] == [
        "",
        "json",
        "cut",
        "cut_before_answer",
        "no_trained_token",
        "",
    ]
    assert rows["line"] == [1, 3, 4, 5, 6, 7]
    assert rows["total"] == [7, 0, 10, 12, 7, 7]
    assert rows["kept"] == [7, 0, 8, 0, 0, 7]
    assert rows["masked"] == [4, 0, 4, 0, 0, 4]
    assert rows["trained"] == [3, 0, 4, 0, 0, 3]
    assert rows["cut"] == [0, 0, 2, 0, 0, 0]
    assert rows["dropped"] == [0, 0, 0, 12, 7, 0]
    assert rows["stop"] == [1, -1, 0, -1, -1, 1]
    assert rows["held_out"] == [0, 0, 1, 0, 0, 0]
    assert rows["sha256"][0] == rows["sha256"][5] == found.hashes[0]
    assert rows["sha256"][1] == ""
    assert saved["problems"]["dropped"][0].startswith(f"{tmp_path / 'rows.jsonl'}:3: not JSON")
    assert saved["unused_fields"] == {"id": 1}
    assert "1 of 3 trained turns do not learn a stop token" in "\n".join(ledger.summary())
    assert "the field id is not used (1 times)" in "\n".join(ledger.summary())


OUTCOMES = st.integers(0, 50).flatmap(
    lambda total: st.integers(0, total).flatmap(
        lambda kept: (
            st.builds(
                Outcome,
                status=st.just("used"),
                total=st.just(total),
                kept=st.just(kept),
                trained=st.integers(0, kept),
            )
            | st.builds(
                Outcome, status=st.sampled_from(["dropped", "refused"]), reason=st.just("x"), total=st.just(total)
            )
        )
    )
)


@given(st.lists(OUTCOMES, max_size=20))
def test_totals_add_up(outcomes):
    ledger = Ledger(RowSource(name="n", path="p"), DataSettings(), max_context=50)
    for line, outcome in enumerate(outcomes, start=1):
        ledger.add("f", line, outcome=outcome, sha256=str(line))
    ledger.check()
    totals = ledger.totals()
    tokens = totals["tokens"]
    assert tokens["total"] == tokens["kept"] + tokens["cut"] + tokens["dropped"] == sum(o.total for o in outcomes)
    assert tokens["kept"] == tokens["trained"] + tokens["masked"]
    assert totals["rows"]["read"] == len(outcomes)


def test_the_invariant_is_checked():
    ledger = Ledger(RowSource(name="n", path="p"), DataSettings(), max_context=50)
    ledger.add("f", 1, outcome=Outcome("used", total=3, kept=5, trained=1))
    with pytest.raises(AssertionError, match="ledger row 0"):
        ledger.check()


ROWS = st.lists(
    st.tuples(
        st.text("0123456789", min_size=1, max_size=12), st.text("0123456789", max_size=12), st.sampled_from([0, 1])
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=40, deadline=None)
@given(ROWS, st.integers(2, 30), st.sampled_from(["cut", "drop"]))
def test_datums_and_ledger_agree(tmp_path_factory, renderer, rows, max_context, overlong):
    lines = [chat(question, answer, weight=weight) for question, answer, weight in rows]
    folder = tmp_path_factory.mktemp("rows")
    found = ready(folder, renderer, *lines, max_context=max_context, min_rows=0, overlong=overlong, bad_rows="drop")
    found.ledger.check()
    totals = found.ledger.totals()
    assert totals["rows"]["used"] == len(found.datums) == len(found.rows)
    assert totals["tokens"]["kept"] == sum(datum.length + 1 for datum in found.datums)
    assert totals["tokens"]["trained"] == sum(datum.trained for datum in found.datums)
    assert all(datum.length + 1 <= max_context and datum.trained for datum in found.datums)


def test_refusals_list_rows_and_the_way_out(tmp_path, renderer):
    lines = [SEVEN, *["{"] * 7]
    with pytest.raises(DataRefused) as caught:
        ready(tmp_path, renderer, *lines)
    message = str(caught.value)
    assert "7 of 8 rows cannot be used (7 x json)" in message
    assert [line.split(": ")[0].rsplit(":")[-1] for line in message.splitlines()[1:-1]] == ["2", "3", "4", "5", "6"]
    assert message.endswith("What to do: mend the rows, or set data.bad_rows=drop to leave them out.")
    assert caught.value.ledger.totals()["rows"]["refused"] == 7
    with pytest.raises(DataRefused, match=r"7 tokens, max_context_length is 6(.|\n)*do: set data\.overlong=cut"):
        ready(tmp_path, renderer, SEVEN, max_context=6)
    with pytest.raises(DataRefused, match=r"no token of the row is learnt(.|\n)*weight 1"):
        ready(tmp_path, renderer, chat("1", "2", weight=0))


def test_rows_longer_than_the_limit_leave_nothing_and_refuse(tmp_path, renderer):
    for overlong, reason in (("cut", "cut_before_answer"), ("drop", "overlong")):
        with pytest.raises(DataRefused, match=rf"0 usable rows of 4 read, at least 3 are needed \(4 x {reason}\)"):
            ready(tmp_path, renderer, *[SEVEN] * 4, max_context=4, min_rows=3, overlong=overlong)


def test_three_rows_are_the_least(tmp_path, renderer):
    with pytest.raises(DataRefused, match="2 usable rows of 2 read, at least 3 are needed"):
        ready(tmp_path, renderer, SEVEN, SEVEN, min_rows=3)
    assert len(ready(tmp_path, renderer, *[SEVEN] * 3, min_rows=3).datums) == 3
    with pytest.raises(DataRefused, match="0 usable rows of 0 read"):
        ready(tmp_path, renderer, "")


def test_a_template_that_breaks_the_prefix_rule_is_a_reason(tmp_path, renderer):
    broken = "{% for m in messages %}{{ loop.length }}{{ m.content }}<|end|>{% endfor %}"
    own = Renderer(renderer.tokenizer, broken)
    with pytest.raises(DataRefused, match=r"breaks the prefix rule at messages\[1\].*\(prefix_rule\)"):
        ready(tmp_path, own, SEVEN)
    with pytest.raises(ValueError, match="jinja_template: line 1"):
        ready(tmp_path, Renderer(renderer.tokenizer, "{% if %}"), SEVEN)


def test_a_damaged_source_is_refused(tmp_path, renderer):
    path = tmp_path / "rows.json"
    path.write_text(f"[{json.dumps(SEVEN)},")
    with pytest.raises(DataRefused, match="is damaged"):
        prepare(
            RowSource(name="rows", path=str(path)),
            DataSettings(bad_rows="drop"),
            renderer=renderer,
            max_context=100,
        )


HASHES = st.lists(st.integers(0, 30).map(lambda number: f"{number:064x}"), min_size=2, max_size=60)


@given(HASHES, st.floats(0.05, 0.9), st.integers(1, 20), st.integers(0, 3), st.randoms())
def test_the_carve_out_is_stable_and_keeps_duplicates_together(hashes, fraction, max_rows, seed, rng):
    try:
        kept, held = carve_out(hashes, fraction, max_rows=max_rows, seed=seed)
    except ValueError as error:
        assert "can be held out" in str(error)
        assert min(hashes.count(row) for row in hashes) > 1 or len(set(hashes)) == 1 or len(hashes) * fraction < 2
        return
    assert sorted(kept + held) == list(range(len(hashes)))
    assert 0 < len(held) <= max(1, min(max_rows, int(len(hashes) * fraction)))
    assert kept
    held_hashes = {hashes[index] for index in held}
    assert not held_hashes & {hashes[index] for index in kept}
    shuffled = rng.sample(hashes, len(hashes))
    again = carve_out(shuffled, fraction, max_rows=max_rows, seed=seed)[1]
    assert {shuffled[index] for index in again} == held_hashes


def test_the_carve_out_depends_on_the_seed():
    hashes = [f"{number:064x}" for number in range(1000)]
    first, second = (carve_out(hashes, 0.1, max_rows=1000, seed=seed)[1] for seed in (0, 1))
    assert len(first) == len(second) == 100
    assert first != second
    assert len(carve_out(hashes, 0.1, max_rows=7, seed=0)[1]) == 7
    assert set(carve_out(hashes, 0.1, max_rows=7, seed=0)[1]) <= set(first)


@needs_data
def test_real_files(renderer):
    def of(name: str, **fields):
        source = RowSource(name=name, path=str(DATA / name))
        return prepare(source, DataSettings(**fields), renderer=renderer, max_context=4096)

    found = of("gsm8k/test.jsonl", columns={"prompt": "question", "completion": "answer"})
    totals = found.ledger.totals()
    assert (totals["rows"]["used"], totals["turns"]) == (1319, {"trained": 1319, "stop_trained": 1319})
    first = found.datums[0]
    learnt = first.targets[first.weights > 0]
    assert renderer.tokenizer.decode(learnt).endswith("#### 18<|end|>")
    assert np.array_equal(first.tokens[: -len(learnt) + 1], renderer.prompt_ids(found.rows[0]))
    assert of("text2sql/train.jsonl").ledger.totals()["turns"] == {"trained": 100, "stop_trained": 100}
    with pytest.raises(DataRefused, match=r"food_reasoning/train\.jsonl:1: messages\[0\]\.content\[0\].*'image_url'"):
        of("food_reasoning/train.jsonl")
