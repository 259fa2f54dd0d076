"""One suite for every way to a gateway: over HTTP to a server's socket, and to the app inside this process."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.gateway_kit import ROWS, served, write_base_model, write_rows
from trainer.gateway.client import GatewayClient, dataset_id_of
from trainer.gateway.errors import GatewayError
from trainer.report import Event

JOB = {"dataset": "rows.jsonl", "baseModel": "org/base"}


@pytest.fixture(scope="module", params=["http", "in-process"])
def client(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayClient]:
    folder = tmp_path_factory.mktemp("home") / "gateway"
    with ExitStack() as stack:
        if request.param == "http":
            url, _ = stack.enter_context(served(folder))
            yield stack.enter_context(GatewayClient(url, "fw_any"))
        else:
            yield stack.enter_context(GatewayClient.in_process(folder))


def event(seq: int, kind: str, **body: object) -> Event:
    return Event.model_validate({"seq": seq, "time": "", "kind": kind, "body": body})


def test_it_is_ours_and_has_one_account(client: GatewayClient) -> None:
    assert client.ours
    assert [account["name"] for account in client.list("accounts", parent="")] == ["accounts/local"]


def test_a_data_set_goes_up_and_comes_down(client: GatewayClient, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "My Rows.jsonl")
    first = client.upload_dataset(path)
    assert first["name"] == f"accounts/local/datasets/{dataset_id_of(path)}"
    assert (first["state"], first["format"], first["exampleCount"]) == ("READY", "CHAT", str(len(ROWS)))
    assert client.upload_dataset(path)["updateTime"] == first["updateTime"]
    folder = client.download_dataset(first["name"], tmp_path / "down")
    assert [p.read_bytes() for p in folder.iterdir()] == [path.read_bytes()]
    client.delete(first["name"])
    assert client.find(first["name"]) is None


def test_a_half_done_upload_is_finished(client: GatewayClient, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "half.jsonl")
    client.call("Gateway_CreateDataset", body={"datasetId": dataset_id_of(path), "dataset": {}})
    assert client.upload_dataset(path)["state"] == "READY"


def test_a_model_goes_up_once_and_comes_down(client: GatewayClient, tmp_path: Path) -> None:
    folder = write_base_model(tmp_path / "base")
    (folder / "big.txt").write_bytes(bytes(range(256)) * 100)
    (folder / "empty.txt").touch()
    first = client.upload_model(folder, "base", body={"kind": "HF_BASE_MODEL"})
    assert first["state"] == "READY"
    assert first["baseModelDetails"]["parameterCount"] == "2"
    assert client.upload_model(folder, "base", body={"kind": "HF_BASE_MODEL"}) == first
    down = client.download_model(first["name"], tmp_path / "down")
    assert {p.name: p.read_bytes() for p in down.iterdir()} == {p.name: p.read_bytes() for p in folder.iterdir()}
    (folder / "config.json").write_text("{}")
    with pytest.raises(GatewayError, match="ALREADY_EXISTS"):
        client.upload_model(folder, "base", body={"kind": "HF_BASE_MODEL"})


def test_lists_go_through_all_pages(client: GatewayClient) -> None:
    for number in range(5):
        client.call("Gateway_CreateDataset", body={"datasetId": f"page-{number}", "dataset": {"displayName": "pages"}})
    found = list(client.list("datasets", pageSize=2, orderBy="name desc", filter='displayName="pages"'))
    assert [one["name"][-6:] for one in found] == [f"page-{number}" for number in (4, 3, 2, 1, 0)]


def test_what_does_not_fit_the_contract_is_not_sent(client: GatewayClient) -> None:
    with pytest.raises(GatewayError, match="epochs") as caught:
        client.create_job({"dataset": "d", "epochs": "x"})
    assert caught.value.permanent


def test_a_job_is_created_in_the_collection_of_its_kind(client: GatewayClient) -> None:
    """Only the pair job's contract has `lossConfig`; what is missing is named by the gateway."""
    with pytest.raises(GatewayError, match="no-such-pairs"):
        body = {"dataset": "no-such-pairs", "trainingConfig": {"baseModel": "b"}, "lossConfig": {"method": "ORPO"}}
        client.create_job(body, "j", kind="dpo")
    with pytest.raises(GatewayError, match="lossConfig"):
        client.create_job({"dataset": "no-such-pairs", "lossConfig": {"method": "NONE"}}, "j", kind="dpo")


def test_errors_are_those_of_the_gateway(client: GatewayClient) -> None:
    with pytest.raises(GatewayError, match="no-such") as caught:
        client.get("accounts/local/datasets/no-such")
    assert (caught.value.code, caught.value.http_status) == ("NOT_FOUND", 404)
    assert caught.value.details[0]["metadata"]["name"] == "accounts/local/datasets/no-such"


def test_a_run_trained_elsewhere_is_reported_once(client: GatewayClient) -> None:
    events = [
        event(1, "state", state="JOB_STATE_RUNNING"),
        event(2, "metrics", step=1, loss=2.0),
        event(3, "progress", percent=50, epoch=0),
        event(4, "log", line="hello"),
    ]
    assert client.report("run-1", [], job=JOB) == 0
    assert client.report("run-1", events[:2], job=JOB) == 2
    assert client.report("run-1", events) == 4
    assert client.report("run-1", events) == 4
    job = client.get("accounts/local/supervisedFineTuningJobs/run-1")
    assert (job["state"], job["jobProgress"]["percent"]) == ("JOB_STATE_RUNNING", 50)
    with pytest.raises(GatewayError, match="trained by a process"):
        client.cancel_job(job["name"])


def test_signed_urls_of_a_job_hold_its_metrics(client: GatewayClient, tmp_path: Path) -> None:
    client.report("run-2", [event(1, "metrics", step=1, loss=2.0)], job=JOB)
    url = client.get("accounts/local/supervisedFineTuningJobs/run-2")["metricsFileSignedUrl"]
    assert client.fetch(url, tmp_path / "metrics").read_text() == '{"step": 1, "loss": 2.0}\n'


def test_a_gateway_that_is_not_there_is_named() -> None:
    with GatewayClient("http://127.0.0.1:9", first_wait=0.001) as client, pytest.raises(GatewayError) as caught:
        client.get("accounts/local")
    assert caught.value.code == "UNAVAILABLE"
    assert "127.0.0.1:9" in str(caught.value)
    assert not caught.value.permanent
