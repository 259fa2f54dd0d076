"""What the tests of evaluators in the gateway share: snippets, projects, uploads, and waiting for a build or a job."""

from __future__ import annotations

import io
import tarfile
from typing import Any

from tests.family_kit import ask
from tests.gateway_kit import A, raw, wait_for
from trainer.gateway.client import GatewayClient

LENGTH = """
def evaluate(messages, ground_truth=None, **kwargs):
    text = messages[-1]["content"]
    if text == "boom":
        raise ValueError("cannot score this")
    hit = 1.0 if str(ground_truth) in text else 0.0
    print("scored", text)
    return {"score": hit, "is_score_valid": True, "reason": f"truth {ground_truth}",
            "metrics": {"short": {"score": 1.0 if len(text) < 5 else 0.0, "is_score_valid": True, "reason": "length"}}}
"""
REWARD = """
from eval_protocol import reward_function
from eval_protocol.models import EvaluateResult, MetricResult

@reward_function
def contains_truth(messages, ground_truth=None, **kwargs):
    text = messages[-1]["content"]
    short = MetricResult(score=float(len(text) < 5), is_score_valid=True, reason="length")
    return EvaluateResult(score=float(str(ground_truth) in text), reason="substring", metrics={"short": short})
"""
TEST = """
from eval_protocol.models import EvaluateResult, EvaluationRow, MetricResult
from eval_protocol.pytest import SingleTurnRolloutProcessor, evaluation_test

@evaluation_test(input_dataset=["rows.jsonl"], completion_params=[{"model": "m", "temperature": 1.0}],
                 rollout_processor=SingleTurnRolloutProcessor(), mode="pointwise")
def test_truth(row: EvaluationRow) -> EvaluationRow:
    text = row.messages[-1].content or ""
    short = MetricResult(score=float(len(text) < 5), is_score_valid=True, reason="length")
    row.evaluation_result = EvaluateResult(score=float(str(row.ground_truth) in text), reason="substring",
                                           metrics={"short": short})
    return row
"""


def answered(*texts: str, truth: str = "4") -> list[dict[str, Any]]:
    """Rows with these answers."""
    return [
        {"messages": [{"role": "user", "content": f"2+2? ({index})"}, {"role": "assistant", "content": text}],
         "ground_truth": truth}
        for index, text in enumerate(texts)
    ]  # fmt: skip


def criterion(source: str, name: str = "acc", function: str = "evaluate") -> dict[str, Any]:
    """A code snippet of one file."""
    snippet = {"language": "python", "fileContents": {"main.py": source}, "entryFile": "main.py", "entryFunc": function}
    return {"type": "CODE_SNIPPETS", "name": name, "description": "", "codeSnippets": snippet}


def packed(files: dict[str, str]) -> bytes:
    """A project as tar.gz."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name, text in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(text.encode())
            archive.addfile(entry, io.BytesIO(text.encode()))
    return stream.getvalue()


def snippet(client: GatewayClient, source: str, evaluator_id: str = "snip", **fields: Any) -> dict[str, Any]:
    """An evaluator of one criterion, once it is built."""
    body = {"evaluator": {"criteria": [criterion(source)], **fields}, "evaluatorId": evaluator_id}
    ask(client, "POST", f"{A}/evaluatorsV2", body)
    return built(client, evaluator_id)


def project(
    client: GatewayClient, content: bytes, entry: str, evaluator_id: str = "proj", **fields: Any
) -> dict[str, Any]:
    """An evaluator that is uploaded, once it is built."""
    body = {"evaluator": {"entryPoint": entry, **fields}, "evaluatorId": evaluator_id}
    ask(client, "POST", f"{A}/evaluatorsV2", body)
    return uploaded(client, content, evaluator_id)


def uploaded(client: GatewayClient, content: bytes, evaluator_id: str = "proj") -> dict[str, Any]:
    """The evaluator once this source of it is built."""
    url = f"{A}/evaluators/{evaluator_id}"
    urls = ask(client, "POST", f"{url}:getUploadEndpoint", {"filenameToSize": {"p.tar.gz": str(len(content))}})
    assert raw(client, "PUT", urls["filenameToSignedUrls"]["p.tar.gz"], content=content).status_code == 200
    ask(client, "POST", f"{url}:validateUpload", {})
    return built(client, evaluator_id)


def built(client: GatewayClient, evaluator_id: str, *, timeout: float = 60.0) -> dict[str, Any]:
    """The evaluator once its build has ended."""

    def done() -> dict[str, Any] | None:
        found = ask(client, "GET", f"{A}/evaluators/{evaluator_id}")
        return found if found["state"] in ("ACTIVE", "BUILD_FAILED") else None

    return wait_for(done, f"the build of {evaluator_id}", timeout)


def log_of(client: GatewayClient, evaluator_id: str) -> str:
    """The evaluator's build log."""
    url = ask(client, "GET", f"{A}/evaluators/{evaluator_id}:getBuildLogEndpoint")["buildLogSignedUri"]
    return raw(client, "GET", url).text
