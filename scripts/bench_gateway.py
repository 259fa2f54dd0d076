"""How fast a served gateway answers over loopback: GET of a resource, a list of 50 of 100,000 rows, 64 writers at once.

    python scripts/bench_gateway.py [--rows 100000] [--keys]

Figures of docs/reliability.md: 14 (a create's p99 with 64 writers, less each writer's first, in which the server warms
up), 15 (`--duplicates 1000` equal requests at once under one key: one resource, one answer), 39 (`--idle 500
--idle-seconds 60`: connections that never end their head, beside a client that is measured before and meanwhile; its
p99 may double). Client and server share the machine; the CPU seconds that the server spends on a request are printed
too, since they do not depend on what else runs. Ends with 1 where 15 or 39 does not hold.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from trainer.gateway import keys  # noqa: E402
from trainer.gateway.gateway import Gateway  # noqa: E402
from trainer.gateway.store import Resource  # noqa: E402

A = "/v1/accounts/local"
_TICKS = os.sysconf("SC_CLK_TCK")
_SERVE = (
    "import sys; from pathlib import Path; from trainer.gateway.server import serve\n"
    "serve(Path(sys.argv[1]), on_ready=lambda url: print(url, flush=True), keys=sys.argv[2] == 'True')"
)


def fill(gateway: Gateway, count: int) -> None:
    """Add `count` data sets."""
    with gateway.store.transaction() as transaction:
        for number in range(count):
            bare = f"bench-{number:06}"
            body = {
                "displayName": f"number {number}", "format": "CHAT", "exampleCount": str(number), "userUploaded": {},
                "state": "READY", "status": {"code": "OK", "message": ""},
            }  # fmt: skip
            name = f"accounts/local/datasets/{bare}"
            transaction.insert(Resource(name=name, collection="datasets", parent="accounts/local", id=bare, body=body))


class Server:
    """The serving process."""

    def __init__(self, folder: Path, ask_keys: bool) -> None:
        began = time.perf_counter()
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", _SERVE, str(folder), str(ask_keys)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)
        assert self._process.stdout is not None
        self.url = self._process.stdout.readline().decode().strip()
        self.started = time.perf_counter() - began
        self.address = self.url.removeprefix("http://")

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def cpu(self) -> float:
        """Seconds of CPU so far."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(") ")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    def close(self) -> None:
        """Stop it."""
        self._process.terminate()
        self._process.wait(10)


def timed(server: Server, headers: dict[str, str], path: str, count: int) -> str:
    """Median and 99th percentile of `count` GETs on one connection, and the server's CPU for one."""
    return gets(server, headers, path, count)[0]


def gets(server: Server, headers: dict[str, str], path: str, count: int, *, seconds: float = 0.0) -> tuple[str, float]:
    """As `timed`, and the 99th percentile; GETs go on for `seconds`, evenly spread, where that is not 0."""
    connection = http.client.HTTPConnection(server.address)
    times = []
    before = server.cpu()
    for number in range(count + 20):
        time.sleep(seconds / (count + 20))
        began = time.perf_counter()
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        content = answer.read()
        if answer.status != 200:
            raise SystemExit(f"{path}: {answer.status} {content[:300]!r}")
        if number >= 20:
            times.append((time.perf_counter() - began) * 1000)
    spent = (server.cpu() - before) / (count + 20) * 1000
    connection.close()
    cuts = statistics.quantiles(times, n=100)
    return f"p50 {statistics.median(times):6.2f} ms  p99 {cuts[98]:6.2f} ms  server CPU {spent:5.2f} ms", cuts[98]


def writers(server: Server, headers: dict[str, str], count: int, each: int) -> str:
    """`count` clients at once that create `each` records: statuses, and times of a create."""
    statuses: Counter[int | str] = Counter()
    times: list[float] = []

    def write(number: int) -> None:
        connection = http.client.HTTPConnection(server.address, timeout=60)
        for which in range(each):
            body = json.dumps({"datasetId": f"w-{number}-{which}", "dataset": {"displayName": "written"}})
            began = time.perf_counter()
            try:
                connection.request("POST", f"{A}/datasets", body, {**headers, "Content-Type": "application/json"})
                answer = connection.getresponse()
                answer.read()
                statuses[answer.status] += 1
            except OSError as error:
                statuses[type(error).__name__] += 1
            if which:  # not the first, which waits for threads and connections to be made
                times.append((time.perf_counter() - began) * 1000)
        connection.close()

    before = server.cpu()
    told = _at_once(write, count, lambda: f"{dict(statuses)}  {_percentiles(times)}")
    return f"{told}  server CPU {(server.cpu() - before) / (count * each) * 1000:.2f} ms each"


class Idle:
    """Connections that send a byte of a head now and then, and come again when they are closed (slowloris)."""

    def __init__(self, server: Server, count: int) -> None:
        host, port = server.address.split(":")
        self._place, self._count, self._stopped = (host, int(port)), count, threading.Event()
        self._open: list[socket.socket] = []
        self.closed = 0
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._stopped.wait(0.5):
            while len(self._open) < self._count:
                self._open.append(socket.create_connection(self._place))
            for one in list(self._open):
                try:
                    one.send(b"G")
                except OSError:
                    self._open.remove(one)
                    self.closed += 1

    def close(self) -> None:
        """Let go of them."""
        self._stopped.set()
        self._thread.join()
        for one in self._open:
            one.close()


def duplicates(server: Server, headers: dict[str, str], count: int) -> tuple[str, bool]:
    """`count` connections send the same create under one Idempotency-Key before any answer is read (figure 15)."""
    host, port = server.address.split(":")
    body = json.dumps({"datasetId": "the-one", "dataset": {"displayName": "once"}}).encode()
    said = {**headers, "Host": server.address, "Content-Type": "application/json", "Idempotency-Key": "the-same",
            "Content-Length": str(len(body)), "Connection": "close"}  # fmt: skip
    lines = "".join(f"{name}: {value}\r\n" for name, value in said.items())
    request = f"POST {A}/datasets HTTP/1.1\r\n{lines}\r\n".encode() + body
    began, before = time.perf_counter(), server.cpu()
    sockets = [socket.create_connection((host, int(port)), timeout=120) for _ in range(count)]
    for one in sockets:
        one.sendall(request)
    answers: Counter[tuple[bytes, bytes]] = Counter()
    replayed = 0
    for one in sockets:
        with one:
            head, _, content = b"".join(iter(lambda one=one: one.recv(1 << 16), b"")).partition(b"\r\n\r\n")
        answers[head.split(b"\r\n", 1)[0], content] += 1
        replayed += b"idempotent-replayed: true" in head.lower()
    connection = http.client.HTTPConnection(server.address)
    connection.request("GET", f"{A}/datasets?filter=displayName%3Donce", headers=headers)
    found = json.loads(connection.getresponse().read())["totalSize"]
    connection.close()
    ((status, _), _), *others = answers.most_common()
    good = found == 1 and not others and status.startswith(b"HTTP/1.1 200") and replayed == count - 1
    took = f"{time.perf_counter() - began:.1f} s, server CPU {(server.cpu() - before) / count * 1000:.2f} ms each"
    return f"{found} resource, {len(answers)} different answers, {replayed} replayed, in {took}", good


def _at_once(work: Callable[[int], None], count: int, told: Callable[[], str]) -> str:
    began = time.perf_counter()
    threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return f"{told()}  in {time.perf_counter() - began:.1f} s"


def _percentiles(times: list[float]) -> str:
    cuts = statistics.quantiles(times, n=100)
    return f"p50 {cuts[49]:.1f} ms  p99 {cuts[98]:.1f} ms"


def main() -> int:
    """Print the figures."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--writers", type=int, default=64)
    parser.add_argument("--each", type=int, default=10, help="creates of each writer")
    parser.add_argument("--idle", type=int, default=500, help="connections that never end their head")
    parser.add_argument("--idle-seconds", type=float, default=5.0, help="how long they stay")
    parser.add_argument("--duplicates", type=int, default=1000, help="equal creates at once under one key")
    parser.add_argument("--keys", action="store_true", help="with keys, as beyond loopback")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as top:
        folder = Path(top) / "gateway"
        gateway = Gateway(folder)
        fill(gateway, options.rows)
        _, key = keys.create_key(gateway.store, "accounts/local", "bench", "admin")
        gateway.close()
        server = Server(folder, options.keys)
        headers = {"X-Api-Key": key}
        try:
            spent = server.cpu()
            print(f"start             {server.started:.2f} s until ready, {spent:.2f} s of CPU ({options.rows} rows)")
            for shown, path in (
                ("GET", f"{A}/datasets/bench-000007"),
                ("list 50", f"{A}/datasets?pageSize=50"),
                ("list 50, newest", f"{A}/datasets?pageSize=50&orderBy=createTime%20desc"),
                ("list, filter", f"{A}/datasets?pageSize=50&filter=exampleCount%3C100"),
                ("healthz", "/healthz"),
            ):
                count = options.requests if "filter" not in path else 20
                print(f"{shown:<17} {timed(server, headers, path, count)}")
            path, span = f"{A}/datasets/bench-000007", options.idle_seconds
            told, alone = gets(server, headers, path, options.requests, seconds=span)
            print(f"GET, none idle    {told}  in {span:.0f} s")
            idle = Idle(server, options.idle)
            time.sleep(2)
            told, beside = gets(server, headers, path, options.requests, seconds=span)
            idle.close()
            print(
                f"GET, {options.idle} idle     {told}  in {span:.0f} s, {idle.closed} closed, p99 {beside / alone:.2f}x"
            )
            told, once = duplicates(server, headers, options.duplicates)
            print(f"{options.duplicates} duplicates   {told}")
            print(f"{options.writers} writers        {writers(server, headers, options.writers, options.each)}")
        finally:
            server.close()
    return 0 if once and beside < 2 * alone else 1


if __name__ == "__main__":
    sys.exit(main())
