"""Nothing is accepted and ignored in silence: what the contract does not know is named, what is no use is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.family_kit import ask, refused
from tests.gateway_kit import A, end_workers, make_scheduler, opened, raw
from tests.unit.test_gateway_family_jobs import placed
from trainer.gateway.client import GatewayClient
from trainer.gateway.contract import Operation, load
from trainer.gateway.gateway import Gateway
from trainer.gateway.resources.table import OPERATIONS
from trainer.gateway.unhonoured import UNHONOURED
from trainer.gateway.unknown import HEADER, header

JOBS = f"{A}/supervisedFineTuningJobs"
JOB = {"dataset": "rows", "baseModel": "base"}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[GatewayClient, Gateway]]:
    """One of everything that a path can name."""
    with opened(tmp_path_factory.mktemp("unknown") / "gateway") as (client, gateway):
        for collection in ("supervisedFineTuningJobs", "dpoJobs", "reinforcementFineTuningJobs", "rlorTrainerJobs",
                           "trainingSessionJobs", "evaluationJobs", "batchInferenceJobs"):  # fmt: skip
            placed(gateway, collection, "RUNNING")
        ask(client, "POST", f"{A}/trainingSessionJobs/j/trainingSessions?trainingSessionId=s", {})
        ask(client, "POST", f"{A}/secrets", {"keyName": "K", "name": "k", "value": "v"})
        ask(client, "POST", f"{A}/trainingShapes?trainingShapeId=t", {"baseModel": "base", "trainerImageTag": "t"})
        snippets = {"language": "python", "fileContents": {"main.py": "def evaluate(**k):\n    return 1.0"}}
        criterion = {"type": "CODE_SNIPPETS", "name": "c", "codeSnippets": {**snippets, "entryFile": "main.py"}}
        evaluator = {"displayName": "e", "criteria": [criterion]}
        ask(client, "POST", f"{A}/evaluators", {"evaluatorId": "e", "evaluator": evaluator})
        yield client, gateway


@pytest.fixture
def client(world: tuple[GatewayClient, Gateway]) -> GatewayClient:
    return world[0]


def log_of(client: GatewayClient, url: str) -> list[dict[str, Any]]:
    text = raw(client, "GET", ask_loosely(client, "GET", url, None)["trainerLogsSignedUrl"]).text
    return [json.loads(line) for line in text.splitlines() if "unknownFields" in line]


def test_every_answer_names_what_the_contract_does_not_know(client: GatewayClient) -> None:
    body = {"datasetId": "odd", "dataset": {"displayName": "d", "newer": 1}, "more": {"x": 2}}
    made = raw(client, "POST", f"{A}/datasets?wish=1&some_thing=2", json=body)
    assert made.status_code == 200, made.text
    assert sorted(made.headers[HEADER].split(", ")) == ["?some_thing", "?wish", "dataset.newer", "more"]
    assert made.json()["newer"] == 1
    assert HEADER not in raw(client, "GET", f"{A}/datasets/odd").headers
    # A patch's updateMask is not in the contract, and is read.
    patched = raw(client, "PATCH", f"{A}/datasets/odd?updateMask=displayName&hint=é%0d", json={"displayName": "e"})
    assert (patched.status_code, patched.headers[HEADER]) == (200, "?hint")
    many = raw(client, "GET", f"{A}/datasets?" + "&".join(f"p{n}=1" for n in range(30)))
    assert many.headers[HEADER].endswith("?p19, and 10 more")
    strange = raw(client, "GET", f"{A}/datasets", params={"a b\r\nx-evil: é": "1"})
    assert strange.headers[HEADER] == "?a%20b%0D%0Ax-evil%3A%20%C3%A9"


@pytest.mark.parametrize(
    ("paths", "value"),
    [(["a", ""], 'a, ""'), (["", "a"], '"", a'), ([" "], "%20"), (["ä\n"], "%C3%A4%0A"), (["x[].y"], "x[].y")],
)
def test_a_name_is_legal_in_a_header_whatever_it_is(paths: list[str], value: str) -> None:
    assert header(paths) == {HEADER: value}


def test_a_jobs_log_names_it_once(tmp_path: Path) -> None:
    with opened(tmp_path / "gateway") as (client, gateway):
        url = f"{JOBS}/odd"
        made = ask_loosely(client, "POST", f"{JOBS}?supervisedFineTuningJobId=odd&skipValidations=true",
                           {**JOB, "displayName": "slow", "managedBy": "me",
                            "wandbConfig": {"mood": "good"}})  # fmt: skip
        assert (made["managedBy"], made["wandbConfig"]) == ("me", {"mood": "good"})
        scheduler = make_scheduler(gateway)
        try:
            for _ in range(3):
                scheduler.tick()
            (first,) = log_of(client, url)
        finally:
            scheduler.stop()
            end_workers()
        assert first["unknownFields"] == ["?skipValidations", "managedBy", "wandbConfig.mood"]
        for _ in range(2):
            raw(client, "POST", f"{url}:cancel?reason=why", json={"because": 1})
        assert [line["unknownFields"] for line in log_of(client, url)[1:]] == [["because", "?reason"]]


def ask_loosely(client: GatewayClient, method: str, url: str, body: Any) -> dict[str, Any]:
    answer = raw(client, method, url, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_patch_s_fields_are_kept_and_named(tmp_path: Path) -> None:
    with opened(tmp_path / "gateway") as (client, gateway):
        url = f"{A}/reinforcementFineTuningJobs/j"
        placed(gateway, "reinforcementFineTuningJobs", "PENDING")
        changed = ask_loosely(client, "PATCH", url, {"displayName": "mine", "newer": {"x": 1}})
        assert (changed["displayName"], changed["newer"]) == ("mine", {"x": 1})
        assert ask_loosely(client, "GET", url, None)["newer"] == {"x": 1}
        assert "nosuch" in refused(client, "PATCH", f"{url}?updateMask=nosuch", {"nosuch": 1})[1]
        job = gateway.store.get("accounts/local/reinforcementFineTuningJobs/j")
        assert job.private["unknown"] == ["newer"]  # for the log, which begins with the first attempt


def test_a_reports_fields_are_kept_and_named(tmp_path: Path) -> None:
    with opened(tmp_path / "gateway") as (client, _):
        url = f"{JOBS}/told"
        body = {"job": {**JOB, "managedBy": "me"}, "events": [], "mood": "good"}
        told = raw(client, "POST", f"{url}:report?hint=1", json=body)
        assert (told.status_code, told.headers[HEADER]) == (200, "job.managedBy, mood, ?hint")
        assert ask_loosely(client, "GET", url, None)["managedBy"] == "me"
        event = {"seq": 1, "kind": "log", "body": {"line": "hello"}}
        again = raw(client, "POST", f"{url}:report", json={"events": [event], "mood": "bad", "late": 1})
        assert again.json() == {"ackedSeq": 1}
        found = [line["unknownFields"] for line in log_of(client, url)]
        assert found == [["job.managedBy", "mood", "?hint"], ["late"]]
        text = raw(client, "GET", ask_loosely(client, "GET", url, None)["trainerLogsSignedUrl"]).text
        assert "hello\n" in text


IDS = {
    "account_id": "local", "dataset_id": "rows", "model_id": "base", "user_id": "local", "secret_id": "k",
    "quota_id": "gpus", "evaluator_id": "e", "training_session_id": "s", "training_shape_id": "t", "version_id": "v1",
}  # fmt: skip


def url_of(operation: Operation) -> str:
    path = operation.path
    for name in (part.split("}")[0] for part in operation.path.split("{")[1:]):
        path = path.replace(f"{{{name}}}", IDS.get(name, "j"))
    return path


GARBAGE = {"pageSize": "-1", "pageToken": "%%", "filter": "nosuch=1", "orderBy": "nosuch", "readMask": "nosuch"}
READS = sorted(
    (name, parameter)
    for name, operation in load().operations.items()
    if name in OPERATIONS and operation.method == "GET"
    for parameter in operation.query
    if parameter in GARBAGE and name not in ("Gateway_GetEvaluation", "Trainer_GetOperation")
)


@pytest.mark.parametrize(("name", "parameter"), READS)
def test_every_reads_parameters_are_read(client: GatewayClient, name: str, parameter: str) -> None:
    """What makes no sense is refused by its name, so it has been looked at: every read, each of its parameters."""
    operation = load().operations[name]
    status, message = refused(client, "GET", url_of(operation), params={parameter: GARBAGE[parameter]})
    assert (status, parameter in message) == (400, True), message


VERBS = sorted(
    name
    for name, operation in load().operations.items()
    if name in OPERATIONS and operation.method == "POST" and operation.body
    and "readMask" in load().schema(operation.body).get("properties", {})
)  # fmt: skip


@pytest.mark.parametrize("name", VERBS)
def test_a_verbs_mask_is_read_before_anything_is_done(client: GatewayClient, name: str) -> None:
    operation = load().operations[name]
    body = {"filenameToSize": {"x": "1"}, "precision": "BF16", "readMask": "nosuch"}
    fields = load().schema(operation.body or {})["properties"]
    given = {key: value for key, value in body.items() if key in fields}
    status, message = refused(client, "POST", url_of(operation), given)
    assert (status, "readMask" in message) == (400, True), message


def test_masks_of_verbs(client: GatewayClient) -> None:
    ask(client, "POST", f"{A}/datasets", {"datasetId": "masked", "dataset": {}})
    url = f"{A}/datasets/masked:getUploadEndpoint"
    whole = ask(client, "POST", url, {"filenameToSize": {"x.jsonl": "1"}, "readMask": "filename_to_signed_urls"})
    assert list(whole) == ["filenameToSignedUrls"]
    assert ask(client, "GET", f"{A}/datasets/rows:getDownloadEndpoint?readMask=*")["filenameToSignedUrls"]


# Parameters of verbs that handlers read, and what shows it; every other is in a table that a test holds.
READ = {
    "Gateway_ListAuditLogs": {"startTime", "endTime", "email"},
    "Gateway_GetDatasetDownloadEndpoint": {"downloadLineage"},
    "Gateway_ValidateModelUpload": {"configOnly"},
    "Gateway_UpdateEvaluator": {"prepareCodeUpload"},
    "Gateway_UpdateQuota": {"allowMissing"},  # a quota that something enforces is always there; no other is made
    "Gateway_CreateModelVersion": {"versionId"},
    "Gateway_CreateRlorTrainerJob": {"trainingShape"},  # refused whole until there is a worker
}


def test_every_other_parameter_is_read_or_refused() -> None:
    """The contract's query parameters, less those above and the ids of creates: each is somebody's."""
    for name, operation in load().operations.items():
        if name in OPERATIONS:
            own = set(operation.query) - GARBAGE.keys() - {operation.id_param}
            assert own == READ.get(name, set()) - {operation.id_param} | (UNHONOURED.get(name, {}).keys() & own), name


def test_what_cannot_be_honoured_is_refused(client: GatewayClient) -> None:
    for query in ("trustRemoteCode=true", "skip_hf_config_validation=true"):
        assert refused(client, "GET", f"{A}/models/base:validateUpload?{query}")[0] == 501
    assert ask(client, "GET", f"{A}/models/base:validateUpload?trustRemoteCode=false") == {"warnings": []}
    body = {"outputModel": "m", "trainerJobId": "j", "baseModel": "base", "hotLoadDeploymentId": "d"}
    assert "hotLoadDeploymentId" in refused(client, "POST", f"{A}/checkpoints/c:promote", body)[1]
    split = f"{A}/datasets/rows:splitDataset"
    assert "parent" in refused(client, "POST", split, {"chunkSize": 200, "parent": "accounts/other"})[1]
    assert ask(client, "POST", split, {"chunkSize": 200, "parent": "accounts/local"})
