"""What comes over the socket and is no HTTP, or no request that anybody should send."""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import uvicorn

from tests.gateway_kit import A
from trainer.gateway import limits
from trainer.gateway.connections import Connection
from trainer.gateway.server import create_app

HEAD = f"GET {A} HTTP/1.1\r\nHost: localhost\r\n".encode()
POST = f"POST {A}/datasets HTTP/1.1\r\nHost: localhost\r\n".encode()
CLOSE = b"Connection: close\r\n\r\n"


class _Hasty(Connection):
    """With as little patience as a test has."""

    read_seconds = 0.3


@contextmanager
def listening(folder: Path) -> Iterator[int]:
    """The app on a socket; its port."""
    app = create_app(folder)
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        app, http=_Hasty, ws="none", log_level="critical", h11_max_incomplete_event_size=limits.HEAD_BYTES
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()
        listener.close()
        app.state.gateway.close()


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with listening(tmp_path_factory.mktemp("http") / "gateway") as port:
        yield port


def exchange(port: int, *pieces: bytes) -> bytes:
    """All that comes back for `pieces`, each sent after an answer to the one before has begun."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        found = b""
        for number, piece in enumerate(pieces):
            connection.sendall(piece)
            if number + 1 < len(pieces):
                found += connection.recv(65_536)
        with suppress(ConnectionResetError):  # it was closed before all had been read there
            while got := connection.recv(65_536):
                found += got
    return found


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def body_of(answer: bytes) -> dict[str, object]:
    return json.loads(answer.partition(b"\r\n\r\n")[2])


@pytest.mark.parametrize(
    "request_", [
        b"no http\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", HEAD + b"Host: other\r\n" + CLOSE,
        POST + b"Content-Length: +5\r\n" + CLOSE, POST + b"Transfer-Encoding: xchunked\r\n" + CLOSE,
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    ],
)  # fmt: skip
def test_what_is_no_http_is_refused_in_the_gateways_words(port: int, request_: bytes) -> None:
    answer = exchange(port, request_)
    assert status_of(answer) == 400
    assert body_of(answer)["code"] == 3
    assert b"connection: close" in answer.lower()


@pytest.mark.parametrize(
    "head", [
        POST + b"Origin: http://evil.example\r\nTransfer-Encoding: chunked\r\n\r\n",
        POST + b"Content-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n",
        b"PUT /files/a/b/c/d/e?signature=1 HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n",
    ],
)  # fmt: skip
def test_rubbish_after_an_early_answer(port: int, head: bytes, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        answer = exchange(port, head + b"5\r\nabcde\r\n", b"ZZZ\r\n")
    assert answer.count(b"HTTP/1.1 ") == 1
    assert caplog.records == []  # asyncio logs what a protocol lets fall


def test_headers_of_more_than_64_kib(port: int) -> None:
    assert status_of(exchange(port, HEAD + b"X-A: " + b"a" * 60_000 + b"\r\n" + CLOSE)) == 200
    for much in (b"X-A: " + b"a" * 70_000 + b"\r\n", b"".join(b"X-%d: a\r\n" % number for number in range(9000))):
        assert status_of(exchange(port, HEAD + much + CLOSE)) in (400, 431)


def test_versions_that_are_not_spoken(port: int) -> None:
    for version in (b"2.0", b"3.7", b"0.9"):
        answer = exchange(port, HEAD.replace(b"HTTP/1.1", b"HTTP/" + version) + CLOSE)
        assert status_of(answer) in (400, 505), version


def test_head_has_no_body(port: int) -> None:
    answer = exchange(port, HEAD.replace(b"GET", b"HEAD") + CLOSE)
    assert status_of(answer) == 200
    assert answer.endswith(b"\r\n\r\n")
    assert b"x-content-type-options: nosniff" in answer


def test_who_does_not_read_is_let_go(port: int) -> None:
    """The answers of 3000 requests, which nobody takes, fill what the two sides hold."""
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", port))
        connection.settimeout(30)
        request = f"GET {A}/trainingShapes/-/versions HTTP/1.1\r\nHost: localhost\r\n\r\n"
        request = request.replace("accounts/local", "accounts/-").encode()
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline:
                connection.sendall(request * 50)
                time.sleep(0.01)
