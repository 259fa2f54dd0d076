"""What a request may be, on a real socket: lengths, framing, depth, slow clients; and what the server logs."""

import asyncio
import json
import logging
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
import pytest
import uvicorn

from tests.gateway_kit import A, opened, raw, served
from trainer.gateway import limits, logs
from trainer.gateway.connections import Connection
from trainer.gateway.errors import GatewayError
from trainer.gateway.limits import DEEPEST, HEAD_BYTES, JSON_LIMIT, MOST_KEYS, read_json
from trainer.gateway.server import create_app

HOST = b"Host: 127.0.0.1\r\n"
POST = f"POST {A}/datasets HTTP/1.1\r\n".encode() + HOST + b"Content-Type: application/json\r\n"
GET = f"GET {A} HTTP/1.1\r\n".encode() + HOST
CHUNKED = b"Transfer-Encoding: chunked\r\n"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with served(tmp_path_factory.mktemp("limits") / "gateway") as (found, _):
        yield found


def exchange(url: str, data: bytes, wait: float = 60.0) -> bytes:
    """What comes back for `data` until the server closes the connection, or is silent for `wait` seconds."""
    host, port = url.removeprefix("http://").split(":")
    answer = b""
    with socket.create_connection((host, int(port)), timeout=wait) as connection:
        with suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(data)
        with suppress(TimeoutError, ConnectionResetError):
            while part := connection.recv(65536):
                answer += part
    return answer


def port_of(url: str) -> int:
    return int(url.rsplit(":", 1)[-1])


def is_ended(connection: socket.socket) -> bool:
    """Whether the other side ends the connection, and sends nothing before; by a reset where it had not read all."""
    with suppress(ConnectionResetError):
        return connection.recv(1) == b""
    return True


def statuses(answer: bytes) -> list[int]:
    """The statuses of the answers in `answer`."""
    return [int(line[9:12]) for line in answer.split(b"\r\n") if line.startswith(b"HTTP/1.1 ")]


def body_of(answer: bytes) -> dict[str, object]:
    return json.loads(answer.partition(b"\r\n\r\n")[2])


def test_a_long_body_is_refused_before_it_is_read(url: str) -> None:
    answer = exchange(url, POST + f"Content-Length: {JSON_LIMIT + 1}\r\n\r\n".encode())
    assert statuses(answer) == [413]
    assert body_of(answer)["details"][0]["reason"] == "BODY_TOO_LONG"  # type: ignore[index]
    assert b"connection: close" in answer.lower()
    chunk = b"%x\r\n%s\r\n" % (1 << 20, b" " * (1 << 20))
    assert statuses(exchange(url, POST + CHUNKED + b"\r\n" + chunk * 18))[:1] in ([413], [])  # [] = cut while sending


@pytest.mark.parametrize(
    "framing",
    [
        b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
        b"Content-Length: 5\r\nContent-Length: 6\r\n",
        b"Content-Length: 5, 6\r\n",
        b"Content-Length: +5\r\n",
        b"Content-Length: 0x5\r\n",
        b"Content-Length: -1\r\n",
        b"Content-Length : 5\r\n",
        b"Content-Length: 5\r\n Content-Length: 6\r\n",
        b"Transfer-Encoding: xchunked\r\n",
        b"Transfer-Encoding: chunked, identity\r\n",
        b"Transfer-Encoding: identity\r\n",
        b"Transfer-Encoding\x0b: chunked\r\n",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: \x00chunked\r\n",
        b"X: y\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n",
    ],
)
def test_what_two_servers_may_read_in_two_ways_is_refused(url: str, framing: bytes) -> None:
    smuggled = b"0\r\n\r\n" + GET + b"\r\n"
    answer = exchange(url, POST + framing + b"\r\n" + smuggled)
    assert len(statuses(answer)) == 1, answer  # the second request is never read as one
    assert statuses(answer)[0] in (400, 501)


def test_packed_bodies_are_refused(url: str) -> None:
    answer = httpx.post(f"{url}{A}/datasets", content=b"\x1f\x8b", headers={"content-encoding": "gzip"})
    assert (answer.status_code, answer.json()["details"][0]["reason"]) == (415, "PACKED_BODY")


def test_long_heads_are_refused(url: str) -> None:
    fits = httpx.get(f"{url}{A}", headers={"x-filler": "x" * (HEAD_BYTES - 2000)})
    assert fits.status_code == 200
    assert statuses(exchange(url, GET + b"X: " + b"x" * (HEAD_BYTES + 10))) in ([400], [431])
    assert httpx.get(f"{url}{A}?x={'x' * 40_000}").status_code == 414
    assert statuses(exchange(url, b"GET /v1/accounts HTTP/1.1\r\n\r\n")) == [400]  # no host


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"[" * 100_000, "nested|not JSON"),
        (b'{"a":' * (DEEPEST + 1) + b"1" + b"}" * (DEEPEST + 1), "nested more than"),
        (b"{" + b",".join(b'"k%d":1' % n for n in range(MOST_KEYS + 1)) + b"}", "more than 200000 keys"),
        (b'{"a": NaN}', "NaN is not JSON"),
        (b'{"a": -Infinity}', "-Infinity is not JSON"),
        (b'{"a": 1e999}', "range of a double"),
        (b'{"a": "\\ud800"}', "surrogate"),
        (b'{"\\ud800": 1}', "surrogate"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not JSON"),
        (b'{"a": "\xff"}', "not JSON"),
        (b"{'a': 1}", "not JSON"),
        (b'{"a": 1} x', "not JSON"),
        (b"\xfe\xff", "not JSON"),
    ],
)
def test_json_has_limits(content: bytes, says: str) -> None:
    with pytest.raises(GatewayError, match=says) as caught:
        read_json(content)
    assert caught.value.code == "INVALID_ARGUMENT"


def test_json_within_the_limits_is_read() -> None:
    deep = b'{"a":' * (DEEPEST - 1) + b"1" + b"}" * (DEEPEST - 1)
    assert json.dumps(read_json(deep), separators=(",", ":")).encode() == deep
    assert read_json('{"a": "é \\ud83d\\ude00"}'.encode()) == {"a": "é 😀"}


def test_unknown_fields_of_any_kind_come_back(tmp_path: Path) -> None:
    odd = {"nul": "a\u0000b", "big": 2**70, "deep": [[{"x": None}]], "é": "😀", "0": 1.5e300}
    with opened(tmp_path / "gateway") as (client, _):
        made = raw(client, "POST", f"{A}/datasets", json={"datasetId": "d", "dataset": {"newer": odd}})
        assert made.status_code == 200, made.text
        assert made.json()["newer"]["nul"] == "a\u0000b"
        assert raw(client, "GET", f"{A}/datasets/d").json()["newer"]["big"] == 2**70


@pytest.mark.parametrize(
    ("method", "path"), [("OPTIONS", A), ("HEAD", f"{A}:none"), ("BREW", A), ("TRACE", "/v1/nothing")]
)
def test_methods_that_nothing_has(url: str, method: str, path: str) -> None:
    answer = httpx.request(method, url + path)
    assert answer.status_code in (404, 405)
    if method != "HEAD":
        assert answer.json()["code"] in (5, 12)


class Served:
    """The app on a socket, in a thread, with time-outs of a fraction of a second."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Connection, "head_seconds", 0.3)
        monkeypatch.setattr(limits, "_BODY_SECONDS", 0.3)
        monkeypatch.setattr(limits.limited, "__kwdefaults__", {"seconds": 0.3})
        self.app = create_app(folder)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        config = uvicorn.Config(self.app, http=Connection, ws="none", log_level="critical", timeout_keep_alive=1)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=lambda: asyncio.run(self._server.serve([self._listener])))
        self._thread.start()

    def close(self) -> None:
        self._server.should_exit = True
        self._thread.join()
        self._listener.close()
        self.app.state.gateway.close()


@pytest.fixture
def hasty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    found = Served(tmp_path / "gateway", monkeypatch)
    try:
        yield found.url
    finally:
        found.close()


def test_slow_heads_and_bodies_are_ended(hasty: str) -> None:
    assert exchange(hasty, b"") == b""  # says nothing, and is closed
    assert exchange(hasty, GET) == b""  # never ends its head
    answer = exchange(hasty, POST + b"Content-Length: 100\r\n\r\n{")
    assert statuses(answer) == [408]
    assert body_of(answer)["code"] == 4
    with socket.create_connection(("127.0.0.1", port_of(hasty)), timeout=60) as trickling:
        trickling.sendall(GET)
        deadline = time.monotonic() + 30
        with suppress(BrokenPipeError, ConnectionResetError):
            while time.monotonic() < deadline:  # a byte at a time does not buy more time
                trickling.send(b"x")
                time.sleep(0.02)
            raise AssertionError("more time was bought")
    kept = exchange(hasty, GET + b"\r\n" + GET)  # a whole request, and half of another
    assert statuses(kept) == [200]


def test_many_idle_connections_hold_nobody_up(hasty: str) -> None:
    address = ("127.0.0.1", port_of(hasty))
    with ExitStack() as stack:
        idle = [stack.enter_context(socket.create_connection(address, timeout=60)) for _ in range(200)]
        for connection in idle:
            with suppress(BrokenPipeError, ConnectionResetError):  # it took so long that this one has been ended
                connection.sendall(b"GET / HTTP/1.1\r\nX-")
        assert httpx.get(f"{hasty}{A}", timeout=60).status_code == 200
        assert all(is_ended(connection) for connection in idle)


def test_the_log_is_json_without_queries(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    with opened(tmp_path / "gateway") as (client, _), caplog.at_level(logging.INFO, logger="trainer.gateway.access"):
        raw(client, "GET", f"{A}/datasets?filter=displayName%3Dhidden-words", headers={"x-request-id": "r-1"})
        raw(client, "GET", f"{A}/datasets/none", headers={"x-request-id": "bad\x7fid"})
    lines = [json.loads(logs.JsonLines().format(record)) for record in caplog.records if hasattr(record, "fields")]
    assert [(line["status"], line["operation"]) for line in lines] == [
        (200, "Gateway_ListDatasets"), (404, "Gateway_GetDataset"),
    ]  # fmt: skip
    assert (lines[0]["request"], lines[0]["account"], lines[0]["path"]) == ("r-1", "accounts/local", f"{A}/datasets")
    assert lines[1]["request"] != "bad\x7fid"
    assert "hidden-words" not in json.dumps(lines)
