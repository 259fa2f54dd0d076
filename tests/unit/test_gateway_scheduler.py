"""The scheduler with real worker processes (that train nothing): queue, end states, cancel, resume, restart."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.gateway_kit import STARTED, end_workers, make_scheduler, make_spec, opened, wait_for
from trainer.errors import UsageError
from trainer.gateway import events, jobstate
from trainer.gateway.capacity import Capacity
from trainer.gateway.client import GatewayClient
from trainer.gateway.errors import GatewayError
from trainer.gateway.gateway import Gateway
from trainer.gateway.scheduler import MAX_ATTEMPTS, Scheduler
from trainer.gateway.store import Resource
from trainer.gateway.turns import in_turn
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
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and b"very-secret" in path.read_bytes()]
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


def log_of(client: GatewayClient, job: dict[str, Any], place: Path) -> list[str]:
    return client.fetch(job["trainerLogsSignedUrl"], place).read_text().splitlines()


def test_the_log_begins_with_the_objective_and_the_fields_that_nobody_knows(
    both: tuple[GatewayClient, Gateway], tmp_path: Path
) -> None:
    client, gateway = both
    objective = {"name": "cross_entropy", "label_smoothing": 0.0}
    scheduler = make_scheduler(
        gateway, make_spec=lambda *given: make_spec(*given).model_copy(update={"objective": objective})
    )
    scheduler.start()
    try:
        unknown = {"extra": {"a": 1}, "later\nfield": 2, "wandbConfig": {"enabled": False, "colour": "red"}}
        jobs = [until(client, create(client, "j", **unknown), "COMPLETED", "FAILED")]
        jobs.append(until(client, create(client, "k", displayName="crash"), "FAILED"))
    finally:
        scheduler.stop()
    assert (jobs[0]["extra"], jobs[0]["later\nfield"], jobs[0]["wandbConfig"]["colour"]) == ({"a": 1}, 2, "red")
    lines = log_of(client, jobs[0], tmp_path / "log")
    assert json.loads(lines[0]) == {"objective": objective}
    assert json.loads(lines[1])["unknownFields"] == ["extra", "later\nfield", "wandbConfig.colour"]
    assert lines[2:] == ["hello from the worker"]
    # Once, however many attempts there were; and no list where there is nothing to list.
    assert [json.loads(line) for line in log_of(client, jobs[1], tmp_path / "log")] == [{"objective": objective}]


@pytest.mark.usefixtures("scheduler")
def test_a_crash_is_a_failure_with_the_last_words(client: GatewayClient) -> None:
    job = until(client, create(client, "j", displayName="crash"), "FAILED")
    assert job["status"]["code"] == "INTERNAL"
    assert "status 3" in job["status"]["message"]
    assert "something broke badly" in job["status"]["message"]


@pytest.mark.usefixtures("scheduler")
def test_a_crash_is_tried_again_a_few_times_and_a_refusal_never(client: GatewayClient, tmp_path: Path) -> None:
    crash = until(client, create(client, "crash", displayName="crash"), "FAILED")
    assert "3 attempts" in crash["status"]["message"] and ":resume" in crash["status"]["message"]
    refusal = until(client, create(client, "refuse", displayName="refuse"), "FAILED")
    assert refusal["status"] == {"code": "INVALID_ARGUMENT", "message": "the rows are no rows"}
    for name, count in (("crash", MAX_ATTEMPTS), ("refuse", 1)):
        assert (tmp_path / name / "attempts.log").read_text().count("began") == count


@pytest.mark.parametrize("how", ["hang", "still", "flaky"])
def test_a_worker_that_hangs_or_dies_is_started_again_and_repeats_no_step(
    both: tuple[GatewayClient, Gateway], tmp_path: Path, how: str
) -> None:
    client, gateway = both
    scheduler = make_scheduler(gateway, worker_beat_seconds=1.0)  # no living one is silent for three
    scheduler.start()
    try:
        job = until(client, create(client, "j", displayName=how), "COMPLETED", "FAILED")
    finally:
        scheduler.stop()
    assert job["state"] == "JOB_STATE_COMPLETED", job["status"]
    metrics = client.fetch(job["metricsFileSignedUrl"], tmp_path / "metrics").read_text()
    assert [json.loads(line)["step"] for line in metrics.splitlines()] == [1, 2]  # both attempts had told of both
    assert (tmp_path / "j/attempts.log").read_text().count("began") == 2
    assert gateway.store.get(NAME.format("j")).private["run"]["attempts"] == 2


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
    scheduler.stop()
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
    first = make_scheduler(gateway)
    first.tick()
    first.stop()
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


def waiting(gateway: Gateway, name: str) -> str:
    job = gateway.store.get(name)
    assert job.body["state"] == "JOB_STATE_PENDING"
    return job.body["status"]["message"]


def test_a_job_that_can_never_fit_fails_and_one_that_does_not_fit_now_waits(
    both: tuple[GatewayClient, Gateway],
) -> None:
    client, gateway = both
    name = create(client, "j")
    for machine in (Capacity(cores=0, memory=1 << 40), Capacity(cores=1, memory=1 << 40, free=lambda: -1)):
        make_scheduler(gateway, here=machine).tick()
        if machine.cores == 0:
            job = client.get(name)
            assert (job["state"], job["status"]["code"]) == ("JOB_STATE_FAILED", "FAILED_PRECONDITION")
            assert "1 of 0 cores" in job["status"]["message"]
            client.resume_job(name)
    assert "waits for 0 B of memory" in waiting(gateway, name)


def test_jobs_share_cores_and_gpus_and_each_gpu_has_one_job(both: tuple[GatewayClient, Gateway]) -> None:
    client, gateway = both
    names = [create(client, one, displayName="slow") for one in ("a", "b", "c")]
    here = Capacity(cores=8, memory=1 << 40, gpus=("0", "5"))
    scheduler = make_scheduler(gateway, here=here, slots=3)
    scheduler.tick()
    jobs = [gateway.store.get(name) for name in names]
    assert [job.private["run"]["need"]["gpus"] for job in jobs[:2]] == [["0"], ["5"]]
    assert waiting(gateway, names[2]) == "waits for 1 GPUs, 0 are free"
    scheduler.stop()


def test_a_quota_holds_back_its_account_only(both: tuple[GatewayClient, Gateway]) -> None:
    client, gateway = both
    names = [create(client, one, displayName="slow") for one in ("a", "b")]
    scheduler = make_scheduler(gateway, slots=3, limits=lambda account, name: 1 if name == "running-jobs" else None)
    scheduler.tick()
    assert jobstate.is_active(gateway.store.get(names[0]))
    assert "quota of 1 running-jobs" in waiting(gateway, names[1])
    scheduler.stop()


def resource(number: int, account: str, *, pilot: bool = False) -> Resource:
    body = {"purpose": "PURPOSE_PILOT"} if pilot else {}
    name = f"{account}/supervisedFineTuningJobs/j{number}"
    return Resource(name, "supervisedFineTuningJobs", account, f"j{number}", body, create_time=f"{number:09}")


def test_turns_are_pilots_then_who_has_least_then_who_waited_longest() -> None:
    greedy = [resource(number, "a") for number in range(6)]
    others = [resource(6, "b"), resource(7, "b"), resource(8, "c")]
    order = [job.id for job in in_turn([*others, *greedy], {}, {})]
    assert order == ["j0", "j6", "j8", "j1", "j7", "j2", "j3", "j4", "j5"]
    order = [job.id for job in in_turn([*greedy, *others], {"a": 1}, {"b": 4, "c": 3})]
    assert order[:4] == ["j8", "j6", "j0", "j7"]
    pilot = resource(9, "a", pilot=True)
    assert in_turn([*greedy, *others, pilot], {"a": 5}, {})[0] is pilot


def test_a_holder_that_is_late_can_neither_write_nor_start(both: tuple[GatewayClient, Gateway], tmp_path: Path) -> None:
    client, gateway = both
    name = create(client, "j", displayName="slow")
    first, second = make_scheduler(gateway, beat_seconds=0.05), make_scheduler(gateway, beat_seconds=0.05)
    first.tick()  # and from here on it stands still, its process alive
    token = jobstate.token_of(gateway.store.get(name))

    def taken() -> bool:
        second.tick()
        return jobstate.token_of(gateway.store.get(name)) == token + 1

    wait_for(taken, "the second scheduler takes the job over")
    with pytest.raises(GatewayError, match="in other hands"):
        events.apply(gateway, name, [], token=token)
    before = gateway.store.get(name)
    first.tick()  # it goes on: it finds itself fenced, and lets go of the job and its worker
    assert gateway.store.get(name) == before
    worker = here.find(tmp_path / "j")
    assert worker is not None and worker.alive
    second.stop()
    worker.stop(60.0)
    with pytest.raises(UsageError, match="other hands"):
        here.start(tmp_path / "j", token=token)
    assert (tmp_path / "j/attempts.log").read_text().count("began") == 1


def test_a_scheduler_that_stopped_is_succeeded_at_once(both: tuple[GatewayClient, Gateway]) -> None:
    client, gateway = both
    name = create(client, "j", displayName="slow")
    first, second = make_scheduler(gateway, beat_seconds=600), make_scheduler(gateway, beat_seconds=600)
    first.tick()
    second.recover()
    assert jobstate.token_of(gateway.store.get(name)) == 1  # the first lives
    first.stop()
    second.recover()
    assert jobstate.token_of(gateway.store.get(name)) == 2
    second.stop()
