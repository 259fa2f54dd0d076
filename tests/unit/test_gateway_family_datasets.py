"""Data sets: what their rows are found to be, and data sets made of others."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.family_kit import ask, refused
from tests.gateway_kit import A, opened, raw, write_rows
from trainer.gateway.client import GatewayClient
from trainer.gateway.gateway import Gateway


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


CHAT = {"messages": [turn("user", "q"), turn("assistant", "a")]}
LONG_CHAT = {"messages": [turn("user", "q"), turn("assistant", "a"), turn("user", "r"), turn("assistant", "b")]}
PROMPT = {"messages": [turn("system", "s"), turn("user", "q")], "ground_truth": "345"}
INPUT = {"input": {"messages": [turn("user", "q")]}, "preferred_output": [turn("assistant", "good")],
         "non_preferred_output": [turn("assistant", "bad")]}  # fmt: skip
SIDES = {"chosen": {"messages": [turn("user", "q"), turn("assistant", "good")]},
         "rejected": {"messages": [turn("user", "q"), turn("assistant", "bad")]}}  # fmt: skip
SAMPLES = {"samples": [{**SIDES["chosen"], "score": 1.0}, {**SIDES["rejected"], "evals": {"score": 0.0}}]}


@pytest.fixture
def both(tmp_path: Path) -> Iterator[tuple[GatewayClient, Gateway]]:
    with opened(tmp_path / "gateway") as found:
        yield found


@pytest.fixture
def client(both: tuple[GatewayClient, Gateway]) -> GatewayClient:
    return both[0]


def upload(client: GatewayClient, name: str, rows: list[Any], **body: Any) -> tuple[int, dict[str, Any]]:
    ask(client, "POST", f"{A}/datasets", {"dataset": body, "datasetId": name})
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    answer = raw(client, "POST", f"{A}/datasets/{name}:upload", files={"file": ("rows.jsonl", content)})
    return answer.status_code, answer.json()


@pytest.mark.parametrize(
    ("rows", "form", "turns"),
    [
        ([CHAT, CHAT, LONG_CHAT], "CHAT", 1.3333),
        ([PROMPT, PROMPT], "RL", 1),
        ([PROMPT, CHAT], "CHAT", 1),
        ([{"prompt": "a", "completion": "b"}, {"text": "c"}], "COMPLETION", 1),
        ([INPUT, SIDES, SAMPLES], "FORMAT_UNSPECIFIED", 1),
    ],
)
def test_rows_are_found_to_be_what_they_are(
    both: tuple[GatewayClient, Gateway], rows: list[Any], form: str, turns: float
) -> None:
    client, gateway = both
    assert upload(client, "d", rows)[0] == 200
    found = ask(client, "GET", f"{A}/datasets/d")
    assert (found["state"], found["format"], found["exampleCount"]) == ("READY", form, str(len(rows)))
    assert found["averageTurnCount"] == turns
    size = sum(len(json.dumps(row)) + 1 for row in rows)
    assert found["estimatedTokenCount"] == str(size // 4)
    held = gateway.store.get("accounts/local/datasets/d").private["rows"]
    assert held == ("PREFERENCE" if rows[0] is INPUT else form)


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([CHAT, INPUT], "rows.jsonl:2: this row is PREFERENCE, the rows before it are CHAT"),
        ([{**INPUT, "preferred_output": []}], "rows.jsonl:1"),
        ([{"samples": [{**SIDES["chosen"], "score": 0.5}, {**SIDES["rejected"], "score": 0.0}]}], "rows.jsonl:1"),
        ([{"question": "x"}], "preferred_output"),
    ],
)
def test_bad_pairs_are_refused_by_line(client: GatewayClient, rows: list[Any], says: str) -> None:
    status, answer = upload(client, "d", rows)
    assert (status, says in answer["message"]) == (400, True), answer
    assert ask(client, "GET", f"{A}/datasets/d")["state"] == "UPLOADING"


def test_a_declared_format_is_held_to(client: GatewayClient) -> None:
    status, answer = upload(client, "d", [CHAT], format="RL")
    assert (status, "declared RL" in answer["message"]) == (400, True)
    assert upload(client, "e", [PROMPT], format="CHAT")[0] == 200


def test_pairs_may_be_declared_as_chats(both: tuple[GatewayClient, Gateway]) -> None:
    """As the published recipes declare them: the contract has no word for pairs."""
    client, gateway = both
    assert upload(client, "pairs", [INPUT, SIDES], format="CHAT")[0] == 200
    assert ask(client, "GET", f"{A}/datasets/pairs")["format"] == "CHAT"
    assert gateway.store.get("accounts/local/datasets/pairs").private["rows"] == "PREFERENCE"
    settings = {"trainingConfig": {"baseModel": "base"}}
    ask(client, "POST", f"{A}/dpoJobs", {"dataset": "pairs", **settings})
    sft = {"dataset": "pairs", "baseModel": "base"}
    assert "holds PREFERENCE rows" in refused(client, "POST", f"{A}/supervisedFineTuningJobs", sft)[1]
    upload(client, "chats", [CHAT], format="CHAT")
    assert "holds CHAT rows" in refused(client, "POST", f"{A}/dpoJobs", {"dataset": "chats", **settings})[1]
    assert upload(client, "f", [INPUT], format="RL")[0] == 400
    given = {"dataset": "pairs", **settings, "lossConfig": {"klBeta": 0.1}}
    assert "lossConfig.klBeta: DPO has no KL term" in refused(client, "POST", f"{A}/dpoJobs", given)[1]


def test_a_job_takes_rows_of_its_kind(client: GatewayClient) -> None:
    upload(client, "pairs", [INPUT, SIDES, SAMPLES])
    status, message = refused(
        client, "POST", f"{A}/supervisedFineTuningJobs", {"dataset": "pairs", "baseModel": "base"}
    )
    assert (status, "holds PREFERENCE rows" in message) == (400, True)


def test_a_filtered_data_set(client: GatewayClient) -> None:
    rows = [{**PROMPT, "difficulty": n, "tags": ["odd" if n % 2 else "even"]} for n in range(6)]
    upload(client, "source", rows)
    wanted = 'difficulty >= 2 AND tags:even AND ground_truth="34*"'
    body = {"dataset": {"displayName": "d"}, "datasetId": "some", "sourceDatasetId": "source", "filter": wanted}
    made = ask(client, "POST", f"{A}/datasets", body)
    assert (made["state"], made["exampleCount"], made["format"]) == ("READY", "2", "RL")
    assert made["transformed"] == {
        "sourceDatasetId": "accounts/local/datasets/source", "filter": wanted, "originalFormat": "RL",
    }  # fmt: skip
    assert "userUploaded" not in made
    urls = ask(client, "GET", f"{A}/datasets/some:getDownloadEndpoint")["filenameToSignedUrls"]
    kept = [json.loads(line)["difficulty"] for line in raw(client, "GET", urls["some.jsonl"]).text.splitlines()]
    assert kept == [2, 4]
    again = {**body, "datasetId": "none", "filter": "difficulty > 9"}
    assert "no row" in refused(client, "POST", f"{A}/datasets", again)[1]
    assert refused(client, "GET", f"{A}/datasets/none")[0] == 404
    assert "number" in refused(client, "POST", f"{A}/datasets", {**again, "filter": "difficulty > x"})[1]
    assert "filter" in refused(client, "POST", f"{A}/datasets", {**again, "filter": "((("})[1]
    assert refused(client, "POST", f"{A}/datasets", {**again, "sourceDatasetId": "nothing"})[0] == 404
    del again["sourceDatasetId"]
    assert "sourceDatasetId" in refused(client, "POST", f"{A}/datasets", again)[1]


def test_chunks_and_where_they_came_from(client: GatewayClient) -> None:
    upload(client, "all", [{**CHAT, "n": n} for n in range(450)])
    made = ask(client, "POST", f"{A}/datasets/all:splitDataset", {"chunkSize": 200})
    assert made["chunkDatasetNames"] == [f"accounts/local/datasets/all-chunk-{n}" for n in range(3)]
    assert (made["chunksCreated"], made["totalExamples"]) == (3, "450")
    sizes = [ask(client, "GET", f"{A}/datasets/all-chunk-{n}")["exampleCount"] for n in range(3)]
    assert sizes == ["200", "200", "50"]
    last = ask(client, "GET", f"{A}/datasets/all-chunk-2")
    assert last["splitted"] == {"sourceDatasetId": "accounts/local/datasets/all"}
    assert refused(client, "POST", f"{A}/datasets/all:splitDataset", {"chunkSize": 200})[0] == 409
    assert "chunkSize" in refused(client, "POST", f"{A}/datasets/all:splitDataset", {"chunkSize": 199})[1]
    body = {"dataset": {}, "datasetId": "few", "sourceDatasetId": "all-chunk-2", "filter": "n < 405"}
    ask(client, "POST", f"{A}/datasets", body)
    urls = ask(client, "GET", f"{A}/datasets/few:getDownloadEndpoint?downloadLineage=true")["filenameToSignedUrls"]
    assert sorted(urls) == ["all-chunk-2/all-chunk-2.jsonl", "all/rows.jsonl", "few/few.jsonl"]
    assert raw(client, "GET", urls["all/rows.jsonl"]).text.count("\n") == 450
    assert [json.loads(line)["n"] for line in raw(client, "GET", urls["few/few.jsonl"]).text.splitlines()] == [
        400, 401, 402, 403, 404,
    ]  # fmt: skip


def test_only_whole_data_sets_are_taken_apart(client: GatewayClient, tmp_path: Path) -> None:
    ask(client, "POST", f"{A}/datasets", {"dataset": {}, "datasetId": "empty"})
    assert "READY" in refused(client, "POST", f"{A}/datasets/empty:splitDataset", {"chunkSize": 200})[1]
    body = {"dataset": {}, "datasetId": "x", "sourceDatasetId": "empty"}
    assert "READY" in refused(client, "POST", f"{A}/datasets", body)[1]
    client.upload_dataset(write_rows(tmp_path / "r.jsonl"), "r")
    copy = ask(client, "POST", f"{A}/datasets", {**body, "sourceDatasetId": "r"})
    assert (copy["exampleCount"], copy["transformed"]["filter"]) == ("3", "")


class _Rows(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = (json.dumps(CHAT) + "\n").encode() * 2 if self.path == "/rows.jsonl" else b"<html>"
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        return None


def test_rows_that_lie_elsewhere(client: GatewayClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def create(name: str, url: str) -> dict[str, Any]:
        return {"dataset": {"externalUrl": url}, "datasetId": name}

    with ThreadingHTTPServer(("127.0.0.1", 0), _Rows) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        try:
            refusal = refused(client, "POST", f"{A}/datasets", create("inside", f"{url}/rows.jsonl"))
            assert (refusal[0], "TRAINER_GATEWAY_ALLOWED_HOSTS" in refusal[1]) == (400, True) or "port" in refusal[1]
            monkeypatch.setenv("TRAINER_GATEWAY_ALLOWED_HOSTS", url.removeprefix("http://"))
            for name, path in (("good", "rows.jsonl"), ("bad", "page.html")):
                ask(client, "POST", f"{A}/datasets", create(name, f"{url}/{path}"))
            assert ask(client, "POST", f"{A}/datasets/good:validateUpload", {}) == {}
            assert "external.jsonl:1" in refused(client, "POST", f"{A}/datasets/bad:validateUpload", {})[1]
        finally:
            server.shutdown()
            thread.join()
    found = ask(client, "GET", f"{A}/datasets/good")
    assert (found["state"], found["exampleCount"], found["externalUrl"]) == ("READY", "2", f"{url}/rows.jsonl")
    for bad in ("ftp://example.org/x", "file:///etc/passwd", "http://169.254.169.254/latest", "s3://", "s3://[", "x",
                "http://[", "az://c]/k", "s3://bucket/", "az://cont@acc/folder/", "gs://b",
                "https://acc.blob.core.windows.net/cont/"):  # fmt: skip
        assert refused(client, "POST", f"{A}/datasets", create("x", bad))[0] == 400
