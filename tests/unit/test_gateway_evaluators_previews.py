"""Sample rows while the caller waits: previews of evaluators and of the older evaluations; a failure is never 0."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from tests.evaluating_kit import LENGTH, REWARD, TEST, answered, criterion, packed, project, snippet
from tests.family_kit import ask, refused
from tests.gateway_kit import A, opened
from trainer.gateway.client import GatewayClient

PREVIEW = f"{A}/evaluators:previewEvaluator"
ROWS = answered("4", "it is 4", "5")
PRINTS = """
import os
def evaluate(messages, **kwargs):
    value = os.environ.get("GRANTED_KEY", "none") + "/" + os.environ.get("OTHER_KEY", "none")
    print("seen", value, "FIREWORKS_API_KEY" in os.environ)
    return {"score": 0.25, "reason": value}
"""


@pytest.fixture
def client(tmp_path: Path) -> Iterator[GatewayClient]:
    with opened(tmp_path / "gateway") as (found, _):
        yield found


def previewed(
    client: GatewayClient, evaluator: dict[str, Any], rows: list[dict[str, Any]], **more: Any
) -> dict[str, Any]:
    return ask(client, "POST", PREVIEW, {"evaluator": evaluator, "sampleData": [json.dumps(r) for r in rows], **more})


def test_a_draft_is_scored_row_by_row(client: GatewayClient) -> None:
    question = {"messages": [{"role": "user", "content": "2+2?"}]}
    found = previewed(client, {"criteria": [criterion(LENGTH)]}, [*ROWS, *answered("boom"), question])
    assert [one.get("score") for one in found["results"]] == [1.0, 1.0, 0.0, None, None]
    assert [one["success"] for one in found["results"]] == ["true", "true", "true", "false", "false"]
    assert found["results"][1]["perMetricEvals"]["short"] == {"score": 0.0, "is_score_valid": True, "reason": "length"}
    assert found["results"][1]["perMetricEvals"]["acc"]["score"] == 1.0
    assert found["results"][0]["reason"] == "truth 4"
    assert "error: ValueError: cannot score this" in found["results"][3]["reason"]
    assert "no answer to score" in found["results"][4]["reason"]
    assert (found["totalSamples"], int(found["totalRuntimeMs"]) >= 0) == (5, True)
    assert found["stdout"][1] == "scored it is 4\n"
    assert [line.partition(":")[0] for line in found["stderr"]] == ["sample 4", "sample 5"]
    assert previewed(client, {"criteria": [criterion(LENGTH)]}, answered(*"4" * 12))["totalSamples"] == 10
    assert previewed(client, {"criteria": [criterion(LENGTH)]}, ROWS, maxSamples=2)["totalSamples"] == 2


def test_one_that_is_there_goes_by_its_name(client: GatewayClient) -> None:
    snippet(client, LENGTH)
    project(client, packed({"test_x.py": TEST}), "test_x.py::test_truth", "tests")
    project(client, packed({"reward.py": REWARD}), "reward.py::contains_truth", "reward")
    for name in ("snip", "accounts/local/evaluators/tests", "reward"):
        found = previewed(client, {"name": name}, ROWS)["results"]
        assert [one["score"] for one in found] == [1.0, 1.0, 0.0]
        assert [one["perMetricEvals"]["short"]["score"] for one in found] == [1.0, 0.0, 1.0]


def test_what_cannot_be_previewed_is_refused(client: GatewayClient) -> None:
    draft = {"criteria": [criterion(LENGTH)]}
    row = json.dumps(ROWS[0])
    for body, status, words in (
        ({"evaluator": {}, "sampleData": [row]}, 400, "name of an evaluator"),
        ({"evaluator": {"name": "absent"}, "sampleData": [row]}, 404, "not found"),
        ({"evaluator": draft, "sampleData": []}, 400, "at least one row"),
        ({"evaluator": draft, "sampleData": ["[1]"]}, 400, "sampleData[0]"),
        ({"evaluator": draft, "sampleData": [row], "maxSamples": 101}, 400, "maxSamples"),
        ({"evaluator": {**draft, "requirements": "numpy"}, "sampleData": [row]}, 400, "not installed here"),
        ({"evaluator": {"criteria": [criterion(LENGTH, function="a b")]}, "sampleData": [row]}, 400, "no name of a"),
    ):
        found = refused(client, "POST", PREVIEW, body)
        assert (found[0], words in found[1]) == (status, True), found


def test_secrets_only_by_the_names_that_were_granted(client: GatewayClient, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GRANTED_KEY", "OTHER_KEY", "FIREWORKS_API_KEY"):
        ask(client, "POST", f"{A}/secrets", {"keyName": name, "name": "", "value": f"value-of-{name}"})
    evaluator = {"criteria": [criterion(PRINTS)]}
    assert previewed(client, evaluator, ROWS[:1])["results"][0]["reason"] == "none/none"
    monkeypatch.setenv("TRAINER_EVALUATOR_SECRETS", "GRANTED_KEY, ABSENT_KEY")
    found = previewed(client, evaluator, ROWS[:1])
    assert found["results"][0]["reason"] == "[secret]/none"
    assert found["stdout"] == ["seen [secret]/none False\n"]
    monkeypatch.setenv("TRAINER_EVALUATOR_SECRETS", "LD_PRELOAD")
    body = {"evaluator": evaluator, "sampleData": [json.dumps(ROWS[0])]}
    assert "LD_PRELOAD" in refused(client, "POST", PREVIEW, body)[1]


def code(text: str, **more: Any) -> dict[str, Any]:
    return {"assertionType": "ASSERTION_TYPE_CODE", "codeAssertion": {"language": "python", "code": text}, **more}


def test_evaluations_of_the_older_generation(client: GatewayClient) -> None:
    right = code("result = float(ground_truth in output)", metricName="right")
    fails = code("result = 1 / len(output.replace('5', ''))", metricName="fails")
    evaluation = {"evaluationType": "code", "providers": [], "assertions": [right]}
    made = ask(client, "POST", f"{A}/evaluations", {"evaluation": evaluation, "evaluationId": "old"})
    assert (made["name"], made["status"]["code"]) == ("accounts/local/evaluations/old", "OK")
    assert ask(client, "GET", f"{A}/evaluations")["totalSize"] == 1
    assert ask(client, "GET", f"{A}/evaluations/old")["assertions"] == [right]
    sample = {"sampleData": json.dumps(ROWS)}
    found = ask(client, "POST", f"{A}/evaluations/old:preview", sample)
    assert [(one["success"], one["score"], one["metrics"]) for one in found["results"]] == [
        (True, 1.0, {"right": 1.0}), (True, 1.0, {"right": 1.0}), (True, 0.0, {"right": 0.0}),
    ]  # fmt: skip
    assert ask(client, "POST", f"{A}/evaluations/old:preview", {**sample, "maxSamples": 1})["totalSamples"] == 1
    both = {**evaluation, "assertions": [right, fails]}
    tested = ask(client, "POST", f"{A}:testeval", {"evaluation": both, **sample})["results"]
    assert [one["success"] for one in tested] == [True, True, False]
    assert "score" not in tested[2]
    assert "ZeroDivisionError" in tested[2]["reason"]
    assert ask(client, "DELETE", f"{A}/evaluations/old") == {}
    assert refused(client, "GET", f"{A}/evaluations/old")[0] == 404


def test_assertions_are_validated_one_by_one(client: GatewayClient) -> None:
    judge = {"assertionType": "ASSERTION_TYPE_LLM", "metricName": "nice",
             "llmAssertion": {"providers": [{"id": "openai:m"}], "prompts": ["be nice"]}}  # fmt: skip
    script = {"language": "javascript", "code": "1"}
    given = [code("result = 1", metricName="good"), code("result = (", metricName="bad"), judge,
             {"assertionType": "ASSERTION_TYPE_CODE", "codeAssertion": script}]  # fmt: skip
    found = ask(client, "POST", f"{A}/evaluations:validateAssertions", {"assertions": given})
    errors = {name: " ".join(one["errorMessages"]) for name, one in found["metricToErrors"].items()}
    assert (found["status"], errors["good"]) == ("INVALID", "")
    assert "SyntaxError" in errors["bad"]
    assert "configures a judge" in errors["nice"]
    assert "javascript" in errors["assertion4"]
    assert ask(client, "POST", f"{A}/evaluations:validateAssertions", {"assertions": given[:1]})["status"] == "OK"
    mixed = {
        "evaluationType": "code",
        "providers": [],
        "assertions": [{**judge, "assertionType": "ASSERTION_TYPE_CODE"}],
    }
    assert "codeAssertion is missing" in refused(client, "POST", f"{A}/evaluations", {"evaluation": mixed})[1]


class Judge(BaseHTTPRequestHandler):
    """An OpenAI-compatible endpoint that finds every answer half good."""

    asked: ClassVar[list[str]] = []

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.asked.append(self.headers["Authorization"])
        content = json.dumps({"score": 0.5, "reason": "fair"})
        body = json.dumps({"choices": [{"message": {"role": "assistant", "content": content}}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


def test_a_judge_is_the_operators_and_its_key_the_accounts(
    client: GatewayClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = {"assertionType": "ASSERTION_TYPE_LLM", "metricName": "nice",
             "llmAssertion": {"providers": [{"id": "openai:m"}], "prompts": ["be nice"]}}  # fmt: skip
    evaluation = {"evaluationType": "llm", "providers": [], "assertions": [judge]}
    body = {"evaluation": evaluation, "sampleData": json.dumps(ROWS[:1])}
    assert "configures a judge" in refused(client, "POST", f"{A}:testeval", body)[1]
    ask(client, "POST", f"{A}/secrets", {"keyName": "JUDGE_KEY", "name": "", "value": "key-of-judge"})
    monkeypatch.setattr(Judge, "asked", [])
    with ThreadingHTTPServer(("127.0.0.1", 0), Judge) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("TRAINER_JUDGE_URL", f"http://127.0.0.1:{server.server_address[1]}/v1")
        monkeypatch.setenv("TRAINER_JUDGE_SECRET", "JUDGE_KEY")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        try:
            (found,) = ask(client, "POST", f"{A}:testeval", body)["results"]
        finally:
            server.shutdown()
    assert (found["success"], found["score"], found["metrics"]) == (True, 0.5, {"nice": 0.5})
    assert Judge.asked == ["Bearer key-of-judge"]
