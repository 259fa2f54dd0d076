"""Proves that a served gateway stays as large as it is: python scripts/prove_soak.py [--minutes 20]

Figure 41 of docs/reliability.md: mixed traffic from several clients against a serving process that asks for keys
(lists, filters, creates, patches, deletes, uploads and downloads, jobs cancelled and deleted, secrets, keys made, used
and revoked, refusals, broken requests, metrics). What is made is deleted again, so nothing but the audit log and the
kept answers grows, and these on disk. Sampled are memory, descriptors, threads and files; after the warm-up (a quarter
of the time) a straight line through the memory may not rise by more than the bound, and descriptors, threads and
temporary files may not be more than they were. Ends with 1 where a promise does not hold.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from scripts.bench_gateway import Server, fill  # noqa: E402
from trainer.gateway import keys  # noqa: E402
from trainer.gateway.gateway import Gateway  # noqa: E402
from trainer.gateway.resources.models import ensure_tiny  # noqa: E402

A = "/v1/accounts/local"
MIB = 1 << 20
_ROW = {"messages": [{"role": "user", "content": "q" * 200}, {"role": "assistant", "content": "a" * 200}]}
_ROWS = "".join(json.dumps(_ROW) + "\n" for _ in range(50)).encode()
_RECORDS = 10_000  # so many that the connections' page caches are full before the warm-up ends
_SLACK = {"descriptors": 8, "threads": 4, "temporary files": 4}  # more than at the end of the warm-up


@dataclass(frozen=True)
class Sample:
    """The serving process at a moment. seconds: since the start; memory: resident bytes."""

    seconds: float
    memory: int
    descriptors: int
    threads: int
    temporary: int
    records: int


class Client:
    """One client's mix of requests, on one connection that is opened anew now and then."""

    def __init__(self, server: Server, key: str, number: int, counts: Counter[str]) -> None:
        self._server, self._headers, self._number, self._counts = server, {"x-api-key": key}, number, counts
        self._draw, self._turn, self._asked = random.Random(number), 0, time.monotonic()
        self._connection = http.client.HTTPConnection(server.address, timeout=60)

    def ask(self, method: str, path: str, body: Any = None, *, expect: int = 200, **headers: str) -> Any:
        """The JSON of an answer of status `expect`. Raises AssertionError for another."""
        content = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        if not isinstance(body, bytes | None):
            headers["content_type"] = "application/json"
        if time.monotonic() - self._asked > 2:  # the server lets go of what is idle for 5 s
            self._connection.close()
        said = {name.replace("_", "-"): value for name, value in headers.items()}
        self._connection.request(method, path, content, {**self._headers, **said})
        answer = self._connection.getresponse()
        found = answer.read()
        self._asked = time.monotonic()
        self._counts[str(answer.status)] += 1
        assert answer.status == expect, f"{method} {path}: {answer.status} {found[:300]!r}"
        return json.loads(found) if (answer.getheader("content-type") or "").startswith("application/json") else found

    def run(self) -> None:
        """One turn: one kind of request, in turn."""
        self._turn += 1
        kinds: list[Callable[[str], None]] = [
            self._lists, self._upload, self._lists, self._job, self._secret, self._key, self._refused, self._repeat,
        ]  # fmt: skip
        kinds[self._turn % len(kinds)](f"s{self._number}-{self._turn}")
        if self._turn % 50 == 0:
            self._connection.close()

    def _lists(self, _: str) -> None:
        self.ask("GET", f"{A}/datasets?pageSize={self._draw.randrange(1, 200)}&orderBy=createTime%20desc")
        self.ask("GET", f"{A}/datasets?filter=exampleCount%3C{self._draw.randrange(100)}&pageSize=20")
        self.ask("GET", f"{A}/datasets/bench-{self._draw.randrange(1000):06}?readMask=name,state")
        self.ask("GET", f"{A}/supervisedFineTuningJobs")
        self.ask("GET", f"{A}/auditLogs?pageSize=20")
        self.ask("GET", "/metrics")

    def _upload(self, name: str) -> None:
        self.ask("POST", f"{A}/datasets", {"datasetId": name, "dataset": {"displayName": name}})
        sizes = {"filenameToSize": {"rows.jsonl": str(len(_ROWS))}}
        (url,) = self.ask("POST", f"{A}/datasets/{name}:getUploadEndpoint", sizes)["filenameToSignedUrls"].values()
        self.ask("PUT", _path(url), _ROWS)
        self.ask("POST", f"{A}/datasets/{name}:validateUpload", {})
        self.ask("PATCH", f"{A}/datasets/{name}?updateMask=displayName", {"displayName": "again"})
        (url,) = self.ask("GET", f"{A}/datasets/{name}:getDownloadEndpoint")["filenameToSignedUrls"].values()
        assert self.ask("GET", _path(url)) != b""
        self.ask("DELETE", f"{A}/datasets/{name}")

    def _job(self, name: str) -> None:
        body = {"dataset": "rows", "baseModel": "accounts/local/models/tiny", "wandbConfig": {"apiKey": "planted"}}
        self.ask("POST", f"{A}/supervisedFineTuningJobs?supervisedFineTuningJobId={name}&odd=1", {**body, "odd": 1})
        self.ask("POST", f"{A}/supervisedFineTuningJobs/{name}:cancel", {})
        self.ask("DELETE", f"{A}/supervisedFineTuningJobs/{name}")

    def _secret(self, name: str) -> None:
        self.ask("POST", f"{A}/secrets", {"keyName": "K", "name": name, "value": "v" * 50})
        self.ask("PATCH", f"{A}/secrets/{name}", {"value": "w" * 50})
        self.ask("DELETE", f"{A}/secrets/{name}")

    def _key(self, name: str) -> None:
        made = self.ask("POST", f"{A}/users/local/apiKeys", {"apiKey": {"displayName": name}})
        self.ask("GET", A, x_api_key=made["key"])
        self.ask("POST", f"{A}/users/local/apiKeys:delete", {"keyId": made["keyId"]})
        self.ask("GET", A, expect=401, x_api_key=made["key"])

    def _refused(self, name: str) -> None:
        self.ask("GET", f"{A}/datasets/{name}", expect=404)
        self.ask("POST", f"{A}/datasets", {"datasetId": "UPPER", "dataset": {}}, expect=400)
        self.ask("GET", f"{A}/datasets?filter=(((", expect=400)
        self.ask("POST", f"{A}/deployments", {"baseModel": "m"}, expect=501)
        self.ask("GET", f"/v1/accounts/{name}/datasets", expect=404)
        host, port = self._server.address.split(":")
        with socket.create_connection((host, int(port))) as broken:
            broken.sendall(b"POST /v1/accounts HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf")

    def _repeat(self, name: str) -> None:
        for _ in range(2):
            self.ask("POST", f"{A}/datasets", {"datasetId": name, "dataset": {}}, idempotency_key=name)
        self.ask("DELETE", f"{A}/datasets/{name}")


def sampled(server: Server, folder: Path, began: float) -> Sample:
    """The serving process now."""
    process = Path(f"/proc/{server.pid}")
    status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
    sizes = [path.stat().st_size for path in folder.glob("gateway.db*")]
    temporary = sum(1 for path in folder.rglob("*") if path.is_file() and "partial" in path.parts)
    return Sample(
        time.monotonic() - began, int(status["VmRSS"].split()[0]) << 10, sum(1 for _ in (process / "fd").iterdir()),
        int(status["Threads"]), temporary, sum(sizes),
    )  # fmt: skip


def slope(samples: list[Sample]) -> float:
    """Bytes a minute by which the memory rises: the least squares' line."""
    return statistics.linear_regression([s.seconds / 60 for s in samples], [s.memory for s in samples]).slope


def traffic(
    server: Server, folder: Path, key: str, *, clients: int, seconds: float
) -> tuple[list[Sample], Counter[str]]:
    """Let `clients` work for so long. Raises what the first that failed has met."""
    counts: Counter[str] = Counter()
    ended, failures, began = threading.Event(), list[BaseException](), time.monotonic()

    def work(number: int) -> None:
        client = Client(server, key, number, counts)
        try:
            while not ended.is_set():
                client.run()
        except BaseException as error:  # noqa: BLE001  (told by the main thread)
            failures.append(error)
            ended.set()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    samples: list[Sample] = []
    while time.monotonic() - began < seconds and not ended.wait(min(5.0, seconds / 40)):
        samples.append(sampled(server, folder, began))
    ended.set()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return samples, counts


def judged(samples: list[Sample], *, bound: float) -> list[str]:
    """What does not hold, in words."""
    late = [one for one in samples if one.seconds >= samples[-1].seconds / 4]
    rise, most = slope(late), max(one.memory for one in samples)
    first, last = late[0], late[-1]
    print(f"memory            {first.memory / MIB:.1f} MiB after the warm-up, {last.memory / MIB:.1f} at the end, "
          f"{most / MIB:.1f} at most; {rise / MIB:+.3f} MiB a minute (bound {bound})")  # fmt: skip
    wrong = [f"memory rises by {rise / MIB:.3f} MiB a minute"] if rise > bound * MIB else []
    half = len(late) // 2
    for name, values in (
        ("descriptors", [one.descriptors for one in late]), ("threads", [one.threads for one in late]),
        ("temporary files", [one.temporary for one in late]),
    ):  # fmt: skip
        before, after = max(values[:half]), max(values[half:])
        print(f"{name:<17} at most {before} in the first half after it, {after} in the second")
        if after > before + _SLACK[name]:
            wrong.append(f"{name}: {before} became {after}")
    print(
        f"records on disk   {first.records / MIB:.1f} MiB became {last.records / MIB:.1f}: the audit log, kept answers"
    )
    return wrong


def _path(url: str) -> str:
    found = urlsplit(url)
    return f"{found.path}?{found.query}"


def main() -> int:
    """Serve, work, judge."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--bound", type=float, default=0.25, help="MiB a minute by which the memory may rise")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as top:
        folder = Path(top) / "gateway"
        gateway = Gateway(folder)
        fill(gateway, _RECORDS)
        ensure_tiny(gateway)
        _, key = keys.create_key(gateway.store, "accounts/local", "local", "admin")
        gateway.close()
        server = Server(folder, True)
        try:
            setting = Client(server, key, 0, Counter())
            setting.ask("POST", f"{A}/datasets", {"datasetId": "rows", "dataset": {}})
            sizes = {"filenameToSize": {"rows.jsonl": str(len(_ROWS))}}
            (url,) = setting.ask("POST", f"{A}/datasets/rows:getUploadEndpoint", sizes)["filenameToSignedUrls"].values()
            setting.ask("PUT", _path(url), _ROWS)
            setting.ask("POST", f"{A}/datasets/rows:validateUpload", {})
            before = server.cpu()
            samples, counts = traffic(server, folder, key, clients=options.clients, seconds=options.minutes * 60)
            total = counts.total()
            print(f"requests          {total} in {samples[-1].seconds:.0f} s: {dict(sorted(counts.items()))}, "
                  f"server CPU {(server.cpu() - before) / total * 1000:.2f} ms each")  # fmt: skip
            wrong = judged(samples, bound=options.bound)
            ended = _gone(setting)
        finally:
            server.close()
    wrong += ended
    print(json.dumps({"failed": wrong}))
    return 1 if wrong else 0


def _gone(client: Client) -> list[str]:
    """What should have been deleted and is there: all but what was there before."""
    expected = {"datasets": _RECORDS + 1, "supervisedFineTuningJobs": 0, "secrets": 0}
    found = {name: client.ask("GET", f"{A}/{name}")["totalSize"] for name in expected}
    # A client that is stopped amid a turn has finished that turn, so nothing may be left.
    return [f"{name}: {found[name]} are left of {count}" for name, count in expected.items() if found[name] != count]


if __name__ == "__main__":
    sys.exit(main())
