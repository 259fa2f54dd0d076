"""From returns and bytes to scores: every accepted shape, every refused one, and metrics combined into a reward."""

# ruff: noqa: E501 - one case a line

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from evaluators.protocol import Metric, Result, Score, Status, StepOutput
from evaluators.returned import BadReturn, plain
from evaluators.scores import BadResult, decode, parse, read, reward_weights, to_json, weigh

METRIC = SimpleNamespace(score=0.25, is_score_valid=False, reason="why", data={})


@pytest.mark.parametrize(
    ("returned", "score"),
    [
        (1, Score(1.0)),
        (0.5, Score(0.5)),
        (np.float32(0.5), Score(0.5)),
        ({"score": 1}, Score(1.0)),
        ({"score": 0.5, "is_score_valid": False, "reason": "r"}, Score(0.5, False, "r")),
        ({"score": 0.5, "success": False}, Score(0.5, False)),
        ((0.5, {"a": 1, "b": {"score": 0.25, "reason": "x"}}), Score(0.5, metrics={"a": Metric(1.0), "b": Metric(0.25, reason="x")})),
        ((0.5, "because"), Score(0.5, reason="because")),
        (SimpleNamespace(score=0.5, reason=None, metrics={"m": METRIC}), Score(0.5, metrics={"m": Metric(0.25, False, "why")})),
        (SimpleNamespace(evaluation_result={"score": 0.5}), Score(0.5)),
        ({"score": 0, "error": "the judge is away"}, Score(0.0, False, "the judge is away")),
        (
            {"score": 1, "step_outputs": [{"step_index": "2", "base_reward": 0.5, "terminated": True}]},
            Score(1.0, step_outputs=(StepOutput(2, 0.5, True),)),
        ),
    ],
)  # fmt: skip
def test_every_accepted_return(returned: Any, score: Score) -> None:
    assert read(returned) == score
    assert parse(json.dumps(plain(returned)).encode()) == score
    assert parse(json.dumps(to_json(score)).encode()) == score


@pytest.mark.parametrize(
    "returned",
    [
        True, None, "1", b"1", [1], {}, {"value": 1}, {"score": True}, {"score": "1"}, {"score": None}, (1, 2, 3), (1,),
        (1, [2]), {"score": 1, "metrics": [1]}, {"score": 1, "metrics": {"a": True}}, {"score": 1, "metrics": {1: 1}},
        {"score": 1, "metrics": {"a": {"reason": "x"}}}, {"score": 1 << 60}, {"score": 1, "step_outputs": [{}]},
        SimpleNamespace(evaluation_result=None), float("nan"), float("inf"), {"score": 1, "metrics": {"a": float("nan")}},
        {"score": 1, "is_score_valid": 1}, {"score": 1, "reason": 5}, {"score": 1, "metrics": {"": 1}},
    ],
)  # fmt: skip
def test_every_refused_return(returned: Any) -> None:
    with pytest.raises(BadResult):
        read(returned)


def test_a_bool_is_refused_before_it_leaves_the_jail() -> None:
    with pytest.raises(BadReturn, match="score is bool, not a number"):
        plain({"score": True})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", "not JSON"),
        (b"NaN", "not a finite number"),
        (b'{"score": Infinity}', "not a finite number"),
        (b'{"score": 1e999}', "beyond what a float holds"),
        (b'{"score": 1, "score": 0}', "stands twice"),
        (b'{"score": 1} x', "not JSON"),
        (b'{"score": 1}{"score": 2}', "not JSON"),
        (b"[" * 100_000, "allowed|nested deeper"),
        (b"[" * 1_000, "nested deeper than 16"),
        (b'{"score": ' + b"9" * 400 + b"}", "digits"),
        (b'{"score": 1, "reason": "\\ud800"}', "surrogate"),
        (b'{"score": 1, "reason": "\xff"}', "not JSON"),
        (b"1", "a number, not an object"),
        (b'{"score": true}', "true or false, not a number"),
        (b'{"score": 1, "metrics": {"a": {"score": null}}}', "null, not a number"),
        (b'"' + b'\\"' * 30_000, "not JSON"),
    ],
)
def test_bytes_that_are_no_result(text: bytes, words: str) -> None:
    with pytest.raises(BadResult, match=words) as raised:
        parse(text)
    assert len(str(raised.value)) <= 300


def test_size_and_number_of_values_are_bounded() -> None:
    with pytest.raises(BadResult, match="64 are allowed"):
        decode(b"[" + b"1," * 40 + b"1]", max_bytes=64)
    with pytest.raises(BadResult, match="values"):
        decode(b"[" + b"1," * 100_001 + b"1]", max_bytes=1 << 20)
    assert decode(b'"[[[[[[[[[[[[[[[[[[[["') == "[" * 20


def ok(score: float, **metrics: Metric) -> Result:
    return Result(Status.OK, Score(score, metrics=metrics))


def test_weights_combine_metrics() -> None:
    rows = [ok(0.5, right=Metric(1.0), short=Metric(0.5)), ok(0.25, right=Metric(0.0), short=Metric(1.0))]
    weighed = weigh(rows, reward_weights(["right=2", " short = -0.5 ", "score=1"]))
    assert [one.score.score for one in weighed if one.score] == [2 - 0.25 + 0.5, -0.5 + 0.25]
    assert weigh(rows, {}) == rows


def test_an_unknown_weight_names_what_there_is() -> None:
    with pytest.raises(ValueError, match="'rihgt': no such metric; this evaluator gives right, score"):
        weigh([ok(1.0, right=Metric(1.0))], {"rihgt": 1.0})


def test_a_metric_that_is_invalid_or_missing_masks_its_row_only() -> None:
    rows = [ok(1, a=Metric(1.0)), ok(1, a=Metric(1.0, False, "no judge")), ok(1), Result(Status.TIMEOUT)]
    weighed = weigh(rows, {"a": 0.5})
    assert [one.status for one in weighed] == [Status.OK, Status.INVALID, Status.INVALID, Status.TIMEOUT]
    assert weighed[1].message == "metric 'a' is not valid: no judge"
    assert weighed[2].message == "metric 'a' is missing"


@pytest.mark.parametrize("word", ["a", "=1", "a=", "a=x", "a=nan", "a=inf", "a=1=2"])
def test_words_that_are_no_weights(word: str) -> None:
    with pytest.raises(ValueError, match="is not name=weight"):
        reward_weights([word])
    with pytest.raises(ValueError, match="twice"):
        reward_weights(["a=1", "a=2"])
