"""Requests that are asked twice are done once, and answered alike."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.gateway_kit import A, opened, raw
from trainer.gateway import idempotency
from trainer.gateway.client import GatewayClient

JOBS = f"{A}/supervisedFineTuningJobs"
JOB = {"dataset": "rows", "baseModel": "base"}
DATASET = {"datasetId": "once", "dataset": {"displayName": "one"}}


def post(client: GatewayClient, url: str, body: Any, **headers: str) -> httpx.Response:
    return raw(client, "POST", url, json=body, headers={key.replace("_", "-"): value for key, value in headers.items()})


def count(client: GatewayClient, url: str = JOBS) -> int:
    return raw(client, "GET", url).json()["totalSize"]


def test_a_key_stands_for_one_change_also_after_a_restart(tmp_path: Path) -> None:
    with opened(tmp_path / "gateway") as (client, _):
        first = post(client, JOBS, JOB, idempotency_key="k-1")
        again = post(client, JOBS, JOB, idempotency_key="k-1")
        assert (first.status_code, again.status_code) == (200, 200)
        assert first.content == again.content
        assert "idempotent-replayed" not in first.headers
        assert again.headers["idempotent-replayed"] == "true"
        other = post(client, JOBS, {**JOB, "epochs": 2}, idempotency_key="k-1")
        assert (other.status_code, other.json()["code"]) == (422, 3)
        assert other.json()["details"][0]["reason"] == "IDEMPOTENCY_KEY_REUSED"
        elsewhere = post(client, f"{A}/datasets", DATASET, idempotency_key="k-1")
        assert elsewhere.status_code == 422
        assert post(client, JOBS, JOB, idempotency_key="k-2").json()["name"] != first.json()["name"]
        assert post(client, JOBS, JOB, idempotency_key="k" * 256).status_code == 400
        assert count(client) == 2
    with GatewayClient.in_process(tmp_path / "gateway") as client:
        assert post(client, JOBS, JOB, idempotency_key="k-1").content == first.content
        assert count(client) == 2


def test_a_refused_request_may_be_mended_under_its_key(tmp_path: Path) -> None:
    with opened(tmp_path / "gateway") as (client, _):
        assert post(client, JOBS, {**JOB, "dataset": "none"}, idempotency_key="k").status_code == 404
        assert post(client, JOBS, JOB, idempotency_key="k").status_code == 200


def test_many_at_once_make_one(tmp_path: Path) -> None:
    answers: list[httpx.Response] = []
    with opened(tmp_path / "gateway") as (client, _):
        threads = [
            threading.Thread(target=lambda: answers.append(post(client, JOBS, JOB, idempotency_key="same")))
            for _ in range(40)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert {answer.content for answer in answers} == {answers[0].content}
        assert [answer.status_code for answer in answers] == [200] * 40
        assert count(client) == 1


def test_many_copies_at_once_make_one(tmp_path: Path) -> None:
    """Of what is made outside of the answer's transaction, since it may take long."""
    body = {"datasetId": "copy", "dataset": {}, "sourceDatasetId": "rows"}
    with opened(tmp_path / "gateway") as (client, _), ThreadPoolExecutor(12) as threads:
        ask = [threads.submit(post, client, f"{A}/datasets", body, idempotency_key="same") for _ in range(12)]
        answers = [one.result() for one in ask]
    assert [answer.status_code for answer in answers] == [200] * 12
    assert {answer.content for answer in answers} == {answers[0].content}
    assert sorted(answer.headers.get("idempotent-replayed", "") for answer in answers) == [""] + ["true"] * 11


def test_a_published_client_that_retries_gets_its_first_answer(tmp_path: Path) -> None:
    with opened(tmp_path / "gateway") as (client, _):
        first = post(client, JOBS, JOB, x_stainless_retry_count="0")
        second = post(client, JOBS, JOB, x_stainless_retry_count="0")  # two wishes, however equal
        assert first.json()["name"] != second.json()["name"]
        retried = post(client, JOBS, JOB, x_stainless_retry_count="1")
        assert retried.content == second.content
        assert post(client, JOBS, {**JOB, "epochs": 3}, x_stainless_retry_count="1").json()["epochs"] == 3
        assert count(client) == 3
        raw(client, "DELETE", "/v1/" + second.json()["name"])
        assert post(client, JOBS, JOB, x_stainless_retry_count="1").json()["name"] != second.json()["name"]


def test_a_number_that_has_been_seen_is_another_wish(tmp_path: Path) -> None:
    with opened(tmp_path / "gateway") as (client, _):
        first = post(client, JOBS, JOB, x_stainless_retry_count="0")
        assert post(client, JOBS, JOB, x_stainless_retry_count="1").content == first.content
        other = post(client, JOBS, JOB, x_stainless_retry_count="1")  # its first try never came here
        assert other.json()["name"] != first.json()["name"]
        assert post(client, JOBS, JOB, x_stainless_retry_count="2").content == other.content
        third = post(client, JOBS, JOB, x_stainless_retry_count="2")
        assert third.json()["name"] not in (first.json()["name"], other.json()["name"])
        for odd in ("-1", "", "1e3", "\u0662", "99999"):
            headers = {"x-stainless-retry-count": odd.encode()}
            assert raw(client, "POST", JOBS, json=JOB, headers=headers).status_code == 200
        assert count(client) == 8


def test_of_silent_clients_only_what_follows_at_once_is_a_repeat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert idempotency.SILENT_SECONDS == 2
    with opened(tmp_path / "gateway") as (client, _):
        monkeypatch.setattr(idempotency, "SILENT_SECONDS", 600.0)  # at once, on a busy machine
        first = post(client, JOBS, JOB)
        assert post(client, JOBS, JOB).headers["idempotent-replayed"] == "true"
        monkeypatch.setattr(idempotency, "SILENT_SECONDS", 0.0)
        later = post(client, JOBS, JOB)
        assert later.json()["name"] != first.json()["name"]
        assert count(client) == 2


def test_ids_of_the_clients_own_are_never_replayed(tmp_path: Path) -> None:
    with opened(tmp_path / "gateway") as (client, _):
        url = f"{JOBS}?supervisedFineTuningJobId=mine"
        assert post(client, url, JOB).status_code == 200
        again = post(client, url, JOB, x_stainless_retry_count="1")
        assert (again.status_code, again.headers["x-should-retry"]) == (409, "false")
        assert post(client, f"{A}/datasets", DATASET).status_code == 200
        assert post(client, f"{A}/datasets", DATASET).status_code == 409


def test_kept_answers_are_forgotten_after_two_days(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(tmp_path / "gateway") as (client, gateway):
        first = post(client, JOBS, JOB, idempotency_key="k")
        now = idempotency.time.time()
        monkeypatch.setattr(idempotency.time, "time", lambda: now + 86_400)
        idempotency.sweep(gateway.store)
        assert post(client, JOBS, JOB, idempotency_key="k").content == first.content
        monkeypatch.setattr(idempotency.time, "time", lambda: now + 2 * 86_400 + 1)
        idempotency.sweep(gateway.store)
        assert post(client, JOBS, JOB, idempotency_key="k").json()["name"] != first.json()["name"]
