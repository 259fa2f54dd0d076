"""The serving process, the store under several processes, and the client's way to whichever gateway is there."""

import json
import logging
import multiprocessing
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from tests.gateway_kit import ROOT, A, opened, raw, served
from trainer.gateway.client import GatewayClient, open_client
from trainer.gateway.errors import GatewayError
from trainer.gateway.found import running_server
from trainer.gateway.resources.table import OPERATIONS
from trainer.gateway.server import serve
from trainer.gateway.store import Resource, Store
from trainer.runs import GatewaySettings


def test_serving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAINER_HOME", str(tmp_path))
    folder = tmp_path / "gateway"
    began = time.monotonic()
    with served(folder) as (url, process):
        took = time.monotonic() - began
        assert json.loads((folder / "server.json").read_text()) == {"url": url, "pid": process.pid}
        assert httpx.get(f"{url}/healthz").json()["status"] == "ok"
        for key in ({}, {"Authorization": "Bearer fw_x"}, {"X-Api-Key": "tml-x"}):
            assert httpx.get(f"{url}{A}", headers=key).status_code == 200
        client = open_client(GatewaySettings())
        assert client is not None
        with client:
            assert client.base_url == url
            assert client.ours
            client.call("Gateway_CreateDataset", body={"datasetId": "d", "dataset": {}})
        with GatewayClient.in_process(folder) as beside:  # another process's view of the same folder
            assert beside.get("accounts/local/datasets/d")["state"] == "UPLOADING"
        with pytest.raises(GatewayError, match=f"already served at {url}"):
            serve(folder)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert running_server(folder) is None
    print(f"started in {took:.2f} s")
    client = open_client(GatewaySettings())
    assert client is not None
    with client:
        assert client.base_url == "http://embedded"
        assert client.get("accounts/local/datasets/d")["state"] == "UPLOADING"


def test_a_server_that_died_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAINER_HOME", str(tmp_path))
    (tmp_path / "gateway").mkdir()
    (tmp_path / "gateway/server.json").write_text(json.dumps({"url": "http://127.0.0.1:9", "pid": 1}))
    client = open_client(GatewaySettings())
    assert client is not None
    with client:
        assert client.base_url == "http://embedded"


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.1", "example.org", "::"])
def test_only_loopback_is_served(tmp_path: Path, host: str) -> None:
    with pytest.raises(GatewayError, match=r"this machine only.*keys create"):
        serve(tmp_path, host)


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    with served(tmp_path / "one") as (url, _):
        port = int(url.rsplit(":", 1)[-1])
        with pytest.raises(GatewayError, match=f"{port} cannot be listened on"):
            serve(tmp_path / "two", port=port)


def test_settings_of_a_remote_gateway(monkeypatch: pytest.MonkeyPatch) -> None:
    assert open_client(GatewaySettings(kind="off")) is None
    with pytest.raises(GatewayError, match="base_url"):
        open_client(GatewaySettings(kind="remote"))
    remote = GatewaySettings(kind="remote", base_url="http://127.0.0.1:9", api_key_env="SOME_KEY")
    with pytest.raises(GatewayError, match="SOME_KEY is not set"):
        open_client(remote)
    monkeypatch.setenv("SOME_KEY", "fw_x")
    client = open_client(remote)
    assert client is not None
    with client:
        assert client._http.headers["x-api-key"] == "fw_x"
        assert "x-api-key" not in client._bare.headers


def test_the_unexpected_is_logged_and_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(_call: object) -> None:
        raise RuntimeError("the innermost secret")

    with opened(tmp_path / "gateway") as (client, _), caplog.at_level(logging.ERROR):
        monkeypatch.setitem(OPERATIONS, "Gateway_GetDataset", broken)
        answer = raw(client, "GET", f"{A}/datasets/rows")
    assert (answer.status_code, answer.json()["code"]) == (500, 13)
    assert "innermost" not in answer.text
    assert "innermost" in caplog.text
    assert answer.json()["details"][0]["metadata"]["request"] in caplog.text


def test_the_control_side_starts_without_tensor_libraries() -> None:
    code = (
        "import sys, trainer.gateway.server, trainer.gateway.client, trainer.gateway.scheduler, trainer.gateway.sync\n"
        "import trainer.launch.here\n"
        "print([m for m in ('torch', 'transformers', 'peft', 'datasets', 'wandb') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "[]", done.stderr


def _count_up(folder: Path, times: int) -> None:
    store = Store(folder)
    for _ in range(times):
        with store.transaction() as transaction:
            found = transaction.find("n") or transaction.insert(
                Resource(name="n", collection="c", parent="", id="n", body={"n": 0})
            )
            transaction.save(found.changed({"n": found.body["n"] + 1}))
    store.close()


def test_several_processes_lose_no_update(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_count_up, args=(tmp_path, 25)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    store = Store(tmp_path)
    assert store.get("n").body == {"n": 75}
    store.close()


def test_a_transaction_is_all_or_nothing_and_revisions_guard(tmp_path: Path) -> None:
    store = Store(tmp_path)
    new = Resource(name="a/b", collection="c", parent="a", id="b", body={"x": 1})
    with pytest.raises(RuntimeError), store.transaction() as transaction:
        transaction.insert(new)
        raise RuntimeError
    assert store.find("a/b") is None
    with store.transaction() as transaction:
        old = transaction.insert(new)
        transaction.save(old.changed({"x": 2}))
        with pytest.raises(GatewayError, match="ABORTED"):
            transaction.save(old.changed({"x": 3}))
        with pytest.raises(GatewayError, match="ALREADY_EXISTS"):
            transaction.insert(new)
    assert store.get("a/b").body == {"x": 2}
    store.close()
