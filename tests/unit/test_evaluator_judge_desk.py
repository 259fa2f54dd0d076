"""The line from an evaluator in a jail to a judge model: answers, budgets, counts, and the key that stays outside."""

import json
import time
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from evaluators.broker import Broker
from evaluators.judge_client import Budget, JudgeClient, Spending
from evaluators.judge_desk import Asking, JudgeDesk, configured, may_ask
from evaluators.protocol import Isolation, Limits, Program, Status
from evaluators.sandbox import Sandbox
from evaluators.sandbox.wire import REQUEST_BYTES
from evaluators.sandboxed import SandboxRunner

KEY = "planted-judge-key"
LIMITS = Limits(wall_seconds=30.0, cpu_seconds=30.0, memory_bytes=256 << 20)  # no row comes near them
SHORT = Limits(wall_seconds=2.0, cpu_seconds=2.0, memory_bytes=256 << 20)
SOURCE = b"""
import os, sys, gc
import evaluator_host
from evaluator_host import Refused, judge

def asks(n, times=1):
    said = [judge(f"row {n} question {at}") for at in range(times)]
    return {"score": float(len(said)), "reason": "|".join(said)}
def asks_until_refused(n):
    said = []
    try:
        while True: said.append(judge([{"role": "user", "content": f"row {n} question {len(said)}"}]))
    except Refused as error:
        return {"score": float(len(said)), "reason": str(error)}
def asks_strangely(n, question):
    try:
        return {"score": 1.0, "reason": judge(**question)}
    except (Refused, TypeError) as error:
        return {"score": 0.0, "reason": f"{type(error).__name__}: {error}"}
def looks_around(n):
    judge("hello")
    seen = [repr(vars(module)) for module in list(sys.modules.values()) if module]
    seen += [repr(one) for one in gc.get_objects()] + [repr(os.environ), repr(sys.argv)]
    for number in range(3, 64):
        try: os.set_blocking(number, False); seen.append(repr(os.read(number, 1 << 16)))
        except OSError: pass
    return float(any("planted" + "-judge" in one for one in seen))
def hangs_up(n):
    if n % 2:
        os.write(evaluator_host._Line.asking, b'{"messages":[{"role":"user","content":"anybody"}]}\\n')
        os._exit(3)
    return 1.0
def shouts(n):
    if n % 2:
        os.write(evaluator_host._Line.asking, b"{}\\n{}\\n")
        evaluator_host._line(evaluator_host._Line.answering)
    return 1.0
"""


class Judge:
    """A judge as a transport: it says how often it was asked, after `seconds`."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.seconds = 0.0
        self.said = "answer {}"

    def __call__(
        self, url: str, headers: Mapping[str, str], body: bytes, timeout: float
    ) -> tuple[int, Mapping[str, str], bytes]:
        assert headers["authorization"] == f"Bearer {KEY}"
        time.sleep(self.seconds)
        self.asked.append(json.loads(body)["messages"][0]["content"])
        told = {"choices": [{"message": {"content": self.said.format(len(self.asked))}}]}
        return 200, {}, json.dumps(told | {"usage": {"prompt_tokens": 7, "completion_tokens": 3}}).encode()


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(workers=1) as pool:
        yield pool


def desk_of(judge: Judge, *, calls_each: int = 3, requests: int = 100) -> JudgeDesk:
    broker = Broker({"JUDGE_KEY": KEY}.get, usable=["JUDGE_KEY"])
    client = JudgeClient("http://judge", "m", lambda: broker.spend("JUDGE_KEY"), Spending(Budget(requests)), judge)
    return JudgeDesk(client, calls_each, broker.redact)


def program(entry: str) -> Program:
    return Program({"asks.py": SOURCE}, f"asks.py::{entry}")


@pytest.mark.parametrize("isolation", list(Isolation), ids=str)
def test_rows_ask_and_their_records_say_how_often(sandbox: Sandbox, isolation: Isolation) -> None:
    judge = Judge()
    rows = [{"n": n, "times": n} for n in range(3)]
    found = sandbox.evaluate(program("asks"), rows, limits=LIMITS, isolation=isolation, desk=desk_of(judge))
    assert [one.score and one.score.reason for one in found] == ["", "answer 1", "answer 2|answer 3"]
    assert [one.details.get("judge") for one in found] == [
        None, {"calls": 1, "refused": 0}, {"calls": 2, "refused": 0}
    ]  # fmt: skip
    assert sorted(judge.asked) == ["row 1 question 0", "row 2 question 0", "row 2 question 1"]  # audited, paid once
    assert {one.isolation for one in found} == {isolation}


def test_each_row_has_its_number_of_questions_and_the_job_its_budget(sandbox: Sandbox) -> None:
    judge = Judge()
    desk = desk_of(judge, calls_each=2, requests=5)
    found = sandbox.evaluate(program("asks_until_refused"), [{"n": n} for n in range(3)], limits=LIMITS, desk=desk)
    assert [one.score and one.score.score for one in found] == [2.0, 2.0, 1.0]
    assert [one.score and one.score.reason for one in found] == [
        *["this row has asked its 2 questions"] * 2, "the judge's budget of 5 requests is spent"
    ]  # fmt: skip
    assert found[2].details["judge"] == {"calls": 2, "refused": 1}
    assert (len(judge.asked), desk.client.spending.requests) == (5, 5)


def test_malformed_questions_are_refused_in_words(sandbox: Sandbox) -> None:
    judge = Judge()
    questions: list[dict[str, Any]] = [
        {"messages": []}, {"messages": [{"role": "tool", "content": "x"}]}, {"messages": "x", "max_tokens": 0},
        {"messages": "x", "temperature": 9}, {"messages": "x" * REQUEST_BYTES}, {"messages": [{"role": "user"}]},
    ]  # fmt: skip
    rows = [{"n": n, "question": question} for n, question in enumerate(questions)]
    found = sandbox.evaluate(program("asks_strangely"), rows, limits=LIMITS, desk=desk_of(judge))
    said = [one.score.reason if one.score else one.message for one in found]
    expected = ["1 to 50", "role is one of", "max_tokens must be", "temperature must be", "65,536 are allowed",
                "a role and a content"]  # fmt: skip
    assert [words in text and text.startswith("Refused") for words, text in zip(expected, said, strict=True)] == [
        True
    ] * 6, said
    assert judge.asked == []


def test_an_answer_that_is_too_long_is_refused_and_none_holds_the_key(sandbox: Sandbox) -> None:
    judge = Judge()
    judge.said = "x" * 40_000
    question = [{"n": 0, "question": {"messages": "long"}}]
    (found,) = sandbox.evaluate(program("asks_strangely"), question, limits=LIMITS, desk=desk_of(judge))
    assert found.score is not None
    assert "32,768 are passed on" in found.score.reason
    judge.said = f"the key is {KEY}"
    (found,) = sandbox.evaluate(program("asks"), [{"n": 0}], limits=LIMITS, desk=desk_of(judge))
    assert found.score is not None
    assert found.score.reason == "the key is [secret]"


def test_the_key_never_enters_the_jail(sandbox: Sandbox) -> None:
    limits = Limits(wall_seconds=20.0, cpu_seconds=20.0)
    (found,) = sandbox.evaluate(program("looks_around"), [{"n": 0}], limits=limits, desk=desk_of(Judge()))
    assert (found.status, found.score and found.score.score) == (Status.OK, 0.0)


def test_while_the_judge_thinks_no_time_passes_for_the_row(sandbox: Sandbox) -> None:
    judge = Judge()
    judge.seconds = 1.2 * SHORT.wall_seconds  # longer than the row may take
    (found,) = sandbox.evaluate(program("asks"), [{"n": 0}], limits=SHORT, desk=desk_of(judge))
    assert (found.status, found.attempts) == (Status.OK, 1), found.message


def test_who_hangs_up_or_shouts_harms_nobody_but_the_row(sandbox: Sandbox) -> None:
    rows = [{"n": n} for n in range(3)]
    gone = sandbox.evaluate(program("hangs_up"), rows, limits=LIMITS, desk=desk_of(Judge()))
    assert [one.status for one in gone] == [Status.OK, Status.NO_RESULT, Status.OK]
    loud = sandbox.evaluate(program("shouts"), rows, limits=SHORT, desk=desk_of(Judge()))
    assert [one.status for one in loud] == [Status.OK, Status.TIMEOUT, Status.OK]
    assert {one.attempts for one in (*gone, *loud)} == {1}


def test_without_a_desk_asking_is_refused(sandbox: Sandbox) -> None:
    (found,) = sandbox.evaluate(program("asks_until_refused"), [{"n": 0}], limits=LIMITS)
    assert found.score is not None
    assert found.score.reason == "no judge is configured for this evaluator"
    assert not may_ask(Program({"a.py": b"def f(n): return 1"}, "a.py::f"))


def test_a_runner_hands_its_desk_on() -> None:
    judge = Judge()
    with SandboxRunner(workers=1, desk=desk_of(judge)) as runner:
        (found,) = runner.evaluate(program("asks"), [{"n": 7}], limits=LIMITS)
    assert found.score is not None
    assert (found.score.reason, judge.asked) == ("answer 1", ["row 7 question 0"])


def test_an_operators_settings_make_a_desk() -> None:
    settings = {"TRAINER_JUDGE_URL": "http://judge", "TRAINER_JUDGE_MODEL": "m", "TRAINER_JUDGE_SECRET": "JUDGE_KEY"}
    desk = configured(
        {**settings, "TRAINER_JUDGE_REQUESTS": "7", "TRAINER_JUDGE_CALLS": "2"}, {"JUDGE_KEY": KEY}.__getitem__
    )
    assert desk is not None
    assert (desk.calls_each, desk.client.spending.budget.requests, desk.client.key()) == (2, 7, KEY)
    assert configured({}, str) is None
    assert configured({"TRAINER_JUDGE_URL": "http://judge"}, str) is None
    with pytest.raises(ValueError, match="TRAINER_JUDGE_CALLS '0' is no whole number from 1 to"):
        configured({**settings, "TRAINER_JUDGE_CALLS": "0"}, str)


def test_a_place_that_is_no_row_counts_for_the_last() -> None:
    asking = Asking(desk_of(Judge()), ["a", "b"])
    asking.answer(99, b'{"messages":[{"role":"user","content":"x"}]}\n')
    assert (asking.record(0), asking.record(1)) == ({}, {"judge": {"calls": 1, "refused": 0}})
