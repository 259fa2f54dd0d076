"""File names as clients have them: kept as plain names, and shown as they were given."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.family_kit import ask, refused
from tests.gateway_kit import A, opened, raw
from trainer.gateway.client import GatewayClient
from trainer.gateway.errors import GatewayError
from trainer.gateway.file_names import kept, shown

ROW = json.dumps({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}).encode()
ODD = "my rows (1) \u00e4.jsonl"


@pytest.fixture
def client(tmp_path: Path) -> Iterator[GatewayClient]:
    with opened(tmp_path / "gateway") as (found, _):
        yield found


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("rows.jsonl", "rows.jsonl"), ("a/b-1_@+.x", "a/b-1_@+.x"), ("k=v.jsonl", "k=v.jsonl"), ("_x", "_x"),
        ("my project.tar.gz", "my=20project.tar.gz"), ("(1).jsonl", "_=281=29.jsonl"), ("\u00e4", "_=C3=A4"),
        ("a=20b", "a=3D20b"), ("=41", "_=3D41"), ("_=41", "_=5F=3D41"), ("_ a", "_=5F=20a"), (" a", "_=20a"),
        ("__ a", "__=20a"), ("a b/ c", "a=20b/_=20c"), ("=", None), ("-rf", None), ("..", None),
        ("a/../b", None), (".hidden x", None), ("a\\b", None), ("a\tb", None), ("a\u202eb", None),
        ("a//b", None), ("", None), ("\u00e4" * 30, None),
    ],
)  # fmt: skip
def test_a_name_is_kept_plain_and_shown_as_given(name: str, plain: str | None) -> None:
    if plain is None:
        with pytest.raises(GatewayError, match="file name"):
            kept(name)
        return
    assert kept(name) == plain
    assert shown(plain) == name


def test_data_sets_take_files_of_any_name(client: GatewayClient) -> None:
    for name in ("one", "two"):
        ask(client, "POST", f"{A}/datasets", {"dataset": {}, "datasetId": name})
    sent = raw(client, "POST", f"{A}/datasets/one:upload", files={"file": (ODD, ROW)})
    assert (sent.status_code, sent.json()["filename"]) == (200, ODD)
    urls = ask(client, "POST", f"{A}/datasets/two:getUploadEndpoint", {"filenameToSize": {ODD: str(len(ROW))}})
    assert list(urls["filenameToSignedUrls"]) == [ODD]
    assert raw(client, "PUT", urls["filenameToSignedUrls"][ODD], content=ROW).status_code == 200
    ask(client, "POST", f"{A}/datasets/two:validateUpload", {})
    for name in ("one", "two"):
        (found,) = ask(client, "GET", f"{A}/datasets/{name}:getDownloadEndpoint")["filenameToSignedUrls"].items()
        assert (found[0], raw(client, "GET", found[1]).content) == (ODD, ROW)
    lineage = ask(client, "GET", f"{A}/datasets/one:getDownloadEndpoint?downloadLineage=true")
    assert list(lineage["filenameToSignedUrls"]) == [f"one/{ODD}"]
    ask(client, "POST", f"{A}/datasets", {"dataset": {}, "datasetId": "three"})
    bad = raw(client, "POST", f"{A}/datasets/three:upload", files={"file": (ODD, ROW + b"\nx")}).json()["message"]
    assert bad.startswith(f"{ODD}:2: ")
    bad = {"filenameToSize": {"../x": "1"}}
    assert "'../x'" in refused(client, "POST", f"{A}/datasets/three:getUploadEndpoint", bad)[1]


def test_an_archive_bears_the_name_of_its_folder(client: GatewayClient) -> None:
    ask(client, "POST", f"{A}/evaluatorsV2", {"evaluator": {"entryPoint": "t.py::f"}, "evaluatorId": "e"})
    url, name = f"{A}/evaluators/e", "My Project.tar.gz"
    urls = ask(client, "POST", f"{url}:getUploadEndpoint", {"filenameToSize": {name: "3"}})["filenameToSignedUrls"]
    assert raw(client, "PUT", urls[name], content=b"abc").status_code == 200
    ask(client, "POST", f"{url}:validateUpload", {})
    (found,) = ask(client, "GET", f"{url}:getSourceCodeSignedUrl")["filenameToSignedUrls"].items()
    assert (found[0], raw(client, "GET", found[1]).content) == (name, b"abc")
