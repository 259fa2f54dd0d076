"""The families' operations as any HTTP client sees them; every answer is held against the contract."""

import json
import os
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.gateway_kit import A, opened, raw, safetensors, write_rows
from trainer.gateway import job_secrets
from trainer.gateway.client import GatewayClient
from trainer.gateway.contract import load
from trainer.gateway.gateway import Gateway
from trainer.gateway.resources.table import OPERATIONS

JOB = {"dataset": "rows", "baseModel": "base"}
JOBS = f"{A}/supervisedFineTuningJobs"


@pytest.fixture
def both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[GatewayClient, Gateway]]:
    monkeypatch.setenv("TRAINER_HOME", str(tmp_path / "home"))  # without prices of one's own
    with opened(tmp_path / "gateway") as found:
        yield found


@pytest.fixture
def client(both: tuple[GatewayClient, Gateway]) -> GatewayClient:
    return both[0]


def ask(client: GatewayClient, method: str, url: str, body: Any = None, **kwargs: Any) -> dict[str, Any]:
    """The JSON of a good answer, checked by the contract."""
    answer = raw(client, method, url, json=body, **kwargs)
    assert answer.status_code == 200, answer.text
    operation = load().match(method, url.partition("?")[0]).operation
    assert operation.response is not None
    unknown = load().check_answer(operation.response, answer.json())
    assert unknown == [], unknown
    return answer.json()


def refused(client: GatewayClient, method: str, url: str, body: Any = None, **kwargs: Any) -> dict[str, Any]:
    """The google.rpc.Status of a refusal, with its HTTP status as `http`."""
    answer = raw(client, method, url, json=body, **kwargs)
    assert answer.status_code >= 400, answer.text
    status = answer.json()
    assert status["details"][0]["@type"].endswith("google.rpc.ErrorInfo")
    return {**status, "http": answer.status_code, "headers": answer.headers}


def upload(client: GatewayClient, dataset: str, content: bytes, name: str = "rows.jsonl") -> httpx.Response:
    return raw(client, "POST", f"{A}/datasets/{dataset}:upload", files={"file": (name, content)})


def test_every_answer_says_whose_it_is(client: GatewayClient) -> None:
    for url in ("/healthz", "/verifyApiKey", "/v1/nothing", f"{A}/datasets"):
        headers = raw(client, "GET", url, headers={"x-request-id": "my-id"}).headers
        assert headers["x-gateway-trainer"]
        assert headers["x-request-id"] == "my-id"
    assert raw(client, "GET", "/verifyApiKey").headers["x-fireworks-account-id"] == "local"


def test_what_is_not_implemented_says_so(client: GatewayClient) -> None:
    missing = [operation for operation in load().operations.values() if operation.id not in OPERATIONS]
    for operation in missing:
        url = load().url(operation.id, {n.split("}")[0]: "local" for n in operation.path.split("{")[1:]})
        status = refused(client, operation.method, url, {})
        assert (status["http"], status["code"]) == (501, 12)
        assert operation.id in status["message"]
        assert status["details"][0]["metadata"] == {"operation": operation.id}
        assert status["headers"]["x-should-retry"] == "false"  # or the published clients ask three times


def test_other_accounts_pages_and_methods(client: GatewayClient) -> None:
    assert refused(client, "GET", "/v1/accounts/other/datasets")["http"] == 404
    assert refused(client, "PUT", "/v1/accounts")["http"] == 405
    page = {"Host": "evil.example", "Origin": "http://localhost"}
    assert refused(client, "GET", f"{A}/datasets", headers=page)["http"] == 403
    page = {"Origin": "https://evil.example"}
    assert refused(client, "GET", f"{A}/datasets", headers=page)["http"] == 403
    assert refused(client, "POST", f"{A}/datasets", headers={"content-length": str(1 << 30)})["http"] == 413
    assert "not JSON" in raw(client, "POST", f"{A}/datasets", content=b"{").text


def test_accounts(client: GatewayClient) -> None:
    account = ask(client, "GET", A)
    assert (account["name"], account["state"], account["email"]) == ("accounts/local", "READY", "local@localhost")
    assert ask(client, "GET", "/v1/accounts?pageSize=2")["accounts"] == [account]


def test_dataset_by_multipart(client: GatewayClient, tmp_path: Path) -> None:
    body = {"dataset": {"userUploaded": {}, "example_count": 3, "note": "kept"}, "datasetId": "d"}
    created = raw(client, "POST", f"{A}/datasets", json=body).json()
    assert (created["state"], created["exampleCount"], created["note"]) == ("UPLOADING", "3", "kept")
    content = write_rows(tmp_path / "x.jsonl").read_bytes()
    sent = upload(client, "d", content).json()
    assert {key: sent[key] for key in ("id", "object", "bytes", "filename", "purpose")} == {
        "id": "d", "object": "file", "bytes": len(content), "filename": "rows.jsonl", "purpose": "fine-tune",
    }  # fmt: skip
    found = raw(client, "GET", f"{A}/datasets/d").json()
    assert (found["state"], found["format"], found["exampleCount"]) == ("READY", "CHAT", "3")
    assert ask(client, "POST", f"{A}/datasets/d:validateUpload", {}) == {}
    assert refused(client, "POST", f"{A}/datasets", body)["headers"]["x-should-retry"] == "false"
    assert upload(client, "d", content).status_code == 400
    urls = ask(client, "GET", f"{A}/datasets/d:getDownloadEndpoint")["filenameToSignedUrls"]
    assert raw(client, "GET", urls["rows.jsonl"]).content == content
    assert ask(client, "DELETE", f"{A}/datasets/d") == {}
    assert refused(client, "GET", f"{A}/datasets/d")["code"] == 5
    assert raw(client, "GET", urls["rows.jsonl"]).status_code == 404


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b'{"messages":[{"role":"user","content":"q"}]}\n{"messages":[]}\n', "rows.jsonl:2"),
        (b'{"prompt":"a","completion":"b"}\nnot json\n', "rows.jsonl:2"),
        (b'{"prompt":"a","completion":"b"}\n{"text":1}\n', "'text' is int"),
        (b'{"text":"a"}\n{"messages":[{"role":"user","content":"q"}]}\n', "one data set has one format"),
        (b'{"messages":[{"role":"robot","content":"q"}]}\n', "role is 'robot'"),
        (b'{"question":"a"}\n', "'question'"),
        (b"[1]\n", "a row is a JSON object"),
        (b'{"text": NaN}\n', "NaN"),
        (b'{"text": "\xff"}\n', "UTF-8"),
        (b"\n\n", "no rows"),
    ],
)
def test_bad_rows_are_refused_by_line(client: GatewayClient, content: bytes, says: str) -> None:
    ask(client, "POST", f"{A}/datasets", {"dataset": {}, "datasetId": "bad"})
    answer = upload(client, "bad", content)
    assert answer.status_code == 400
    assert says in answer.json()["message"]
    assert raw(client, "GET", f"{A}/datasets/bad").json()["state"] == "UPLOADING"
    good = upload(client, "bad", b'{"text":"mended"}\n', "other.jsonl")
    assert good.status_code == 200, good.text
    assert raw(client, "GET", f"{A}/datasets/bad").json()["exampleCount"] == "1"


def test_dataset_by_signed_url(client: GatewayClient) -> None:
    ask(client, "POST", f"{A}/datasets", {"dataset": {"format": "COMPLETION"}, "datasetId": "s"})
    content = b'{"prompt":"a","completion":"b"}\n'
    sizes = {"filenameToSize": {"a.jsonl": str(len(content)), "b.jsonl": len(content)}}
    urls = ask(client, "POST", f"{A}/datasets/s:getUploadEndpoint", sizes)["filenameToSignedUrls"]
    assert urls["a.jsonl"].startswith("http://embedded/files/accounts/local/datasets/s/a.jsonl?")
    assert refused(client, "PUT", urls["a.jsonl"], content=content[:-1])["http"] == 400
    assert refused(client, "PUT", urls["a.jsonl"], content=content + b"x")["http"] == 400
    wrong = {"X-Goog-Content-Length-Range": "1,2"}
    assert refused(client, "PUT", urls["a.jsonl"], content=content, headers=wrong)["http"] == 400
    bounds = {"X-Goog-Content-Length-Range": f"{len(content)},{len(content)}"}
    assert raw(client, "PUT", urls["a.jsonl"], content=content, headers=bounds).status_code == 200
    status = refused(client, "POST", f"{A}/datasets/s:validateUpload", {})
    assert (status["code"], "b.jsonl" in status["message"]) == (9, True)
    assert raw(client, "PUT", urls["b.jsonl"], content=content).status_code == 200
    assert ask(client, "POST", f"{A}/datasets/s:validateUpload", {}) == {}
    assert ask(client, "GET", f"{A}/datasets/s")["exampleCount"] == "2"
    assert refused(client, "PUT", urls["b.jsonl"], content=content)["code"] == 9


def test_signed_urls_cannot_be_altered_or_used_late(
    both: tuple[GatewayClient, Gateway], monkeypatch: pytest.MonkeyPatch
) -> None:
    client, gateway = both
    ask(client, "POST", f"{A}/datasets", {"dataset": {}, "datasetId": "s"})
    sizes = {"filenameToSize": {"a.jsonl": "5"}}
    url = ask(client, "POST", f"{A}/datasets/s:getUploadEndpoint", sizes)["filenameToSignedUrls"]["a.jsonl"]
    for altered in (url.replace("a.jsonl", "b.jsonl"), url.replace("size=5", "size=6"), url[:-1] + "0", url + "0",
                    url.replace("datasets/s", "datasets/t"), url.partition("?")[0]):  # fmt: skip
        if altered != url:
            assert refused(client, "PUT", altered, content=b"12345")["http"] == 403
    assert refused(client, "GET", url)["http"] == 403
    old = gateway.files.url("PUT", "accounts/local/datasets/s", "a.jsonl", base_url="http://embedded", size=5)
    later = time.time() + 4000
    monkeypatch.setattr("time.time", lambda: later)
    assert "expired" in refused(client, "PUT", old, content=b"12345")["message"]
    assert (gateway.folder / "signing.key").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("name", ["../x", "a/../b", "/etc/passwd", ".hidden", "a//b", "a\\b", "", "x/" * 5 + "y"])
def test_file_names_cannot_leave_their_folder(client: GatewayClient, name: str) -> None:
    ask(client, "POST", f"{A}/datasets", {"dataset": {}, "datasetId": "s"})
    assert refused(client, "POST", f"{A}/datasets/s:getUploadEndpoint", {"filenameToSize": {name: "1"}})["http"] == 400


@pytest.mark.parametrize("name", ["", "Upper", "-a", "a-", "a_b", "x" * 64, "a/b"])
def test_ids_are_checked(client: GatewayClient, name: str) -> None:
    status = refused(client, "POST", f"{A}/datasets", {"dataset": {}, "datasetId": name}) if name else None
    assert status is None or status["details"][0]["metadata"]["field"] == "datasetId"
    if name:
        status = refused(client, "POST", f"{JOBS}?supervisedFineTuningJobId={name}", JOB)
        assert status["details"][0]["metadata"]["field"] == "supervisedFineTuningJobId"


def test_lists(client: GatewayClient) -> None:
    for number in range(5):
        name = f"l-{number}"
        ask(
            client,
            "POST",
            f"{A}/datasets",
            {"dataset": {"displayName": "odd" if number % 2 else "even"}, "datasetId": name},
        )
    url = f"{A}/datasets"
    first = ask(client, "GET", url, params={"pageSize": 2})
    assert (len(first["datasets"]), first["totalSize"]) == (2, 6)
    rest = ask(client, "GET", url, params={"pageSize": 200, "pageToken": first["nextPageToken"]})
    assert (len(rest["datasets"]), rest["nextPageToken"]) == (4, "")
    assert len({one["name"] for one in first["datasets"] + rest["datasets"]}) == 6
    odd = ask(client, "GET", url, params={"filter": 'displayName="odd" AND state=UPLOADING', "orderBy": "name desc"})
    assert [one["name"][-3:] for one in odd["datasets"]] == ["l-3", "l-1"]
    masked = ask(client, "GET", url, params={"filter": "display_name=odd", "readMask": "name,display_name"})
    assert set(masked["datasets"][0]) == {"name", "displayName"}
    assert ask(client, "GET", url, params={"filter": 'name="accounts/local/datasets/l-1"'})["totalSize"] == 1
    assert ask(client, "GET", url, params={"filter": "state%3DREADY"})["totalSize"] == 1
    for params in (
        {"pageSize": -1}, {"pageToken": "zzz"}, {"orderBy": "status"}, {"filter": "state>READY"}, {"filter": "a OR b"},
        {"filter": "nosuch=1"}, {"filter": "state=READY AND"}, {"filter": "state=SHINY"}, {"pageSize": "x"},
        {"pageToken": first["nextPageToken"], "filter": "state=READY"},
    ):  # fmt: skip
        status = refused(client, "GET", url, params=params)
        assert status["http"] == 400, params
        assert next(iter(set(params) - {"filter"} or {"filter"})) in status["message"]


def test_times_are_fixed_width(client: GatewayClient) -> None:
    found = ask(client, "GET", f"{A}/datasets/rows")
    assert len(found["createTime"]) == len("2026-11-22T18:00:00.123456Z") == len(found["updateTime"])


def test_patch(client: GatewayClient) -> None:
    url = f"{A}/datasets/rows"
    assert ask(client, "PATCH", url, {"displayName": "new", "state": "UPLOADING"})["displayName"] == "new"
    assert ask(client, "GET", url)["state"] == "READY"
    given = {"displayName": "other", "sourceJobName": "job"}
    changed = ask(client, "PATCH", f"{url}?updateMask=source_job_name", given)
    assert (changed["displayName"], changed["sourceJobName"]) == ("new", "job")
    assert "displayName" not in ask(client, "PATCH", f"{url}?updateMask=displayName", {})
    assert "updateMask" in refused(client, "PATCH", f"{url}?updateMask=state", {"state": "READY"})["message"]
    assert "format" in refused(client, "PATCH", url, {"format": "RL"})["message"]
    assert refused(client, "PATCH", f"{A}/datasets/none", {})["code"] == 5
    starred = ask(
        client, "PATCH", f"{url}?updateMask=*", {"displayName": "only", "format": "CHAT", "exampleCount": "3"}
    )
    assert (starred["displayName"], starred["state"], "sourceJobName" in starred) == ("only", "READY", False)


def put_model(client: GatewayClient, files: dict[str, bytes], kind: str) -> httpx.Response:
    ask(client, "POST", f"{A}/models", {"modelId": "m", "model": {"kind": kind}})
    sizes = {"filenameToSize": {name: str(len(content)) for name, content in files.items()}}
    urls = ask(client, "POST", f"{A}/models/m:getUploadEndpoint", sizes)["filenameToSignedUrls"]
    for name, content in files.items():
        assert raw(client, "PUT", urls[name], content=content).status_code == 200
    return raw(client, "GET", f"{A}/models/m:validateUpload")


GOOD = safetensors({"a": ("F32", [2], 0, 8), "b": ("BF16", [2, 2], 8, 16)}, 16)
CONFIG = json.dumps({"r": 4, "target_modules": ["v", "q"], "base_model_name_or_path": "tiny"}).encode()


def test_model_upload(client: GatewayClient, tmp_path: Path) -> None:
    files = {"adapter_model.safetensors": GOOD, "adapter_config.json": CONFIG}
    assert (
        put_model(client, files, "HF_PEFT_ADDON")
        .json()["warnings"][0]
        .startswith("adapter_model.safetensors: no tensor")
    )
    found = ask(client, "GET", f"{A}/models/m")
    assert found["peftDetails"] == {"baseModel": "tiny", "r": 4, "targetModules": ["q", "v"]}
    assert (found["state"], found["kind"]) == ("READY", "HF_PEFT_ADDON")
    urls = ask(client, "GET", f"{A}/models/m:getDownloadEndpoint")["filenameToSignedUrls"]
    part = raw(client, "GET", urls["adapter_model.safetensors"], headers={"Range": "bytes=0-7"})
    assert (part.status_code, part.content) == (206, GOOD[:8])
    assert ask(client, "PATCH", f"{A}/models/m", {"description": "mine"})["description"] == "mine"
    assert ask(client, "DELETE", f"{A}/models/m") == {}


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("model.safetensors", b"short", "not a safetensors file"),
        ("model.safetensors", GOOD[:-1], "upload it again"),
        ("model.safetensors", safetensors({"a": ("F32", [2], 0, 8), "b": ("F32", [2], 4, 12)}, 12), "overlap"),
        ("model.safetensors", safetensors({"a": ("F32", [3], 0, 8)}, 8), "does not fill"),
        ("model.safetensors", struct.pack("<Q", 1 << 40) + bytes(100), "not a safetensors file"),
        ("model.safetensors", struct.pack("<Q", 4) + b"nope", "not JSON"),
        ("config.json", b"{", "not JSON"),
        ("notes.txt", b"x", "config.json: missing"),
    ],
)
def test_bad_model_files_are_refused(client: GatewayClient, name: str, content: bytes, says: str) -> None:
    files = {"model.safetensors": GOOD, "config.json": b"{}", name: content}
    if "missing" in says:
        del files["config.json"]
    answer = put_model(client, files, "HF_BASE_MODEL")
    assert answer.status_code == 400
    assert says in answer.json()["message"]
    assert ask(client, "GET", f"{A}/models/m")["state"] == "UPLOADING"


def test_pickles_are_refused_before_they_are_sent(client: GatewayClient) -> None:
    ask(client, "POST", f"{A}/models", {"modelId": "m", "model": {"kind": "HF_BASE_MODEL"}})
    sizes = {"filenameToSize": {"pytorch_model.bin": "1"}}
    assert "safetensors" in refused(client, "POST", f"{A}/models/m:getUploadEndpoint", sizes)["message"]


LISTS = [
    operation.path.replace("{account_id}", account)
    for operation in load().operations.values()
    for account in ("local", "fireworks")
    if operation.method == "GET" and operation.id in OPERATIONS and "readMask" in operation.query
    and operation.path.count("{") == operation.path.count("{account_id}")
]  # fmt: skip


def test_a_mask_of_what_is_no_field_is_refused_by_every_list_and_resource(client: GatewayClient) -> None:
    assert f"{A}/dpoJobs" in LISTS and "/v1/accounts" in LISTS
    shape = "/v1/accounts/fireworks/trainingShapes/tiny"
    single = [f"{A}/datasets/rows", f"{A}/models/base", f"{A}/quotas/gpus", f"{A}/users/local/apiKeys", A,
              shape, f"{shape}/versions", f"{shape}/versions/latest"]  # fmt: skip
    for url in (*LISTS, *single):
        answer = raw(client, "GET", url, params={"readMask": "no_such"})
        assert answer.status_code in ((400,) if "/local" in url or url in single else (400, 404)), (url, answer.text)
        assert "readMask" in answer.text or answer.status_code == 404, url


def test_the_tiny_model_is_there(client: GatewayClient) -> None:
    found = ask(client, "GET", f"{A}/models/tiny")
    assert (found["state"], found["kind"], found["baseModelDetails"]["moe"]) == ("READY", "HF_BASE_MODEL", False)
    assert int(found["baseModelDetails"]["parameterCount"]) > 0
    assert found["contextLength"] > 0
    assert refused(client, "DELETE", f"{A}/models/tiny")["code"] == 9


def test_job_create_and_read(both: tuple[GatewayClient, Gateway], caplog: pytest.LogCaptureFixture) -> None:
    client, gateway = both
    body = {**JOB, "epochs": 2, "extra": {"a": 1}, "wandb_config": {"enabled": True, "api_key": "very-secret"},
            "state": "JOB_STATE_COMPLETED", "metricsFileSignedUrl": "http://mine"}  # fmt: skip
    created = raw(client, "POST", f"{JOBS}?supervisedFineTuningJobId=j", json=body).json()
    assert created["name"] == "accounts/local/supervisedFineTuningJobs/j"
    assert created["state"] == "JOB_STATE_CREATING"
    assert created["dataset"] == "accounts/local/datasets/rows"
    assert created["baseModel"] == "accounts/local/models/base"
    assert created["outputModel"] == "accounts/local/models/j"
    assert (created["extra"], created["wandbConfig"]) == ({"a": 1}, {"enabled": True})
    assert "metricsFileSignedUrl" not in created
    assert raw(client, "GET", f"{JOBS}/j").json() == created
    assert "very-secret" not in raw(client, "GET", JOBS).text + caplog.text
    job = gateway.store.get(created["name"])
    assert job_secrets.environment(gateway, job) == {"WANDB_API_KEY": "very-secret"}
    status = refused(client, "POST", f"{JOBS}?supervisedFineTuningJobId=j", body)
    assert (status["http"], status["code"], status["headers"]["x-should-retry"]) == (409, 6, "false")
    named = ask(client, "POST", JOBS, {**JOB, "baseModel": "accounts/local/models/base"})
    assert named["name"].rsplit("/", 1)[-1] in named["outputModel"]
    same_base = raw(client, "GET", f"{JOBS}?filter=baseModel%3D%22accounts/local/models/base%22").json()
    assert same_base["totalSize"] == 2
    assert refused(client, "DELETE", f"{A}/datasets/rows")["code"] == 9
    assert refused(client, "DELETE", f"{A}/models/base")["code"] == 9


def test_the_keys_of_a_job_are_in_no_file_in_clear(both: tuple[GatewayClient, Gateway]) -> None:
    client, gateway = both
    body = {**JOB, "wandbConfig": {"enabled": True, "apiKey": "very-secret"}}
    answers = [raw(client, "POST", JOBS, json=body, headers={"idempotency-key": "once"}) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert answers[1].headers["idempotent-replayed"] == "true"  # it has been kept, too
    kept = [path.read_bytes() for path in gateway.folder.rglob("*") if path.is_file()]
    assert any(b"WANDB_API_KEY" in content for content in kept)
    assert not any(b"very-secret" in content for content in kept)


@pytest.mark.parametrize(
    ("change", "code", "says"),
    [
        ({"dataset": "none"}, 5, "dataset: accounts/local/datasets/none not found"),
        ({"dataset": "half"}, 9, "state UPLOADING"),
        ({"baseModel": "none"}, 5, "models that are here: tiny, base"),
        ({"baseModel": "accounts/local/datasets/rows"}, 3, "baseModel"),
        ({"dataset": "Not An Id"}, 3, "dataset"),
        ({"epochs": -1}, 3, "epochs"),
        ({"learningRate": -1.0}, 3, "learningRate"),
        ({"warmStartFrom": "x"}, 3, "baseModel and warmStartFrom exclude"),
        ({"baseModel": ""}, 3, "baseModel: name the model"),
        ({"isTurbo": True}, 3, "isTurbo"),
        ({"earlyStop": True}, 3, "evaluationDataset or evalAutoCarveout"),
        ({"outputModel": "UPPER"}, 3, "outputModel"),
        ({"outputModel": "base"}, 6, "outputModel: accounts/local/models/base already exists"),
        ({"evaluationDataset": "none"}, 5, "evaluationDataset"),
        ({"baseModel": None, "warmStartFrom": "base"}, 3, "name it as baseModel"),
    ],
)
def test_job_create_refuses(client: GatewayClient, change: dict[str, Any], code: int, says: str) -> None:
    ask(client, "POST", f"{A}/datasets", {"dataset": {}, "datasetId": "half"})
    status = refused(client, "POST", JOBS, {**JOB, **change})
    assert (status["code"], says in status["message"]) == (code, True), status["message"]


def test_estimate_cost(client: GatewayClient) -> None:
    cost = ask(client, "POST", f"{JOBS}:estimateCost", {**JOB, "epochs": 3})["estimatedCost"]
    assert cost == {"currencyCode": "USD", "units": "0", "nanos": 0}
    assert refused(client, "POST", f"{JOBS}:estimateCost", {"dataset": "none", "baseModel": "base"})["code"] == 5


def test_the_cost_follows_the_price_file(
    client: GatewayClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = int(ask(client, "GET", f"{A}/datasets/rows")["estimatedTokenCount"])
    assert tokens > 0
    monkeypatch.setenv("TRAINER_HOME", str(tmp_path))
    # The base model has two parameters: the first class that takes it counts.
    for classes, price in (([(1, 1.0), (2, 2_500_000.0), (None, 9.0)], 2.5), ([(1, 1.0), (None, 500_000.0)], 0.5)):
        listed = [{"up_to_parameters": size, "price": of_a_million} for size, of_a_million in classes]
        (tmp_path / "prices.json").write_text(json.dumps({"currency": "EUR", "per_million_tokens": listed}))
        for epochs in (1, 3):
            cost = ask(client, "POST", f"{JOBS}:estimateCost", {**JOB, "epochs": epochs})["estimatedCost"]
            assert cost["currencyCode"] == "EUR"
            assert int(cost["units"]) + cost["nanos"] / 1e9 == tokens * epochs * price
        created = ask(client, "POST", JOBS, {**JOB, "epochs": 2, "displayName": str(price)})
        assert int(created["estimatedCost"]["units"]) + created["estimatedCost"]["nanos"] / 1e9 == tokens * 2 * price


def test_a_waiting_job_is_cancelled_resumed_and_deleted_at_once(client: GatewayClient) -> None:
    ask(client, "POST", f"{JOBS}?supervisedFineTuningJobId=j", JOB)
    assert refused(client, "POST", f"{JOBS}/j:resume", {})["code"] == 9
    assert ask(client, "POST", f"{JOBS}/j:cancel", {}) == {}
    cancelled = ask(client, "GET", f"{JOBS}/j")
    assert (cancelled["state"], "completedTime" in cancelled) == ("JOB_STATE_CANCELLED", True)
    assert (
        "cannot cancel job in state: JOB_STATE_CANCELLED" in refused(client, "POST", f"{JOBS}/j:cancel", {})["message"]
    )
    assert ask(client, "POST", f"{JOBS}/j:resume", {})["state"] == "JOB_STATE_PENDING"
    assert "completedTime" not in ask(client, "GET", f"{JOBS}/j")
    assert ask(client, "DELETE", f"{JOBS}/j") == {}
    assert refused(client, "POST", f"{JOBS}/j:cancel", {})["code"] == 5


def report(client: GatewayClient, *events: tuple[int, str, dict[str, Any]], job: str = "run") -> dict[str, Any]:
    body = {"job": {"dataset": "a.jsonl", "baseModel": "org/base", "outputModel": "out"},
            "events": [{"seq": seq, "kind": kind, "body": body, "time": ""} for seq, kind, body in events]}  # fmt: skip
    return ask(client, "POST", f"{JOBS}/{job}:report", body)


def test_reports_apply_once_and_in_order(both: tuple[GatewayClient, Gateway]) -> None:
    client, gateway = both
    state = {"state": "JOB_STATE_RUNNING"}
    assert report(client, (1, "state", state), (2, "metrics", {"step": 1}), (3, "log", {"line": "x"})) == {
        "ackedSeq": 3
    }
    assert report(client, (2, "metrics", {"step": 1}), (4, "metrics", {"step": 2})) == {"ackedSeq": 4}
    name = "accounts/local/supervisedFineTuningJobs/run"
    metrics = gateway.files.path(name, "metrics.jsonl")
    assert metrics.read_text() == '{"step": 1}\n{"step": 2}\n'
    with metrics.open("a") as stream:  # a crash between the file and the commit
        stream.write('{"step": 99}\n')
    report(client, (5, "metrics", {"step": 3}))
    assert metrics.read_text() == '{"step": 1}\n{"step": 2}\n{"step": 3}\n'
    report(client, (6, "state", {"state": "JOB_STATE_VALIDATING"}), (7, "metrics", {"step": 3, "again": 1}))
    assert metrics.read_text() == '{"step": 1}\n{"step": 2}\n{"step": 3, "again": 1}\n'
    bad = {
        "events": [
            {"seq": 8, "kind": "log", "body": {"line": "y"}},
            {"seq": 9, "kind": "state", "body": {"state": "X"}},
        ]
    }
    status = refused(client, "POST", f"{JOBS}/run:report", bad)
    assert status["details"][0]["metadata"] == {"seq": "9"}
    assert report(client) == {"ackedSeq": 7}
    assert refused(client, "POST", f"{JOBS}/none:report", {"events": []})["code"] == 5
    ask(client, "POST", f"{JOBS}?supervisedFineTuningJobId=ours", JOB)
    assert refused(client, "POST", f"{JOBS}/ours:report", {"events": []})["code"] == 9


def test_an_end_is_left_only_by_resuming(client: GatewayClient) -> None:
    report(client, (1, "state", {"state": "JOB_STATE_COMPLETED", "message": "done"}))
    report(client, (2, "state", {"state": "JOB_STATE_RUNNING"}))
    assert ask(client, "GET", f"{JOBS}/run")["state"] == "JOB_STATE_COMPLETED"
    failed = {"state": "JOB_STATE_FAILED", "code": "INTERNAL", "message": "boom"}
    report(client, (1, "state", failed), job="other")
    assert ask(client, "GET", f"{JOBS}/other")["status"] == {"code": "INTERNAL", "message": "boom"}
    report(client, (2, "state", {"state": "JOB_STATE_VALIDATING"}), job="other")
    assert ask(client, "GET", f"{JOBS}/other")["state"] == "JOB_STATE_VALIDATING"


def test_a_reported_model_is_filled_by_upload(client: GatewayClient) -> None:
    details = {"baseModel": "org/base", "r": 4, "targetModules": ["q"]}
    report(client, (1, "model", {"id": "out", "kind": "HF_PEFT_ADDON", "path": "/x", "peftDetails": details}))
    found = ask(client, "GET", f"{A}/models/out")
    assert (found["state"], found["fineTuningJob"]) == ("UPLOADING", "accounts/local/supervisedFineTuningJobs/run")
    files = {"adapter_model.safetensors": GOOD, "adapter_config.json": CONFIG}
    sizes = {"filenameToSize": {name: len(content) for name, content in files.items()}}
    urls = ask(client, "POST", f"{A}/models/out:getUploadEndpoint", sizes)["filenameToSignedUrls"]
    for name, content in files.items():
        raw(client, "PUT", urls[name], content=content)
    assert ask(client, "GET", f"{A}/models/out:validateUpload")["warnings"][0].startswith(
        "adapter_model.safetensors: no tensor"
    )
    assert ask(client, "GET", f"{A}/models/out")["peftDetails"] == details


def test_promotion_is_refused_for_what_is_not_ours(client: GatewayClient, tmp_path: Path) -> None:
    outside = tmp_path.parent / f"outside-{os.getpid()}"
    kinds = {
        "good": ["CHECKPOINT_TYPE_TRAINING_LORA", "CHECKPOINT_TYPE_INFERENCE_LORA"],
        "bad": ["CHECKPOINT_TYPE_TRAINING"],
    }
    for seq, (name, types) in enumerate(kinds.items(), start=1):
        body = {"id": name, "step": seq, "types": types, "promotable": name == "good", "path": str(outside)}
        report(client, (seq, "checkpoint", body))
    rows = ask(client, "GET", f"{JOBS}/run/checkpoints")["checkpoints"]
    assert [(row["checkpointType"][16:], row["promotable"]) for row in rows] == [
        ("INFERENCE_LORA", True),
        ("TRAINING", False),
    ]
    url = f"{JOBS}/run/checkpoints"
    assert refused(client, "POST", f"{url}/bad:promote", {"outputModel": "p"})["code"] == 9
    assert refused(client, "POST", f"{url}/good:promote", {"outputModel": "p"})["code"] == 7
    assert "bad" in refused(client, "POST", f"{url}/none:promote", {"outputModel": "p"})["message"]
    assert refused(client, "POST", f"{url}/good:promote", {"outputModel": "base"})["code"] == 6
    body = {
        "output_model": "accounts/local/models/p",
        "trainer_job_id": "run",
        "base_model": "accounts/local/models/base",
    }
    assert refused(client, "POST", f"{A}/checkpoints/good:promote", body)["code"] == 7
