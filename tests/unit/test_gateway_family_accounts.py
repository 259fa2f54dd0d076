"""Accounts, users, keys, secrets, quotas and the audit log over the wire."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.family_kit import ask, refused
from tests.gateway_kit import A, opened, raw
from trainer.gateway import keys
from trainer.gateway.client import GatewayClient
from trainer.gateway.errors import GatewayError
from trainer.gateway.gateway import Gateway
from trainer.gateway.resources.secrets import value_of

PLANTED = "hf_planted-secret-value"


@pytest.fixture
def both(tmp_path: Path) -> Iterator[tuple[GatewayClient, Gateway]]:
    with opened(tmp_path / "gateway") as found:
        yield found


@pytest.fixture
def client(both: tuple[GatewayClient, Gateway]) -> GatewayClient:
    return both[0]


def test_one_account_and_its_user(client: GatewayClient) -> None:
    assert [one["name"] for one in ask(client, "GET", "/v1/accounts?pageSize=2")["accounts"]] == ["accounts/local"]
    users = ask(client, "GET", f"{A}/users")["users"]
    assert [(one["name"], one["role"], one["state"]) for one in users] == [
        ("accounts/local/users/local", "admin", "READY")
    ]


def test_users(client: GatewayClient) -> None:
    made = ask(client, "POST", f"{A}/users?userId=ann", {"role": "user", "displayName": "Ann"})
    assert (made["name"], made["email"]) == ("accounts/local/users/ann", "ann@local")
    assert refused(client, "POST", f"{A}/users?userId=ann", {"role": "user"})[0] == 409
    assert "role" in refused(client, "POST", f"{A}/users", {"role": "boss"})[1]
    assert ask(client, "PATCH", f"{A}/users/ann?updateMask=role", {"role": "contributor"})["role"] == "contributor"
    assert "role" in refused(client, "PATCH", f"{A}/users/ann?updateMask=role", {"role": "boss"})[1]
    assert ask(client, "GET", f"{A}/users/ann")["role"] == "contributor"
    assert ask(client, "GET", f"{A}/users")["totalSize"] == 2


def test_a_role_custom_has_a_preset(both: tuple[GatewayClient, Gateway]) -> None:
    client, gateway = both
    for body, says in (
        ({"role": "custom"}, "permissionPreset: got ''; role custom takes one of agent, pilot"),
        ({"role": "custom", "permissionPreset": "chief"}, "permissionPreset: got 'chief'"),
        ({"role": "user", "permissionPreset": "pilot"}, "goes with role custom only, and the role is user"),
    ):
        status, message = refused(client, "POST", f"{A}/users?userId=bot", body)
        assert (status, says in message) == (400, True), message
    made = ask(client, "POST", f"{A}/users?userId=bot", {"role": "custom", "permissionPreset": "pilot"})
    assert (made["role"], made["permissionPreset"]) == ("custom", "pilot")
    key = ask(client, "POST", f"{A}/users/bot/apiKeys", {"apiKey": {}})["key"]
    verifier = keys.Verifier(gateway.store)
    assert (verifier.verify(key).role, verifier.verify(key).preset) == ("custom", "pilot")
    url = f"{A}/users/bot"
    assert "chief" in refused(client, "PATCH", url, {"role": "custom", "permissionPreset": "chief"})[1]
    assert verifier.verify(key).preset == "pilot"  # what was refused has changed nothing
    ask(client, "PATCH", f"{url}?updateMask=permission_preset", {"role": "custom", "permissionPreset": "agent"})
    assert verifier.verify(key).preset == "agent"
    assert "permissionPreset" not in ask(client, "PATCH", url, {"role": "user"})  # another role has none
    assert (verifier.verify(key).role, verifier.verify(key).preset) == ("user", "")
    assert "permissionPreset" in refused(client, "PATCH", url, {"role": "user", "permissionPreset": "pilot"})[1]
    plain = ask(client, "POST", f"{A}/users?userId=ann", {"role": "user", "permissionPreset": ""})
    assert "permissionPreset" not in plain
    assert "permissionPreset" not in ask(client, "PATCH", f"{A}/users/ann", {"role": "user", "permissionPreset": ""})


def test_one_key_by_its_id(both: tuple[GatewayClient, Gateway]) -> None:
    client, _ = both
    url = f"{A}/users/local/apiKeys"
    made = ask(client, "POST", url, {"apiKey": {"displayName": "laptop"}})
    wanted = {name: value for name, value in made.items() if name != "key"}
    assert ask(client, "GET", f"{url}/{made['keyId']}") == wanted
    contracts_own = f"{url}/accounts/local/users/local"
    assert ask(client, "GET", f"{contracts_own}?keyId={made['keyId']}") == wanted
    assert ask(client, "GET", f"{contracts_own}?key_id={made['keyId']}") == wanted
    assert "keyId" in refused(client, "GET", contracts_own)[1]
    ask(client, "POST", f"{A}/users?userId=ann", {"role": "user"})
    assert refused(client, "GET", f"{A}/users/ann/apiKeys/{made['keyId']}")[0] == 404
    ask(client, "POST", f"{url}:delete", {"keyId": made["keyId"]})
    assert refused(client, "GET", f"{url}/{made['keyId']}")[0] == 404


def test_a_key_is_shown_once_and_follows_its_user(both: tuple[GatewayClient, Gateway]) -> None:
    client, gateway = both
    ask(client, "POST", f"{A}/users?userId=ann", {"role": "user"})
    url = f"{A}/users/ann/apiKeys"
    wanted = {"displayName": "laptop", "expireTime": "2999-01-01T00:00:00Z", "annotations": {"where": "desk"}}
    made = ask(client, "POST", url, {"apiKey": wanted})
    assert (made["displayName"], made["secure"], made["annotations"]) == ("laptop", True, {"where": "desk"})
    assert keys.Verifier(gateway.store).verify(made["key"]).user == "ann"
    ask(client, "PATCH", f"{A}/users/ann?updateMask=role", {"role": "inference-user"})
    assert keys.Verifier(gateway.store).verify(made["key"]).role == "inference-user"
    second = ask(client, "POST", url, {"apiKey": {}})
    listed = raw(client, "GET", url)
    assert made["key"] not in listed.text
    assert second["key"] not in listed.text
    assert [one["keyId"] for one in listed.json()["apiKeys"]] == [made["keyId"], second["keyId"]]
    first = ask(client, "GET", url, params={"pageSize": 1})
    rest = ask(client, "GET", url, params={"pageSize": 1, "pageToken": first["nextPageToken"]})
    assert [one["keyId"] for one in rest["apiKeys"]] == [second["keyId"]]
    assert rest["nextPageToken"] == ""
    assert ask(client, "POST", f"{url}:delete", {"keyId": made["keyId"]}) == {}
    with pytest.raises(GatewayError, match="UNAUTHENTICATED"):
        keys.Verifier(gateway.store).verify(made["key"])
    assert refused(client, "POST", f"{url}:delete", {"keyId": made["keyId"]})[0] == 404
    assert refused(client, "POST", f"{A}/users/local/apiKeys:delete", {"keyId": second["keyId"]})[0] == 404
    assert refused(client, "GET", f"{A}/users/none/apiKeys")[0] == 404
    assert "expireTime" in refused(client, "POST", url, {"apiKey": {"expireTime": "2001-01-01T00:00:00Z"}})[1]
    assert "pageToken" in refused(client, "GET", url, params={"pageToken": "%%"})[1]


def test_a_secret_never_comes_back(both: tuple[GatewayClient, Gateway], caplog: pytest.LogCaptureFixture) -> None:
    client, gateway = both
    body = {"keyName": "HF_TOKEN", "name": "hf-token", "value": PLANTED, "shadow": PLANTED}
    answers = [
        raw(client, "POST", f"{A}/secrets", json=body), raw(client, "POST", f"{A}/secrets", json=body),
        raw(client, "GET", f"{A}/secrets/hf-token"), raw(client, "GET", f"{A}/secrets"),
        raw(client, "PATCH", f"{A}/secrets/hf-token", json={**body, "value": f"{PLANTED}-2"}),
        raw(client, "GET", f"{A}/secrets/hf-token?readMask=value"), raw(client, "GET", f"{A}/auditLogs"),
        raw(client, "POST", f"{A}/secrets", json={"keyName": "X", "name": "x", "value": [PLANTED]}),
        raw(client, "GET", f"{A}/secrets", params={"filter": 'value="a"'}),
    ]  # fmt: skip
    assert [answer.status_code for answer in answers[:6]] == [200, 409, 200, 200, 200, 200]
    assert answers[2].json() == {"name": "accounts/local/secrets/hf-token", "keyName": "HF_TOKEN"}
    for answer in answers:
        assert PLANTED not in answer.text
    assert PLANTED not in caplog.text
    name = "accounts/local/secrets/hf-token"
    assert value_of(gateway, name, parent="accounts/local") == f"{PLANTED}-2"
    with pytest.raises(GatewayError, match="NOT_FOUND"):
        value_of(gateway, name, parent="accounts/other")
    for path in gateway.folder.rglob("*"):
        assert not path.is_file() or PLANTED.encode() not in path.read_bytes(), path
    assert ask(client, "DELETE", f"{A}/secrets/hf-token") == {}
    assert refused(client, "GET", f"{A}/secrets/hf-token")[0] == 404


def test_what_a_secret_may_be(client: GatewayClient) -> None:
    assert "value" in refused(client, "POST", f"{A}/secrets", {"keyName": "X", "name": "x"})[1]
    assert "keyName" in refused(client, "POST", f"{A}/secrets", {"keyName": "a b", "name": "x", "value": "v"})[1]
    made = ask(client, "POST", f"{A}/secrets", {"keyName": "WANDB_API_KEY", "name": "", "value": "v"})
    assert made["name"] == "accounts/local/secrets/wandb-api-key"
    another = {"keyName": "WANDB_API_KEY", "value": "v"}  # the body's name is the id
    for name, bare in (("mine", "mine"), ("accounts/local/secrets/mine-too", "mine-too")):
        made = ask(client, "POST", f"{A}/secrets", {**another, "name": name})
        assert made["name"] == f"accounts/local/secrets/{bare}"
        assert ask(client, "GET", f"{A}/secrets/{bare}") == made
    for name in ("accounts/red/secrets/x", "accounts/local/models/x", "Not An Id"):
        assert "name" in refused(client, "POST", f"{A}/secrets", {**another, "name": name})[1]
    changed = ask(client, "PATCH", f"{A}/secrets/wandb-api-key?updateMask=key_name", {"keyName": "OTHER", "value": ""})
    assert changed["keyName"] == "OTHER"
    assert "updateMask" in refused(client, "PATCH", f"{A}/secrets/wandb-api-key?updateMask=name", {"value": "v"})[1]
    assert "value" in refused(client, "PATCH", f"{A}/secrets/wandb-api-key?updateMask=value", {"keyName": "X"})[1]


def test_quotas(client: GatewayClient) -> None:
    listed = ask(client, "GET", f"{A}/quotas")["quotas"]
    names = [one["name"] for one in listed]
    assert names == ["accounts/local/quotas/gpus", "accounts/local/quotas/running-jobs"]
    assert "value" not in listed[1]
    assert listed[1]["usage"] == 0
    url = f"{A}/quotas/running-jobs"
    changed = ask(client, "PATCH", f"{url}?updateMask=value,max_value", {"value": "2", "maxValue": 3})
    assert (changed["value"], changed["maxValue"]) == ("2", "3")
    assert ask(client, "GET", url)["value"] == "2"
    assert "maxValue" in refused(client, "PATCH", url, {"value": "4"})[1]
    assert "value" in refused(client, "PATCH", url, {"value": "-1"})[1]
    assert refused(client, "PATCH", f"{A}/quotas/wishes?allowMissing=true", {"value": "1"})[0] == 404
    assert "updateMask" in refused(client, "PATCH", f"{url}?updateMask=usage", {})[1]
    assert "value" not in ask(client, "PATCH", f"{url}?updateMask=value", {})


def test_lists_that_are_no_records_are_filtered_and_ordered_as_records_are(client: GatewayClient) -> None:
    ask(client, "POST", f"{A}/users?userId=ann", {"role": "user"})
    keys = f"{A}/users/ann/apiKeys"
    made = [ask(client, "POST", keys, {"apiKey": {"displayName": name}})["createTime"] for name in ("b", "c", "a", "b")]

    def found(collection: str, url: str, field: str, **query: Any) -> list[str]:
        return [one.get(field) for one in ask(client, "GET", url, params=query)[collection]]

    assert found("apiKeys", keys, "displayName", filter='display_name="b" OR displayName="c"') == ["b", "c", "b"]
    assert found("apiKeys", keys, "displayName", filter=f'createTime > "{made[1]}"') == ["a", "b"]
    assert found("apiKeys", keys, "displayName", orderBy="displayName desc") == ["c", "b", "b", "a"]
    query: dict[str, Any] = {"orderBy": "displayName, createTime desc", "pageSize": 3, "readMask": "createTime"}
    first = ask(client, "GET", keys, params=query)
    assert ([one["createTime"] for one in first["apiKeys"]], first["totalSize"]) == ([made[2], made[3], made[0]], 4)
    assert set(first["apiKeys"][0]) == {"createTime"}
    rest = ask(client, "GET", keys, params={**query, "pageToken": first["nextPageToken"]})
    assert ([one["createTime"] for one in rest["apiKeys"]], rest["nextPageToken"]) == ([made[1]], "")
    other = {**query, "orderBy": "displayName", "pageToken": first["nextPageToken"]}
    assert "pageToken" in refused(client, "GET", keys, params=other)[1]
    assert found("accounts", "/v1/accounts", "name", filter="state=READY", orderBy="name") == ["accounts/local"]
    assert found("accounts", "/v1/accounts", "name", filter="state!=READY") == []
    quotas = found("quotas", f"{A}/quotas", "name", orderBy="name desc", filter="usage=0")
    assert quotas == ["accounts/local/quotas/running-jobs", "accounts/local/quotas/gpus"]
    assert "nosuch" in refused(client, "GET", keys, params={"filter": "nosuch=1"})[1]


def test_the_log_has_names_of_fields_only(client: GatewayClient) -> None:
    ask(client, "POST", f"{A}/users?userId=ann", {"role": "user", "displayName": "Planted"})
    refused(client, "POST", f"{A}/users?userId=ann", {"role": "user"})
    log = ask(client, "GET", f"{A}/auditLogs")
    assert [one["status"]["code"] for one in log["auditLogs"][:2]] == ["ALREADY_EXISTS", "OK"]
    assert log["auditLogs"][1]["resource"] == "accounts/local/users/ann"
    assert "Planted" not in json.dumps(log)
    assert "filter" in refused(client, "GET", f"{A}/auditLogs?filter=a")[1]


def test_there_are_no_sessions_to_refresh(client: GatewayClient) -> None:
    status, message = refused(client, "POST", "/v1/auth/refresh", {"refreshToken": "abc"})
    assert (status, "no sessions" in message, "abc" in message) == (401, True, False)
