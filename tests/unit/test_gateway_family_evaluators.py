"""Evaluators: from source to revisions, aliases and back; no state is claimed that nothing has reached."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.evaluating_kit import built, log_of, packed
from tests.family_kit import ask, refused
from tests.gateway_kit import A, opened, raw
from trainer.gateway import evaluator_builds
from trainer.gateway.client import GatewayClient
from trainer.gateway.gateway import Gateway

URL = f"{A}/evaluators/test-x-test-fn"


@pytest.fixture
def both(tmp_path: Path) -> Iterator[tuple[GatewayClient, Gateway]]:
    with opened(tmp_path / "gateway") as found:
        yield found


def create(client: GatewayClient) -> None:
    body = {"displayName": "x", "description": "d", "commitHash": "c0ffee", "entryPoint": "test_x.py::test_fn"}
    made = ask(client, "POST", f"{A}/evaluatorsV2", {"evaluator": body, "evaluatorId": "test-x-test-fn"})
    assert (made["state"], made["entryPoint"]) == ("STATE_UNSPECIFIED", "test_x.py::test_fn")


def upload(client: GatewayClient, content: bytes) -> None:
    urls = ask(client, "POST", f"{URL}:getUploadEndpoint", {"filenameToSize": {"p.tar.gz": str(len(content))}})
    assert raw(client, "PUT", urls["filenameToSignedUrls"]["p.tar.gz"], content=content).status_code == 200
    assert ask(client, "POST", f"{URL}:validateUpload", {}) == {}


def source(client: GatewayClient) -> bytes:
    urls = ask(client, "GET", f"{URL}:getSourceCodeSignedUrl")["filenameToSignedUrls"]
    return raw(client, "GET", urls["p.tar.gz"]).content


def test_an_upload_as_eval_protocol_does_it(both: tuple[GatewayClient, Gateway]) -> None:
    client, gateway = both
    create(client)
    assert "no source" in refused(client, "POST", f"{URL}:validateUpload", {})[1]
    assert refused(client, "GET", f"{URL}:getSourceCodeSignedUrl")[0] == 400
    assert "no log" in refused(client, "GET", f"{URL}:getBuildLogEndpoint")[1]
    content = packed({"test_x.py": "def test_fn(messages, **kwargs): return 1.0\n"})
    upload(client, content)
    assert built(client, "test-x-test-fn")["state"] == "ACTIVE"
    assert source(client) == content
    assert ask(client, "POST", f"{URL}:validateUpload", {}) == {}
    assert ask(client, "GET", f"{URL}/versions")["totalSize"] == 1
    assert "the evaluator loads" in log_of(client, "test-x-test-fn")
    name = "accounts/local/evaluators/test-x-test-fn"
    with pytest.raises(ValueError, match="state"):
        evaluator_builds.settle(gateway, name, evaluator_builds.Outcome("DONE", ""))
    assert [one["name"] for one in ask(client, "GET", f"{A}/evaluators?filter=state=ACTIVE")["evaluators"]] == [name]
    assert ask(client, "DELETE", URL) == {}
    assert gateway.store.every("evaluatorSources") == []
    assert refused(client, "GET", f"{URL}/versions/v1")[0] == 404


def test_revisions_aliases_and_rollback(both: tuple[GatewayClient, Gateway]) -> None:
    client, _ = both
    create(client)
    upload(client, b"first")
    ask(client, "PATCH", f"{URL}?prepareCodeUpload=true", {})
    assert source(client) == b"first"
    upload(client, b"second")
    ask(client, "PATCH", f"{URL}?updateMask=display_name", {"displayName": "new name"})
    assert ask(client, "GET", f"{URL}/versions")["totalSize"] == 2
    ask(client, "PATCH", f"{URL}?updateMask=requirements", {"requirements": "numpy"})
    listed = ask(client, "GET", f"{URL}/versions")["evaluatorVersions"]
    assert [(one["name"].rsplit("/", 1)[1], one["alternateIds"]) for one in listed] == [
        ("v3", ["latest"]), ("v2", []), ("v1", []),
    ]  # fmt: skip
    assert "requirements" not in listed[2]["snapshot"]
    upwards = ask(client, "GET", f"{URL}/versions?orderBy=createTime&pageSize=2")
    assert [one["name"][-2:] for one in upwards["evaluatorVersions"]] == ["v1", "v2"]
    second = ask(client, "GET", f"{URL}/versions?pageSize=2")
    assert [one["name"][-2:] for one in second["evaluatorVersions"]] == ["v3", "v2"]
    last = ask(client, "GET", f"{URL}/versions?pageSize=2&pageToken={second['nextPageToken']}")
    assert [one["name"][-2:] for one in last["evaluatorVersions"]] == ["v1"]
    assert ask(client, "POST", f"{URL}/versions/v1:alias", {"aliasId": "current"})["alternateIds"] == ["current"]
    assert ask(client, "GET", f"{URL}/versions/current")["name"].endswith("/v1")
    ask(client, "POST", f"{URL}/versions/v2:alias", {"aliasId": "current"})
    assert ask(client, "GET", f"{URL}/versions/current")["name"].endswith("/v2")
    for bad in ("latest", "v7", "A b", ""):
        assert refused(client, "POST", f"{URL}/versions/v2:alias", {"aliasId": bad})[0] == 400
    back = ask(client, "POST", f"{URL}/versions/v1:rollback", {})
    assert (back["name"].rsplit("/", 1)[1], back["alternateIds"]) == ("v4", ["latest"])
    assert source(client) == b"first"
    assert "requirements" not in ask(client, "GET", URL)
    assert refused(client, "DELETE", f"{URL}/versions/v4")[0] == 400
    assert refused(client, "DELETE", f"{URL}/versions/latest")[0] == 400
    assert ask(client, "DELETE", f"{URL}/versions/current") == {}
    assert ask(client, "GET", f"{URL}/versions/v2")["alternateIds"] == []
    assert ask(client, "DELETE", f"{URL}/versions/v2") == {}
    assert refused(client, "GET", f"{URL}/versions/v2")[0] == 404
    upload(client, b"third")
    assert ask(client, "GET", f"{URL}/versions/latest")["name"].endswith("/v5")


def test_snippets_are_code_too(both: tuple[GatewayClient, Gateway]) -> None:
    client, _ = both
    snippet = {"language": "python", "fileContents": {"main.py": "def evaluate(messages, **kwargs): return 1.0"},
               "entryFile": "main.py", "entryFunc": "evaluate"}  # fmt: skip
    criterion = {"type": "CODE_SNIPPETS", "name": "acc", "description": "", "codeSnippets": snippet}
    ask(client, "POST", f"{A}/evaluators", {"evaluator": {"criteria": [criterion]}, "evaluatorId": "snip"})
    assert ask(client, "GET", f"{A}/evaluators/snip/versions")["totalSize"] == 1
    assert ask(client, "POST", f"{A}/evaluators/snip:validateUpload", {}) == {}


def test_what_an_evaluator_may_be(both: tuple[GatewayClient, Gateway]) -> None:
    client, _ = both
    url = f"{A}/evaluatorsV2"
    assert "entryPoint" in refused(client, "POST", url, {"evaluator": {"entryPoint": "test_x.py"}})[1]
    assert "displayName" in refused(client, "POST", url, {"evaluator": {"displayName": "x" * 64}})[1]
    github = {"source": {"githubRepositoryName": "a/b"}}
    assert refused(client, "POST", url, {"evaluator": github})[0] == 501
    create(client)
    assert refused(client, "POST", url, {"evaluator": {}, "evaluatorId": "test-x-test-fn"})[0] == 409
    assert refused(client, "PATCH", f"{URL}?updateMask=entryPoint", {"entryPoint": "nowhere"})[0] == 400
