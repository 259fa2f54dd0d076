"""Every kind of job: its whole resource life over the wire, and what is created where there is a worker for it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from starlette.testclient import TestClient

from tests.family_kit import ask, refused
from tests.gateway_kit import A, opened, raw, write_rows
from trainer.gateway import evaluator_builds, job_families, jobstate
from trainer.gateway.client import GatewayClient
from trainer.gateway.contract import load
from trainer.gateway.errors import GatewayError
from trainer.gateway.evaluator_builds import Outcome
from trainer.gateway.gateway import Gateway, GatewayOptions
from trainer.gateway.job_families import FAMILIES
from trainer.gateway.resources import jobs
from trainer.gateway.server import create_app
from trainer.gateway.store import Resource
from trainer.jobs import JobState

ALL = sorted(FAMILIES)
LONG = [name for name in ALL if f"Gateway_Cancel{FAMILIES[name].singular[0].upper()}{FAMILIES[name].singular[1:]}" in
        load().operations]  # fmt: skip
WITHOUT_WORKER = [name for name in ALL if not FAMILIES[name].runnable]


@pytest.fixture
def both(tmp_path: Path) -> Iterator[tuple[GatewayClient, Gateway]]:
    with opened(tmp_path / "gateway") as found:
        yield found


def body_of(collection: str) -> dict[str, Any]:
    """A create's body with every required field."""
    if collection == "evaluationJobs":
        return {"evaluator": "e", "inputDataset": "rows", "outputDataset": "out"}
    if collection == "trainingSessionJobs":
        return {"baseModel": "base"}
    if collection == "batchInferenceJobs":
        return {"model": "base", "inputDatasetId": "rows"}
    return {"dataset": "rows", "evaluator": "e", "trainingConfig": {"baseModel": "base"}}


def placed(gateway: Gateway, collection: str, state: str, job_id: str = "j", **private: Any) -> Resource:
    """A record as a worker's life has left it."""
    name = f"accounts/local/{collection}/{job_id}"
    body = {
        **body_of(collection), "state": f"JOB_STATE_{state}", "status": {"code": "OK", "message": ""},
        "jobProgress": {"percent": 3}, "createdBy": "someone@example.org",
    }  # fmt: skip
    known = set(load().schema(FAMILIES[collection].schema)["properties"])
    body = {key: value for key, value in body.items() if key in known or key == "jobProgress"}
    with gateway.store.transaction() as transaction:
        if transaction.find(name) is not None:
            transaction.delete(name)
        new = Resource(name=name, collection=collection, parent="accounts/local", id=job_id, body=body, private=private)
        return transaction.insert(new)


@pytest.mark.parametrize("collection", WITHOUT_WORKER)
def test_a_kind_without_a_worker_is_refused_by_its_name(both: tuple[GatewayClient, Gateway], collection: str) -> None:
    body = body_of(collection)
    if collection == "evaluationJobs":
        body = {"evaluationJob": body}
    status, message = refused(both[0], "POST", f"{A}/{collection}", body)
    assert status == 501
    assert repr(FAMILIES[collection].kind) in message
    assert "supervisedFineTuningJobs" in message
    assert ask(both[0], "GET", f"{A}/{collection}")["totalSize"] == 0


@pytest.mark.parametrize("collection", ALL)
def test_life_of_a_record(both: tuple[GatewayClient, Gateway], collection: str) -> None:
    client, gateway = both
    url = f"{A}/{collection}/j"
    placed(gateway, collection, "COMPLETED")
    shown = ask(client, "GET", url)
    assert (shown["name"], shown["state"]) == (f"accounts/local/{collection}/j", "JOB_STATE_COMPLETED")
    assert "jobProgress" not in shown or "jobProgress" in load().schema(FAMILIES[collection].schema)["properties"]
    listed = ask(client, "GET", f"{A}/{collection}", params={"filter": "state=JOB_STATE_COMPLETED"})
    assert [one["name"] for one in listed[collection]] == [shown["name"]]
    assert ask(client, "DELETE", url) == {}
    assert ask(client, "GET", f"{A}/{collection}")["totalSize"] == 0
    if not FAMILIES[collection].tombstone:
        assert refused(client, "GET", url)[0] == 404
        assert refused(client, "DELETE", url)[0] == 404


@pytest.mark.parametrize("collection", ALL)
def test_a_running_job_is_stopped_before_it_goes(both: tuple[GatewayClient, Gateway], collection: str) -> None:
    client, gateway = both
    placed(gateway, collection, "RUNNING", run={"folder": "x", "active": True})
    assert ask(client, "DELETE", f"{A}/{collection}/j") == {}
    assert ask(client, "GET", f"{A}/{collection}/j")["state"] == "JOB_STATE_DELETING"


@pytest.mark.parametrize("collection", LONG)
def test_cancel_and_resume(both: tuple[GatewayClient, Gateway], collection: str) -> None:
    client, gateway = both
    url = f"{A}/{collection}/j"
    placed(gateway, collection, "PENDING")
    assert ask(client, "POST", f"{url}:cancel", {}) == {}
    assert ask(client, "GET", url)["state"] == "JOB_STATE_CANCELLED"
    status, message = refused(client, "POST", f"{url}:cancel", {})
    assert (status, "cannot cancel job in state: JOB_STATE_CANCELLED" in message) == (400, True)
    assert ask(client, "POST", f"{url}:resume", {})["state"] == "JOB_STATE_PENDING"
    assert refused(client, "POST", f"{url}:resume", {})[0] == 400
    placed(gateway, collection, "RUNNING", run={"folder": "x", "active": True})
    assert ask(client, "POST", f"{url}:cancel", {}) == {}
    assert ask(client, "GET", url)["state"] == "JOB_STATE_CANCELLING"
    completed = placed(gateway, collection, "COMPLETED")
    assert (JobState.PENDING in jobstate.possible(completed)) == (collection == "rlorTrainerJobs")
    assert not jobstate.possible(completed) - {JobState.PENDING, JobState.DELETING, JobState.DELETED}
    if collection == "rlorTrainerJobs":  # its client takes up a trainer that has finished
        assert ask(client, "POST", f"{url}:resume", {})["state"] == "JOB_STATE_PENDING"
    else:
        assert refused(client, "POST", f"{url}:resume", {})[0] == 400


def test_a_deleted_trainer_is_a_tombstone(both: tuple[GatewayClient, Gateway]) -> None:
    client, gateway = both
    url = f"{A}/rlorTrainerJobs/j"
    job = placed(gateway, "rlorTrainerJobs", "COMPLETED")
    with gateway.store.transaction() as transaction:
        checkpoint = {"checkpointType": "CHECKPOINT_TYPE_TRAINING_LORA", "promotable": False}
        transaction.insert(
            Resource(name=f"{job.name}/checkpoints/step-4", collection="checkpoints", parent=job.name, id="step-4",
                     body=checkpoint)
        )  # fmt: skip
    for _ in range(2):
        assert ask(client, "DELETE", url) == {}
    assert ask(client, "GET", url)["state"] == "JOB_STATE_DELETED"
    assert ask(client, "GET", f"{A}/rlorTrainerJobs")["rlorTrainerJobs"] == []
    found = ask(client, "GET", f"{url}/checkpoints", params={"pageSize": 200})["checkpoints"]
    assert [(one["name"], one["promotable"]) for one in found] == [(f"{job.name}/checkpoints/step-4", False)]
    assert len(found[0]["createTime"]) == len("2026-11-22T18:00:00.123456Z")
    assert "cannot cancel job in state: JOB_STATE_DELETED" in refused(client, "POST", f"{url}:cancel", {})[1]
    assert refused(client, "POST", f"{url}:resume", {})[0] == 400
    with gateway.store.transaction() as transaction:
        statement = "UPDATE resources SET update_time = '2001-01-01T00:00:00.000000Z' WHERE name = :name"
        transaction.execute(sa.text(statement), {"name": job.name})
    assert refused(client, "GET", url)[0] == 404
    assert gateway.store.find(f"{job.name}/checkpoints/step-4") is None


def test_a_gateway_may_cancel_trainers_instead(tmp_path: Path) -> None:
    gateway = Gateway(tmp_path / "gateway", options=GatewayOptions(trainer_delete_state="cancelled"))
    url = f"{A}/rlorTrainerJobs/j"
    with TestClient(create_app(gateway.folder, gateway=gateway), base_url="http://localhost") as http:
        for state, after in (("PENDING", "CANCELLED"), ("CANCELLED", "CANCELLED"), ("COMPLETED", "COMPLETED")):
            placed(gateway, "rlorTrainerJobs", state)
            assert http.delete(url).json() == {}
            assert http.get(url).json()["state"] == f"JOB_STATE_{after}"
        placed(gateway, "rlorTrainerJobs", "RUNNING", run={"folder": "x", "active": True})
        for _ in range(2):
            assert http.delete(url).json() == {}
        assert http.get(url).json()["state"] == "JOB_STATE_CANCELLING"
        placed(gateway, "rlorTrainerJobs", "CANCELLED")
        assert http.post(f"{url}:resume", json={}).json()["state"] == "JOB_STATE_PENDING"
        placed(gateway, "dpoJobs", "PENDING")  # not a trainer
        assert http.delete(f"{A}/dpoJobs/j").json() == {}
        assert http.get(f"{A}/dpoJobs/j").status_code == 404
    gateway.close()


def test_files_of_jobs(both: tuple[GatewayClient, Gateway]) -> None:
    client, gateway = both
    for collection, verb in (("dpoJobs", ":getMetricsFileEndpoint"), ("rlorTrainerJobs", "/publicLogs"),
                             ("reinforcementFineTuningJobs", ":getMetricsFileEndpoint")):  # fmt: skip
        placed(gateway, collection, "RUNNING")
        status, message = refused(client, "GET", f"{A}/{collection}/j{verb}")
        assert (status, "JOB_STATE_RUNNING" in message) == (400, True)
        for filename in ("metrics.jsonl", "trainer.log"):
            path = gateway.files.path(f"accounts/local/{collection}/j", filename)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(filename)
        url = ask(client, "GET", f"{A}/{collection}/j{verb}")["signedUrl"]
        assert raw(client, "GET", url).text == ("trainer.log" if collection == "rlorTrainerJobs" else "metrics.jsonl")
    assert "trainerLogsSignedUrl" in ask(client, "GET", f"{A}/dpoJobs/j")
    placed(gateway, "evaluationJobs", "RUNNING")
    log = f"{A}/evaluationJobs/j:getExecutionLogEndpoint"
    assert ask(client, "GET", log) == {}
    path = gateway.files.path("accounts/local/evaluationJobs/j", "trainer.log")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("line")
    assert ask(client, "GET", log)["contentType"] == "text/plain"


def test_debug_and_patch_of_reinforcement_jobs(both: tuple[GatewayClient, Gateway]) -> None:
    client, gateway = both
    url = f"{A}/reinforcementFineTuningJobs/j"
    placed(gateway, "reinforcementFineTuningJobs", "RUNNING")
    assert refused(client, "POST", f"{url}:debug", {})[0] == 400
    changed = ask(client, "PATCH", url, {"displayName": "mine", "dataset": "rows", "evaluator": "e"})
    assert changed["displayName"] == "mine"
    assert "chunkSize" in refused(client, "PATCH", url, {"chunkSize": 5})[1]
    placed(gateway, "reinforcementFineTuningJobs", "FAILED")
    name = "accounts/local/reinforcementFineTuningJobs/j"
    assert ask(client, "POST", f"{url}:debug", {}) == {"name": name, "failedJobName": name}


def test_sessions_live_below_a_job_that_runs(both: tuple[GatewayClient, Gateway]) -> None:
    client, gateway = both
    url = f"{A}/trainingSessionJobs/j/trainingSessions"
    placed(gateway, "trainingSessionJobs", "PENDING")
    assert "JOB_STATE_PENDING" in refused(client, "POST", f"{url}?trainingSessionId=s", {})[1]
    placed(gateway, "trainingSessionJobs", "RUNNING")
    made = ask(client, "POST", f"{url}?trainingSessionId=s", {"displayName": "d"})
    assert (made["state"], made["referenceState"], made["displayName"]) == ("READY", "BASE", "d")
    assert ask(client, "GET", f"{url}/s") == made
    assert ask(client, "GET", url)["trainingSessions"] == [made]
    status, message = refused(client, "POST", f"{url}/s:loadState", {"path": "p"})
    assert (status, "there is no worker for its steps yet" in message) == (501, True)


def test_an_evaluation_that_its_client_has_run(both: tuple[GatewayClient, Gateway], tmp_path: Path) -> None:
    """As eval-protocol posts its results: an evaluator and an input data set that do not exist."""
    client, _ = both
    chat = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    rows = [{**chat, "evals": {"score": score}} for score in (1.0, 0.0, 0.5)]
    client.upload_dataset(write_rows(tmp_path / "results.jsonl", rows), "results")
    job = {"evaluator": "accounts/local/evaluators/dummy", "inputDataset": "accounts/local/datasets/dummy",
           "outputDataset": "accounts/local/datasets/results"}  # fmt: skip
    made = ask(client, "POST", f"{A}/evaluationJobs", {"evaluationJob": job, "evaluationJobId": "e-job"})
    assert (made["name"], made["state"]) == ("accounts/local/evaluationJobs/e-job", "JOB_STATE_COMPLETED")
    assert made["metrics"] == {"score": 0.5}
    assert json.loads(made["outputStats"]) == {"rows": 3, "score": 0.5}
    assert refused(client, "POST", f"{A}/evaluationJobs", {"evaluationJob": job, "evaluationJobId": "e-job"})[0] == 409
    job["outputDataset"] = "accounts/local/datasets/none"
    assert refused(client, "POST", f"{A}/evaluationJobs", {"evaluationJob": job})[0] == 404


def test_inputs_of_a_job_are_kept_from_deletion(both: tuple[GatewayClient, Gateway]) -> None:
    client, gateway = both
    job = placed(gateway, "rlorTrainerJobs", "RUNNING")
    with gateway.store.transaction() as transaction:
        body = job_families.with_value(job.body, "trainingConfig.baseModel", "accounts/local/models/base")
        transaction.save(job.changed(body))
        assert job_families.using(transaction, "accounts/local/models/base") == [job.name]
        assert job_families.using(transaction, "accounts/local/datasets/rows") == []
    assert job.name in refused(client, "DELETE", f"{A}/models/base")[1]
    placed(gateway, "rlorTrainerJobs", "COMPLETED")
    assert ask(client, "DELETE", f"{A}/models/base") == {}


def test_what_a_reinforcement_job_needs(both: tuple[GatewayClient, Gateway]) -> None:
    """What a create will check once there is a worker: each input is there, fit, and the account's own."""
    client, gateway = both
    kind = FAMILIES["reinforcementFineTuningJobs"]

    def read(body: dict[str, Any]) -> dict[str, Any]:
        return jobs.read(gateway, kind, body, parent="accounts/local").body

    body = body_of("reinforcementFineTuningJobs")
    with pytest.raises(GatewayError, match="NOT_FOUND: evaluator: accounts/local/evaluators/e not found"):
        read(body)
    ask(client, "POST", f"{A}/evaluatorsV2", {"evaluator": {}, "evaluatorId": "e"})
    with pytest.raises(GatewayError, match="STATE_UNSPECIFIED, not ACTIVE"):
        read(body)
    evaluator_builds.settle(gateway, "accounts/local/evaluators/e", Outcome("ACTIVE", "built"))
    found = read({**body, "wandbConfig": {"enabled": True, "apiKey": "planted"}})
    assert found == {
        "dataset": "accounts/local/datasets/rows", "evaluator": "accounts/local/evaluators/e",
        "trainingConfig": {"baseModel": "accounts/local/models/base"}, "wandbConfig": {"enabled": True},
    }  # fmt: skip
    with pytest.raises(GatewayError, match="is of kind HF_BASE_MODEL; name it as trainingConfig"):
        read({**body, "trainingConfig": {"warmStartFrom": "base"}})
    with pytest.raises(GatewayError, match="NOT_FOUND"):
        read({**body, "dataset": "accounts/other/datasets/rows"})
