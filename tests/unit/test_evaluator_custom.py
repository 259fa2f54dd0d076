"""Evaluators that somebody else wrote, and kinds that run code, for real in the sandbox."""

# ruff: noqa: E501 - one case a line

import json
from collections.abc import Iterator
from typing import Any

import pytest

from evaluators.custom import assertions, criteria, project
from evaluators.custom.running import entry_of, with_standin
from evaluators.kinds.base import Tools
from evaluators.kinds.code_asserts import split
from evaluators.kinds.table import make
from evaluators.library import examples, open_folder
from evaluators.protocol import Metric, Result, Status
from evaluators.rows import RowError, question
from evaluators.sandboxed import SandboxRunner

Row = dict[str, Any]


@pytest.fixture(scope="module")
def runner() -> Iterator[SandboxRunner]:
    with SandboxRunner(workers=2) as found:
        yield found


def row(answer: str, asked: str = "q", **more: Any) -> Row:
    return {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}], **more}


ROWS = [row("it is 4", ground_truth="4"), row("five", ground_truth="4")]


def scores(results: list[Result]) -> list[Any]:
    return [one.score.score if one.ok and one.score else one.status.value for one in results]


def snippet(source: str, name: str = "acc", **more: Any) -> Row:
    snippets = {
        "language": "python",
        "fileContents": {"main.py": source},
        "entryFile": "main.py",
        "entryFunc": "evaluate",
    }
    return {"type": "CODE_SNIPPETS", "name": name, "codeSnippets": {**snippets, **more}}


AS_DOCUMENTED = """
def evaluate(messages, ground_truth=None, tools=None, **kwargs):
    text = messages[-1]["content"]
    return {"score": 1.0 if str(ground_truth) in text else 0.0, "is_score_valid": True, "reason": "substring match",
            "metrics": {"short": {"score": 1.0 if len(text) < 5 else 0.0, "is_score_valid": True, "reason": "length"}}}
"""
REWARD = """
from typing import List
from {package} import reward_function
from {package}.models import EvaluateResult, Message, MetricResult

@reward_function
def evaluate(messages: List[Message], ground_truth=None, **kwargs):
    ok = str(ground_truth) in messages[-1].content
    return EvaluateResult(score=float(ok), reason="substring", metrics={{"hit": MetricResult(score=float(ok), success=True, reason="")}})
"""
TEST = """
from eval_protocol.models import EvaluateResult, EvaluationRow, MetricResult, StepOutput
from eval_protocol.pytest import SingleTurnRolloutProcessor, evaluation_test

@evaluation_test(input_dataset=["rows.jsonl"], completion_params=[{"model": "m", "temperature": 1.0}],
                 rollout_processor=SingleTurnRolloutProcessor(), mode="MODE")
"""
POINT = (
    TEST.replace("MODE", "pointwise")
    + """
async def test_it(row: EvaluationRow) -> EvaluationRow:
    ok = str(row.ground_truth) in row.last_assistant_message().content
    row.evaluation_result = EvaluateResult(score=float(ok), reason=row.get_first_user_message().content, is_score_valid=row.ground_truth != "?")
    return row
"""
)
GROUP = (
    TEST.replace("MODE", "groupwise")
    + """
def test_it(rows):
    for place, row in enumerate(rows):
        step = StepOutput(step_index=place, base_reward=0.5)
        row.evaluation_result = EvaluateResult(score=1 / len(rows), metrics={"place": MetricResult(score=place, reason="p")}, step_outputs=[step])
    return rows
"""
)


def test_one_snippet_reward_function_and_test_agree(runner: SandboxRunner) -> None:
    """The three ways to write the same evaluator give the same scores on the same rows."""
    found = [
        criteria.evaluator([snippet(AS_DOCUMENTED)], runner).evaluate(ROWS),
        criteria.evaluator([snippet(REWARD.format(package="eval_protocol"))], runner).evaluate(ROWS),
        criteria.evaluator([snippet(REWARD.format(package="reward_kit"))], runner).evaluate(ROWS),
        project.evaluator({"test_it.py": POINT.encode()}, "test_it.py::test_it", runner).evaluate(ROWS),
    ]
    assert [scores(one) for one in found] == [[1.0, 0.0]] * 4
    first = found[0][0].score
    assert first is not None and first.metrics == {
        "acc": Metric(1.0, reason="substring match"),
        "short": Metric(0.0, reason="length"),
    }
    third = found[2][1].score
    assert third is not None and third.metrics["hit"] == Metric(0.0)


def test_several_criteria_are_metrics_and_one_that_fails_masks(runner: SandboxRunner) -> None:
    flat = "def evaluate(messages, **_):\n    return 0.5"
    fails = (
        "def evaluate(messages, **_):\n    if messages[-1]['content'] == 'five': raise KeyError('gone')\n    return 1"
    )
    results = criteria.evaluator([snippet(flat, "a"), snippet(fails, "b")], runner).evaluate(ROWS)
    assert scores(results) == [0.75, "error"]
    assert results[0].score is not None and {name: one.score for name, one in results[0].score.metrics.items()} == {
        "a": 0.5,
        "b": 1.0,
    }
    assert results[1].message == "criterion 'b': KeyError: 'gone'"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"language": "javascript"}, "the language 'javascript' is not run here"),
        ({"entryFile": "other.py"}, "entryFile 'other.py' is none of its files"),
        ({"entryFunc": "a b"}, "no name of a function"),
        ({"fileContents": {}}, "has no files"),
        ({"fileContents": {"../x.py": "1"}, "entryFile": "../x.py"}, "no plain relative path"),
    ],
)
def test_snippets_that_cannot_be(runner: SandboxRunner, change: Row, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        criteria.evaluator([snippet("", **change)], runner)


def test_what_the_stand_in_lacks_names_the_way_out(runner: SandboxRunner) -> None:
    source = "from eval_protocol.rewards import math_reward\ndef evaluate(messages, **_): return 1"
    also = "from eval_protocol import aha_judge\ndef evaluate(messages, **_): return 1"
    [result] = criteria.evaluator([snippet(source)], runner).evaluate(ROWS[:1])
    assert result.status is Status.LOAD_ERROR
    [result] = criteria.evaluator([snippet(also)], runner).evaluate(ROWS[:1])
    assert (
        result.status is Status.LOAD_ERROR
        and "name eval-protocol (or reward-kit) in requirements.txt" in result.message
    )


def test_a_groupwise_test_gets_its_group_and_an_all_test_everything(runner: SandboxRunner) -> None:
    rows = [row("a", "x"), row("b", "y"), row("c", "x")]
    grouped = project.evaluator({"test_it.py": GROUP.encode()}, "test_it.py::test_it", runner)
    results = grouped.evaluate(rows, groups=[question(one) for one in rows])
    assert scores(results) == [0.5, 1.0, 0.5]
    assert results[2].score is not None and results[2].score.metrics["place"].score == 1.0
    assert [step.step_index for step in results[2].score.step_outputs] == [1]
    everything = project.evaluator(
        {"test_it.py": GROUP.replace("groupwise", "all").encode()}, "test_it.py::test_it", runner
    )
    assert scores(everything.evaluate(rows)) == [pytest.approx(1 / 3)] * 3


def test_a_test_disowns_a_row_and_another_fails(runner: SandboxRunner) -> None:
    rows = [row("4?", ground_truth="?"), row("4", ground_truth="4")]
    pointwise = project.evaluator(
        {"sub/test_it.py": POINT.encode(), "requirements.txt": b"numpy\n"}, "sub.test_it::test_it", runner
    )
    assert scores(pointwise.evaluate(rows)) == ["invalid", 1.0]
    short = GROUP.replace("return rows", "return rows[1:]")
    results = project.evaluator({"t.py": short.encode()}, "t.py::test_it", runner).evaluate(rows, groups=[1, 1])
    assert scores(results) == ["bad_result"] * 2
    assert results[0].message == "the test returned 1 rows of 2"
    none = GROUP.replace("row.evaluation_result = ", "unused = ")
    assert scores(project.evaluator({"t.py": none.encode()}, "t.py::test_it", runner).evaluate(rows)) == ["error"] * 2


def test_a_dataset_adapter_makes_the_row_and_the_answer_stays(runner: SandboxRunner) -> None:
    adapted = POINT.replace(
        "@evaluation_test(",
        "def adapt(rows):\n    return [EvaluationRow(messages=[{'role': 'user', 'content': r['q']}], ground_truth=r['gold']) for r in rows]\n\n@evaluation_test(dataset_adapter=adapt, ",
    )
    found = project.evaluator({"t.py": adapted.encode()}, "t.py::test_it", runner)
    results = found.evaluate([{**row("7!"), "q": "how many?", "gold": 7}, {"q": "?", "gold": 7, "completion": "8"}])
    assert scores(results) == [1.0, 0.0]
    assert results[0].score is not None and results[0].score.reason == "how many?"


def test_a_project_that_cannot_be_loaded_says_why(runner: SandboxRunner) -> None:
    missing = {"t.py": b"import surely_not_there\n" + POINT.encode()}
    with pytest.raises(
        ValueError, match="cannot be loaded: error: ModuleNotFoundError: No module named 'surely_not_there'"
    ):
        project.evaluator(missing, "t.py::test_it", runner)
    [result] = project.evaluator({"t.py": POINT.encode()}, "t.py::test_other", runner).evaluate(ROWS[:1])
    assert (result.status, result.message) == (Status.LOAD_ERROR, "LookupError: t.py has no function 'test_other'")
    for entry, words in (
        ("t.py", "not path::function"),
        ("x.py::f", "no file 'x.py'; there are t.py"),
        ("t.py::f()", "not path"),
    ):
        with pytest.raises(ValueError, match=words):
            project.evaluator({"t.py": b""}, entry, runner)
    with pytest.raises(ValueError, match=r"needs eval-protocol in requirements\.txt"):
        project.evaluator({"t.py": POINT.encode()}, "t.py::test_it", runner, drive="pytest")


def test_entries_and_stand_in_files() -> None:
    assert project.entries({"t.py": POINT.encode(), "a.txt": b"@evaluation_test\ndef f(): 1"}) == ["t.py::test_it"]
    assert entry_of("./pkg/t::f[x]", {"pkg/t.py": b""}) == "pkg/t.py::f"
    assert "eval_protocol/models.py" in with_standin({"a.py": b"import eval_protocol"})
    assert set(with_standin({"a.py": b"import eval_protocol"}, "eval-protocol>=0.3")) == {"a.py"}
    assert (
        with_standin({"a.py": b"import eval_protocol", "eval_protocol/__init__.py": b"mine"})[
            "eval_protocol/__init__.py"
        ]
        == b"mine"
    )
    assert set(with_standin({"a.py": b"x = 1"})) == {"a.py"}


def test_code_assertions(runner: SandboxRunner) -> None:
    def code(name: str, text: str, **more: Any) -> Row:
        return {
            "metricName": name,
            "assertionType": "ASSERTION_TYPE_CODE",
            "codeAssertion": {"language": "python", "code": text, **more},
        }

    tools = Tools(runner)
    made = assertions.evaluator(
        [
            code("upper", "result = output.upper()", expectedOutput="FIVE"),
            code("printed", "print(len(output))", expectedOutput="4\n"),
            code("called", "def evaluate(messages, ground_truth=None):\n    return ground_truth == '4'"),
            code(
                "graded",
                "result = {'score': 0.5}",
                options={"timeoutMs": 60_000, "memoryLimitMb": 256, "envVars": {"A": "b"}},
            ),
        ],
        tools,
    )
    [_, second] = made.evaluate(ROWS)
    assert second.score is not None and {name: one.score for name, one in second.score.metrics.items()} == {
        "upper": 1,
        "printed": 1,
        "called": 1,
        "graded": 0.5,
    }
    wrong = [
        code("a", "def f(:"),
        code("b", "x = 1", language="javascript"),
        code("c", "1", options={"timeoutMs": 400_000}),
        code("d", "result = 1"),
        {"metricName": "e"},
    ]
    found = assertions.validate(wrong, tools)
    assert list(found) == ["a", "b", "c", "e"]
    assert "SyntaxError" in found["a"][0] and "written" not in found["b"][0] and "timeoutMs is 400000" in found["c"][0]
    llm = {"metricName": "l", "llmAssertion": {"providers": [{"id": "openai:gpt-4"}], "prompts": ["be kind"]}}
    assert "base_url: Field required" in assertions.validate([llm], tools)["l"][0]


def test_a_pattern_that_never_ends_costs_its_row_only(runner: SandboxRunner) -> None:
    found = make("regex", {"pattern": r"^(a+)+$"}, Tools(runner)).evaluate([row("aaa"), row("a" * 40 + "!"), row("b")])
    assert scores(found) == [1.0, "timeout", 0.0]
    grouped = make("regex", {"pattern": r"is (?P<n>\d+)", "group": "n"}, Tools(runner))
    assert scores(grouped.evaluate([*ROWS, row("is 4"), row("is 4", ground_truth="5")])) == [1.0, 0.0, "error", 0.0]
    bad = make("regex", {"pattern": "("}, Tools(runner)).evaluate([row("x")])
    assert scores(bad) == ["error"]


ENDLESS = "while True: pass"
DOUBLE = "```python\ndef f(x):\n    return x * 2\n```"


@pytest.mark.parametrize(
    ("answer", "tests", "expected"),
    [
        (DOUBLE, ["assert f(2) == 4", "assert abs(f(1.5) - 3) < 1e-9", "assert f((1,)) == (1, 1)", "assert f('a') in {'aa'}"], 1.0),
        (DOUBLE, "assert f(2) == 4\nassert f(3) == 7", 0.0),
        ("def f(x): return x", ["assert f(1) == 1", "assert f(1) == 2"], 0.5),
        ("class S(list): pass\ndef new(): return S()", ["s = new()\ns.append(3)\nassert s == [3]\nassert len(s) == 1"], 1.0),
        ("class A:\n    def __eq__(s, o): return True\ndef f(x): return A()", ["assert f(2) == 4"], 0.0),
        ("class A(int):\n    def __eq__(s, o): return True\n    __hash__ = int.__hash__\ndef f(x): return A(5)", ["assert f(2) == 4"], 0.0),
        ("import builtins\nbuiltins.abs = lambda x: 0\ndef f(x): return 99", ["assert abs(f(2) - 4) < 1"], 0.0),
        ("import os\nos._exit(0)", ["assert f(2) == 4"], 0.0),
        ("print('[{\"value\": 5}]')\nimport sys\nsys.exit(0)", ["assert f(2) == 4"], 0.0),
        ("def f(x): raise SystemExit(0)", ["assert f(2) == 4"], 0.0),
        ("n = int(input())\nprint(n * 2)  ", [{"stdin": "4", "stdout": "8"}, {"stdin": "5\n", "stdout": "10\n\n"}, {"stdin": "x", "stdout": "?"}], pytest.approx(2 / 3)),
        (ENDLESS, [{"stdout": ""}], 0.0),
        ("x = bytearray(1 << 33)", [{"stdout": ""}], 0.0),
    ],
)  # fmt: skip
def test_programs_through_their_tests(runner: SandboxRunner, answer: str, tests: Any, expected: float) -> None:
    seconds = 1 if answer == ENDLESS else 30  # a busy machine gets as long as it needs
    [result] = make("code_tests", {"seconds": seconds}, Tools(runner)).evaluate([row(answer, tests=tests)])
    assert scores([result]) == [expected], result


def test_a_row_without_sound_tests_is_an_error(runner: SandboxRunner) -> None:
    rows = [
        row("1"),
        row("1", tests=[]),
        row("1", tests=["f(1)"]),
        row("1", tests=["for i in []:\n    assert i"]),
        row("1", tests=[{"stdin": ""}]),
        row("1", tests=["assert ("]),
    ]
    assert scores(make("code_tests", {}, Tools(runner)).evaluate(rows)) == ["error"] * 6


def test_splitting_keeps_the_judgement_away_from_the_answer() -> None:
    found = split("assert sorted(f(g(1))) == [x for x in h()]")
    assert found.steps == (("value", "f(g(1))"), ("value", "[x for x in h()]"))
    assert found.checks[0].judgement == "sorted(__value_0__) == __value_1__"
    assert split("assert f(1) == -3").checks[0].literal == -3
    with pytest.raises(RowError, match="without an assert"):
        split("f(1)")


EXPECTED = {
    "assertions": [1.0, 0.5], "code_tests": [1.0, 0.0, 1.0, 0.0], "evaluation_test": [1.0, 0.0],
    "exact_match": [1.0, 1.0, 0.0, 0.0], "groupwise": [1.0, 0.25, 1.0], "json_schema": [1.0, 1.0, 0.0, 0.0],
    "maths": [1.0, 1.0, 1.0, 1.0, 0.0], "regex": [1.0, 1.0, 0.0], "reward_function": [1.0, 0.0],
    "shape": [1.0, 0.2, pytest.approx(0.89)], "snippet": [1.0, 0.0],
}  # fmt: skip


@pytest.mark.parametrize("name", EXPECTED)
def test_every_example_gives_what_its_card_says(runner: SandboxRunner, name: str) -> None:
    folder = examples()[name]
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    results = open_folder(folder, Tools(runner)).evaluate(rows, groups=[question(one) for one in rows])
    assert scores(results) == EXPECTED[name]
    assert f"evaluator={name}" in (folder / "README.md").read_text()


def test_every_example_is_tested_or_needs_an_endpoint() -> None:
    assert set(examples()) == {*EXPECTED, "llm_judge"}
