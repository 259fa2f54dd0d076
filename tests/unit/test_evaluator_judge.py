"""The LLM judge against a real server in this process: scores, budgets, retries, and the key that nobody sees."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from evaluators.broker import Broker
from evaluators.judge_client import Budget, Spending
from evaluators.kinds.base import Tools
from evaluators.kinds.llm_judge import JudgeTools, LlmJudgeEvaluator
from evaluators.kinds.table import make
from evaluators.protocol import Status

KEY = "planted-judge-key"
Answer = tuple[int, dict[str, str], bytes]


def said(text: str, tokens: tuple[int, int] = (30, 10)) -> Answer:
    usage = {"prompt_tokens": tokens[0], "completion_tokens": tokens[1]}
    body = {"choices": [{"message": {"role": "assistant", "content": text}}], "usage": usage}
    return 200, {}, json.dumps(body).encode()


class Judge:
    """A chat completions endpoint that answers by a function, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.answer: Callable[[int, dict[str, Any]], Answer] = lambda *_: said('{"score": 1, "reason": "right"}')
        judge = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                question = json.loads(self.rfile.read(int(self.headers["content-length"])))
                judge.headers.append({**{k.lower(): v for k, v in self.headers.items()}, "path": self.path})
                judge.asked.append(question)
                status, headers, body = judge.answer(len(judge.asked), question)
                self.send_response(status)
                for name, value in {**headers, "content-length": str(len(body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *_: Any) -> None:
                return

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> Iterator[Judge]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    found = Judge()
    thread = threading.Thread(target=found.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield found
    found.server.shutdown()
    thread.join()
    found.server.server_close()


def evaluator(judge: Judge, waits: list[float] | None = None, **settings: Any) -> LlmJudgeEvaluator:
    slept = [] if waits is None else waits
    broker = Broker({"JUDGE_KEY": KEY}.get, usable=["JUDGE_KEY"])
    tools = Tools(judge=JudgeTools(broker.spend, sleep=slept.append))
    base = {"base_url": judge.url, "model": "judge", "rubric": "be right", "key_env": "JUDGE_KEY", "concurrency": 1}
    found = make("llm_judge", {**base, **settings}, tools)
    assert isinstance(found, LlmJudgeEvaluator)
    return found


def row(answer: str = "4", **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": answer}], **more}


def test_a_score_is_scaled_and_the_question_is_whole(judge: Judge) -> None:
    judge.answer = lambda *_: said('Let me see. {"score": 7.5, "reason": "mostly"}')
    [result] = evaluator(judge, lowest=5, highest=10).evaluate([row("four", ground_truth="4")])
    assert result.score is not None and (result.score.score, result.score.reason) == (0.5, "mostly")
    [question] = judge.asked
    assert (question["model"], question["temperature"], judge.headers[0]["path"]) == (
        "judge",
        0,
        "/v1/chat/completions",
    )
    assert judge.headers[0]["authorization"] == f"Bearer {KEY}"
    text = question["messages"][1]["content"]
    assert all(part in text for part in ("be right", "2+2?", "Right answer:\n4", "\nfour\n"))
    assert KEY not in json.dumps(question)


def test_an_answer_cannot_know_the_marks_around_it(judge: Judge) -> None:
    judged = evaluator(judge)
    first, second = judged.messages(row("a")), judged.messages(row("b"))
    marks = [messages[0]["content"].split("=== ")[1].split(" ===")[0] for messages in (first, second)]
    assert marks[0] != marks[1] and first == judged.messages(row("a"))
    assert first[1]["content"].count(marks[0]) == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("I like it", "no JSON object"),
        ('{"score": 2}', "not from 0 to 1"),
        ('{"score": "1"}', "not a number"),
        ('{"score": true}', "not a number"),
        ('{"score": NaN}', "not a finite number"),
        ('{"score": 1, "score": 0}', "stands twice"),
        ('{"reason": "x"}', "not a number"),
    ],
)
def test_a_reply_without_a_sound_score_masks_the_row(judge: Judge, text: str, words: str) -> None:
    judge.answer = lambda *_: said(text)
    [result] = evaluator(judge).evaluate([row()])
    assert (result.status, result.score) == (Status.BAD_RESULT, None)
    assert words in result.message


def test_what_may_pass_is_asked_again_and_waits_as_told(judge: Judge) -> None:
    answers: dict[int, Answer] = {1: (429, {"retry-after": "3"}, b""), 2: (503, {}, b"")}
    judge.answer = lambda count, _: answers.get(count) or said('{"score": 1}')
    waits: list[float] = []
    [result] = evaluator(judge, waits).evaluate([row()])
    assert (result.status, waits, len(judge.asked)) == (Status.OK, [3.0, 2.0], 3)


def test_failures_are_ours_and_show_no_key(judge: Judge) -> None:
    judge.answer = lambda *_: (401, {}, f"bad key {KEY}".encode())
    [refused] = evaluator(judge).evaluate([row()])
    judge.answer = lambda *_: (500, {}, KEY.encode())
    [broken] = evaluator(judge, attempts=2).evaluate([row()])
    judge.answer = lambda *_: (200, {}, b'{"choices": []}')
    [empty] = evaluator(judge).evaluate([row()])
    judge.answer = lambda *_: (302, {"location": "http://127.0.0.1:1/"}, b"")
    [moved] = evaluator(judge).evaluate([row()])
    for result, words in (
        (refused, "HTTP 401"),
        (broken, "in 2 attempts: HTTP 500"),
        (empty, "no chat completion"),
        (moved, "HTTP 302"),
    ):
        assert result.status is Status.INFRA_ERROR and result.score is None
        assert words in result.message and KEY not in result.message
    assert "[secret]" in refused.message + broken.message


def test_nobody_there_masks_the_row(judge: Judge) -> None:
    judged = evaluator(judge, base_url="http://127.0.0.1:1/v1", attempts=1)
    [result] = judged.evaluate([row()])
    assert result.status is Status.INFRA_ERROR
    assert "did not answer in 1 attempts" in result.message


def test_the_budget_of_requests_ends_the_asking(judge: Judge) -> None:
    results = evaluator(judge, requests=3, concurrency=4).evaluate([row(str(n)) for n in range(8)])
    assert len(judge.asked) == 3
    assert sum(result.ok for result in results) == 3
    rest = {(result.status, result.message) for result in results if not result.ok}
    assert rest == {(Status.INFRA_ERROR, "the judge's budget of 3 requests is spent")}


def test_the_budget_of_tokens_counts_what_was_used(judge: Judge) -> None:
    judged = evaluator(judge, tokens=2_000, max_tokens=100)
    judged.evaluate([row()])
    assert (judged.spending.tokens_in, judged.spending.tokens_out) == (30, 10)
    judge.answer = lambda *_: said('{"score": 1}', (1_500, 100))
    results = judged.evaluate([row("a"), row("b")])
    assert [one.status for one in results] == [Status.OK, Status.INFRA_ERROR]


def test_cost_is_reserved_before_a_request_leaves() -> None:
    spending = Spending(Budget(cost=1.0, price_in=1e6, price_out=1e6))
    with pytest.raises(RuntimeError, match="budget of 1 is spent"):
        spending.reserve(1, 1)
    spending.reserve(1, 0)
    assert spending.cost == 1.0
    with pytest.raises(ValueError, match="needs price_in"):
        Spending(Budget(cost=1.0))
