"""The scheduler with real worker processes (that train nothing): queue, end states, cancel, resume, restart."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.gateway_kit import STARTED, end_workers, make_scheduler, opened, wait_for
from trainer.gateway.client import GatewayClient
from trainer.gateway.errors import GatewayError
from trainer.gateway.gateway import Gateway
from trainer.gateway.scheduler import MAX_ATTEMPTS, Scheduler
from trainer.launch import here

NAME = "accounts/local/supervisedFineTuningJobs/{}"


@pytest.fixture
def both(tmp_path: Path) -> Iterator[tuple[GatewayClient, Gateway]]:
    with opened(tmp_path / "gateway") as found:
        yield found
        end_workers()


@pytest.fixture
def client(both: tuple[GatewayClient, Gateway]) -> GatewayClient:
    return both[0]


@pytest.fixture
def scheduler(both: tuple[GatewayClient, Gateway]) -> Iterator[Scheduler]:
    found = make_scheduler(both[1])
    found.start()
    yield found
    found.stop()


def create(client: GatewayClient, job_id: str, **fields: Any) -> str:
    client.create_job({"dataset": "rows", "baseModel": "base", **fields}, job_id)
    return NAME.format(job_id)


def until(client: GatewayClient, name: str, *states: str) -> dict[str, Any]:
    def reached() -> dict[str, Any] | None:
        job = client.get(name)
        return job if job["state"].removeprefix("JOB_STATE_") in states else None

    return wait_for(reached, f"{name} in {states}")


@pytest.mark.usefixtures("scheduler")
def test_a_job_runs_to_its_model(both: tuple[GatewayClient, Gateway], tmp_path: Path) -> None:
    client, gateway = both
    secret = {"enabled": False, "apiKey": "very-secret"}
    name = create(client, "j", outputModel="mine", wandbConfig=secret)
    job = until(client, name, "COMPLETED", "FAILED")
    assert (job["state"], job["jobProgress"]["percent"]) == ("JOB_STATE_COMPLETED", 100), job["status"]
    model = client.get("accounts/local/models/mine")
    assert (model["state"], model["kind"], model["fineTuningJob"]) == ("READY", "HF_PEFT_ADDON", name)
    assert model["peftDetails"]["baseModel"] == "accounts/local/models/base"
    ours = gateway.files.path(model["name"], "adapter_model.safetensors")
    assert ours.samefile(tmp_path / "j/model/adapter_model.safetensors")
    metrics = client.fetch(job["metricsFileSignedUrl"], tmp_path / "metrics").read_text()
    assert [json.loads(line)["step"] for line in metrics.splitlines()] == [1, 2]
    assert "hello from" in client.fetch(job["trainerLogsSignedUrl"], tmp_path / "log").read_text()
    assert "key set" in (tmp_path / "j/worker.log").read_text()
    assert "very-secret" not in "".join(p.read_text() for p in (tmp_path / "j").glob("*") if p.is_file())
    (checkpoint,) = client.checkpoints(name)
    assert checkpoint["promotable"]
    assert client.promote(checkpoint["name"], "promoted")["state"] == "READY"
    body = {
        "outputModel": "accounts/local/models/again",
        "trainerJobId": name,
        "baseModel": "accounts/local/models/base",
    }
    answer = client.call("Gateway_PromoteCheckpoint", {"checkpoint_id": "step-1"}, body=body)
    assert answer["model"]["peftDetails"]["r"] == 8
    damaged = tmp_path / "j/checkpoints/step-1/weights/adapter_config.json"
    damaged.unlink()
    damaged.write_text(json.dumps({"r": 9}))
    with pytest.raises(GatewayError, match="DATA_LOSS"):
        client.promote(checkpoint["name"], "never")


@pytest.mark.usefixtures("scheduler")
def test_a_crash_is_a_failure_with_the_last_words(client: GatewayClient) -> None:
    job = until(client, create(client, "j", displayName="crash"), "FAILED")
    assert job["status"]["code"] == "INTERNAL"
    assert "status 3" in job["status"]["message"]
    assert "something broke badly" in job["status"]["message"]


@pytest.mark.usefixtures("scheduler")
def test_running_jobs_are_cancelled_resumed_and_deleted(client: GatewayClient, tmp_path: Path) -> None:
    name = create(client, "j", displayName="slow")
    waiting = create(client, "waiting")
    until(client, name, "RUNNING")
    client.cancel_job(waiting)
    assert client.get(waiting)["state"] == "JOB_STATE_CANCELLED"
    client.cancel_job(name)
    assert client.get(name)["state"] in ("JOB_STATE_CANCELLING", "JOB_STATE_CANCELLED")
    until(client, name, "CANCELLED")
    client.resume_job(name)
    until(client, name, "RUNNING")
    client.delete(name)
    wait_for(lambda: client.find(name) is None, "the deleted job is gone")
    worker = here.find(tmp_path / "j")
    assert worker is not None
    assert not worker.alive
    assert (tmp_path / "j/run.json").exists()
    name = create(client, "j")
    until(client, name, "COMPLETED")
    assert (tmp_path / "j-2/run.json").exists()


@pytest.mark.usefixtures("scheduler")
def test_a_paused_job_goes_on_in_the_same_folder(client: GatewayClient, tmp_path: Path) -> None:
    name = create(client, "j", displayName="twice")
    until(client, name, "PAUSED")
    client.resume_job(name)
    job = until(client, name, "COMPLETED", "FAILED")
    assert job["state"] == "JOB_STATE_COMPLETED", job["status"]
    metrics = client.fetch(job["metricsFileSignedUrl"], tmp_path / "metrics").read_text()
    assert [json.loads(line)["step"] for line in metrics.splitlines()] == [1, 2, 3]
    assert [one["name"].rsplit("/", 1)[-1] for one in client.checkpoints(name)] == ["step-1", "step-3"]


def test_pilots_go_first_and_one_at_a_time(both: tuple[GatewayClient, Gateway]) -> None:
    client, gateway = both
    names = [create(client, "a"), create(client, "b"), create(client, "p", purpose="PURPOSE_PILOT")]
    scheduler = make_scheduler(gateway)
    scheduler.start()
    try:
        ends = [until(client, name, "COMPLETED")["completedTime"] for name in names]
    finally:
        scheduler.stop()
    assert ends[2] < ends[0] < ends[1]


def test_inputs_that_are_gone_fail_the_job(both: tuple[GatewayClient, Gateway]) -> None:
    client, gateway = both
    name = create(client, "j")
    with gateway.store.transaction() as transaction:
        transaction.delete("accounts/local/datasets/rows")
    scheduler = make_scheduler(gateway)
    scheduler.tick()
    job = client.get(name)
    assert (job["state"], job["status"]["code"]) == ("JOB_STATE_FAILED", "NOT_FOUND")


def test_a_living_worker_is_adopted(both: tuple[GatewayClient, Gateway], tmp_path: Path) -> None:
    client, gateway = both
    first = make_scheduler(gateway)
    first.start()
    name = create(client, "j", displayName="slow")
    until(client, name, "RUNNING")
    first.stop()
    pid = json.loads((tmp_path / "j/worker.json").read_text())["pid"]
    second = make_scheduler(gateway)
    second.start()
    try:
        assert client.get(name)["state"] == "JOB_STATE_RUNNING"
        assert json.loads((tmp_path / "j/worker.json").read_text())["pid"] == pid
        client.cancel_job(name)
        until(client, name, "CANCELLED")
    finally:
        second.stop()


def test_a_lost_worker_is_started_again_a_few_times(both: tuple[GatewayClient, Gateway], tmp_path: Path) -> None:
    client, gateway = both
    name = create(client, "j", displayName="slow")
    for attempt in range(1, MAX_ATTEMPTS + 1):
        scheduler = make_scheduler(gateway)
        scheduler.start()
        until(client, name, "RUNNING")
        scheduler.stop()
        worker = here.find(tmp_path / "j")
        assert worker is not None
        worker.kill()
        STARTED[-1].wait()
        assert gateway.store.get(name).private["run"]["attempts"] == attempt
    scheduler = make_scheduler(gateway)
    scheduler.recover()
    job = client.get(name)
    assert job["state"] == "JOB_STATE_FAILED"
    assert ":resume" in job["status"]["message"]


def test_work_that_ended_unwatched_counts(both: tuple[GatewayClient, Gateway]) -> None:
    client, gateway = both
    name = create(client, "j")
    scheduler = make_scheduler(gateway)
    scheduler.tick()
    STARTED[-1].wait()
    make_scheduler(gateway).recover()
    assert client.get(name)["state"] == "JOB_STATE_COMPLETED"
    assert client.get("accounts/local/models/j")["state"] == "READY"


def test_a_start_that_never_happened_is_no_attempt(both: tuple[GatewayClient, Gateway], tmp_path: Path) -> None:
    client, gateway = both
    name = create(client, "j")
    for _ in range(MAX_ATTEMPTS + 1):  # killed again and again between the claim and the process
        with gateway.store.transaction() as transaction:
            job = transaction.get(name)
            run = {"folder": str(tmp_path / "j"), "attempts": 1, "active": True}
            transaction.save(job.changed({"state": "JOB_STATE_PENDING"}, {"run": run}))
        make_scheduler(gateway).recover()
        assert gateway.store.get(name).private["run"]["attempts"] == 0
    assert client.get(name)["state"] == "JOB_STATE_RE_QUEUEING"


def test_a_run_that_is_at_work_already_is_watched(both: tuple[GatewayClient, Gateway], tmp_path: Path) -> None:
    client, gateway = both
    name = create(client, "j", displayName="slow")
    make_scheduler(gateway).tick()
    with gateway.store.transaction() as transaction:  # as if a person had resumed it by hand
        job = transaction.get(name)
        transaction.save(job.changed({"state": "JOB_STATE_PENDING"}, {"run": {"folder": str(tmp_path / "j")}}))
    second = make_scheduler(gateway)
    second.start()
    try:
        until(client, name, "RUNNING")
        client.cancel_job(name)
        until(client, name, "CANCELLED")
    finally:
        second.stop()
    assert [line.split()[0] for line in (tmp_path / "j/attempts.log").read_text().splitlines()] == ["began", "ended"]
