"""The kinds that only compare texts: exact match, maths, JSON schema, shape. Expected scores derived by hand."""

# ruff: noqa: E501 - one case a line

import json
import time
from collections.abc import Mapping
from typing import Any

import pytest

from evaluators.kinds.base import Tools
from evaluators.kinds.maths import equal, find, last_boxed
from evaluators.kinds.table import KINDS, make
from evaluators.protocol import Result, Status


def one(kind: str, settings: Mapping[str, Any], answer: str, **row: Any) -> Result:
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": answer}]
    [result] = make(kind, settings, Tools()).evaluate([{"messages": messages, **row}])
    return result


def score(kind: str, settings: Mapping[str, Any], answer: str, **row: Any) -> float:
    result = one(kind, settings, answer, **row)
    assert result.status is Status.OK and result.score is not None, result
    return result.score.score


@pytest.mark.parametrize(
    ("settings", "answer", "truth", "expected"),
    [
        ({}, "Paris", "Paris", 1),
        ({}, " Paris\n", "Paris", 1),
        ({}, "paris", "Paris", 0),
        ({"ignore_case": True}, "STRASSE", "straße", 1),
        ({}, "e\u0301", "\u00e9", 1),
        ({}, "a  b", "a b", 1),
        ({"ignore_space": False}, "a  b", "a b", 0),
        ({"ignore_punctuation": True}, "It's 4.", "Its 4", 1),
        ({}, "B", ["A", "B"], 1),
        ({}, "4", 4, 1),
        ({"tag": "answer"}, "<answer>x</answer> or <answer>4</answer>", "4", 1),
        ({"tag": "answer"}, "4", "4", 0),
        ({"tag": "answer"}, "</answer><answer>4", "4", 0),
    ],
)
def test_exact_match(settings: Mapping[str, Any], answer: str, truth: Any, expected: float) -> None:
    assert score("exact_match", settings, answer, ground_truth=truth) == expected


def test_a_row_that_lacks_something_is_an_error_and_no_zero() -> None:
    for result, words in (
        (one("exact_match", {}, "x"), "no 'ground_truth'"),
        (one("exact_match", {"tag": "answer"}, "no tag"), "no 'ground_truth'"),
        (one("maths", {}, "no number"), "no 'ground_truth'"),
        (one("exact_match", {}, "x", ground_truth={"a": 1}), "neither a text or number nor a list"),
        (
            make("exact_match", {}, Tools()).evaluate([{"messages": [{"role": "user", "content": "q"}]}])[0],
            "not the assistant's",
        ),
        (make("exact_match", {}, Tools()).evaluate([{}])[0], "nor a completion"),
        (one("json_schema", {}, "{}"), "there is no schema"),
    ):
        assert (result.status, result.score) == (Status.ERROR, None)
        assert words in result.message


@pytest.mark.parametrize(
    ("given", "truth"),
    [
        ("1,234", "1234"), ("1,234,567.5", "1234567.5"), ("0.5", "1/2"), (r"\frac{1}{2}", "0.5"), (r"\frac12", "1/2"),
        (r"\dfrac{3}{4}", ".75"), ("$18.00", "18"), ("18 dollars", "18"), ("50%", "0.5"), ("50%", "50"), (r"50\%", "50%"),
        ("1 1/2", "3/2"), (r"1\frac{1}{2}", "1.5"), (r"2\sqrt{2}", r"\sqrt{8}"), ("(x+1)^2", "x^2+2x+1"), ("2x", "x*2"),
        ("(1,2)", "( 1, 2 )"), (r"\{1,2\}", "2, 1"), ("x=5", "5"), (r"\text{Monday}", "monday"), ("5 cm", "5"),
        ("2^{10}", "1024"), ("1e3", "1000"), (r"\frac{\pi}{2}", r"0.5\pi"), ("y = 2x + 1", "y=1+2x"), ("−3", "-3"),
        ("3!", "6"), (r"90^\circ", "90"), ("|-3|", "3"), (r"\sin(\pi/2)", "1"), ("[0,1)", "[0, 1)"), ("x^{-1}", "1/x"),
        (r"\frac{x^2-1}{x-1}", "x+1"), ("e^{i\\pi}", "-1"), (r"\left(\frac{1}{2}\right)^2", "0.25"), ("10 apples", "10"),
        ("(1/2, 0.25)", "(0.5, 1/4)"), ("x_1 + x_2", "x_2+x_1"), ("**42**", "42"), ("3 and 4", "4, 3"),
    ],
)  # fmt: skip
def test_equal_values(given: str, truth: str) -> None:
    assert equal(given, truth)
    assert equal(truth, given)


@pytest.mark.parametrize(
    ("given", "truth"),
    [
        ("5", "6"), ("0.333", "1/3"), ("(1,2)", "(2,1)"), ("x+1", "x-1"), ("", "5"), ("50%", "51"), ("5%", "5.1%"),
        ("1,2", "12"), ("2x", "3x"), ("x", "y"), ("9^9^9^9", "1"), ("[0,1]", "[0,1)"), ("1/0", "1/0+1"), ("yes", "no"),
        ("1,2,3", "1,2"), ("1,1", "1,2"), ("200!", "200!+1"), ("__import__('os')", "0"), ("x = 5", "6"),
    ],
)  # fmt: skip
def test_values_that_differ(given: str, truth: str) -> None:
    assert not equal(given, truth)


def test_units_and_tolerance() -> None:
    assert not equal("5 cm", "5 m", units="compare")
    assert equal("5", "5 m", units="compare") is False
    assert equal("5 CM", "5 cm", units="compare")
    assert equal("0.333", "1/3", tolerance=0.01)
    assert not equal("0.3", "1/3", tolerance=0.01)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("5, then 6\n#### 72", ("72", "after ####")),
        (r"\boxed{1} no \boxed{\frac{1}{2}}", (r"\frac{1}{2}", "boxed")),
        (r"\boxed{1", (None, "last number")),
        ("so <answer> 7 </answer> of 9", ("7", "in <answer>")),
        ("The answer is $18.00. Good", ("$18.00", "after 'answer is'")),
        ("we get 1,234 apples", ("1,234", "last number")),
        ("none", (None, "last number")),
    ],
)
def test_where_the_answer_stands(text: str, found: tuple[str | None, str]) -> None:
    got = find(text)
    assert got == found or (found[0] is None and got[0] in (None, "1"))


def test_maths_scores() -> None:
    assert score("maths", {}, "48 + 24 = 72\n#### 72", ground_truth="so 70 + 2\n#### 72") == 1
    assert score("maths", {}, "it is 72 I think", ground_truth="72") == 1
    assert score("maths", {"where": "marked"}, "it is 72 I think", ground_truth="72") == 0
    assert score("maths", {}, "no idea", ground_truth="72") == 0
    assert score("maths", {}, "#### 1/2", ground_truth=["0.25", "0.5"]) == 1
    assert last_boxed(r"\boxed{a{b}c}") == "a{b}c"


@pytest.mark.parametrize(
    "text", ["(" * 5000, "9" * 5000, "-" * 5000 + "1", "1^" * 300 + "1", "a" * 5000, r"\frac" * 500, "{" * 1000 + "," * 900, "1," * 900, "((x" * 50, "2^2^2^2^2^2^2", "1e300*" * 60 + "1", "x^" * 35 + "2"]
)  # fmt: skip
def test_no_answer_takes_long_or_raises(text: str) -> None:
    begun = time.process_time()
    score("maths", {}, f"\\boxed{{{text}}}", ground_truth="1")
    score("maths", {}, text, ground_truth=text)
    assert time.process_time() - begun < 2


SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1},
        "ages": {"type": "array", "items": {"type": "integer", "minimum": 0}, "maxItems": 2, "uniqueItems": True},
        "kind": {"enum": ["a", 1]},
        "tree": {"$ref": "#/$defs/tree"},
    },
    "required": ["name"],
    "additionalProperties": False,
    "$defs": {"tree": {"type": ["object", "null"], "properties": {"left": {"$ref": "#/$defs/tree"}}}},
}


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ('{"name": "x"}', 1), ('{"name": ""}', 0), ("{}", 0), ('{"name": "x", "z": 1}', 0), ("[]", 0), ("not json", 0),
        ('{"name": "x", "ages": [1, 2]}', 1), ('{"name": "x", "ages": [1.0]}', 1), ('{"name": "x", "ages": [1.5]}', 0),
        ('{"name": "x", "ages": [true]}', 0), ('{"name": "x", "ages": [1, 1]}', 0), ('{"name": "x", "ages": [1,2,3]}', 0),
        ('{"name": "x", "ages": [-1]}', 0), ('{"name": "x", "kind": true}', 0), ('{"name": "x", "kind": 1}', 1),
        ('{"name": "x", "tree": {"left": {"left": null}}}', 1), ('{"name": "x", "tree": {"left": 3}}', 0),
        ('```json\n{"name": "x"}\n```', 1), ('{"name": NaN}', 0), ('{"name": 1e999}', 0), ("[" * 100_000, 0),
    ],
)  # fmt: skip
def test_json_schema(answer: str, expected: float) -> None:
    assert score("json_schema", {"json_schema": SCHEMA}, answer) == expected
    assert score("json_schema", {}, answer, json_schema=SCHEMA) == expected


@pytest.mark.parametrize(
    ("schema", "value", "expected"),
    [
        ({"anyOf": [{"type": "string"}, {"minimum": 3}]}, 4, 1), ({"oneOf": [{"minimum": 3}, {"minimum": 5}]}, 6, 0),
        ({"allOf": [{"minimum": 3}, {"maximum": 5}]}, 6, 0), ({"not": {"type": "null"}}, None, 0),
        ({"multipleOf": 0.1}, 0.3, 1), ({"multipleOf": 2}, 3, 0), ({"const": [1]}, [1], 1), ({"const": 1}, True, 0),
        ({"exclusiveMinimum": 3}, 3, 0), ({"exclusiveMaximum": 3}, 2, 1), ({"prefixItems": [{"type": "null"}], "items": False}, [None], 1),
        ({"prefixItems": [{"type": "null"}], "items": False}, [None, 1], 0), ({"maxLength": 1}, "ab", 0), ({"maxProperties": 0}, {"a": 1}, 0),
        (True, 1, 1), ({"properties": {"a": False}}, {"a": 1}, 0),
    ],
)  # fmt: skip
def test_json_schema_keywords(schema: Any, value: Any, expected: float) -> None:
    wrapped = {"properties": {"v": schema}}
    assert score("json_schema", {"json_schema": wrapped}, json.dumps({"v": value})) == expected


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"pattern": "(a+)+$"}, "the keyword 'pattern' is not understood"),
        ({"$ref": "http://h/x"}, "leaves the schema"),
        ({"properties": {"a": {"type": "int"}}}, "type cannot be 'int'"),
        ({"minimum": "3"}, "minimum cannot be"),
        ({"anyOf": {}}, "anyOf is not an array"),
    ],
)
def test_a_schema_that_is_not_understood_refuses_the_evaluator(schema: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make("json_schema", {"json_schema": schema}, Tools())


def test_a_schema_that_multiplies_ends_in_an_error() -> None:
    schema = {"anyOf": [{"$ref": "#"}, {"$ref": "#"}, {"type": "null"}]}
    result = one("json_schema", {"json_schema": schema}, "1")
    assert (result.status, result.score) == (Status.ERROR, None)
    assert "more than 50,000 checks" in result.message


def test_length_falls_in_a_straight_line() -> None:
    settings = {"unit": "words", "shortest": 2, "longest": 4, "slack": 4}
    lengths = {0: 0.5, 1: 0.75, 2: 1, 4: 1, 5: 0.75, 8: 0, 20: 0}
    assert {count: score("shape", settings, "w " * count) for count in lengths} == lengths
    assert [score("shape", {"unit": "characters", "longest": 3}, "x" * n) for n in (3, 4)] == [1, 0]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("<a>1</a><b>2</b>", 1), ("x <a>1</a> <b>2</b>", 0), (" <a>1</a>\n<b>2</b> ", 1), ("<b>2</b><a>1</a>", 0),
        ("<a>1</a>", 0), ("<a></a><b>2</b>", 0), ("<a>1</a><a>1</a><b>2</b>", 0), ("<a>1<b>2</a></b>", 0),
    ],
)  # fmt: skip
def test_tags(answer: str, expected: float) -> None:
    assert score("shape", {"tags": ["a", "b"], "only_tags": True}, answer) == expected


def test_shape_is_the_mean_of_its_metrics() -> None:
    result = one(
        "shape",
        {"unit": "characters", "longest": 3, "must_have": ["a", "b"], "must_not_have": ["c", "d"], "is_json": True},
        "acd",
    )
    assert result.score is not None
    assert {name: metric.score for name, metric in result.score.metrics.items()} == {
        "length": 1,
        "words": 0.25,
        "json": 0,
    }
    assert result.score.score == pytest.approx(1.25 / 3)


@pytest.mark.parametrize(
    ("kind", "settings", "words"),
    [
        ("exactmatch", {}, "no evaluator kind 'exactmatch'; the kinds are exact_match, regex"),
        ("exact_match", {"ignorecase": True}, "ignorecase: Extra inputs.*settings: field, ignore_case"),
        ("shape", {}, "asks for nothing"),
        ("shape", {"shortest": 5, "longest": 4}, "shortest=5 is above longest=4"),
        ("regex", {"pattern": "a"}, "'regex' runs code and needs a sandbox"),
        ("code_tests", {}, "'code_tests' runs code and needs a sandbox"),
        ("llm_judge", {"base_url": "http://h", "model": "m", "rubric": "r"}, "JudgeTools"),
        ("llm_judge", {"base_url": "file:///etc", "model": "m", "rubric": "r"}, "base_url"),
    ],
)
def test_settings_that_cannot_be(kind: str, settings: Mapping[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make(kind, settings, Tools())


def test_every_setting_is_described() -> None:
    for name, kind in KINDS.items():
        for field, info in kind.settings.model_fields.items():
            assert info.description or field in ("temperature",), f"{name}.{field}"
