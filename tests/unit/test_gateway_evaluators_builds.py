"""Evaluators are built: from snippets and uploads to ACTIVE, or to BUILD_FAILED with a reason, across restarts."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.build_kit import configured, package_index
from tests.evaluating_kit import (
    LENGTH,
    REWARD,
    TEST,
    answered,
    built,
    criterion,
    log_of,
    packed,
    project,
    snippet,
    uploaded,
)
from tests.family_kit import ask, refused
from tests.gateway_kit import A, opened, served
from trainer.gateway.client import GatewayClient
from trainer.gateway.gateway import Gateway


@pytest.fixture
def both(tmp_path: Path) -> Iterator[tuple[GatewayClient, Gateway]]:
    with opened(tmp_path / "gateway") as found:
        yield found


def test_snippets_are_loaded_once_before_they_are_active(both: tuple[GatewayClient, Gateway]) -> None:
    client, _ = both
    assert snippet(client, LENGTH)["state"] == "ACTIVE"
    assert "loads" in log_of(client, "snip")
    version = ask(client, "GET", f"{A}/evaluators/snip/versions/latest")
    assert version["snapshot"]["state"] == "ACTIVE"
    # A function that raises on a row has been loaded all the same; one that is not there has not.
    assert snippet(client, "def evaluate(messages, **k): raise ValueError('row')", "raises")["state"] == "ACTIVE"
    broken = snippet(client, "def other(messages, **k): return 1.0", "absent")
    assert (broken["state"], broken["status"]["code"]) == ("BUILD_FAILED", "INVALID_ARGUMENT")
    assert "no function 'evaluate'" in broken["status"]["message"]
    assert "no function 'evaluate'" in log_of(client, "absent")
    syntax = snippet(client, "def evaluate(:\n", "syntax")
    assert "SyntaxError" in syntax["status"]["message"]
    lacking = snippet(client, "import numpy_of_nobody\ndef evaluate(**k): return 1.0", "lacking")
    assert "ModuleNotFoundError" in lacking["status"]["message"]


def test_a_project_is_built_and_a_new_revision_again(both: tuple[GatewayClient, Gateway]) -> None:
    client, _ = both
    files = {"test_x.py": TEST, "requirements.txt": "# nothing\n"}
    assert project(client, packed(files), "test_x.py::test_truth")["state"] == "ACTIVE"
    ask(client, "PATCH", f"{A}/evaluators/proj?prepareCodeUpload=true", {})
    failed = uploaded(client, b"no archive at all")
    assert (failed["state"], "neither tar.gz" in failed["status"]["message"]) == ("BUILD_FAILED", True)
    assert failed["status"]["message"] in log_of(client, "proj")
    back = ask(client, "POST", f"{A}/evaluators/proj/versions/v1:rollback", {})
    assert back["name"].endswith("/versions/v3")
    assert built(client, "proj")["state"] == "ACTIVE"
    states = [
        one["snapshot"]["state"] for one in ask(client, "GET", f"{A}/evaluators/proj/versions")["evaluatorVersions"]
    ]
    assert states == ["ACTIVE", "BUILD_FAILED", "ACTIVE"]


@pytest.mark.parametrize(
    ("files", "entry", "fields", "words"),
    [
        ({"test_x.py": TEST}, "test_y.py::test_truth", {}, "no file 'test_y.py'"),
        ({"test_x.py": TEST}, "test_x.py::test_lie", {}, "test_lie"),
        (
            {"test_x.py": TEST, "requirements.txt": "git+https://example.org/x.git\n"},
            "test_x.py::test_truth",
            {},
            "git+",
        ),
        ({"test_x.py": TEST}, "test_x.py::test_truth", {"requirements": "--index-url http://evil"}, "index-url"),
        ({"../x.py": TEST}, "x.py::test_truth", {}, "'../x.py'"),
        ({"reward.py": REWARD}, "", {}, "entryPoint is missing"),
    ],
)
def test_what_cannot_be_built_says_why(
    both: tuple[GatewayClient, Gateway], files: dict[str, str], entry: str, fields: dict[str, str], words: str
) -> None:
    found = project(both[0], packed(files), entry, **fields)
    assert (found["state"], words in found["status"]["message"]) == ("BUILD_FAILED", True), found["status"]


def test_packages_come_from_the_configured_index_alone(
    both: tuple[GatewayClient, Gateway], monkeypatch: pytest.MonkeyPatch
) -> None:
    client, _ = both
    test = TEST.replace("float(str(row.ground_truth) in text)", "float(planted.VALUE)")
    files = {"test_x.py": f"import planted\n{test}", "requirements.txt": "planted==1.0\n"}
    with package_index() as index:
        configured(monkeypatch, index_url=index.url.replace("//", "//user:word-of-the-index@"))
        index.failing["/simple/planted/"] = 403
        failed = project(client, packed(files), "test_x.py::test_truth", "early")
        assert (failed["state"], failed["status"]["code"]) == ("BUILD_FAILED", "UNAVAILABLE")
        assert failed["status"]["message"].startswith("the package index cannot be read: ")
        index.failing.clear()
        index.add_wheel("planted")
        assert project(client, packed(files), "test_x.py::test_truth")["state"] == "ACTIVE"
        log = log_of(client, "proj")
        assert "jail: tier " in log and "Successfully installed planted-1.0" in log and "the evaluator loads" in log
        assert "word-of-the-index" not in log + failed["status"]["message"]
        sample = {"evaluator": {"name": "proj"}, "sampleData": [json.dumps(answered("4")[0])]}
        assert ask(client, "POST", f"{A}/evaluators:previewEvaluator", sample)["results"][0]["score"] == 7.0
        lacking = project(client, packed({**files, "requirements.txt": "absent-of-ours\n"}), "", "late")
        assert lacking["status"]["code"] == "INVALID_ARGUMENT"
        assert lacking["status"]["message"] == "there is no package that fits 'absent-of-ours' in the index"


def test_an_entry_that_is_the_only_one_need_not_be_named(both: tuple[GatewayClient, Gateway]) -> None:
    assert project(both[0], packed({"test_x.py": TEST, "other.py": "x = 1\n"}), "")["state"] == "ACTIVE"
    assert project(both[0], packed({"r.py": REWARD}), "r.py::contains_truth", "reward")["state"] == "ACTIVE"
    around = {f"my-project/{name}": text for name, text in (("test_x.py", TEST), ("requirements.txt", ""))}
    assert project(both[0], packed(around), "test_x.py::test_truth", "around")["state"] == "ACTIVE"
    inside = {"tests/test_x.py": TEST, "tests/__init__.py": ""}
    assert project(both[0], packed(inside), "tests/test_x.py::test_truth", "inside")["state"] == "ACTIVE"


def test_a_build_that_was_cut_short_is_made_by_who_serves_next(tmp_path: Path) -> None:
    folder = tmp_path / "gateway"
    with opened(folder) as (client, gateway):
        gateway.builds.close()
        body = {"evaluator": {"criteria": [criterion(LENGTH)]}, "evaluatorId": "left"}
        ask(client, "POST", f"{A}/evaluatorsV2", body)
        assert ask(client, "GET", f"{A}/evaluators/left")["state"] == "BUILDING"
        preview = {"evaluator": {"name": "left"}, "sampleData": ["{}"]}
        assert "not ACTIVE" in refused(client, "POST", f"{A}/evaluators:previewEvaluator", preview)[1]
    with served(folder) as (url, _), GatewayClient(url) as client:
        assert built(client, "left")["state"] == "ACTIVE"


def test_only_the_newest_revision_is_recorded(both: tuple[GatewayClient, Gateway]) -> None:
    client, _ = both
    snippet(client, LENGTH)
    changed = {"criteria": [criterion("def evaluate(:\n")]}
    ask(client, "PATCH", f"{A}/evaluators/snip?updateMask=criteria", changed)
    ask(client, "PATCH", f"{A}/evaluators/snip?updateMask=criteria", {"criteria": [criterion(LENGTH)]})
    assert built(client, "snip")["state"] == "ACTIVE"
    assert ask(client, "GET", f"{A}/evaluators/snip/versions")["totalSize"] == 3
