"""Figure 16: what the published client asks again, behind a proxy that loses answers or makes up its own, is done once.

The proxy writes down what the client says in `x-stainless-retry-count`, which is what tells a retry from a new wish.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from tests.gateway_kit import A, opened, served

pytestmark = pytest.mark.clients

SCRIPT = Path(__file__).with_name("fireworks_retries_script.py")
# What the proxy does with the requests of one create, in order; then it lets them pass.
# "lost": the work is done and the answer is not given; "half": half of it is; a number: an answer of its own.
CASES: dict[str, list[str]] = {
    "plain": [], "lost": ["lost"], "half": ["half"], "lost-twice": ["lost", "half"], "reset": ["reset"],
    "slow-down": ["429 retry-after-ms: 300"], "later": ["429 retry-after: 1"], "busy": ["503", "500"],
    "timeout": ["408", "lost"], "conflict": ["409"], "given-up": ["lost", "lost", "lost"],
}  # fmt: skip
WAITS = {
    "slow-down": 0.3,
    "later": 1.0,
    "busy": 0.375,
    "lost": 0.375,
}  # at least; 0.5 s less a quarter without a header


@dataclass
class Proxy:
    """Forwards to `upstream`, one request a connection."""

    upstream: tuple[str, int]
    script: list[str] = field(default_factory=list)
    seen: dict[str, list[tuple[str, str, float]]] = field(default_factory=dict)  # create -> (count, key, time)
    case: str = ""

    def __post_init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)  # wakes who waits for a connection
        self._thread.join()
        self._listener.close()

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                self._serve(connection)

    def _serve(self, client: socket.socket) -> None:
        request = _read(client)
        head = request.partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")
        if head[0].startswith("GET /next/"):
            self.case = head[0].split()[1].rsplit("/", 1)[1]
            self.script = list(CASES.get(self.case, ["lost"]))
            client.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
            return
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:])}
        counted = headers.get("x-stainless-retry-count", "none"), headers.get("idempotency-key", "none")
        self.seen.setdefault(self.case, []).append((*counted, time.monotonic()))
        what = self.script.pop(0) if self.script else "pass"
        if what == "reset":
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        elif what[0].isdigit():
            status, _, header = what.partition(" ")
            extra = f"{header}\r\n" if header else ""
            client.sendall(f"HTTP/1.1 {status} X\r\n{extra}content-length: 2\r\nconnection: close\r\n\r\n{{}}".encode())
        else:
            answer = self._forwarded(request)
            client.sendall({"lost": b"", "half": answer[: len(answer) - 20], "pass": answer}[what])

    def _forwarded(self, request: bytes) -> bytes:
        first, rest = request.split(b"\r\n", 1)
        lines = rest.split(b"\r\n\r\n", 1)[0].split(b"\r\n")
        kept = [line for line in lines if not line.lower().startswith((b"connection:", b"host:"))]
        host = f"Host: {self.upstream[0]}:{self.upstream[1]}".encode()
        head = b"\r\n".join([first, host, *kept, b"Connection: close"])
        with socket.create_connection(self.upstream) as upstream:
            upstream.sendall(head + b"\r\n\r\n" + rest.split(b"\r\n\r\n", 1)[1])
            answer = b""
            while piece := upstream.recv(1 << 16):
                answer += piece
        return answer


def _read(client: socket.socket) -> bytes:
    """A whole request."""
    found = b""
    while b"\r\n\r\n" not in found:
        found += _some(client)
    head, _, body = found.partition(b"\r\n\r\n")
    lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    length = int(lengths[0].split(b":")[1]) if lengths else 0
    while len(body) < length:
        body += _some(client)
    return head + b"\r\n\r\n" + body


def _some(client: socket.socket) -> bytes:
    piece = client.recv(1 << 16)
    assert piece, "the client ended in the midst of a request"
    return piece


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[Proxy]:
    with opened(tmp_path / "gateway"):  # with rows and a base model
        pass
    with served(tmp_path / "gateway") as (url, _):
        host, port = url.removeprefix("http://").split(":")
        found = Proxy((host, int(port)))
        try:
            yield found
        finally:
            found.close()


def asked(proxy: Proxy, client_python: Callable[[str], Path], *words: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "FIREWORKS"))}
    environment = kept | {
        "FIREWORKS_BASE_URL": proxy.url, "FIREWORKS_API_KEY": "fw_any", "FIREWORKS_ACCOUNT_ID": "local",
        "NO_PROXY": "127.0.0.1",
    }  # fmt: skip
    command = [client_python("fireworks-ai==1.2.28"), SCRIPT, *words]
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert answer.returncode == 0, answer.stderr
    return json.loads(answer.stdout.splitlines()[-1])


def listed(proxy: Proxy, collection: str) -> list[str]:
    found = httpx.get(f"http://{proxy.upstream[0]}:{proxy.upstream[1]}{A}/{collection}?pageSize=200").json()
    return [one["name"] for one in found[collection]]


def test_a_create_that_is_sent_again_makes_one_resource(proxy: Proxy, client_python: Callable[[str], Path]) -> None:
    made = asked(proxy, client_python, "job", *CASES)
    assert made.pop("given-up") == "APIConnectionError"
    jobs = listed(proxy, "supervisedFineTuningJobs")
    assert len(jobs) == len(CASES)  # the one given up is there too, once
    assert len(set(made.values())) == len(made)
    assert set(made.values()) < set(jobs)
    for case, faults in CASES.items():
        requests = min(len(faults), 2) + 1
        assert [count for count, _, _ in proxy.seen[case]] == [str(n) for n in range(requests)], case
        assert {key for _, key, _ in proxy.seen[case]} == {"none"}  # it sends no Idempotency-Key
    for case, seconds in WAITS.items():
        (_, _, first), (_, _, second) = proxy.seen[case][:2]
        assert second - first >= seconds, case


def test_a_conflict_that_lasts_is_not_asked_again(proxy: Proxy, client_python: Callable[[str], Path]) -> None:
    """A create with the client's own id whose answer was lost: the second is told that it is there, and that is all."""
    assert asked(proxy, client_python, "dataset", "mine") == {"mine": "ConflictError"}
    assert [count for count, _, _ in proxy.seen["mine"]] == ["0", "1"]
    assert "accounts/local/datasets/mine" in listed(proxy, "datasets")


def test_what_is_not_implemented_is_not_asked_again(proxy: Proxy, client_python: Callable[[str], Path]) -> None:
    assert asked(proxy, client_python, "deployment", "mine") == {"mine": "InternalServerError"}
    assert [count for count, _, _ in proxy.seen["mine"]] == ["0", "1"]  # the first answer was lost, the second is 501
