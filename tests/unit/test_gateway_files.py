"""Signed URLs and what they open: one method, one file, one size, until they expire; in pieces, or whole."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from trainer.gateway.errors import GatewayError
from trainer.gateway.file_routes import FileRoutes
from trainer.gateway.files import FileStore, content_digest
from trainer.gateway.store import Resource, Store

NAME = "accounts/local/models/m"
BASE = "http://here"


class Holder:
    """The records and files of a gateway, and no more of it."""

    def __init__(self, folder: Path) -> None:
        self.time = 1_000_000.0
        self.store = Store(folder)
        self.files = FileStore(folder, clock=lambda: self.time)


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[Holder]:
    found = Holder(tmp_path / "state")
    with found.store.transaction() as transaction:
        body = {"state": "UPLOADING"}
        transaction.insert(Resource(NAME, "models", "accounts/local", "m", body, {"declared": {"f": 10}}))
    yield found
    found.store.close()


@pytest.fixture
def client(holder: Holder) -> httpx.AsyncClient:
    async def told(_request: Request, error: Any) -> Response:
        return JSONResponse(error.body(), error.http_status, headers=error.headers())

    routes = FileRoutes(holder)  # pyright: ignore[reportArgumentType]
    path = "/files/{path:path}"
    app = Starlette(
        routes=[Route(path, getattr(routes, m), methods=[m.upper()]) for m in ("get", "put", "post")],
        exception_handlers={GatewayError: told},
    )
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=BASE)


def parts(url: str) -> tuple[str, dict[str, str]]:
    split = urlsplit(url)
    return split.path, {key: values[0] for key, values in parse_qs(split.query, keep_blank_values=True).items()}


def test_a_url_expires_on_time(holder: Holder) -> None:
    for session, lasts in (("", 3600), ("s", 86_400)):
        holder.time = 1_000_000.0
        path, query = parts(holder.files.url("PUT", NAME, "f", base_url=BASE, size=10, session=session))
        for later in (0, lasts - 1, lasts):
            holder.time = 1_000_000.0 + later
            assert holder.files.verify("PUT", path, query) == 10
        for later in (lasts + 0.5, lasts + 1, 10**9):
            holder.time = 1_000_000.0 + later
            with pytest.raises(GatewayError, match=f"expired \\(they last {lasts} s\\)") as caught:
                holder.files.verify("PUT", path, query)
            assert caught.value.http_status == 403


def test_every_altered_byte_is_refused(holder: Holder) -> None:
    path, query = parts(holder.files.url("PUT", NAME, "f", base_url=BASE, size=10, session="ab"))
    assert holder.files.verify("PUT", path, query) == 10
    tried = 0
    for method in ("GET", "POST", "DELETE", "put", ""):
        with pytest.raises(GatewayError, match="PERMISSION_DENIED"):
            holder.files.verify(method, path, query)
    for index in range(len(path)):
        with pytest.raises(GatewayError, match="PERMISSION_DENIED"):
            holder.files.verify("PUT", path[:index] + chr(ord(path[index]) ^ 1) + path[index + 1 :], query)
        tried += 1
    for key, value in query.items():
        for index in range(len(value)):
            other = value[:index] + chr(ord(value[index]) ^ 1) + value[index + 1 :]
            with pytest.raises(GatewayError, match="PERMISSION_DENIED"):
                holder.files.verify("PUT", path, {**query, key: other})
            tried += 1
        for other in ("", value + "0", value[:-1], "é\ud800", value + "\n"):
            with pytest.raises(GatewayError, match="PERMISSION_DENIED"):
                holder.files.verify("PUT", path, {**query, key: other})
        with pytest.raises(GatewayError, match="PERMISSION_DENIED"):
            holder.files.verify("PUT", path, {k: v for k, v in query.items() if k != key})
    assert tried > 100


def traversals() -> list[str]:
    """200 and more ways out of a folder."""
    ups = ["..", ".", "...", "....", "%2e%2e", "%2E.", ".%2e", "%252e%252e", "..%00", "..;", "..\\", "\u2025", "．．",
           "%c0%ae%c0%ae", "..%c0%af", "~", "~root", "-", "", " ", "\x00", "%00", "\n", "*", "?", "#", "C:", "nul\\..",
           ".hidden", "..\x7f", "a\x00b", "%u002e%u002e", "..%5c", "${HOME}", "$(id)",
           "`id`", "file:", "\\\\host"]  # fmt: skip
    forms = ["{}/{}/etc/passwd", "a/{}", "{}", "a/{}/b", "/{}", "{}/"]
    found = [form.format(*[up] * form.count("{}")) for up in ups for form in forms]
    return [*found, "/etc/passwd", "//etc/passwd", "a//b", "a/b/c/d/e", "a" * 129, "x/" + "y" * 4096]


def test_no_name_leads_outside(holder: Holder, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    payloads = traversals()
    assert len(payloads) >= 200
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    for payload in payloads:
        for name in (payload, quote(payload, safe="/")):
            for method in (holder.files.path, holder.files.discard):
                with pytest.raises(GatewayError, match="INVALID_ARGUMENT"):
                    method(NAME, name)
            with pytest.raises(GatewayError, match="INVALID_ARGUMENT"):
                holder.files.url("GET", NAME, name, base_url=BASE)
            with pytest.raises(GatewayError, match="INVALID_ARGUMENT"):
                holder.files.folder(f"accounts/local/{name}/../..")
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before


@pytest.mark.anyio
async def test_no_request_leads_outside(holder: Holder, client: httpx.AsyncClient, tmp_path: Path) -> None:
    """Even with a right signature, which only the gateway can make."""
    (tmp_path / "secret").write_text("secret")
    (holder.files.root / "link").symlink_to(tmp_path)
    for payload in traversals()[:120]:
        path = f"/files/{NAME}/{payload}"
        query = {"expires": str(int(holder.time) + 9), "size": ""}
        for method in ("GET", "PUT"):
            signed = {**query, "signature": holder.files._sign(method, path, query)}
            try:
                answer = await client.request(method, quote(path, safe="/"), params=signed, content=b"x")
            except httpx.InvalidURL:
                continue
            assert answer.status_code in (400, 403, 404), (payload, answer.status_code)
            assert "secret" not in answer.text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["secret", "state"]


@pytest.mark.anyio
async def test_a_session_takes_pieces(holder: Holder, client: httpx.AsyncClient) -> None:
    content = b"0123456789"
    start = holder.files.url("POST", NAME, "f", base_url=BASE, size=10)
    assert (await client.post(start)).status_code == 400
    assert (await client.put(start, content=content)).status_code == 403  # a session's beginning is no PUT
    begun = await client.post(start, headers={"x-goog-resumable": "start"})
    assert begun.status_code == 201
    session = begun.headers["location"]

    async def put(said: str, body: bytes = b"") -> tuple[int, str | None]:
        answer = await client.put(session, content=body, headers={"content-range": said})
        return answer.status_code, answer.headers.get("range")

    assert await put("bytes */10") == (308, None)
    assert await put("bytes 0-3/10", content[:4]) == (308, "bytes=0-3")
    assert await put("bytes 4-5/*", content[4:6]) == (308, "bytes=0-5")
    assert await put("bytes */10") == (308, "bytes=0-5")
    assert (await put("bytes 8-9/10", b"89"))[0] == 409  # a hole
    for wrong in ("bytes 6-20/10", "bytes 6-5/10", "bytes 6-9/11", "bytes 6-", "lines 6-9/10"):
        assert (await put(wrong, content[6:]))[0] == 400
    assert (await put("bytes 6-9/10", b"678"))[0] == 400  # said more than came
    assert await put("bytes 6-9/10", content[6:]) == (200, None)
    assert holder.files.path(NAME, "f").read_bytes() == content
    assert holder.store.get(NAME).private["files"]["f"]["sha256"] == hashlib.sha256(content).hexdigest()
    assert await put("bytes */10") == (200, None)  # asked again after the answer was lost
    other = (await client.post(start, headers={"x-goog-resumable": "start"})).headers["location"]
    assert (await client.put(other, headers={"content-range": "bytes */10"})).status_code == 308  # its own state


@pytest.mark.anyio
async def test_pieces_by_digest_and_whole(holder: Holder, client: httpx.AsyncClient) -> None:
    content = b"abcdefghij"
    url = holder.files.url("PUT", NAME, "f", base_url=BASE, size=10)
    headers = {"content-digest": content_digest(hashlib.sha256(content).hexdigest())}
    first = await client.put(url, content=content[:5], headers={**headers, "content-range": "bytes 0-4/10"})
    assert (first.status_code, first.headers["range"]) == (308, "bytes=0-4")
    wrong = await client.put(url, content=b"XXXXX", headers={**headers, "content-range": "bytes 5-9/10"})
    assert wrong.status_code == 400
    assert wrong.json()["code"] == 15  # DATA_LOSS: what came is not the sender's
    assert not holder.files.path(NAME, "f").exists()
    assert (await client.put(url, content=content[:5], headers={"content-range": "bytes 0-4/10"})).status_code == 400
    assert (await client.put(url, content=content, headers={"x-goog-content-length-range": "9,9"})).status_code == 400
    assert (await client.put(url, content=content[:9])).status_code == 400
    assert (await client.put(url, content=content + b"k")).status_code == 400
    assert (await client.put(url, content=content, headers=headers)).status_code == 200
    assert (await client.put(url, content=b"", headers=headers)).status_code == 200  # it is here already
    got = await client.get(holder.files.url("GET", NAME, "f", base_url=BASE))
    assert got.content == content
    with holder.store.transaction() as transaction:
        transaction.save(transaction.get(NAME).changed({"state": "READY"}))
    assert (await client.put(url, content=b"0123456789")).status_code == 400  # final


@pytest.mark.anyio
async def test_a_file_that_came_whole_and_could_not_be_finished_is_finished(
    holder: Holder, client: httpx.AsyncClient
) -> None:
    content = b"abcdefghij"
    digest = content_digest(hashlib.sha256(content).hexdigest())
    with holder.files.incoming(NAME, "f", size=10, digest=digest) as incoming:
        incoming.write(content)  # and then the records were away
    url = holder.files.url("PUT", NAME, "f", base_url=BASE, size=10)
    asked = await client.put(url, headers={"content-digest": digest, "content-range": "bytes */10"})
    assert (asked.status_code, asked.headers["range"]) == (308, "bytes=0-8")
    last = await client.put(url, content=b"j", headers={"content-digest": digest, "content-range": "bytes 9-9/10"})
    assert last.status_code == 200
    assert holder.files.path(NAME, "f").read_bytes() == content


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
