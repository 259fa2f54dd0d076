"""Evaluation jobs with the real scheduler and the real worker: scores, statuses, cancel, resume, crashes, answers."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from evaluators.protocol import Result, Score, Status
from tests.evaluating_kit import (
    JOBS,
    LENGTH,
    TEST,
    answered,
    create_job,
    packed,
    project,
    scored,
    snippet,
    two_processors,
    until,
    upload_rows,
    working,
)
from tests.family_kit import ask, refused
from tests.gateway_kit import A, raw, write_rows
from trainer import evaluation_run, worker
from trainer.evaluation_run import EvaluationRun, EvaluatorSource
from trainer.evaluation_worker import EvaluationWorker
from trainer.gateway.client import GatewayClient
from trainer.gateway.gateway import Gateway
from trainer.launch import here
from trainer.loops.stop import Stop
from trainer.scored_rows import Journal, line_of, result_of, scored_row

SLOW = "import time\ndef evaluate(messages, **kwargs):\n    time.sleep(0.25)\n    return 1.0\n"


@pytest.fixture
def both(tmp_path: Path) -> Iterator[tuple[GatewayClient, Gateway]]:
    with two_processors(), working(tmp_path / "gateway") as found:
        yield found


@pytest.fixture
def client(both: tuple[GatewayClient, Gateway]) -> GatewayClient:
    return both[0]


def test_rows_become_rows_with_scores(client: GatewayClient, tmp_path: Path) -> None:
    given = answered("4", "it is 4", "5", "44", "boom", "four")
    given[0] |= {"evals": {"score": 0.125}, "eval_details": {"old": True}}
    upload_rows(client, tmp_path / "rows.jsonl", given)
    snippet(client, LENGTH)
    made = create_job(client, "j", displayName="mine")
    assert (made["state"], made["evaluator"]) == ("JOB_STATE_CREATING", "accounts/local/evaluators/snip")
    job = until(client, "j", "COMPLETED", "FAILED", "PAUSED")
    assert job["state"] == "JOB_STATE_COMPLETED", job["status"]
    assert job["metrics"] == {"score": 0.6, "acc": 0.6, "short": 0.8}  # 3 of 5, and 4 of 5: the row that raised is out
    stats = json.loads(job["outputStats"])
    assert (stats["rows"], stats["scored"], stats["masked"]) == (6, 5, 1)
    assert stats["statuses"] == {"ok": 5, "error": 1}
    assert stats["score"]["low"] < 0.6 < stats["score"]["high"]
    assert (stats["evaluator"], stats["evaluatorVersion"]) == ("accounts/local/evaluators/snip", "v1")
    output = ask(client, "GET", f"{A}/datasets/j-out")
    assert (output["state"], output["exampleCount"], output["format"]) == ("READY", "6", "CHAT")
    assert output["evaluationResult"] == {"evaluationJobId": "j"}
    assert output["sourceJobName"] == "accounts/local/evaluationJobs/j"
    found = scored(client, "j-out")
    assert [one["messages"] for one in found] == [one["messages"] for one in given]
    assert [one["eval_status"] for one in found] == ["ok", "ok", "ok", "ok", "error", "ok"]
    assert [one.get("evals") for one in found[:2]] == [{"score": 1.0}, {"score": 1.0}]
    assert "evals" not in found[4]
    assert (found[4]["eval_details"]["score"], found[4]["eval_details"]["is_score_valid"]) == (None, False)
    assert "cannot score this" in found[4]["eval_details"]["reason"]
    assert found[1]["eval_details"]["metrics"]["short"] == {"score": 0.0, "is_score_valid": True, "reason": "length"}
    log = raw(client, "GET", ask(client, "GET", f"{JOBS}/j:getExecutionLogEndpoint")["executionLogSignedUri"]).text
    assert "row 5: error: ValueError: cannot score this" in log
    assert "status: ok 5, error 1" in log
    lineage = ask(client, "GET", f"{A}/datasets/j-out:getDownloadEndpoint?downloadLineage=true")
    assert sorted(lineage["filenameToSignedUrls"]) == ["in/rows.jsonl", "j-out/j-out.jsonl"]
    assert ask(client, "DELETE", f"{JOBS}/j") == {}
    assert ask(client, "GET", f"{A}/datasets/j-out")["state"] == "READY"


def test_too_many_without_a_score_pause_the_job(client: GatewayClient, tmp_path: Path) -> None:
    upload_rows(client, tmp_path / "rows.jsonl", answered("4", "boom", "boom", "4", "4", "4"))
    snippet(client, LENGTH)
    create_job(client, "j")
    job = until(client, "j", "PAUSED", "COMPLETED", "FAILED")
    assert (job["state"], job["status"]["code"]) == ("JOB_STATE_PAUSED", "FAILED_PRECONDITION")
    assert "max_invalid_fraction is 0.2: ok 4, error 2" in job["status"]["message"]
    assert "metrics" not in job
    assert refused(client, "GET", f"{A}/datasets/j-out")[0] == 404
    assert "used by accounts/local/evaluationJobs/j" in refused(client, "DELETE", f"{A}/evaluators/snip")[1]
    assert "makes it" in refused(client, "POST", JOBS, {"evaluationJob": {
        "evaluator": "snip", "inputDataset": "in", "outputDataset": "j-out"}})[1]  # fmt: skip
    assert ask(client, "POST", f"{JOBS}/j:cancel", {}) == {}
    until(client, "j", "CANCELLED")
    create_job(client, "lenient", maxInvalidFraction=0.5)
    assert until(client, "lenient", "COMPLETED", "PAUSED")["metrics"]["score"] == 1.0


def test_a_job_is_cancelled_resumed_and_survives_its_worker(
    both: tuple[GatewayClient, Gateway], client: GatewayClient, tmp_path: Path
) -> None:
    upload_rows(client, tmp_path / "rows.jsonl", answered(*("4" for _ in range(40))))
    snippet(client, SLOW)
    create_job(client, "j")
    job = both[1].store.get("accounts/local/evaluationJobs/j")
    until(client, "j", "RUNNING")
    ask(client, "POST", f"{JOBS}/j:cancel", {})
    assert until(client, "j", "CANCELLED", "COMPLETED")["state"] == "JOB_STATE_CANCELLED"
    assert ask(client, "POST", f"{JOBS}/j:resume", {})["state"] == "JOB_STATE_PENDING"
    until(client, "j", "RUNNING")
    folder = Path(both[1].store.get(job.name).private["run"]["folder"])
    pid = here.Worker(folder).pid
    assert pid is not None  # 0 would be this process's own group
    os.killpg(pid, signal.SIGKILL)
    done = until(client, "j", "COMPLETED", "FAILED")
    assert (done["state"], done["metrics"]) == ("JOB_STATE_COMPLETED", {"acc": 1.0, "score": 1.0})
    assert len(scored(client, "j-out")) == 40
    once = [json.loads(line)["index"] for line in (folder / "scores.jsonl").read_bytes().splitlines()]
    assert sorted(once) == list(range(40))  # no row twice, in three attempts


@pytest.mark.slow
def test_a_model_answers_what_has_no_answer(client: GatewayClient, tmp_path: Path) -> None:
    given = [*answered("4", "5"), {"messages": [{"role": "user", "content": "sort 312"}], "ground_truth": "123"}]
    upload_rows(client, tmp_path / "rows.jsonl", given)
    snippet(client, LENGTH)
    create_job(client, "without")
    job = until(client, "without", "PAUSED", "COMPLETED", "FAILED")
    assert "no answer to score" in job["status"]["message"]
    create_job(client, "j", model="tiny", inferenceParameters={"maxOutputTokens": 8})
    job = until(client, "j", "COMPLETED", "FAILED", "PAUSED")
    assert job["state"] == "JOB_STATE_COMPLETED", job["status"]
    assert json.loads(job["outputStats"])["model"] == "accounts/local/models/tiny"
    found = scored(client, "j-out")
    assert [one["messages"][-1]["role"] for one in found] == ["assistant"] * 3
    assert found[0]["messages"] == given[0]["messages"]
    assert json.loads(job["outputStats"])["statuses"] == {"ok": 3}


def test_creates_that_cannot_be_honoured(client: GatewayClient, tmp_path: Path) -> None:
    upload_rows(client, tmp_path / "rows.jsonl", answered("4"))
    snippet(client, LENGTH)
    snippet(client, "def evaluate(:\n", "broken")
    good = {"evaluator": "snip", "inputDataset": "in", "outputDataset": "out"}
    for change, status, words in (
        ({"evaluator": "absent"}, 404, "absent"),
        ({"inputDataset": "absent"}, 404, "absent"),
        ({"evaluator": "broken"}, 400, "BUILD_FAILED"),
        ({"model": "absent"}, 404, "absent"),
        ({"inferenceParameters": {"topP": 0.5}}, 400, "evaluationJob.model"),
        ({"model": "tiny", "inferenceParameters": {"responseCandidatesCount": 4}}, 400, "responseCandidatesCount"),
        ({"model": "tiny", "inferenceParameters": {"topP": 7.0}}, 400, "top_p"),
        ({"maxInvalidFraction": 1.5}, 400, "maxInvalidFraction"),
        ({"awsS3Config": {"credentialsSecret": "x"}}, 404, "awsS3Config.credentialsSecret"),
        ({"outputDataset": "in", "model": "tiny"}, 400, "here already"),
    ):
        found = refused(client, "POST", JOBS, {"evaluationJob": {**good, **change}})
        assert (found[0], words in found[1]) == (status, True), found


def test_a_test_of_a_project_scores_as_in_its_preview(client: GatewayClient, tmp_path: Path) -> None:
    given = answered("4", "it is 4", "5")
    upload_rows(client, tmp_path / "rows.jsonl", given)
    project(client, packed({"test_x.py": TEST}), "test_x.py::test_truth")
    sample = {"evaluator": {"name": "proj"}, "sampleData": [json.dumps(row) for row in given]}
    shown = ask(client, "POST", f"{A}/evaluators:previewEvaluator", sample)["results"]
    create_job(client, "j", "proj")
    assert until(client, "j", "COMPLETED", "FAILED", "PAUSED")["state"] == "JOB_STATE_COMPLETED"
    found = scored(client, "j-out")
    assert [one["evals"]["score"] for one in found] == [one["score"] for one in shown] == [1.0, 1.0, 0.0]
    assert [one["eval_details"]["metrics"] for one in found] == [one["perMetricEvals"] for one in shown]


def described(folder: Path, given: list[dict[str, Any]], source: EvaluatorSource, **fields: Any) -> EvaluationRun:
    folder.mkdir()
    run = EvaluationRun(
        id="j", created="", trainer_version="", rows=[str(write_rows(folder / "rows.jsonl", given))], evaluator=source,
        input_dataset="accounts/local/datasets/in", output_dataset="accounts/local/datasets/out", **fields,
    )  # fmt: skip
    run.save(folder)
    assert EvaluationRun.load(folder) == run
    return run


class StopAfter(Stop):
    """Asked to stop once that many rows have been saved."""

    def __init__(self, path: Path, rows: int) -> None:
        self._path, self._rows = path, rows

    @property
    def requested(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return len(self._path.read_bytes().splitlines()) >= self._rows


def test_rows_that_have_a_score_are_not_scored_again(tmp_path: Path) -> None:
    snippet_ = {"name": "acc", "codeSnippets": {"fileContents": {"main.py": LENGTH}}}
    folder, texts = tmp_path / "run", ["4", "5", "boom", "4", "4", "4", "4", "4"]
    run = described(folder, answered(*texts), EvaluatorSource(name="e", criteria=[snippet_]), chunk_rows=3)
    scores = folder / "scores.jsonl"
    assert EvaluationWorker(run, folder, stop=StopAfter(scores, 3)).run() == 75
    first = scores.read_bytes().splitlines()
    assert [json.loads(line)["index"] for line in first] == [0, 1, 2]
    with scores.open("ab") as stream:
        stream.write(b'{"index": 3, "status": "o')  # a crash while it was written
    assert EvaluationWorker(run, folder, stop=Stop()).run() == 0
    second = [json.loads(line)["index"] for line in scores.read_bytes().splitlines()]
    assert second == [0, 1, 2, 2, 3, 4, 5, 6, 7]  # the row without a score is tried again
    events = [json.loads(line) for line in (folder / "sync.jsonl").read_bytes().splitlines()]
    assert [one["body"]["state"] for one in events if one["kind"] == "state"][-1] == "JOB_STATE_COMPLETED"
    (results,) = [one["body"] for one in events if one["kind"] == "results"]
    assert results["metrics"]["score"] == 6 / 7
    assert len(Path(results["path"]).read_bytes().splitlines()) == 8


def test_granted_secrets_reach_the_jail_and_no_file(tmp_path: Path) -> None:
    source = """import os
def evaluate(messages, **k):
    print("x" * 1_492, os.environ["A_KEY"])
    return {"score": 1.0, "reason": os.environ["A_KEY"]}
"""
    snippet_ = {"name": "acc", "codeSnippets": {"fileContents": {"main.py": source}}}
    folder = tmp_path / "run"
    run = described(folder, answered("4"), EvaluatorSource(name="e", criteria=[snippet_], granted=["A_KEY"]))
    environment = {f"{evaluation_run.GRANTED_PREFIX}A_KEY": "very-secret"}
    assert EvaluationWorker(run, folder, stop=Stop(), environment=environment).run() == 0
    assert '"reason": "[secret]"' in (folder / "output.jsonl").read_text()
    assert not [path for path in folder.iterdir() if b"very" in path.read_bytes()]  # nor the half of it
    assert EvaluationWorker(run, folder, stop=Stop(), environment={}).run() == 2  # granted, and not there


def test_a_line_keeps_all_that_a_row_is_handed_on_with(tmp_path: Path) -> None:
    ok = Result(Status.OK, Score(0.5, reason="half"), seconds=0.25)
    late = Result(Status.TIMEOUT, message="took longer than 2 s")
    journal = Journal(tmp_path / "scores.jsonl")
    journal.add([line_of(0, ok), line_of(1, late)])
    assert [result_of(journal[index]) for index in journal.indices()] == [ok, late]
    journal.close()
    row = {"prompt": "p", "completion": "c", "evals": {"score": 9}}
    assert scored_row(row, ok)["evals"] == {"score": 0.5}
    handed = scored_row(row, late)
    assert "evals" not in handed
    assert handed["eval_details"] == {
        "score": None, "metrics": {}, "is_score_valid": False, "reason": "took longer than 2 s",
    }  # fmt: skip


def test_the_worker_knows_the_file_by_its_name() -> None:
    assert worker.EVALUATION_FILE == evaluation_run.EVALUATION_FILE
