"""Telling a gateway what a run reports: in order, once, whatever happens on the way."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.gateway_kit import make_spec, opened, safetensors, wait_for
from trainer.compose import for_job
from trainer.gateway.client import REPORTS, GatewayClient
from trainer.gateway.contract import load
from trainer.gateway.errors import GatewayError
from trainer.gateway.sync import Syncer
from trainer.jobs import JOB_KINDS, DpoJob, SupervisedFineTuningJob, TrainingConfig
from trainer.runs import Inputs, RowSource

JOB = "accounts/local/supervisedFineTuningJobs/run-1"


@pytest.fixture
def client(tmp_path: Path) -> Iterator[GatewayClient]:
    with opened(tmp_path / "home/gateway") as (found, _):
        yield found


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "home/run-1"
    job = SupervisedFineTuningJob(dataset="rows.jsonl", base_model="org/base")
    inputs = Inputs(base_model="/base", train=RowSource(name="rows.jsonl", path="/rows.jsonl"))
    make_spec("sft", job, "run-1", inputs).save(folder)
    return folder


def say(run: Path, seq: int, kind: str, /, **body: Any) -> None:
    with (run / "sync.jsonl").open("a") as stream:
        stream.write(json.dumps({"seq": seq, "time": "", "kind": kind, "body": body}) + "\n")


def write_model(run: Path) -> dict[str, Any]:
    folder = run / "model"
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes(safetensors({"w": ("F32", [2], 0, 8)}, 8))
    (folder / "adapter_config.json").write_text(json.dumps({"r": 2, "target_modules": ["q"]}))
    details = {"baseModel": "org/base", "r": 2, "targetModules": ["q"]}
    return {"id": "out", "kind": "HF_PEFT_ADDON", "path": str(folder), "peftDetails": details, "contextLength": 64}


def test_a_whole_run_is_told(client: GatewayClient, run: Path) -> None:
    say(run, 1, "state", state="JOB_STATE_RUNNING")
    syncer = Syncer(run, client, job={"dataset": "accounts/local/datasets/rows", "baseModel": "org/base"})
    syncer.start()
    wait_for(lambda: client.find(JOB), "the job is known")
    say(run, 2, "metrics", step=1, loss=1.0)
    say(run, 3, "model", **write_model(run))
    say(run, 4, "state", state="JOB_STATE_COMPLETED", message="done")
    assert syncer.drain(120)
    assert (syncer.acked, syncer.pending) == (4, 0)
    job = client.get(JOB)
    assert (job["state"], job["dataset"]) == ("JOB_STATE_COMPLETED", "accounts/local/datasets/rows")
    model = client.get("accounts/local/models/out")
    assert (model["state"], model["fineTuningJob"], model["contextLength"]) == ("READY", JOB, 64)
    assert json.loads((run / "sync_state.json").read_text()) == {
        "ackedSeq": 4,
        "offset": (run / "sync.jsonl").stat().st_size,
    }
    again = Syncer(run, client)
    assert again.push_once() == 4
    (run / "sync_state.json").unlink()  # told twice is told once
    assert Syncer(run, client).push_once() == 4
    assert client.get(JOB)["state"] == "JOB_STATE_COMPLETED"


def test_a_preference_run_is_told_as_a_dpo_job(client: GatewayClient, tmp_path: Path) -> None:
    folder = tmp_path / "home/pairs"
    job = DpoJob(dataset="pairs.jsonl", training_config=TrainingConfig(base_model="org/base", output_model="out"))
    inputs = Inputs(base_model="/base", train=RowSource(name="pairs.jsonl", path="/pairs.jsonl"))
    for_job("dpo", job, base_path="/base").spec("pairs", inputs, created="2026-01-01T00:00:00Z").save(folder)
    say(folder, 1, "state", state="JOB_STATE_RUNNING")
    say(folder, 2, "metrics", step=1, loss=0.7)
    say(folder, 3, "model", **write_model(folder))
    say(folder, 4, "state", state="JOB_STATE_COMPLETED", message="done")
    assert Syncer(folder, client).push_once() == 4
    told = client.get("accounts/local/dpoJobs/pairs")
    assert (told["state"], told["trainingConfig"]["outputModel"]) == (
        "JOB_STATE_COMPLETED", "accounts/local/models/out",
    )  # fmt: skip
    assert client.get("accounts/local/models/out")["fineTuningJob"] == told["name"]
    assert client.find("accounts/local/supervisedFineTuningJobs/pairs") is None


def test_every_kind_of_job_can_be_reported() -> None:
    operations = load().operations
    assert set(REPORTS) == set(JOB_KINDS)
    for kind, (operation_id, param) in REPORTS.items():
        path = operations[operation_id].path
        assert path.endswith(f"/{JOB_KINDS[kind].collection}/{{{param}}}:report")


def test_a_torn_line_is_waited_for(client: GatewayClient, run: Path) -> None:
    say(run, 1, "log", line="one")
    with (run / "sync.jsonl").open("a") as stream:
        stream.write('{"seq": 2, "time": "", "kind": "log", ')
    syncer = Syncer(run, client)
    assert syncer.push_once() == 1
    with (run / "sync.jsonl").open("a") as stream:
        stream.write('"body": {"line": "two"}}\n')
    assert syncer.push_once() == 2


def test_what_is_refused_for_good_is_set_aside_and_shown(client: GatewayClient, run: Path) -> None:
    shown: list[str] = []
    for seq in range(1, 40):
        say(run, seq, "metrics", step=seq) if seq != 17 else say(run, seq, "state", state="NONSENSE")
    syncer = Syncer(run, client, show=shown.append)
    assert syncer.push_once() == 39
    parked = [json.loads(line) for line in (run / "sync_parked.jsonl").read_text().splitlines()]
    assert [(one["event"]["seq"], one["error"]["code"]) for one in parked] == [(17, 3)]
    assert len(shown) == 1
    assert "event 17" in shown[0]


def test_a_deleted_job_is_not_made_again(client: GatewayClient, run: Path) -> None:
    shown: list[str] = []
    say(run, 1, "log", line="one")
    syncer = Syncer(run, client, show=shown.append)
    syncer.push_once()
    client.delete(JOB)
    say(run, 2, "log", line="two")
    say(run, 3, "model", **write_model(run))
    assert syncer.push_once() == 3
    assert client.find(JOB) is None
    assert client.get("accounts/local/models/out")["state"] == "READY"
    assert "has no job" in shown[0]


def test_a_gateway_that_lost_its_records_is_told_from_the_start(client: GatewayClient, run: Path) -> None:
    say(run, 1, "state", state="JOB_STATE_RUNNING")
    say(run, 2, "log", line="two")
    Syncer(run, client).push_once()
    client.delete(JOB)
    assert Syncer(run, client).push_once() == 2
    assert client.get(JOB)["state"] == "JOB_STATE_RUNNING"


class Flaky(httpx.BaseTransport):
    """A way to the gateway that is down at times, or loses its answers."""

    def __init__(self, inner: httpx.BaseTransport) -> None:
        self.inner, self.down, self.deaf, self.foreign = inner, False, 0, False

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        if self.down:
            raise httpx.ConnectError("no route")
        answer = self.inner.handle_request(request)
        if self.deaf > 0:
            self.deaf -= 1
            raise httpx.ReadError("the answer was lost")
        if self.foreign:
            del answer.headers["x-gateway-trainer"]
        return answer


@pytest.fixture
def flaky(client: GatewayClient) -> Iterator[tuple[GatewayClient, Flaky]]:
    transport = Flaky(client._http._transport)
    other = GatewayClient("http://embedded", transport=transport, first_wait=0.001)
    yield other, transport


def test_an_outage_loses_nothing(client: GatewayClient, run: Path, flaky: tuple[GatewayClient, Flaky]) -> None:
    shown: list[str] = []
    other, transport = flaky
    transport.down = True
    say(run, 1, "metrics", step=1)
    syncer = Syncer(run, other, show=shown.append, backoff=0.01)
    assert not syncer.drain(0.1)
    assert syncer.pending == 1
    assert "not been told everything" in shown[0]
    transport.down, transport.deaf = False, 3
    syncer = Syncer(run, other, backoff=0.01)
    say(run, 2, "metrics", step=2)
    assert syncer.drain(120)
    url = client.get(JOB)["metricsFileSignedUrl"]
    assert client.fetch(url, run / "told").read_text() == '{"step": 1}\n{"step": 2}\n'


def test_a_gateway_of_another_make_gets_models_only(
    client: GatewayClient, run: Path, flaky: tuple[GatewayClient, Flaky]
) -> None:
    shown: list[str] = []
    other, transport = flaky
    transport.foreign = True
    say(run, 1, "state", state="JOB_STATE_RUNNING")
    say(run, 2, "model", **write_model(run))
    assert Syncer(run, other, show=shown.append).push_once() == 2
    assert client.find(JOB) is None
    assert client.get("accounts/local/models/out")["state"] == "READY"
    assert "would train it again" in shown[0]


def test_the_client_gives_up_in_the_end(flaky: tuple[GatewayClient, Flaky]) -> None:
    other, transport = flaky
    transport.down = True
    with pytest.raises(GatewayError, match="UNAVAILABLE"):
        other.get("accounts/local")
