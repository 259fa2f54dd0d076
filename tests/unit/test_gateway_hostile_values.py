"""Values that are at, or beyond, a limit: each gets an answer of its own, and none is taken in silence."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.gateway_kit import A, opened, raw
from trainer.gateway import fetching
from trainer.gateway.client import GatewayClient
from trainer.gateway.errors import GatewayError
from trainer.gateway.filter_json import meets
from trainer.gateway.filters import parse
from trainer.gateway.limits import read_json
from trainer.gateway.listing import masked

JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayClient]:
    with opened(tmp_path_factory.mktemp("values") / "gateway") as (client, _):
        yield client


def post(client: GatewayClient, text: str, path: str = f"{A}/datasets", **headers: str) -> httpx.Response:
    return raw(client, "POST", path, content=text.encode(), headers={**JSON, **headers})


def told(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json().get("message", "")


def forged(values: list[Any], *, order: str) -> str:
    """A page token as a client that has read the source could make it."""
    text = json.dumps(["datasets", "accounts/local", "", order])
    token = [hashlib.sha256(text.encode()).hexdigest()[:16], *values]
    return base64.urlsafe_b64encode(json.dumps(token).encode()).decode().rstrip("=")


@pytest.mark.parametrize("value", [2**63, -(2**63) - 1, 10**30, True, 1.5])
def test_forged_page_tokens(client: GatewayClient, value: Any) -> None:
    query = {"orderBy": "exampleCount", "pageToken": forged([value, "x"], order="exampleCount")}
    status, message = told(raw(client, "GET", f"{A}/datasets", params=query))
    assert (status, message.split(":")[0]) == (400, "pageToken")


def test_a_token_within_the_limits_is_taken(client: GatewayClient) -> None:
    for value in (2**63 - 1, 0, -(2**63)):
        query = {"orderBy": "exampleCount", "pageToken": forged([value, ""], order="exampleCount")}
        assert raw(client, "GET", f"{A}/datasets", params=query).status_code == 200


def test_a_token_is_for_its_own_list(client: GatewayClient) -> None:
    quota = raw(client, "GET", f"{A}/quotas", params={"pageSize": 1}).json()["nextPageToken"]
    assert raw(client, "GET", f"{A}/quotas", params={"pageToken": quota}).status_code == 200
    answer = raw(client, "GET", f"{A}/users/local/apiKeys", params={"pageToken": quota})
    assert told(answer) == (400, "pageToken: belongs to another list; start again without it")


def test_what_is_given_twice_is_refused(client: GatewayClient) -> None:
    for query in ("pageSize=1&pageSize=2", "pageSize=1&page_size=1"):
        status, message = told(raw(client, "GET", f"{A}/datasets?{query}"))
        assert (status, message.partition(": ")[2]) == (400, "given twice; give it once")
    for inner, where in (
        ('"displayName":"a","displayName":"b"', "'displayName'"), ('"displayName":"a","display_name":"b"', "dataset"),
        ('"x":[{"y":1,"y":2}]', "'y'"),
    ):  # fmt: skip
        status, message = told(post(client, f'{{"datasetId":"twice","dataset":{{{inner}}}}}'))
        assert status == 400
        assert "twice" in message
        assert where in message
    assert raw(client, "GET", f"{A}/datasets/twice").status_code == 404


def test_a_body_is_json_in_utf8(client: GatewayClient) -> None:
    text = '{"datasetId":"u16","dataset":{}}'
    answer = raw(client, "POST", f"{A}/datasets", content=text.encode("utf-16"), headers=JSON)
    assert told(answer) == (400, "the body is not JSON: byte 0, 0xff, is not UTF-8")
    assert raw(client, "POST", f"{A}/datasets", content=b"\xef\xbb\xbf" + text.encode(), headers=JSON).is_success
    kind = "multipart/form-data; boundary=x"
    answer = raw(client, "POST", f"{A}/datasets", content=text.encode(), headers={"content-type": kind})
    assert answer.status_code == 415
    assert "Gateway_CreateDataset takes application/json" in answer.json()["message"]
    with pytest.raises(GatewayError, match="a number of 5000 digits; at most 1000 are read"):
        read_json(b"9" * 5000)


def test_digits_are_ascii(client: GatewayClient) -> None:
    assert raw(client, "GET", f"{A}/datasets", params={"pageSize": "٣"}).status_code == 400
    assert post(client, '{"datasetId":"arabic","dataset":{"exampleCount":"٥"}}').status_code == 400


def patch(client: GatewayClient, mask: str, body: dict[str, Any], name: str = "p") -> httpx.Response:
    return raw(client, "PATCH", f"{A}/datasets/{name}", params={"updateMask": mask} if mask else {}, json=body)


def test_masks_that_name_a_field_and_its_part(client: GatewayClient) -> None:
    source = {"evaluationResult": {"evaluationJobId": "e"}}
    assert post(client, json.dumps({"datasetId": "p", "dataset": source})).is_success
    both = "evaluationResult,evaluationResult.evaluationJobId"
    assert patch(client, both, {}).status_code == 200
    changed = patch(client, "evaluationResult.evaluationJobId", {"evaluationResult": {"evaluationJobId": "f"}})
    assert changed.json()["evaluationResult"] == {"evaluationJobId": "f"}


def test_a_whole_replacement_leaves_what_cannot_change(client: GatewayClient) -> None:
    given = {"displayName": "x", "format": "CHAT"}
    assert post(client, json.dumps({"datasetId": "star", "dataset": given})).is_success
    found = patch(client, "*", {"displayName": "y"}, "star").json()
    assert (found["displayName"], found["format"]) == ("y", "CHAT")
    status, message = told(patch(client, "*", {"format": "RL"}, "star"))
    assert (status, message.split(":")[0]) == (400, "format")


def test_a_data_set_has_one_source(client: GatewayClient) -> None:
    text = '{"datasetId":"one","dataset":{"userUploaded":{},"splitted":{"sourceDatasetId":"x"}}}'
    status, message = told(post(client, text))
    assert (status, message.split(";")[0]) == (400, "dataset.splitted: excludes dataset.userUploaded")
    assert post(client, '{"datasetId":"one","dataset":{}}').is_success
    status, message = told(patch(client, "", {"splitted": {"sourceDatasetId": "x"}}, "one"))
    assert (status, message.split(";")[0]) == (400, "splitted: excludes userUploaded")
    assert "splitted" not in raw(client, "GET", f"{A}/datasets/one").json()


def test_a_patch_checks_a_url_as_a_create_does(client: GatewayClient) -> None:
    assert post(client, '{"datasetId":"far","dataset":{}}').is_success
    for url in ("http://169.254.169.254/", "http://127.0.0.1/x", "file:///etc/passwd", "http://[::ffff:10.0.0.1]/"):
        status, message = told(patch(client, "externalUrl", {"externalUrl": url}, "far"))
        assert (status, message.split(":")[0]) == (400, "externalUrl")
    assert "externalUrl" not in raw(client, "GET", f"{A}/datasets/far").json()
    assert patch(client, "", {"externalUrl": "s3://bucket/key"}, "far").status_code == 200
    ready = told(patch(client, "", {"externalUrl": "s3://bucket/key"}, "rows"))
    assert (ready[0], "READY" in ready[1]) == (400, True)


def test_a_host_is_not_looked_up_while_others_wait_to_write(
    client: GatewayClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with opened(tmp_path / "gateway") as (here, gateway):
        held = []

        def resolve(_host: str, _port: int) -> list[str]:
            held.append(getattr(gateway.store._held, "transaction", None))
            return ["93.184.216.34"]

        monkeypatch.setattr(fetching.Fetcher.__init__, "__kwdefaults__", {"resolver": resolve, "transport": None})
        made = {"datasetId": "far", "dataset": {"externalUrl": "https://example.org/x"}}
        for key in ({}, {"idempotency-key": "k"}):
            answer = raw(here, "POST", f"{A}/datasets", json=made, headers=key)
            assert answer.is_success or answer.status_code == 409
        changed = raw(here, "PATCH", f"{A}/datasets/far", json={"externalUrl": "https://example.org/y"})
        assert changed.status_code == 200, changed.text
        assert held == [None, None, None]


def test_filters_on_rows_with_numbers_beyond_a_double() -> None:
    row = {"n": 10**400}
    assert meets(row, parse("n > 1"))  # type: ignore[arg-type]
    assert not meets(row, parse("n < 1.5"))  # type: ignore[arg-type]
    assert meets(row, parse(f"n = 1{'0' * 400}"))  # type: ignore[arg-type]
    with pytest.raises(GatewayError, match="n is a number, got 'x'"):
        meets(row, parse("n = x"))  # type: ignore[arg-type]


def test_a_read_mask_takes_the_keys_of_maps_as_they_are() -> None:
    value = {"name": "a", "metrics": {"my_score": 1.0, "other": 2.0}, "displayName": "x"}
    found = {"name": "a", "metrics": {"my_score": 1.0}, "displayName": "x"}
    assert masked(value, "metrics.my_score,display_name") == found


def test_texts_are_as_long_as_the_contract_says(client: GatewayClient) -> None:
    for field, longest in (("displayName", 63), ("description", 999)):
        given = {"kind": "HF_BASE_MODEL", field: "é" * (longest + 1)}
        model = {"modelId": f"long-{longest}", "model": given}
        status, message = told(raw(client, "POST", f"{A}/models", json=model))
        assert (status, message) == (400, f"model.{field}: longer than {longest} characters ({longest + 1})")
        given[field] = "é" * longest
        assert raw(client, "POST", f"{A}/models", json=model).is_success
        answer = raw(client, "PATCH", f"{A}/models/long-{longest}", json={field: "x" * (longest + 1)})
        assert (answer.status_code, answer.json()["details"][0]["metadata"]["field"]) == (400, field)


def test_a_key_under_a_wrong_name_is_not_kept(client: GatewayClient) -> None:
    for name in ("apikey", "APIKEY", "key", "api-key", "wandb_api_key", "token"):
        job = {"dataset": "rows", "baseModel": "base", "wandbConfig": {"enabled": True, name: "planted"}}
        answer = raw(client, "POST", f"{A}/supervisedFineTuningJobs", json=job)
        assert (answer.status_code, answer.json()["message"].split(":")[0].lower()[:12]) == (400, "wandbconfig."), name
        assert "planted" not in answer.text
    job = {"dataset": "rows", "baseModel": "base", "wandb_config": {"enabled": True, "api_key": "planted", "newer": 1}}
    made = raw(client, "POST", f"{A}/supervisedFineTuningJobs", json=job)
    assert made.json()["wandbConfig"] == {"enabled": True, "newer": 1}


def test_methods_that_are_not_there(client: GatewayClient) -> None:
    answer = raw(client, "PUT", f"{A}/datasets")
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, POST")
    for path in (f"{A}/datasets", f"{A}/datasets/rows", "/healthz"):
        answer = raw(client, "HEAD", path)
        assert (answer.status_code, answer.content) == (200, b"")
    assert raw(client, "HEAD", f"{A}/datasets/none").status_code == 404
    assert raw(client, "HEAD", f"{A}/datasets/rows:upload").status_code == 405
