"""Keys, roles and accounts: who is let in, to what, and what the audit log says of it."""

import json
import random
import re
import string
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

from tests.gateway_kit import opened, served
from trainer.__main__ import main
from trainer.gateway import audit, keys
from trainer.gateway.access import Keys
from trainer.gateway.client import open_client
from trainer.gateway.contract import load
from trainer.gateway.errors import GatewayError
from trainer.gateway.gateway import Gateway
from trainer.gateway.permission_presets import PRESETS
from trainer.gateway.principal import ROLES
from trainer.gateway.server import create_app, serve
from trainer.runs import GatewaySettings

RED, BLUE = "/v1/accounts/red", "/v1/accounts/blue"
DATASET = {"datasetId": "d", "dataset": {"displayName": "one"}}


@dataclass
class World:
    """A gateway that asks for keys, and keys of every role in `red` and an admin's in `blue`."""

    http: TestClient
    gateway: Gateway
    keys: dict[str, str]
    ids: dict[str, str]

    def ask(self, who: str, method: str, url: str, body: Any = None, **headers: str) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.keys[who]}", **headers} if who else headers
        return self.http.request(method, url, json=body, headers=headers)  # type: ignore[return-value]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    gateway = Gateway(tmp_path_factory.mktemp("auth") / "gateway")
    found: dict[str, str] = {}
    ids: dict[str, str] = {}
    for account, role in [*(("red", role) for role in ROLES), ("blue", "admin")]:
        name = f"{account}-{role}"
        made, found[name] = keys.create_key(gateway.store, f"accounts/{account}", role, role)
        ids[name] = made.key_id
    access = Keys(keys.Verifier(gateway.store), "fw_owner_secret")
    app = create_app(gateway.folder, gateway=gateway, access=access)
    yield World(TestClient(app, raise_server_exceptions=False), gateway, found, ids)
    gateway.close()


def test_a_key_is_asked_for(world: World) -> None:
    for headers in (
        {}, {"Authorization": "Bearer fw_local"}, {"X-Api-Key": "tml-x"}, {"Authorization": "Basic eA=="},
        {"Authorization": f"Bearer {world.keys['red-admin'][:-1]}"}, {"X-Api-Key": world.keys["red-admin"] + "x"},
        {"X-Api-Key": "fw_" + "0" * 16 + "_" + "x" * 43},
    ):  # fmt: skip
        for url in (RED, "/verifyApiKey", "/metrics", "/v1/nothing"):
            answer = world.http.get(url, headers=headers)
            assert (answer.status_code, answer.json()["code"]) == (401, 16), (headers, url)
            assert answer.headers["www-authenticate"] == "Bearer"
    assert world.http.get("/healthz").status_code == 200
    assert world.http.get("/readyz").json() == {"status": "ready"}


def test_either_header_shows_a_key(world: World) -> None:
    key = world.keys["red-user"]
    for headers in ({"Authorization": f"Bearer {key}"}, {"authorization": f"bearer  {key}"}, {"X-Api-Key": key}):
        answer = world.http.get("/verifyApiKey", headers=headers)
        assert (answer.status_code, answer.headers["x-fireworks-account-id"]) == (200, "red")
    assert (
        world.http.get("/verifyApiKey", headers={"X-Api-Key": "fw_owner_secret"}).headers["x-fireworks-account-id"]
        == "local"
    )


def test_a_key_is_kept_as_a_digest_only(world: World) -> None:
    kept = "".join(p.read_bytes().decode("latin-1") for p in world.gateway.folder.rglob("*") if p.is_file())
    assert not [name for name, key in world.keys.items() if key[-20:] in kept]
    shown = keys.keys_of(world.gateway.store, "accounts/red", "user")[0].shown()
    assert shown["prefix"] == world.keys["red-user"][:8]
    assert "key" not in shown


def test_a_revoked_key_is_dead_with_the_next_request(world: World) -> None:
    made, key = keys.create_key(world.gateway.store, "accounts/red", "user", "user")
    assert world.http.get(RED, headers={"X-Api-Key": key}).status_code == 200
    with pytest.raises(GatewayError, match="NOT_FOUND"):
        keys.revoke(world.gateway.store, "accounts/blue", made.key_id)
    keys.revoke(world.gateway.store, "accounts/red", made.key_id)
    assert world.http.get(RED, headers={"X-Api-Key": key}).status_code == 401
    _, late = keys.create_key(world.gateway.store, "accounts/red", "user", "user", expire_time="2026-01-01T00:00:00Z")
    assert world.http.get(RED, headers={"X-Api-Key": late}).status_code == 401


def test_a_role_is_changed_for_the_keys_there_are(world: World) -> None:
    _, key = keys.create_key(world.gateway.store, "accounts/red", "moving", "user")
    headers = {"X-Api-Key": key}
    body = {"datasetId": "moved", "dataset": {}}
    keys.set_role(world.gateway.store, "accounts/red", "moving", "inference-user")
    assert world.http.post(f"{RED}/datasets", json=body, headers=headers).status_code == 403
    keys.set_role(world.gateway.store, "accounts/red", "moving", "user")
    assert world.http.post(f"{RED}/datasets", json=body, headers=headers).status_code == 200


# What is asked, and who may: the rest get 403.
MATRIX: list[tuple[str, str, Any, set[str]]] = [
    ("GET", "/datasets", None, {"admin", "user", "contributor", "inference-user"}),
    ("GET", "/datasets/nothing", None, {"admin", "user", "contributor", "inference-user"}),
    ("POST", "/datasets", {"datasetId": "UPPER", "dataset": {}}, {"admin", "user", "contributor"}),
    ("PATCH", "/datasets/owned", {"displayName": "x"}, {"admin", "user"}),
    ("POST", "/datasets/owned:getUploadEndpoint", {"filenameToSize": {"../x": "1"}}, {"admin", "user"}),
    ("POST", "/supervisedFineTuningJobs:estimateCost", {"dataset": "x", "baseModel": "x"}, set(ROLES)),
    ("POST", "/users?userId=new-one", {"role": "emperor"}, {"admin"}),
    ("PATCH", "/users/user", {"role": "emperor"}, {"admin"}),
    ("GET", "/auditLogs", None, {"admin"}),
    ("PATCH", "/quotas/nothing", {"value": "1"}, {"admin"}),
    ("POST", "/users/admin/apiKeys", {"apiKey": {}}, {"admin"}),
    ("GET", "/users/admin/apiKeys", None, {"admin"}),
    ("DELETE", "/clusters/nothing", None, {"admin", "user", "contributor"}),
]


@pytest.mark.parametrize(("method", "path", "body", "allowed"), MATRIX)
def test_roles(world: World, method: str, path: str, body: Any, allowed: set[str]) -> None:
    world.ask("red-admin", "POST", f"{RED}/datasets", {"datasetId": "owned", "dataset": {}})
    for role in ROLES:
        answer = world.ask(f"red-{role}", method, RED + path, body)
        assert (answer.status_code == 403) == (role not in allowed), (role, answer.text)
        if role not in allowed:
            assert answer.json()["details"][0]["reason"] == "ROLE_NOT_ALLOWED"
        elsewhere = world.ask(f"red-{role}", method, BLUE + path, body)
        assert (elsewhere.status_code, elsewhere.json()["code"]) == (404, 5)


def test_a_contributor_changes_what_is_theirs(world: World) -> None:
    body = {"datasetId": "mine", "dataset": {}}
    assert world.ask("red-contributor", "POST", f"{RED}/datasets", body).status_code == 200
    assert world.ask("red-contributor", "PATCH", f"{RED}/datasets/mine", {"displayName": "x"}).status_code == 200
    assert world.ask("red-user", "PATCH", f"{RED}/datasets/mine", {"displayName": "y"}).status_code == 200
    assert world.ask("red-contributor", "DELETE", f"{RED}/datasets/mine").status_code == 200


def test_a_user_handles_their_own_keys_only(world: World) -> None:
    assert world.ask("red-inference-user", "GET", f"{RED}/users/inference-user/apiKeys").status_code != 403
    assert world.ask("red-inference-user", "GET", f"{RED}/users/user/apiKeys").status_code == 403


# By hand from what Fireworks documents of the preset `pilot`: the methods that it names, where the contract has them.
DOCUMENTED = [
    "GetAccountUsage", "GetQuota", "ListQuotas", "GetModel", "ListModels", "CreateModelVersion", "PrepareModel",
    "ValidateModelUpload", "GetDeployment", "CreateDeployment", "DeployModelVersion", "GetDeploymentMetrics",
    "CreateDataset", "GetDataset", "ListDatasets", "SplitDataset", "CreateEvaluator", "GetEvaluator",
    "CreateEvaluation", "TestEvaluation", "CreateSupervisedFineTuningJob", "CreateDpoJob",
    "CreateReinforcementFineTuningJob", "CreateRlorTrainerJob", "GetTrainingShape", "ListTrainingShapes",
    "CreateBatchInferenceJob",
]  # fmt: skip
NEVER = r"Delete|Cancel|Update|Resume|Rollback|Alias|Scale|Reset|Undelete|Report|Promote|Import|Redeem|Refresh|Execute"
ABOUT = (
    r"/(users|secrets|auditLogs|policySettings|identityProviders|clusters|routers|trails)\b"
    "|/v1/(chat|completions|creditCodes|messages|responses|auth)"
)


def test_a_preset_permits_what_it_names_and_nothing_else(world: World) -> None:
    """Every operation of the contract, asked for as a user of role custom."""
    permitted = PRESETS["pilot"]
    assert PRESETS.keys() == {"agent", "pilot"}
    assert {f"Gateway_{name}" for name in DOCUMENTED} <= permitted <= set(load().operations)
    body = {"role": "custom", "permissionPreset": "pilot"}
    assert world.ask("red-admin", "POST", f"{RED}/users?userId=bot", body).status_code == 200
    _, key = keys.create_key(world.gateway.store, "accounts/red", "bot", "custom")
    for operation in load().operations.values():
        if re.search(NEVER, operation.id) or re.search(ABOUT, operation.path):
            assert operation.id not in permitted
        path = re.sub(r"{(?!account_id)\w+}", "bot", operation.path).replace("{account_id}", "red")
        answer = world.http.request(operation.method, path, json={}, headers={"X-Api-Key": key})
        assert (answer.status_code == 403) == (operation.id not in permitted), (operation.id, answer.text)
        if answer.status_code == 403:
            assert answer.json()["details"][0]["reason"] == "ROLE_NOT_ALLOWED"
            assert "'pilot'" in answer.json()["message"]
    assert world.http.get("/metrics", headers={"X-Api-Key": key}).status_code == 403
    elsewhere = world.http.get(f"{BLUE}/datasets", headers={"X-Api-Key": key})
    assert elsewhere.status_code == 404
    assert world.http.get("/v1/accounts/fireworks/models/qwen3-0p6b", headers={"X-Api-Key": key}).status_code == 200


def test_a_role_custom_without_a_preset_may_nothing(world: World) -> None:
    _, key = keys.create_key(world.gateway.store, "accounts/red", "nobody", "custom")
    answer = world.http.get(f"{RED}/datasets", headers={"X-Api-Key": key})
    assert (answer.status_code, "preset ''" in answer.json()["message"]) == (403, True)


def test_what_is_anothers_is_not_to_be_found(world: World) -> None:
    world.ask("blue-admin", "POST", f"{BLUE}/datasets", {"datasetId": "hidden", "dataset": {"displayName": "secret"}})
    assert world.ask("blue-admin", "GET", f"{BLUE}/datasets/hidden").status_code == 200
    answers = [
        world.ask("red-admin", method, BLUE + path, body)
        for method, path, body in (
            ("GET", "", None), ("GET", "/datasets", None), ("GET", "/datasets/hidden", None),
            ("PATCH", "/datasets/hidden", {}), ("DELETE", "/datasets/hidden", None), ("GET", "/secrets", None),
            ("GET", "/users", None), ("GET", "/auditLogs", None), ("POST", "/datasets/hidden:validateUpload", {}),
            ("GET", "/datasets/hidden:getDownloadEndpoint", None), ("GET", "/operations", None),
        )
    ]  # fmt: skip
    named = {"dataset": "accounts/blue/datasets/hidden", "baseModel": "m"}
    answers.append(world.ask("red-admin", "POST", f"{RED}/supervisedFineTuningJobs", named))
    assert {(answer.status_code, answer.json()["code"]) for answer in answers} == {(404, 5)}
    assert all("secret" not in answer.text for answer in answers)
    for url in ("/v1/accounts/-/datasets", f"{RED}/datasets?filter=displayName%3Dsecret", "/v1/accounts?pageSize=2"):
        assert "blue" not in world.ask("red-admin", "GET", url).text


@pytest.mark.parametrize("count", [500, pytest.param(10_000, marks=pytest.mark.slow)])
def test_guessed_names_show_nothing(world: World, count: int) -> None:
    """Figure 35: none of ten thousand names is answered with anything of another account."""
    draw = random.Random(35)
    pieces = [
        "..",
        "%2e%2e",
        "%2F",
        "-",
        "*",
        "%00",
        "blue",
        "red",
        "local",
        "hidden",
        "datasets",
        "%",
        "accounts",
        ";",
    ]
    templates = [operation for operation in load().operations.values() if operation.method == "GET"]
    for _ in range(count):
        path = draw.choice(templates).path
        for part in ("{account_id}", "{dataset_id}", "{user_id}", "{model_id}", "{version_id}"):
            guess = draw.choice([*pieces, "".join(draw.choices(string.ascii_lowercase, k=3))])
            path = path.replace(part, draw.choice([guess, f"blue{guess}", "blue"]))
        answer = world.http.get(path, headers={"X-Api-Key": world.keys["red-user"]})
        assert answer.status_code in (200, 400, 403, 404, 405, 501), path
        assert "hidden" not in answer.text.replace(path, "") or answer.status_code != 200
        if answer.status_code == 200:
            assert "accounts/blue" not in answer.text, path


def test_pages_of_other_sites_are_refused(world: World) -> None:
    assert world.ask("red-user", "GET", RED, Origin="https://evil.example").status_code == 403
    assert world.ask("red-user", "GET", RED, Origin="http://testserver").status_code == 200


def test_metrics_are_for_admins(world: World) -> None:
    assert world.ask("red-user", "GET", "/metrics").status_code == 403
    text = world.ask("red-admin", "GET", "/metrics").text
    assert 'trainer_gateway_requests_total{operation="Gateway_GetAccount",method="GET",status="401"}' not in text
    assert 'trainer_gateway_requests_total{operation="metrics",method="GET",status="403"} ' in text
    assert "trainer_gateway_request_seconds_bucket{" in text
    assert "red-" not in text


def test_every_change_is_in_the_log_and_no_value_of_it(world: World) -> None:
    body = {"keyName": "HF_TOKEN", "name": "hf-token", "value": "very-secret-value"}
    world.ask("red-user", "POST", f"{RED}/secrets", body, **{"x-request-id": "req-1", "user-agent": "me/1"})
    world.ask("red-inference-user", "DELETE", f"{RED}/datasets/owned")
    world.ask("red-user", "DELETE", f"{RED}/datasets/not-there")
    world.ask("red-user", "GET", f"{RED}/datasets/not-there")
    log = audit.page(world.gateway.store, "accounts/red", {"pageSize": 200})["auditLogs"]
    assert load().check_answer("gatewayListAuditLogsResponse", {"auditLogs": log}) == []
    missing, denied, made = log[:3]
    assert (missing["method"], missing["status"]["code"]) == ("Gateway_DeleteDataset", "NOT_FOUND")
    assert missing["resource"] == "accounts/red/datasets/not-there"
    assert (denied["status"]["code"], denied["principal"]) == ("PERMISSION_DENIED", "inference-user@red")
    assert (made["method"], made["status"]["code"], made["userAgent"]) == ("Gateway_CreateSecret", "OK", "me/1")
    assert (made["resource"], made["apiKeyId"]) == ("accounts/red/secrets/hf-token", world.ids["red-user"])
    assert "value" in made["payload"]["fields"]
    assert "req-1" in made["message"]
    assert "very-secret" not in json.dumps(log)
    first = audit.page(world.gateway.store, "accounts/red", {"pageSize": 2})
    rest = audit.page(world.gateway.store, "accounts/red", {"pageSize": 200, "pageToken": first["nextPageToken"]})
    assert [one["id"] for one in first["auditLogs"] + rest["auditLogs"]] == [one["id"] for one in log]
    mine = audit.page(world.gateway.store, "accounts/red", {"email": "user@red"})["auditLogs"]
    assert {one["principal"] for one in mine} == {"user@red"}
    assert audit.page(world.gateway.store, "accounts/green", {})["totalSize"] == 0
    assert world.ask("red-admin", "GET", f"{RED}/auditLogs?pageSize=1").json()["totalSize"] >= len(log)


@pytest.mark.parametrize(
    ("change", "says"),
    [({"role": "emperor"}, "role"), ({"user": "Not An Id"}, "user"), ({"display_name": "x" * 64}, "displayName"),
     ({"account": "accounts/UPPER"}, "account")],
)  # fmt: skip
def test_keys_that_cannot_be_made(world: World, change: dict[str, str], says: str) -> None:
    with pytest.raises(GatewayError, match=f"INVALID_ARGUMENT: {says}"):
        keys.create_key(world.gateway.store, **{"account": "accounts/red", "user": "u", "role": "user", **change})


def test_beyond_loopback_only_with_keys(tmp_path: Path) -> None:
    with pytest.raises(GatewayError, match="keys create"):
        serve(tmp_path, "0.0.0.0")


def test_the_owner_of_the_folder_needs_no_key_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAINER_HOME", str(tmp_path))
    folder = tmp_path / "gateway"
    with served(folder, keys=True) as (url, _):
        assert httpx.get(f"{url}/v1/accounts/local").status_code == 401
        assert (folder / "server.json").stat().st_mode & 0o777 == 0o600
        client = open_client(GatewaySettings())
        assert client is not None
        with client:
            assert client.get("accounts/local")["name"] == "accounts/local"


def test_single_user_takes_any_key_on_loopback(tmp_path: Path) -> None:
    with opened(tmp_path / "gateway") as (client, _):
        for key in ("fw_anything", "tml-anything", "whatever"):
            answer = client._http.get("/verifyApiKey", headers={"X-Api-Key": key})
            assert (answer.status_code, answer.headers["x-fireworks-account-id"]) == (200, "local")


def test_the_command_makes_lists_and_revokes_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRAINER_HOME", str(tmp_path))
    words = ["gateway", "keys", "create", "--account", "team", "--user", "anna", "--role", "contributor"]
    assert main(words) == 0
    printed = capsys.readouterr().out.split()
    key, key_id = printed[1], printed[3].rstrip(",")
    gateway = Gateway(tmp_path / "gateway")
    found = keys.Verifier(gateway.store).verify(key)
    assert (found.account, found.user, found.role, found.key_id) == ("accounts/team", "anna", "contributor", key_id)
    assert gateway.store.get("accounts/team/users/anna").body["role"] == "contributor"
    assert main([*words[:-1], "admin"]) == 2  # the user has another role
    assert "has the role contributor" in capsys.readouterr().err
    bot = ["gateway", "keys", "create", "--account", "team", "--user", "bot", "--role", "custom"]
    assert main(bot) == 2
    assert "--preset" in capsys.readouterr().err
    assert main([*bot, "--preset", "agent"]) == 0
    assert keys.Verifier(gateway.store).verify(capsys.readouterr().out.split()[1]).preset == "agent"
    assert main([*bot, "--preset", "pilot"]) == 2
    assert "the role custom with agent" in capsys.readouterr().err
    assert main(["gateway", "keys", "list", "--account", "team"]) == 0
    listed = capsys.readouterr().out
    assert key_id in listed
    assert key not in listed
    assert main(["gateway", "keys", "revoke", key_id]) == 2  # not a key of accounts/local
    assert main(["gateway", "keys", "revoke", key_id, "--account", "team"]) == 0
    with pytest.raises(GatewayError, match="UNAUTHENTICATED"):
        keys.Verifier(gateway.store).verify(key)
    gateway.close()


def test_the_command_backs_up_and_brings_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRAINER_HOME", str(tmp_path / "one"))
    assert main(["gateway", "keys", "create"]) == 0
    key = capsys.readouterr().out.split()[1]
    assert main(["gateway", "backup", str(tmp_path / "copy")]) == 0
    monkeypatch.setenv("TRAINER_HOME", str(tmp_path / "two"))
    assert main(["gateway", "restore", str(tmp_path / "copy")]) == 0
    gateway = Gateway(tmp_path / "two" / "gateway")
    assert keys.Verifier(gateway.store).verify(key).account == "accounts/local"
    gateway.close()
    assert main(["gateway", "backup"]) == 2
    assert main(["gateway", "move"]) == 2
    capsys.readouterr()
    assert main(["gateway", "move", "--to", "postgresql://me:hush@db/gateway"]) == 2
    refused = capsys.readouterr().err
    assert "TRAINER_GATEWAY_TO" in refused and "hush" not in refused
