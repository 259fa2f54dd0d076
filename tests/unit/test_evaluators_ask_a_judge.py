"""An evaluator asks the operator's judge in previews and in jobs alike; its key is the account's, and stays out."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.evaluating_kit import JOBS, answered, create_job, criterion, scored, snippet, until, upload_rows, working
from tests.family_kit import ask
from tests.gateway_kit import A

KEY = "key-of-the-judge"
ASKS = """
import os
from evaluator_host import Refused, judge

def evaluate(messages, **kwargs):
    if "key-of" in str(dict(os.environ)):
        return {"score": 0.0, "reason": "the key is in the jail"}
    try:
        return {"score": float(judge([{"role": "user", "content": messages[-1]["content"]}], max_tokens=8))}
    except Refused as error:
        return {"score": 0.0, "reason": str(error), "is_score_valid": False}
"""


class Judge(ThreadingHTTPServer):
    """An OpenAI-compatible endpoint that says 0.75, and remembers with which key it was asked what."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Asked)
        self.asked: list[tuple[str, str]] = []


class _Asked(BaseHTTPRequestHandler):
    server: Judge

    def do_POST(self) -> None:
        question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.headers["Authorization"], question["messages"][0]["content"]))
        body = json.dumps({"choices": [{"message": {"role": "assistant", "content": "0.75"}}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> Iterator[Judge]:
    with Judge() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("TRAINER_JUDGE_URL", f"http://127.0.0.1:{server.server_address[1]}/v1")
        monkeypatch.setenv("TRAINER_JUDGE_MODEL", "m")
        monkeypatch.setenv("TRAINER_JUDGE_SECRET", "JUDGE_KEY")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield server
        server.shutdown()


def test_in_a_preview_and_in_a_job(judge: Judge, tmp_path: Path) -> None:
    rows = answered("4", "5")
    with working(tmp_path / "gateway") as (client, _):
        draft = {"evaluator": {"criteria": [criterion(ASKS)]}, "sampleData": [json.dumps(row) for row in rows]}
        without = ask(client, "POST", f"{A}/evaluators:previewEvaluator", draft)["results"]
        assert {one["success"] for one in without} == {"false"}  # the account has no such secret
        assert "there is no secret 'JUDGE_KEY'" in without[0]["reason"]

        ask(client, "POST", f"{A}/secrets", {"keyName": "JUDGE_KEY", "name": "", "value": KEY})
        found = ask(client, "POST", f"{A}/evaluators:previewEvaluator", draft)["results"]
        assert [one.get("score") for one in found] == [0.75, 0.75]

        snippet(client, ASKS)
        upload_rows(client, tmp_path / "in.jsonl", rows)
        create_job(client, "judged")
        job = until(client, "judged", "COMPLETED", "FAILED", "PAUSED")
        assert job["state"] == "JOB_STATE_COMPLETED", job["status"]
        assert [row["evals"]["score"] for row in scored(client, "judged-out")] == [0.75, 0.75]
        (folder,) = {path.parent for path in tmp_path.rglob("scores.jsonl")}
        kept = [json.loads(line) for line in (folder / "scores.jsonl").read_text().splitlines()]
        assert [line["judge"] for line in kept] == [{"calls": 1, "refused": 0}] * 2
        assert KEY not in json.dumps(ask(client, "GET", f"{JOBS}/judged"))
    assert {key for key, _ in judge.asked} == {f"Bearer {KEY}"}
    assert {text for _, text in judge.asked} == {"4", "5"}
    leaks = [path for path in tmp_path.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]
    assert leaks == []


def test_a_job_without_the_judges_settings_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAINER_JUDGE_URL", "http://127.0.0.1:1/v1")
    monkeypatch.setenv("TRAINER_JUDGE_MODEL", "m")
    monkeypatch.setenv("TRAINER_JUDGE_CALLS", "many")
    with working(tmp_path / "gateway") as (client, _):
        snippet(client, "def evaluate(messages, **kwargs):\n    return 1.0\n")
        upload_rows(client, tmp_path / "in.jsonl", answered("4"))
        create_job(client, "judged")
        job = until(client, "judged", "COMPLETED", "FAILED")
    assert job["state"] == "JOB_STATE_FAILED"
    assert "TRAINER_JUDGE_CALLS 'many' is no whole number" in job["status"]["message"]
