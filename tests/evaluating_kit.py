"""What the tests of evaluators in the gateway share: snippets, projects, uploads, and waiting for a build or a job."""

from __future__ import annotations

import io
import json
import os
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.family_kit import ask
from tests.gateway_kit import ROOT, A, make_spec, opened, raw, wait_for, write_rows
from trainer.gateway.client import GatewayClient
from trainer.gateway.gateway import Gateway
from trainer.gateway.scheduler import Scheduler
from trainer.launch import here

JOBS = f"{A}/evaluationJobs"
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


def built(client: GatewayClient, evaluator_id: str, *, timeout: float = 300.0) -> dict[str, Any]:
    """The evaluator once its build has ended."""

    def done() -> dict[str, Any] | None:
        found = ask(client, "GET", f"{A}/evaluators/{evaluator_id}")
        return found if found["state"] in ("ACTIVE", "BUILD_FAILED") else None

    return wait_for(done, f"the build of {evaluator_id}", timeout)


def log_of(client: GatewayClient, evaluator_id: str) -> str:
    """The evaluator's build log."""
    url = ask(client, "GET", f"{A}/evaluators/{evaluator_id}:getBuildLogEndpoint")["buildLogSignedUri"]
    return raw(client, "GET", url).text


class Remembering:
    """The launcher of this machine; it knows whom it has started, so that a test can end them all."""

    find, fence = staticmethod(here.find), staticmethod(here.fence)

    def __init__(self) -> None:
        self.started: list[subprocess.Popen[bytes]] = []

    def start(self, run_folder: Path, **settings: Any) -> subprocess.Popen[bytes]:
        self.started.append(here.start(run_folder, **settings))
        return self.started[-1]


@contextmanager
def two_processors() -> Iterator[None]:
    """For this thread and all that it starts: a sandbox scores three rows at a time, however large the machine is."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:2])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def working(folder: Path) -> Iterator[tuple[GatewayClient, Gateway]]:
    """An in-process gateway whose scheduler starts the real worker."""
    launcher, environment = Remembering(), {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with opened(folder) as (client, gateway):
        scheduler = Scheduler(gateway, make_spec, launcher=launcher, poll=0.02, grace=10.0, environment=environment)
        scheduler.start()
        try:
            yield client, gateway
        finally:
            scheduler.stop()
            for process in launcher.started:
                here.stop(process, grace=5)


def upload_rows(client: GatewayClient, path: Path, found: list[dict[str, Any]], name: str = "in") -> None:
    """A READY data set of these rows."""
    client.upload_dataset(write_rows(path, found), name)


def create_job(client: GatewayClient, job_id: str, evaluator: str = "snip", **fields: Any) -> dict[str, Any]:
    """An evaluation job over the data set `in`, as it is created."""
    job = {"evaluator": evaluator, "inputDataset": "in", "outputDataset": f"{job_id}-out", **fields}
    return ask(client, "POST", JOBS, {"evaluationJob": job, "evaluationJobId": job_id})


def until(client: GatewayClient, job_id: str, *states: str) -> dict[str, Any]:
    """The job once it is in one of the states."""

    def reached() -> dict[str, Any] | None:
        job = ask(client, "GET", f"{JOBS}/{job_id}")
        return job if job["state"].removeprefix("JOB_STATE_") in states else None

    return wait_for(reached, f"{job_id} in {states}", 300)


def scored(client: GatewayClient, dataset: str) -> list[dict[str, Any]]:
    """The rows of an output data set."""
    (url,) = ask(client, "GET", f"{A}/datasets/{dataset}:getDownloadEndpoint")["filenameToSignedUrls"].values()
    return [json.loads(line) for line in raw(client, "GET", url).text.splitlines()]
