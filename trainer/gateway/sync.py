"""Tells a gateway what a run reports: reads on in the run's `sync.jsonl` and sends it, in order, until all is acked.

The journal is the outbox; it is read by pieces, so memory stays the same however long the gateway was away. The number
of the last acked event is kept in `sync_state.json`, but the gateway's own number counts: telling twice is the same as
telling once, so a crash at any point only repeats. Whatever the gateway is not there for waits; what it will never take
is set aside once in `sync_parked.jsonl` with the error, and shown. One process at a time tells of a run (`sync.lock`).
When the gateway may be asked again is kept in `sync_waits.json`, so that whoever comes after a killed process waits
too. The run itself neither waits nor fails.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any, Protocol

from pydantic import ValidationError

from trainer.gateway.errors import GatewayError, invalid
from trainer.gateway.journal import count_lines, read_lines
from trainer.gateway.pacing import Backoff, Clock, KeptWaits, SystemClock, Waits
from trainer.report import Event
from trainer.runs import RunSpec

_BATCH = 500  # events
_BATCH_BYTES = 1 << 20  # a longer event goes by itself
_IDLE_SECONDS = 0.5
_LONGEST_BACKOFF = 30.0
_PARKED, _STATE, _LOCK, _WAITS = "sync_parked.jsonl", "sync_state.json", "sync.lock", "sync_waits.json"
_log = logging.getLogger("trainer.gateway.sync")

Job = Mapping[str, Any]


class Teller(Protocol):
    """The part of `GatewayClient` that is needed here.

    cut_short: while set, a failure is not followed by a wait. not_before: when each host may be asked again.
    """

    cut_short: threading.Event
    not_before: Waits

    @property
    def base_url(self) -> str: ...
    @property
    def ours(self) -> bool: ...
    def report(
        self, job_id: str, events: Sequence[Event], *, kind: str = ..., job: Mapping[str, Any] | None = None
    ) -> int: ...
    def upload_model(self, folder: Path, model_id: str, *, body: Mapping[str, Any]) -> dict[str, Any]: ...


@dataclass(frozen=True)
class _Waiting:
    """An event that is not acked: its line's length, and the offset after it in the journal."""

    event: Event
    size: int
    end: int


class Syncer:
    """Tells `client` about the run in `run_folder`.

    job: the job as the gateway is to have it, in the wire's names, or what makes it (asked again where it raises a
    GatewayError that may pass); None = as run.json has it. show: told what a person should know (a remote gateway of
    another make, a parked event). batch: most events in one report.
    """

    def __init__(
        self,
        run_folder: Path,
        client: Teller,
        *,
        job: Job | Callable[[], Job] | None = None,
        show: Callable[[str], None] | None = None,
        backoff: float = 1.0,
        batch: int = _BATCH,
        clock: Clock | None = None,
    ) -> None:
        self._folder, self._client = run_folder, client
        self._journal = run_folder / "sync.jsonl"
        self._spec = RunSpec.load(run_folder)
        self._job = job if job is not None else self._spec.job.wire()
        self._show = show or _log.warning
        self._clock = clock or SystemClock()
        kept = KeptWaits(run_folder / _WAITS, self._clock)
        for host, at in client.not_before.items():
            kept[host] = max(at, kept.get(host, at))
        client.not_before = kept
        self._backoff = Backoff(backoff, _LONGEST_BACKOFF)
        self._most = self._size = batch
        self._waiting: deque[_Waiting] = deque()
        self._acked, self._done = self._read_state()  # and the offset after what is acked, or before it
        self._offset = self._done
        self._parked: set[str] = set()
        self._parked_bytes = 0
        self._told_job = False
        self._reports = True
        self._stopping = threading.Event()
        self._never = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    @property
    def acked(self) -> int:
        """The number of the last event that the gateway has."""
        return self._acked

    @property
    def pending(self) -> int:
        """How many events in the journal the gateway does not have yet."""
        with self._lock:
            self._fill()
            return len(self._waiting) + count_lines(self._journal, self._offset)

    def start(self) -> None:
        """Tell in a thread, from now until `drain` or `stop`."""
        self._thread = threading.Thread(target=self._loop, name="gateway sync", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread, at the latest when its request is answered or timed out; the journal keeps the rest."""
        self._stopping.set()
        if self._thread is not None:
            self._client.cut_short.set()
            self._thread.join()
            self._client.cut_short.clear()
            self._thread = None
        self._stopping.clear()

    def drain(self, timeout: float) -> bool:
        """Tell all that the journal holds now, for about `timeout` seconds; True when the gateway has it all.

        The thread is stopped; on False nothing is lost, and `pending` says how much waits.
        """
        self.stop()
        deadline = self._clock.now() + timeout
        late = threading.Timer(timeout, self._client.cut_short.set)
        late.start()
        self._backoff.reset()
        try:
            while True:
                wait, problem = self._attempt()
                if problem is None:
                    return self.pending == 0
                if self._clock.now() + wait >= deadline:
                    self._show(f"the gateway at {self._client.base_url} has not been told everything: {problem}")
                    return False
                self._clock.wait(wait, self._never)
        finally:
            late.cancel()
            late.join()
            self._client.cut_short.clear()

    def push_once(self) -> int:
        """Tell what is new and return the last acked number. Raises GatewayError when telling must be tried again."""
        with self._lock, self._only_teller():
            self._catch_up()
            self._tell_job()
            while not self._stopping.is_set() and self._fill():
                self._push_next()
            return self._acked

    def _loop(self) -> None:
        while not self._stopping.is_set():
            wait, problem = self._attempt()
            if problem is not None:
                _log.info("the gateway at %s was not told, trying again: %s", self._client.base_url, problem)
            self._clock.wait(wait, self._stopping)

    def _attempt(self) -> tuple[float, str | None]:
        """Push; the seconds to wait then, and what went wrong, if anything. Getting further counts as going well."""
        before = self._acked
        try:
            self.push_once()
        except (GatewayError, OSError) as error:  # the disk may be full, and be so for a while, like the gateway
            if self._acked > before:
                self._backoff.reset()
            message = error.message if isinstance(error, GatewayError) else f"{type(error).__name__}: {error}"
            return self._backoff.next(error.retry_after if isinstance(error, GatewayError) else 0.0), message
        self._backoff.reset()
        return _IDLE_SECONDS, None

    @contextmanager
    def _only_teller(self) -> Iterator[None]:
        with (self._folder / _LOCK).open("ab") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise GatewayError(
                    "ABORTED", f"another process is telling the gateway about {self._folder} right now; let it finish"
                ) from error
            yield

    def _catch_up(self) -> None:
        """Take in what another process has told, or set aside, since we last had the lock."""
        acked, offset = self._read_state()
        if acked < self._acked:
            self._go_back(acked)
        elif acked > self._acked:
            self._acked, self._done, self._offset = acked, offset, max(self._offset, offset)
            self._drop_acked()
        self._read_parked()

    def _go_back(self, acked: int) -> None:
        """Begin again after event `acked`, looking for it from the journal's beginning."""
        self._acked, self._done, self._offset = acked, 0, 0
        self._waiting.clear()

    def _tell_job(self) -> None:
        """The job's record, once per Syncer; a gateway of another make would run the job again, so it gets none."""
        if self._told_job:
            return
        if not self._client.ours:
            self._only_models(
                f"{self._client.base_url} is not a gateway of this project: creating the job there would train it "
                "again, so only data sets and models are registered there; the run's own folder has everything"
            )
            return
        job = self._job() if callable(self._job) else self._job
        try:
            there = self._client.report(self._spec.id, [], kind=self._spec.kind, job=job)
        except GatewayError as error:
            if not error.permanent:
                raise
            self._only_models(f"the gateway at {self._client.base_url} does not take this job: {error.message}")
            return
        self._told_job = True
        if there < self._acked:  # it has lost records, or they are new, or were passed over: from there on again
            self._go_back(there)
        self._acked = there
        self._drop_acked()
        self._write_state()

    def _only_models(self, why: str) -> None:
        self._told_job, self._reports = True, False
        self._show(why)

    def _fill(self) -> bool:
        """Have the next events at hand, if there are any: a bounded piece of the journal."""
        while not self._waiting:
            lines, offset = read_lines(self._journal, self._offset)
            if not lines:
                return False
            end = self._offset
            for line in lines:
                end += len(line)
                self._take(line, end)
            self._offset = offset
        return True

    def _take(self, line: bytes, end: int) -> None:
        """Put the event of one line in the queue, unless it is acked or set aside."""
        if not line.strip():
            return
        try:
            event = Event.model_validate_json(line)
        except ValidationError as error:
            if _key(end) not in self._parked:
                self._park(_key(end), {"line": line.decode("utf-8", "replace")}, invalid(f"unreadable: {error}"))
            return
        if event.seq > self._acked and str(event.seq) not in self._parked:
            self._waiting.append(_Waiting(event, len(line), end))

    def _push_next(self) -> None:
        """Tell the next events; fewer of them after one that took too long, so that a slow gateway gets on too."""
        batch = self._next_batch()
        try:
            self._tell_or_park([one.event for one in batch])
        except GatewayError as error:
            if error.code == "DEADLINE_EXCEEDED":
                self._size = max(1, len(batch) // 2)
            raise
        self._size = min(2 * self._size, self._most)
        for _ in batch:
            self._waiting.popleft()
        self._acked = max(self._acked, batch[-1].event.seq)
        self._done = batch[-1].end
        self._write_state()

    def _next_batch(self) -> list[_Waiting]:
        """One model by itself, or as many other events as fit."""
        first = self._waiting[0]
        if first.event.kind == "model":
            return [first]
        batch: list[_Waiting] = []
        room = max(_BATCH_BYTES, first.size)
        for one in takewhile(lambda one: one.event.kind != "model", self._waiting):
            room -= one.size
            if room < 0 or len(batch) == self._size:
                break
            batch.append(one)
        return batch

    def _tell_or_park(self, batch: list[Event]) -> None:
        """Tell the batch; of one that is refused, halve by halve, only the event at fault is set aside."""
        batch = [event for event in batch if str(event.seq) not in self._parked]
        if not batch:
            return
        try:
            self._tell(batch)
        except GatewayError as error:
            if not error.permanent:
                raise
            if error.code == "NOT_FOUND" and batch[0].kind != "model":
                self._only_models(f"{self._client.base_url} has no job {self._spec.id} (any more): {error.message}")
            elif len(batch) == 1:
                self._park(str(batch[0].seq), {"event": batch[0].model_dump()}, error)
            else:
                middle = len(batch) // 2
                self._tell_or_park(batch[:middle])
                self._tell_or_park(batch[middle:])

    def _tell(self, batch: list[Event]) -> None:
        if batch[0].kind == "model":
            body = batch[0].body
            self._client.upload_model(Path(body["path"]), body["id"], body=self._model_body(body))
        if not self._reports:
            return
        there = self._client.report(self._spec.id, batch, kind=self._spec.kind)
        if there < batch[-1].seq:  # an old answer, or records that were put back: ask for the number anew
            self._told_job = False
            raise GatewayError("DATA_LOSS", f"event {batch[-1].seq} was told, but the gateway is at {there}")

    def _model_body(self, body: Mapping[str, Any]) -> dict[str, Any]:
        wanted = ("kind", "peftDetails", "baseModelDetails", "contextLength")
        shown = {key: body[key] for key in wanted if body.get(key) is not None}
        return {**shown, "displayName": str(body["id"]), "description": f"Trained by run {self._spec.id}."}

    def _park(self, key: str, what: dict[str, Any], error: GatewayError) -> None:
        record = {"key": key, **what, "error": error.body()}
        with (self._folder / _PARKED).open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(record, ensure_ascii=False) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        self._parked.add(key)
        kind = what["event"]["kind"] if "event" in what else "a line that is no event"
        self._show(
            f"the gateway at {self._client.base_url} refused event {key} ({kind}) for good: "
            f"{error.message}; kept in {self._folder / _PARKED}"
        )

    def _read_parked(self) -> None:
        """What has been set aside, by whomever; a line torn by a crash is cut off, and its event will come again."""
        path = self._folder / _PARKED
        if not path.exists() or path.stat().st_size == self._parked_bytes:
            return
        with path.open("rb+") as stream:
            whole = 0
            for line in stream:
                if not line.endswith(b"\n"):
                    stream.truncate(whole)
                    break
                whole += len(line)
                self._parked.add(str(json.loads(line)["key"]))
            self._parked_bytes = whole

    def _drop_acked(self) -> None:
        while self._waiting and self._waiting[0].event.seq <= self._acked:
            self._waiting.popleft()

    def _read_state(self) -> tuple[int, int]:
        """The number of the last acked event, and the offset after it in the journal."""
        try:
            state = json.loads((self._folder / _STATE).read_bytes())
        except FileNotFoundError:
            return 0, 0
        offset = int(state["offset"])
        fits = self._journal.exists() and offset <= self._journal.stat().st_size
        return (int(state["ackedSeq"]), offset) if fits else (0, 0)

    def _write_state(self) -> None:
        state = {"ackedSeq": self._acked, "offset": self._done}
        temporary = self._folder / f"{_STATE}.tmp"
        with temporary.open("w", encoding="utf-8") as stream:
            stream.write(json.dumps(state) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(self._folder / _STATE)


def _key(end: int) -> str:
    """What a line that is no event is known by: where it ends in the journal."""
    return f"line ending at byte {end}"
