"""Uploads and downloads by people who alter their URLs, send what they did not say, or come too late."""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Iterator
from typing import Any

import pytest

from tests.gateway_kit import ROWS, A, opened, raw, write_rows
from trainer.gateway.client import GatewayClient
from trainer.gateway.files import Incoming, content_digest

NAME = "rows.jsonl"


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayClient]:
    with opened(tmp_path_factory.mktemp("files") / "gateway") as (client, _):
        yield client


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_rows(tmp_path_factory.mktemp("rows") / NAME, ROWS * 5).read_bytes()


def awaited(client: GatewayClient, name: str, size: int, *, resumable: bool = False) -> str:
    """A new data set's URL for one file of `size` bytes."""
    assert raw(client, "POST", f"{A}/datasets", json={"datasetId": name, "dataset": {}}).is_success
    return declared(client, name, size, resumable=resumable)


def declared(client: GatewayClient, name: str, size: int, *, resumable: bool = False) -> str:
    body = {"filenameToSize": {NAME: size}, "enableResumableUpload": resumable}
    answer = raw(client, "POST", f"{A}/datasets/{name}:getUploadEndpoint", json=body)
    assert answer.status_code == 200, answer.text
    url = answer.json()["filenameToSignedUrls"][NAME]
    return raw(client, "POST", url, headers={"x-goog-resumable": "start"}).headers["location"] if resumable else url


def test_headers_about_lengths_that_are_none(client: GatewayClient, content: bytes) -> None:
    url = awaited(client, "lengths", len(content))
    for header in (b"\xb2,5", b"0," + b"9" * 5000, b"a", b"5", b"1,2,3", b"-1,9999999"):
        answer = raw(client, "PUT", url, content=content, headers=[(b"x-goog-content-length-range", header)])
        assert answer.status_code == 400
        assert answer.json()["message"].startswith("X-Goog-Content-Length-Range: got ")
    fine = {"x-goog-content-length-range": f" 0 , {len(content)} "}
    assert raw(client, "PUT", url, content=content, headers=fine).status_code == 200


def test_digests_that_are_none_or_wrong(client: GatewayClient, content: bytes) -> None:
    url = awaited(client, "digests", len(content))
    for header in (b"junk", b"sha-256=:x:", b"\xff\xfe", b"sha-512=:AAAA:", b""):
        answer = raw(client, "PUT", url, content=content, headers=[(b"content-digest", header)])
        assert (answer.status_code, answer.json()["message"][:15]) == (400, "Content-Digest:")
    wrong = {"content-digest": content_digest(hashlib.sha256(b"other").hexdigest())}
    answer = raw(client, "PUT", url, content=content, headers=wrong)
    assert (answer.status_code, answer.json()["code"]) == (400, 15)
    right = content_digest(hashlib.sha256(content).hexdigest())
    answer = raw(client, "PUT", url, content=content, headers={"content-digest": f"sha-512=:AAAA:, {right}"})
    assert (answer.status_code, answer.headers["content-digest"]) == (200, right)


def test_a_url_without_its_empty_size(client: GatewayClient) -> None:
    urls = raw(client, "GET", f"{A}/datasets/rows:getDownloadEndpoint").json()["filenameToSignedUrls"]
    url = next(iter(urls.values()))
    assert "&size=&" in url
    assert raw(client, "GET", url.replace("&size=&", "&")).content == raw(client, "GET", url).content
    assert raw(client, "GET", url.replace("&size=&", "&size=1&")).status_code == 403


def test_no_byte_beyond_what_was_said_is_kept(client: GatewayClient, content: bytes) -> None:
    size = len(content)
    url = awaited(client, "beyond", size, resumable=True)
    asked = {"content-range": f"bytes */{size}"}
    first = raw(client, "PUT", url, content=content[:50], headers={"content-range": f"bytes 0-49/{size}"})
    assert (first.status_code, first.headers["range"]) == (308, "bytes=0-49")
    answer = raw(client, "PUT", url, content=b"x" * 90, headers={"content-range": f"bytes 50-59/{size}"})
    assert (answer.status_code, answer.json()["message"][:14]) == (400, "Content-Range:")
    assert raw(client, "PUT", url, headers=asked).headers["range"] == "bytes=0-49"
    wrong = raw(client, "PUT", url, headers={"content-range": "bytes */5"})
    assert wrong.status_code == 400
    rest = raw(client, "PUT", url, content=content[50:], headers={"content-range": f"bytes 50-{size - 1}/{size}"})
    assert rest.status_code == 200
    assert raw(client, "POST", f"{A}/datasets/beyond:validateUpload", json={}).status_code == 200


def test_an_old_url_is_nothing_to_a_new_data_set_of_that_name(client: GatewayClient, content: bytes) -> None:
    size = len(content)
    whole, session = awaited(client, "again", size), declared(client, "again", size, resumable=True)
    part = {"content-range": f"bytes 0-99/{size}"}
    assert raw(client, "PUT", session, content=content[:100], headers=part).status_code == 308
    assert raw(client, "DELETE", f"{A}/datasets/again").status_code == 200
    rest = {"content-range": f"bytes 100-{size - 1}/{size}"}
    assert raw(client, "PUT", session, content=content[100:], headers=rest).status_code == 404
    assert raw(client, "POST", f"{A}/datasets", json={"datasetId": "again", "dataset": {}}).is_success
    for url, body, headers in ((session, content[100:], rest), (whole, content, {})):
        answer = raw(client, "PUT", url, content=body, headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (400, 9)
        assert "is not awaited" in answer.json()["message"]
    declared(client, "again", size)
    asked = raw(client, "PUT", session, headers={"content-range": f"bytes */{size}"})
    assert (asked.status_code, asked.headers.get("range")) == (308, None)  # what was deleted is not gone on from
    assert raw(client, "PUT", session, content=content[100:], headers=rest).status_code == 409


def test_a_url_of_another_size_is_over(client: GatewayClient, content: bytes) -> None:
    old = awaited(client, "resized", len(content) + 1)
    new = declared(client, "resized", len(content))
    assert raw(client, "PUT", old, content=content + b"\n").status_code == 400
    assert raw(client, "PUT", new, content=content).status_code == 200


def test_too_many_files(client: GatewayClient) -> None:
    assert raw(client, "POST", f"{A}/datasets", json={"datasetId": "many", "dataset": {}}).is_success
    sizes = {f"f{number}": 1 for number in range(5001)}
    answer = raw(client, "POST", f"{A}/datasets/many:getUploadEndpoint", json={"filenameToSize": sizes})
    assert (answer.status_code, answer.json()["message"]) == (400, "filenameToSize: 5001 files; name 1 to 5000")


def test_a_full_disk_is_told_as_one(client: GatewayClient, content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    url = awaited(client, "full", len(content))

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Incoming, "write", full)
        form = {"file": (NAME, content)}
        for answer in (
            raw(client, "PUT", url, content=content), raw(client, "POST", f"{A}/datasets/full:upload", files=form)
        ):  # fmt: skip
            assert (answer.status_code, answer.json()["code"]) == (429, 8)
            assert "disk is full; free space" in answer.json()["message"]
            assert answer.headers["retry-after"]
    assert raw(client, "PUT", url, content=content).status_code == 200
    partial = client._http._transport._app.state.gateway.folder / "partial"  # type: ignore[union-attr]
    assert [path.name for path in partial.iterdir() if not path.name.startswith("part-")] == []
