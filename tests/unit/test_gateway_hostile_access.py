"""What a user of the gateway may not reach, however the request is spelled."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

from tests.gateway_kit import make_spec
from trainer import checkpoints
from trainer.gateway import keys
from trainer.gateway.access import Keys, Open
from trainer.gateway.errors import GatewayError
from trainer.gateway.gateway import Gateway
from trainer.gateway.server import create_app
from trainer.jobs import SupervisedFineTuningJob
from trainer.runs import Inputs, RowSource

RED, BLUE = "/v1/accounts/red", "/v1/accounts/blue"


@dataclass
class World:
    """A gateway that asks for keys, and keys of two accounts."""

    http: TestClient
    gateway: Gateway
    keys: dict[str, str]

    def ask(self, who: str, method: str, path: str, body: Any = None, **headers: str) -> httpx.Response:
        """The path goes as it is, byte for byte."""
        request = self.http.build_request(
            method, "http://testserver/", json=body, headers={"Authorization": f"Bearer {self.keys[who]}", **headers}
        )
        request.url = request.url.copy_with(raw_path=path.encode())
        return self.http.send(request)  # type: ignore[return-value]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    gateway = Gateway(tmp_path_factory.mktemp("hostile") / "gateway")
    found = {}
    for account, user, role in (("red", "admin", "admin"), ("red", "con", "contributor"), ("blue", "admin", "admin")):
        _, found[f"{account}-{user}"] = keys.create_key(gateway.store, f"accounts/{account}", user, role)
    app = create_app(gateway.folder, gateway=gateway, access=Keys(keys.Verifier(gateway.store), "fw_owner"))
    world = World(TestClient(app, raise_server_exceptions=False), gateway, found)
    for account in ("red", "blue"):
        body = {"displayName": "a", "role": "admin"}
        assert world.ask(f"{account}-admin", "POST", f"/v1/accounts/{account}/users?userId=admin", body).is_success
    assert world.ask("red-admin", "POST", f"{RED}/users?userId=con", {"role": "contributor"}).is_success
    yield world
    gateway.close()


def test_no_spelling_of_a_path_gets_a_contributor_what_is_anothers(world: World) -> None:
    assert world.ask("red-admin", "POST", f"{RED}/datasets", {"datasetId": "theirs", "dataset": {}}).is_success
    for path in (
        f"{RED}/datasets/theirs", f"{RED}/datasets/%74heirs", f"/{RED}/datasets/theirs", f"{RED}/datasets/theirs/",
        "/v1/accounts/%72ed/datasets/theirs",
    ):  # fmt: skip
        for method, body in (("DELETE", None), ("PATCH", {"displayName": "mine"})):
            answer = world.ask("red-con", method, path, body)
            assert (answer.status_code, answer.json()["details"][0]["reason"]) == (403, "ROLE_NOT_ALLOWED"), path
    assert "displayName" not in world.ask("red-admin", "GET", f"{RED}/datasets/theirs").json()


def test_the_audit_log_has_the_name_and_not_its_spelling(world: World) -> None:
    world.ask("red-admin", "PATCH", "//v1/accounts/%72ed/datasets/%6eone", {"displayName": "x"})
    newest = world.ask("red-admin", "GET", f"{RED}/auditLogs?pageSize=1").json()["auditLogs"][0]
    assert (newest["method"], newest["resource"]) == ("Gateway_UpdateDataset", "accounts/red/datasets/none")


def test_a_contributor_ends_their_own_keys_and_no_others(world: World) -> None:
    made = world.ask("red-con", "POST", f"{RED}/users/con/apiKeys", {"apiKey": {}}).json()
    ended = world.ask("red-con", "POST", f"{RED}/users/con/apiKeys:delete", {"keyId": made["keyId"]})
    assert ended.status_code == 200
    again = world.http.get(RED, headers={"Authorization": f"Bearer {made['key']}"})
    assert again.status_code == 401
    other = world.ask("red-con", "POST", f"{RED}/users/%61dmin/apiKeys:delete", {"keyId": "0" * 16})
    assert other.status_code == 403


def test_a_name_of_another_account_is_named_with_its_field(world: World) -> None:
    body = {"dataset": "accounts/red/datasets/theirs", "baseModel": "tiny"}
    answer = world.ask("blue-admin", "POST", f"{BLUE}/supervisedFineTuningJobs", body)
    assert (answer.status_code, answer.json()["message"]) == (404, 'dataset: "accounts/red/datasets/theirs" not found')
    assert answer.json()["details"][0]["metadata"]["field"] == "dataset"


def test_chunks_belong_to_whoever_splits(world: World) -> None:
    assert world.ask("red-con", "POST", f"{RED}/datasets", {"datasetId": "whole", "dataset": {}}).is_success
    row = json.dumps({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]})
    sent = world.http.post(
        f"{RED}/datasets/whole:upload", files={"file": ("a.jsonl", row.encode() + b"\n")},
        headers={"Authorization": f"Bearer {world.keys['red-con']}"},
    )  # fmt: skip
    assert sent.status_code == 200, sent.text
    made = world.ask("red-con", "POST", f"{RED}/datasets/whole:splitDataset", {"chunkSize": 200}).json()
    assert made["chunkDatasetNames"] == ["accounts/red/datasets/whole-chunk-0"]
    assert world.ask("red-con", "DELETE", f"{RED}/datasets/whole-chunk-0").status_code == 200


def _run_of(gateway: Gateway, run_id: str, *, account: str | None) -> Path:
    """A run folder with a promotable checkpoint; account: who reports it, None where the gateway runs it."""
    folder = gateway.runs / run_id
    job = SupervisedFineTuningJob(dataset="d", base_model="b")
    spec = make_spec("sft", job, run_id, Inputs(base_model="/m", train=RowSource(name="d", path="/d")))
    kind = "off" if account is None else "embedded"
    told = spec.gateway.model_copy(update={"kind": kind, "account": account or "local"})
    spec.model_copy(update={"gateway": told}).save(folder)

    def fill(weights: Path, state: Path) -> None:
        (weights / "secret.txt").write_text("of red")
        (state / "s").write_text("s")

    return checkpoints.write(folder / "checkpoints", 1, lora=False, cursor={}, fill=fill).path


@pytest.mark.parametrize(("whose", "claimed"), [(None, "job"), ("red", "job"), ("blue", "other"), ("local", "job")])
def test_a_report_does_not_open_the_run_of_another(world: World, whose: str | None, claimed: str) -> None:
    path = _run_of(world.gateway, f"{claimed}-{whose or 'gateway'}", account=whose)
    job_id, model = f"job-{whose or 'gateway'}", f"mine-{whose or 'gateway'}"
    types = ["CHECKPOINT_TYPE_TRAINING", "CHECKPOINT_TYPE_INFERENCE_BASE"]
    body = {"id": "c", "step": 1, "types": types, "promotable": True, "path": str(path)}
    event = {"seq": 1, "kind": "checkpoint", "body": body}
    job = {"dataset": "x", "baseModel": "accounts/blue/models/b"}
    url = f"{BLUE}/supervisedFineTuningJobs/{job_id}"
    told = world.ask("blue-admin", "POST", f"{url}:report", {"job": job, "events": [event]})
    assert told.status_code == 200, told.text
    answer = world.ask("blue-admin", "POST", f"{url}/checkpoints/c:promote", {"outputModel": model})
    assert (answer.status_code, answer.json()["code"]) == (403, 7), answer.text
    assert "run.json" in answer.json()["message"]


def test_a_run_that_reports_itself_is_promoted_from(world: World) -> None:
    path = _run_of(world.gateway, "own", account="blue")
    types = ["CHECKPOINT_TYPE_TRAINING", "CHECKPOINT_TYPE_INFERENCE_BASE"]
    body = {"id": "c", "step": 1, "types": types, "promotable": True, "path": str(path)}
    url = f"{BLUE}/supervisedFineTuningJobs/own"
    job = {"dataset": "x", "baseModel": "accounts/blue/models/b"}
    event = {"seq": 1, "kind": "checkpoint", "body": body}
    assert world.ask("blue-admin", "POST", f"{url}:report", {"job": job, "events": [event]}).status_code == 200
    answer = world.ask("blue-admin", "POST", f"{url}/checkpoints/c:promote", {"outputModel": "own"})
    assert answer.status_code == 400  # it got as far as its weights, which are none
    assert "config.json: missing" in answer.json()["message"]


def test_hosts_and_origins_that_are_none(world: World) -> None:
    for origin in ("http://[bad", "null", "http://evil.example", "http://testserver@evil.example"):
        answer = world.ask("red-admin", "GET", RED, Origin=origin)
        assert (answer.status_code, answer.json()["code"]) == (403, 7), origin
    assert world.ask("red-admin", "GET", RED, Origin="http://TESTSERVER").status_code == 200
    for host in ("[::1", "a/b?c#d", "a@b", "localhost#x", "evil.example\\@localhost", "a b", "::1"):
        answer = world.ask("red-admin", "GET", RED, Host=host)
        assert (answer.status_code, answer.json()["details"][0]["reason"]) == (400, "HOST_INVALID"), host
    assert world.ask("red-admin", "GET", RED, Host="[::1]:80").status_code == 200


def test_the_name_for_this_process_is_none_to_a_server() -> None:
    Open(in_process=True).check_origin({"host": "embedded"})
    with pytest.raises(GatewayError, match="its own machine only"):
        Open().check_origin({"host": "embedded"})


def test_a_key_opens_while_its_use_cannot_be_noted(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    store = world.gateway.store
    verifier = keys.Verifier(store)

    def full() -> Any:
        raise GatewayError("RESOURCE_EXHAUSTED", "the disk of the gateway's records is full")

    monkeypatch.setattr(store, "transaction", full)
    assert verifier.verify(world.keys["red-admin"]).account == "accounts/red"
