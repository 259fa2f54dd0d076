"""A gateway that misbehaves on purpose: a real TCP server in front of the real app, which is served by uvicorn.

By chance (seeded) or by script a request meets a fault: an answer 429 or 503 with the time to come back in any of its
spellings, silence, a reset before, in the middle of or after the work, half an answer, no listener at all, or a record
that is never taken. Every request is written down with its times; `breaches` reads that history.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import select
import socket
import struct
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tests.reserved_port import reserved_port
from trainer.gateway.gateway import Gateway
from trainer.gateway.server import create_app

LIMITS = ("limit", "limit-date", "limit-ms", "busy")  # these say when to come back
FAULTS = (*LIMITS, "busy-bare", "proxy-502", "silent", "silent-after", "reset-before", "reset-middle", "reset-after",
          "truncate", "late")  # fmt: skip
# Figure 20: 30 % 429, 20 % 503, 10 % time-outs, 5 % resets; and some answers that break off.
STORM = {"limit": 0.14, "limit-date": 0.02, "limit-ms": 0.14, "busy": 0.1, "busy-bare": 0.08, "proxy-502": 0.02,
         "silent": 0.04, "silent-after": 0.04, "late": 0.02, "reset-before": 0.02, "reset-middle": 0.01,
         "reset-after": 0.02, "truncate": 0.02}  # fmt: skip
_PIECE = 1 << 16
_PATIENCE = 60.0  # seconds for the app to take what it was sent, on a busy machine
_TAG = re.compile(r"run-\d+")


class ScaledClock:
    """Time that runs faster: a second lasts `scale` seconds. `shift` lets an hour pass at once."""

    def __init__(self, scale: float) -> None:
        self.scale, self.shift = scale, 0.0

    def now(self) -> float:
        return time.monotonic() / self.scale + self.shift

    def wait(self, seconds: float, until: threading.Event) -> bool:
        return until.wait(seconds * self.scale)


@dataclass
class Seen:
    """One request, as the server met it. who: the client's key, or the run that the path speaks of."""

    who: str
    method: str
    path: str
    fault: str
    came: float
    answered: float = 0.0
    retry_after: float = 0.0
    body_bytes: int = 0
    seqs: list[int] = field(default_factory=list)


class FaultyGateway:
    """Use `faulty_gateway`. rates: fault -> share of requests. script: faults of the next requests, before any chance.

    poison: events that are refused for good. `offline()` closes the listener, `online()` opens it again.
    scale: of `retry-after`, for clients on a ScaledClock. late: seconds that a `late` request is applied too late.
    """

    def __init__(self, upstream: int, *, seed: int = 0, rates: Mapping[str, float] | None = None, scale: float = 1.0):
        self.upstream, self.rates, self.scale = upstream, dict(rates or {}), scale
        self.draw = random.Random(seed)
        self.script: list[str] = []
        self.poison: Callable[[Mapping[str, Any]], bool] = lambda event: False
        self.only: Callable[[Seen], bool] = lambda seen: True
        self.seen: list[Seen] = []
        self.late = 0.5
        self.cut_after: int | None = None  # bytes of a body before a reset in its middle; None = half
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="faulty gateway", daemon=True)
        self._server: asyncio.Server | None = None
        self._later: set[asyncio.Task[Any]] = set()
        self._connections: set[asyncio.StreamWriter] = set()
        self._held = ExitStack()
        self.taken: Mapping[int, int] | None = None  # see `Taking`
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def online(self) -> None:
        self._do(self._listen())

    def offline(self) -> None:
        self._do(self._close())

    def start(self) -> None:
        self.port = self._held.enter_context(reserved_port())  # also while it is offline
        self._thread.start()
        self.online()

    def stop(self) -> None:
        self._do(self._close())
        self._do(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._held.close()

    def _do(self, work: Any) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port, reuse_address=True)

    async def _close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    async def _end(self) -> None:
        for task in [*self._later, *(t for t in asyncio.all_tasks() if t is not asyncio.current_task())]:
            task.cancel()
        await asyncio.sleep(0)
        for writer in self._connections:  # also those whose peer does not take what it was sent
            writer.transport.abort()
        await asyncio.sleep(0)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections.add(writer)
        try:
            await self._serve(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass  # the client, or the test, has gone
        finally:
            self._left(writer)

    def _left(self, writer: asyncio.StreamWriter) -> None:
        writer.close()
        if not writer.transport.get_write_buffer_size():
            self._connections.discard(writer)

    async def _connected(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.upstream)
        self._connections.add(writer)
        return reader, writer

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        method, path, _ = lines[0].split(" ", 2)
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:] if line)}
        tag = _TAG.search(path)
        seen = Seen(headers.get("x-api-key") or (tag[0] if tag else "?"), method, path, "", time.monotonic())
        seen.fault = self._fault(seen)
        self.seen.append(seen)
        length = int(headers.get("content-length", "0"))
        if seen.fault == "reset-before":
            return _reset(writer)
        if seen.fault == "reset-middle":
            return await self._cut(seen, head, reader, writer, length)
        body = await reader.readexactly(length)
        seen.body_bytes = length
        await self._answer(seen, head + body, reader, writer)

    def _fault(self, seen: Seen) -> str:
        if not self.only(seen):
            return ""
        if self.script:
            return self.script.pop(0)
        number = self.draw.random()
        for fault, share in self.rates.items():
            number -= share
            if number < 0:
                return fault
        return ""

    async def _answer(
        self, seen: Seen, request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        if seen.path.endswith(":report"):
            events = json.loads(request.partition(b"\r\n\r\n")[2]).get("events", [])
            seen.seqs = [event["seq"] for event in events]
            if seen.fault in ("", "late", "silent-after", "reset-after", "truncate") and any(map(self.poison, events)):
                seen.fault = "poison"
        if seen.fault in ("silent", "late"):
            if seen.fault == "late":  # applied when its sender has long given up
                task = asyncio.get_running_loop().create_task(self._apply_late(request))
                self._later.add(task)
            await reader.read()
        elif seen.fault in (*LIMITS, "busy-bare", "proxy-502", "poison"):
            refusal = self._refusal(seen)
            seen.answered = time.monotonic()
            if _given_up(writer):  # this process came too late with it; nobody hears when to come back
                seen.retry_after = 0.0
            writer.write(refusal)
            return await writer.drain()
        else:
            answer = await self._upstream(request)
            if seen.fault == "silent-after":
                await reader.read()
            elif seen.fault == "reset-after":
                _reset(writer)
            else:
                writer.write(answer[: len(answer) // 2] if seen.fault == "truncate" else answer)
        seen.answered = time.monotonic()
        if not writer.is_closing():
            await writer.drain()

    async def _cut(
        self, seen: Seen, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, length: int
    ) -> None:
        """Pass on a part of the body, then break both connections once the app has it."""
        _, up = await self._connected()
        try:
            up.write(_closing(head))
            seen.body_bytes = left = min(length, length // 2 if self.cut_after is None else self.cut_after)
            while left:
                piece = await reader.readexactly(min(left, _PIECE))
                up.write(piece)
                await up.drain()
                left -= len(piece)
            await self._is_taken(up, seen.body_bytes)
        finally:
            self._left(up)
        _reset(writer)

    async def _is_taken(self, up: asyncio.StreamWriter, size: int) -> None:
        """Wait until the app has done what it does with this much of a body: what comes later is lost with the cut."""
        assert self.taken is not None
        port, end = up.get_extra_info("sockname")[1], time.monotonic() + _PATIENCE
        while self.taken.get(port, 0) < size and time.monotonic() < end:
            await asyncio.sleep(0.005)

    async def _apply_late(self, request: bytes) -> None:
        await asyncio.sleep(self.late)
        await self._upstream(request)

    async def _upstream(self, request: bytes) -> bytes:
        head, _, body = request.partition(b"\r\n\r\n")
        reader, writer = await self._connected()
        try:
            writer.write(_closing(head + b"\r\n\r\n") + body)
            return await reader.read()
        finally:
            self._left(writer)

    def _refusal(self, seen: Seen) -> bytes:
        now = datetime.now(UTC)
        extra = {"date": format_datetime(now, usegmt=True)}
        if seen.fault == "limit-ms":
            seen.retry_after = self.draw.randint(300, 1500) / 1000
            extra |= {"retry-after-ms": str(round(seen.retry_after * 1000)), "retry-after": "0"}
        elif seen.fault == "limit-date":
            seen.retry_after = 2.0
            extra["retry-after"] = format_datetime(now + timedelta(seconds=2), usegmt=True)
        elif seen.fault in LIMITS:
            seen.retry_after = self.draw.choice([1.0, 2.0])
            extra["retry-after"] = f"{seen.retry_after:g}"
        if seen.fault == "proxy-502":
            return _http("502 Bad Gateway", b"<html>upstream is down</html>", {"content-type": "text/html"})
        if seen.fault == "poison":
            body = {"code": 3, "message": "this record is refused", "details": []}
            return _http("400 Bad Request", json.dumps(body).encode(), {"x-gateway-trainer": "test"})
        status = "429 Too Many Requests" if seen.fault.startswith("limit") else "503 Service Unavailable"
        return _http(status, b'{"code": 14, "message": "come back later", "details": []}', extra)


class Taking:
    """An ASGI app that tells how much of a connection's body it has dealt with: what came before it asks for more.

    taken: the client's port -> bytes.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app, self.taken = app, dict[int, int]()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        port, came = (scope.get("client") or ("", 0))[1], 0

        async def noted() -> Message:
            nonlocal came
            self.taken[port] = came
            message = await receive()
            came += len(message.get("body", b""))
            return message

        await self.app(scope, noted, send)


@contextmanager
def faulty_gateway(
    folder: Path, *, seed: int = 0, rates: Mapping[str, float] | None = None, scale: float = 1.0
) -> Iterator[tuple[FaultyGateway, Gateway]]:
    """The faulty server, and the gateway behind it."""
    with upstream(folder) as (port, gateway, taken):
        found = FaultyGateway(port, seed=seed, rates=rates, scale=scale)
        found.taken = taken
        found.start()
        try:
            yield found, gateway
        finally:
            found.stop()


@contextmanager
def upstream(folder: Path) -> Iterator[tuple[int, Gateway, Mapping[int, int]]]:
    """The real app on `folder`, served by uvicorn in a thread; its port, and what it has taken (see `Taking`)."""
    app = create_app(folder)
    taking = Taking(app)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        config = uvicorn.Config(taking, log_level="critical", access_log=False, timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            while not server.started:
                assert thread.is_alive(), "the app did not start"
                time.sleep(0.01)
            yield listener.getsockname()[1], app.state.gateway, taking.taken
        finally:
            server.should_exit = True
            thread.join()
            app.state.gateway.close()


def breaches(
    seen: Sequence[Seen],
    *,
    scale: float = 1.0,
    most_in_ten_seconds: int = 60,
    kills: Sequence[tuple[str, float]] = (),
) -> list[str]:
    """What the history shows that must not be: a retry before its time, or more requests than bounded.

    kills: when whose process was killed; its successor cannot know what its predecessor was asked.
    """
    found: list[str] = []
    forgotten = list(kills)
    free_at: dict[str, float] = defaultdict(float)
    came: dict[str, list[float]] = defaultdict(list)
    for one in sorted(seen, key=lambda one: one.came):
        for kill in [kill for kill in forgotten if kill[0] == one.who and kill[1] < one.came]:
            forgotten.remove(kill)
            free_at[one.who] = 0.0
        if one.came < free_at[one.who]:
            found.append(f"{one.who}: {one.method} {one.path} came {free_at[one.who] - one.came:.3f} s too early")
        if one.retry_after:
            free_at[one.who] = max(free_at[one.who], one.answered + one.retry_after * scale)
        came[one.who].append(one.came)
    found += [
        f"{who}: {busiest(times, 10 * scale)} requests in ten seconds"
        for who, times in came.items()
        if busiest(times, 10 * scale) > most_in_ten_seconds
    ]
    return found


def busiest(times: Sequence[float], window: float) -> int:
    """The most requests within any `window` seconds."""
    first = most = 0
    for last, when in enumerate(times):
        while times[first] < when - window:
            first += 1
        most = max(most, last - first + 1)
    return most


def summary(seen: Sequence[Seen]) -> str:
    """How many requests met which fault."""
    counts = Counter(one.fault or "passed" for one in seen)
    return f"{len(seen)} requests: " + ", ".join(f"{count} {fault}" for fault, count in counts.most_common())


def untold(gateway: Gateway, run: Path, *, poison: Sequence[int] = ()) -> list[str]:
    """What of the run's journal the gateway does not have once and in order; the parked ones are exactly `poison`."""
    events = [json.loads(line) for line in (run / "sync.jsonl").read_bytes().splitlines()]
    told = [event for event in events if event["seq"] not in poison]
    name = f"accounts/local/supervisedFineTuningJobs/{run.name}"
    job = gateway.store.get(name)
    found: list[str] = []
    objective = json.loads((run / "run.json").read_bytes())["objective"]
    begun = json.dumps({"objective": objective}, ensure_ascii=False).encode()  # by the gateway, for a job that it runs
    own = [] if job.private.get("external") else [begun]
    lines = {
        "trainer.log": own + [event["body"]["line"].encode() for event in told if event["kind"] == "log"],
        "metrics.jsonl": [json.dumps(event["body"]).encode() for event in told if event["kind"] == "metrics"],
    }
    for filename, wanted in lines.items():
        path = gateway.files.path(name, filename)
        there = path.read_bytes().splitlines() if path.exists() else []
        if there != wanted:
            twice = len(there) - len(set(there))
            lost = len(set(wanted) - set(there))
            found.append(f"{run.name}/{filename}: {len(wanted)} told, {len(there)} there, {lost} lost, {twice} twice")
    states = [event["body"]["state"] for event in told if event["kind"] == "state"]
    if states and job.body["state"] != states[-1]:
        found.append(f"{run.name}: state {job.body['state']}, told {states[-1]}")
    for event in told:
        if event["kind"] == "model":
            model = gateway.store.find(f"accounts/local/models/{event['body']['id']}")
            if model is None or model.body["state"] != "READY":
                found.append(f"{run.name}: model {event['body']['id']} is not READY")
    path = run / "sync_parked.jsonl"
    parked = [json.loads(line)["event"]["seq"] for line in path.read_text().splitlines()] if path.exists() else []
    if parked != list(poison):
        found.append(f"{run.name}: parked {parked}, poison was {list(poison)}")
    return found


def _reset(writer: asyncio.StreamWriter) -> None:
    """End the connection with a RST, so that the client gets an error and no end of file."""
    connection = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def _given_up(writer: asyncio.StreamWriter) -> bool:
    """Whether the other side has ended the connection already."""
    poll = select.poll()
    poll.register(writer.get_extra_info("socket").fileno(), select.POLLRDHUP)
    return bool(poll.poll(0))


def _closing(head: bytes) -> bytes:
    """The request's head, asking the app to close the connection after its answer."""
    lines = [line for line in head.split(b"\r\n") if line and not line.lower().startswith(b"connection:")]
    return b"\r\n".join([*lines, b"connection: close", b"", b""])


def _http(status: str, body: bytes, headers: Mapping[str, str]) -> bytes:
    extra = "".join(f"{name}: {value}\r\n" for name, value in {"content-type": "application/json", **headers}.items())
    head = f"HTTP/1.1 {status}\r\n{extra}content-length: {len(body)}\r\nconnection: close\r\n\r\n"
    return head.encode() + body
