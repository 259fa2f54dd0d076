"""Scoring by chunks: few rows are held, what has a score is kept, rows that belong together stay together."""

import json
import tracemalloc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from evaluators.custom.project import ProjectEvaluator
from evaluators.kinds.base import Evaluator, OfRows, Tools
from evaluators.kinds.table import make
from evaluators.library import examples, open_folder
from evaluators.outcomes import check_invalid_fraction, summarise
from evaluators.protocol import Metric, Program, Result, Score, Status
from evaluators.rows import Row, answer
from evaluators.sandboxed import SandboxRunner
from trainer.data.problem import RowProblem
from trainer.evaluation_rows import Rows
from trainer.evaluation_scoring import Scoring, Unscorable
from trainer.scored_rows import SCORES, Scores, line_of


def ignored(_found: object) -> None:
    """Whoever does not want to hear."""


def write(path: Path, rows: Sequence[Mapping[str, Any]]) -> Rows:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Rows([path])


def row(index: int, *, text: str = "", user: str = "?") -> dict[str, Any]:
    messages = [{"role": "user", "content": user}, {"role": "assistant", "content": f"{text}{index}"}]
    return {"messages": messages, "ground_truth": str(index)}


def run(folder: Path, rows: Rows, evaluator: Evaluator, total: int, **settings: Any) -> list[dict[str, Any]]:
    """All rows of an evaluation, scored and written."""
    folder.mkdir(exist_ok=True)
    scoring = Scoring(folder, rows, evaluator, **settings)
    try:
        assert scoring.run(total, stopped=lambda: False, after=ignored)
        scoring.write(folder / "out.jsonl")
    finally:
        scoring.close()
    return [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]


@dataclass
class Counting:
    """Scores 1 and notes what it was asked, until it has seen `most` rows; then it is as if the process were killed."""

    most: int = 1 << 30
    seen: list[str] = field(default_factory=list)

    def evaluate(self, rows: Sequence[Row], *, groups: object = None) -> list[Result]:
        if len(self.seen) + len(rows) > self.most:
            raise KeyboardInterrupt
        self.seen += [answer(one) for one in rows]
        return [Result(Status.OK, Score(1.0)) for _ in rows]


def peak(folder: Path, count: int) -> int:
    """Bytes that an evaluation of so many rows of 2 kB has held at the most."""
    folder.mkdir()
    rows = write(folder / "rows.jsonl", [row(index, text="word " * 400) for index in range(count)])
    tracemalloc.start()
    scoring = Scoring(folder, rows, make("exact_match", {}, Tools()), chunk_rows=50)
    scoring.run(count, stopped=lambda: False, after=ignored)
    check_invalid_fraction(scoring.results, 0.2)
    summarise(scoring.results)
    scoring.write(folder / "out.jsonl")
    found = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    scoring.close()
    return found


def test_ten_times_the_rows_take_no_more_memory(tmp_path: Path) -> None:
    few, many = peak(tmp_path / "few", 120), peak(tmp_path / "many", 1_200)
    assert (tmp_path / "many/rows.jsonl").stat().st_size > 2_400_000
    assert many - few < 500_000


def test_a_killed_attempt_scores_nothing_again_and_loses_nothing(tmp_path: Path) -> None:
    rows = write(tmp_path / "rows.jsonl", [row(index) for index in range(100)])
    folder, first = tmp_path / "run", Counting(most=60)
    with pytest.raises(KeyboardInterrupt):
        run(folder, rows, first, 100)
    with (folder / SCORES).open("ab") as stream:
        stream.write(b'{"index": 48, "sta')
    second = Counting()
    found = run(folder, rows, second, 100)
    assert (first.seen, second.seen) == (
        [str(n) for n in range(48)],
        [str(n) for n in range(48, 100)],
    )  # 16 and 32 rows
    assert [one["ground_truth"] for one in found] == [str(index) for index in range(100)]
    assert all(one["evals"] == {"score": 1.0} for one in found)
    third = Counting()
    run(folder, rows, third, 100)
    assert third.seen == []


def test_a_request_to_stop_is_heard_between_chunks(tmp_path: Path) -> None:
    rows, asked = write(tmp_path / "rows.jsonl", [row(index) for index in range(40)]), Counting()
    scoring = Scoring(tmp_path, rows, asked, chunk_rows=10)
    heard: list[int] = []
    assert not scoring.run(40, stopped=lambda: len(asked.seen) >= 20, after=lambda found: heard.append(len(found)))
    assert (heard, scoring.scores.counted, len(asked.seen)) == ([10, 10], 20, 20)
    scoring.close()


def test_the_last_line_of_a_row_counts_also_when_the_journal_is_opened_again(tmp_path: Path) -> None:
    late, ok = Result(Status.TIMEOUT, message="late"), Result(Status.OK, Score(0.5), stdout="x" * 5_000)
    scores = Scores(tmp_path / SCORES)
    scores.add([line_of(0, ok), line_of(3, late), line_of(1, late)])
    scores.add([line_of(3, ok)])
    for one in (scores, Scores(tmp_path / SCORES)):
        assert (one.counted, one.masked, list(one.indices())) == (2, 1, [0, 1, 3])
        assert [one.counts(index) for index in range(5)] == [True, False, False, True, False]
        assert [found.status for found in one.results()] == [Status.OK, Status.TIMEOUT, Status.OK]
        assert len(one.results()[0].stdout) == 1_500
        assert 2 not in one
        with pytest.raises(KeyError):
            one[2]
        one.close()


def test_groups_that_stand_apart_are_judged_together(tmp_path: Path) -> None:
    asked = ["a", "b", "a", "c", "b", "a"]
    given = [row(place, text="long " * place, user=user) for place, user in enumerate(asked)]
    rows = write(tmp_path / "rows.jsonl", given)
    with SandboxRunner(workers=1) as runner:
        evaluator = open_folder(examples()["groupwise"], Tools(runner))
        assert isinstance(evaluator, ProjectEvaluator) and evaluator.mode == "groupwise"
        whole = run(tmp_path / "whole", rows, evaluator, 6)
        apart = run(tmp_path / "apart", rows, evaluator, 6, chunk_rows=1)
        together = evaluator.evaluate([given[place] for place in (0, 2, 5)], groups=["a"] * 3)
    assert [one["messages"] for one in whole] == [one["messages"] for one in given]
    assert [one["evals"] for one in whole] == [one["evals"] for one in apart]
    scores = [one.score.score for one in together if one.score]
    assert [whole[place]["evals"]["score"] for place in (0, 2, 5)] == scores
    assert not (tmp_path / "whole/rows.jsonl").exists()


def test_more_rows_than_one_call_takes_are_refused_at_once(tmp_path: Path) -> None:
    with SandboxRunner() as runner:
        evaluator = ProjectEvaluator(Program({"x.py": b""}, "x.py::f"), runner, "all")
        with pytest.raises(Unscorable, match=r"mode 'all'.*at most 3,000; there are 3,001"):
            run(tmp_path / "run", write(tmp_path / "rows.jsonl", [row(0)]), evaluator, 3_001)


def measured(*names: str) -> Evaluator:
    """Each row's answer is an index into `names`, the one metric that it has."""
    return OfRows(lambda one: Score(0.5, metrics={names[int(answer(one)) % len(names)]: Metric(2.0)}))


def test_weights_are_checked_until_a_row_has_had_them_all(tmp_path: Path) -> None:
    rows = write(tmp_path / "rows.jsonl", [row(index) for index in range(40)])
    found = run(tmp_path / "a", rows, measured("a"), 40, weights={"a": 0.25, "score": 1.0})
    assert {one["evals"]["score"] for one in found} == {1.0}
    with pytest.raises(Unscorable, match="'b': no such metric; this evaluator gives a, score"):
        run(tmp_path / "b", rows, measured("a"), 40, weights={"b": 1.0})
    found = run(tmp_path / "c", rows, measured("a", "b"), 40, weights={"b": 1.0}, chunk_rows=3)
    assert [one["eval_status"] for one in found[:4]] == ["invalid", "ok", "invalid", "ok"]
    assert found[0]["eval_message"] == "metric 'b' is missing"


@dataclass
class Parrot:
    """Answers every prompt with its own text, but for the one that it refuses."""

    asked: list[str] = field(default_factory=list)

    def answer(self, rows: Sequence[Row]) -> list[str | ValueError]:
        texts = [str(one["prompt"]) for one in rows]
        self.asked += texts
        return [ValueError("too long") if text == "refuse" else text for text in texts]


def test_a_model_is_asked_once_for_each_row_without_an_answer(tmp_path: Path) -> None:
    prompts = [{"prompt": text, "ground_truth": "x"} for text in ("x", "y", "refuse")]
    given = [*prompts, {"prompt": "p", "completion": "x", "ground_truth": "x"}]
    rows, parrot, kind = write(tmp_path / "rows.jsonl", given), Parrot(), make("exact_match", {}, Tools())
    load: Callable[[], Any] = lambda: parrot  # noqa: E731
    found = run(tmp_path / "run", rows, kind, 4, answerer=load)
    assert [one.get("completion") for one in found] == ["x", "y", None, "x"]
    assert [one.get("evals") for one in found] == [{"score": 1.0}, {"score": 0.0}, None, {"score": 1.0}]
    assert found[2]["eval_message"] == "the model cannot answer: too long"
    run(tmp_path / "run", rows, kind, 4, answerer=load)
    assert parrot.asked == ["x", "y", "refuse", "refuse"]  # what has no score is tried again
    without = run(tmp_path / "without", rows, kind, 4)
    assert "no answer to score" in without[0]["eval_message"]


def test_rows_are_read_from_lines_and_arrays_with_their_places(tmp_path: Path) -> None:
    array, lines = tmp_path / "a.json", tmp_path / "b.jsonl"
    array.write_text('\n[{"n": 0},\n {"n": 1}]\n')
    lines.write_text('\n{"n": 2}\n\n{"n": 3}\n')
    assert [one["n"] for _, one in Rows([array, lines], arrays=True)] == [0, 1, 2, 3]
    doubled = Rows([array, lines], arrays=True, change=lambda one: {"n": 2 * one["n"]}, most=3)
    assert list(doubled) == [(0, {"n": 0}), (1, {"n": 2}), (2, {"n": 4})]
    array.write_text('[{"n": 0},\n 7]')
    with pytest.raises(RowProblem, match=r"^a\.json:2: a row is a JSON object"):
        list(Rows([array], arrays=True))
    lines.write_text('{"n": 2}\n{"n": NaN}\n')
    with pytest.raises(RowProblem, match=r"^b\.jsonl:2: NaN"):
        list(Rows([lines]))
    array.write_text('{"n": 5}\n')
    assert list(Rows([array], arrays=True)) == [(0, {"n": 5})]
