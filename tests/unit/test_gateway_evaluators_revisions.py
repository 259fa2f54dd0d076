"""Revisions and aliases of an evaluator in jobs, previews and the command; what a job began with stays."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.evaluating_kit import (
    JOBS,
    REWARD,
    answered,
    built,
    create_job,
    criterion,
    packed,
    project,
    scored,
    snippet,
    two_processors,
    until,
    upload_rows,
    uploaded,
    working,
)
from tests.family_kit import ask, refused
from tests.gateway_kit import A, raw
from trainer.__main__ import main
from trainer.gateway.client import GatewayClient
from trainer.gateway.gateway import Gateway

SNIP, NAME = f"{A}/evaluators/snip", "accounts/local/evaluators/snip"


@pytest.fixture
def both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[GatewayClient, Gateway]]:
    monkeypatch.setenv("TRAINER_HOME", str(tmp_path))
    with two_processors(), working(tmp_path / "gateway") as found:
        yield found


def gives(score: float, *, seconds: float = 0.0) -> str:
    """A snippet whose every row has that score."""
    return f"import time\ndef evaluate(messages, **kwargs):\n    time.sleep({seconds})\n    return {score}\n"


def revised(client: GatewayClient, score: float) -> None:
    """A newer revision of `snip`."""
    ask(client, "PATCH", SNIP, {"criteria": [criterion(gives(score))]})
    assert built(client, "snip")["state"] == "ACTIVE"


def previewed(client: GatewayClient, name: str) -> list[float]:
    body = {"evaluator": {"name": name}, "sampleData": [json.dumps(row) for row in answered("4")]}
    return [one["score"] for one in ask(client, "POST", f"{A}/evaluators:previewEvaluator", body)["results"]]


def evaluated(*words: str) -> list[dict[str, Any]]:
    """The rows that the command writes."""
    *typed, out = words
    assert main(["evaluate", *typed, "--out", out]) == 0
    return [json.loads(line) for line in (Path(out) / "results.jsonl").read_text().splitlines()]


def test_a_revision_is_named_by_its_id_or_an_alias_everywhere(
    both: tuple[GatewayClient, Gateway], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    client, _ = both
    snippet(client, gives(1.0))
    revised(client, 0.5)
    ask(client, "POST", f"{SNIP}/versions/v1:alias", {"aliasId": "good"})
    upload_rows(client, tmp_path / "rows.jsonl", answered("4"))
    for name, revision, score in (
        ("snip", "v2", 0.5),
        (f"{NAME}/versions/latest", "v2", 0.5),
        ("snip/versions/v1", "v1", 1.0),
        (f"{NAME}/versions/good", "v1", 1.0),
    ):
        assert previewed(client, name) == [score]
        job_id = f"j{name.rsplit('/', 1)[-1]}"
        made = create_job(client, job_id, name)
        assert (made["evaluator"], made["evaluatorVersion"]) == (NAME, f"{NAME}/versions/{revision}")
        if name.endswith(("/v1", "/latest")):
            ask(client, "DELETE", f"{JOBS}/{job_id}")  # the others tell enough
    for job_id, revision, score in (("jsnip", "v2", 0.5), ("jgood", "v1", 1.0)):
        done = until(client, job_id, "COMPLETED", "FAILED", "PAUSED")
        assert done["metrics"] == {"acc": score, "score": score}, done["status"]
        assert json.loads(done["outputStats"])["evaluatorVersion"] == revision
        (row,) = scored(client, f"{job_id}-out")
        assert (row["evals"]["score"], row["eval_version"]) == (score, f"{NAME}/versions/{revision}")
    words = (f"evaluator={NAME}/versions/good", f"data={tmp_path / 'rows.jsonl'}", str(tmp_path / "evaluated"))
    assert evaluated(*words) == scored(client, "jgood-out")
    assert f"evaluator {NAME}/versions/v1" in capsys.readouterr().out


def test_the_command_grants_what_the_operator_names_and_keeps_it_back(
    both: tuple[GatewayClient, Gateway], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snippet(
        both[0], "import os\ndef evaluate(messages, **k):\n    return {'score': 1.0, 'reason': os.environ['A_KEY']}\n"
    )
    upload_rows(both[0], tmp_path / "rows.jsonl", answered("4"))
    monkeypatch.setenv("TRAINER_EVALUATOR_SECRETS", "A_KEY OTHER_KEY")
    monkeypatch.setenv("A_KEY", "very-secret")
    (row,) = evaluated("evaluator=snip", f"data={tmp_path / 'rows.jsonl'}", str(tmp_path / "evaluated"))
    assert row["eval_details"]["reason"] == "[secret]"
    assert not [path for path in (tmp_path / "evaluated").iterdir() if b"very-secret" in path.read_bytes()]


def test_what_is_no_revision_is_not_found_by_its_name(both: tuple[GatewayClient, Gateway], tmp_path: Path) -> None:
    client, _ = both
    snippet(client, gives(1.0))
    upload_rows(client, tmp_path / "rows.jsonl", answered("4"))
    good = {"inputDataset": "in", "outputDataset": "out"}
    sample = [json.dumps(answered("4")[0])]
    for name, status, said in (
        (f"{NAME}/versions/v7", 404, f"{NAME}/versions/v7 not found; it has v1"),
        ("snip/versions/current", 404, f"{NAME}/versions/current not found; it has v1"),
        ("absent/versions/v1", 404, "accounts/local/evaluators/absent not found"),
        ("snip@v1", 400, "accounts/A/evaluators/E/versions/V"),
        ("snip/versions/", 400, "accounts/A/evaluators/E/versions/V"),
    ):
        job = refused(client, "POST", JOBS, {"evaluationJob": {**good, "evaluator": name}})
        body = {"evaluator": {"name": name}, "sampleData": sample}
        shown = refused(client, "POST", f"{A}/evaluators:previewEvaluator", body)
        assert (job[0], shown[0], said in job[1], said in shown[1]) == (status, status, True, True), (job, shown)


def test_a_broken_revision_leaves_the_one_before_usable(both: tuple[GatewayClient, Gateway], tmp_path: Path) -> None:
    client, _ = both
    snippet(client, gives(1.0))
    ask(client, "PATCH", SNIP, {"criteria": [criterion("def evaluate(:\n")]})
    assert built(client, "snip")["state"] == "BUILD_FAILED"
    upload_rows(client, tmp_path / "rows.jsonl", answered("4"))
    job = {"evaluator": "snip", "inputDataset": "in", "outputDataset": "out"}
    status, said = refused(client, "POST", JOBS, {"evaluationJob": job})
    assert (status, "BUILD_FAILED" in said, f"or name {NAME}/versions/v1" in said) == (400, True, True)
    assert f"{NAME}/versions/v2 is in state BUILD_FAILED" in refused(
        client, "POST", JOBS, {"evaluationJob": {**job, "evaluator": "snip/versions/v2"}}
    )[1]  # fmt: skip
    create_job(client, "j", "snip/versions/v1")
    assert until(client, "j", "COMPLETED", "FAILED", "PAUSED")["metrics"]["score"] == 1.0


def test_a_job_stays_with_the_revision_that_it_began_with(both: tuple[GatewayClient, Gateway], tmp_path: Path) -> None:
    client, _ = both
    snippet(client, gives(1.0, seconds=0.25))
    ask(client, "POST", f"{SNIP}/versions/v1:alias", {"aliasId": "current"})
    revised(client, 0.25)
    upload_rows(client, tmp_path / "rows.jsonl", answered(*"4" * 40))
    create_job(client, "j", "snip/versions/current")
    until(client, "j", "RUNNING")
    ask(client, "POST", f"{SNIP}/versions/v2:alias", {"aliasId": "current"})
    assert "used by accounts/local/evaluationJobs/j" in refused(client, "DELETE", f"{SNIP}/versions/v1")[1]
    ask(client, "POST", f"{JOBS}/j:cancel", {})
    assert until(client, "j", "CANCELLED", "COMPLETED")["state"] == "JOB_STATE_CANCELLED"
    ask(client, "POST", f"{SNIP}/versions/v2:rollback", {})
    assert built(client, "snip")["state"] == "ACTIVE"
    assert ask(client, "POST", f"{JOBS}/j:resume", {})["evaluatorVersion"] == f"{NAME}/versions/v1"
    done = until(client, "j", "COMPLETED", "FAILED", "PAUSED")
    assert (done["state"], done["metrics"]["score"]) == ("JOB_STATE_COMPLETED", 1.0)
    found = scored(client, "j-out")
    assert [(one["evals"]["score"], one["eval_version"]) for one in found] == [(1.0, f"{NAME}/versions/v1")] * 40
    assert ask(client, "DELETE", f"{SNIP}/versions/v1") == {}


def test_a_job_whose_revision_is_gone_does_not_go_on_with_another(
    both: tuple[GatewayClient, Gateway], tmp_path: Path
) -> None:
    client, _ = both
    snippet(client, gives(1.0, seconds=0.25))
    upload_rows(client, tmp_path / "rows.jsonl", answered(*"4" * 40))
    create_job(client, "j")
    until(client, "j", "RUNNING")
    ask(client, "POST", f"{JOBS}/j:cancel", {})
    until(client, "j", "CANCELLED")
    revised(client, 0.25)
    assert ask(client, "DELETE", f"{SNIP}/versions/v1") == {}
    ask(client, "POST", f"{JOBS}/j:resume", {})
    failed = until(client, "j", "FAILED", "COMPLETED")
    assert (failed["state"], failed["status"]["code"]) == ("JOB_STATE_FAILED", "NOT_FOUND")
    assert f"{NAME}/versions/v1 not found; it was there when the job was created" in failed["status"]["message"]


def test_an_uploaded_revision_has_its_own_source(
    both: tuple[GatewayClient, Gateway], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    client, gateway = both
    first = packed({"reward.py": REWARD})
    second = packed({"reward.py": REWARD.replace("float(str(ground_truth) in text)", "0.125")})
    project(client, first, "reward.py::contains_truth", "up")
    ask(client, "PATCH", f"{A}/evaluators/up?prepareCodeUpload=true", {})
    uploaded(client, second, "up")
    url = f"{A}/evaluators/up"
    for query, content in (("", second), ("?versionId=v1", first), ("?versionId=latest", second)):
        (signed,) = ask(client, "GET", f"{url}:getSourceCodeSignedUrl{query}")["filenameToSignedUrls"].values()
        assert raw(client, "GET", signed).content == content
    assert "v9 not found" in refused(client, "GET", f"{url}:getSourceCodeSignedUrl?versionId=v9")[1]
    assert (previewed(client, "up"), previewed(client, "up/versions/v1")) == ([0.125], [1.0])
    upload_rows(client, tmp_path / "rows.jsonl", answered("4"))
    for version, score in (("v1", 1.0), ("latest", 0.125)):
        words = (f"evaluator=up/versions/{version}", f"data={tmp_path / 'rows.jsonl'}", str(tmp_path / version))
        assert [row["evals"]["score"] for row in evaluated(*words)] == [score]
    assert ask(client, "DELETE", f"{url}/versions/v1") == {}
    assert len(gateway.store.every("evaluatorSources")) == 1  # what only v1 had is gone with it
    assert main(["evaluate", "evaluator=up/versions/v1", f"data={tmp_path / 'rows.jsonl'}"]) == 2
    assert "versions/v1 not found; it has v2" in capsys.readouterr().err


def test_a_revision_whose_packages_are_gone_says_how_to_have_them_again(
    both: tuple[GatewayClient, Gateway],
) -> None:
    client, gateway = both
    snippet(client, gives(1.0))
    revised(client, 0.5)
    with gateway.store.transaction() as transaction:  # as though its environment had been removed from the disk
        first = transaction.get(f"{NAME}/versions/v1")
        transaction.save(first.changed({"snapshot": {**first.body["snapshot"], "requirements": "six"}}))
    body = {"evaluator": {"name": "snip/versions/v1"}, "sampleData": [json.dumps(answered("4")[0])]}
    status, said = refused(client, "POST", f"{A}/evaluators:previewEvaluator", body)
    assert (status, f"{NAME}/versions/v1: its packages are not installed here any more; :rollback" in said) == (
        400,
        True,
    )


def test_a_job_that_its_client_ran_keeps_the_revision_that_it_names(
    both: tuple[GatewayClient, Gateway], tmp_path: Path
) -> None:
    client, _ = both
    upload_rows(client, tmp_path / "rows.jsonl", [{**answered("4")[0], "evals": {"score": 0.5}}], "results")
    made = create_job(client, "j", "accounts/local/evaluators/dummy/versions/v3", outputDataset="results")
    assert (made["state"], made["metrics"]) == ("JOB_STATE_COMPLETED", {"score": 0.5})
    assert (made["evaluator"], made["evaluatorVersion"]) == (
        "accounts/local/evaluators/dummy", "accounts/local/evaluators/dummy/versions/v3",
    )  # fmt: skip


def test_weights_of_metrics_make_the_score(both: tuple[GatewayClient, Gateway], tmp_path: Path) -> None:
    client, _ = both
    source = "def evaluate(messages, **k):\n    return {'score': 0.5, 'metrics': {'short': {'score': 1.0}}}\n"
    snippet(client, source)
    upload_rows(client, tmp_path / "rows.jsonl", answered("4", "5"))
    create_job(client, "j", rewardWeights=["acc=1", "short=0.25"])
    assert until(client, "j", "COMPLETED", "FAILED", "PAUSED")["metrics"]["score"] == 0.75
    create_job(client, "typo", rewardWeights=["shrot=1"])
    failed = until(client, "typo", "COMPLETED", "FAILED", "PAUSED")["status"]
    assert failed["code"] == "INVALID_ARGUMENT"
    assert "reward weight 'shrot': no such metric; this evaluator gives acc, score, short" in failed["message"]
    job = {"evaluator": "snip", "inputDataset": "in", "outputDataset": "o", "rewardWeights": ["acc"]}
    assert "'acc' is not name=weight" in refused(client, "POST", JOBS, {"evaluationJob": job})[1]
