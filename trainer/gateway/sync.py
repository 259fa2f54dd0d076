"""Tells a gateway what a run reports: reads on in the run's `sync.jsonl` and sends it, in order, until all is acked.

The number of the last acked event is kept in `sync_state.json`; telling twice is the same as telling once, so a crash
at any point only repeats. Whatever the gateway is not there for waits; what it will never take is set aside in
`sync_parked.jsonl` with the error, and shown. The run itself neither waits nor fails.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from trainer.gateway.errors import GatewayError
from trainer.report import Event
from trainer.runs import RunSpec

_BATCH = 500
_IDLE_SECONDS = 0.5
_LONGEST_BACKOFF = 30.0
_log = logging.getLogger("trainer.gateway.sync")


class Teller(Protocol):
    """The part of `GatewayClient` that is needed here."""

    @property
    def base_url(self) -> str: ...
    @property
    def ours(self) -> bool: ...
    def report(self, job_id: str, events: Sequence[Event], *, job: Mapping[str, Any] | None = None) -> int: ...
    def upload_model(self, folder: Path, model_id: str, *, body: Mapping[str, Any]) -> dict[str, Any]: ...


class Syncer:
    """Tells `client` about the run in `run_folder`.

    job: the job as the gateway is to have it, in the wire's names; None = as run.json has it.
    show: told what a person should know (a remote gateway of another make, a parked event).
    """

    def __init__(
        self,
        run_folder: Path,
        client: Teller,
        *,
        job: Mapping[str, Any] | None = None,
        show: Callable[[str], None] | None = None,
        backoff: float = 1.0,
    ) -> None:
        self._folder, self._client = run_folder, client
        self._spec = RunSpec.load(run_folder)
        self._job = dict(job) if job is not None else self._spec.job.wire()
        self._show = show or _log.warning
        self._backoff = backoff
        self._offset = 0
        self._waiting: list[Event] = []
        self._acked = self._read_state()
        self._told_job = False
        self._reports = True
        self._stopping = threading.Event()
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
            self._read_on()
            return len(self._waiting)

    def start(self) -> None:
        """Tell in a thread, from now until `drain` or `stop`."""
        self._thread = threading.Thread(target=self._loop, name="gateway sync", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread; what is not told yet stays in the journal for the next Syncer."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def drain(self, timeout: float) -> bool:
        """Tell all that the journal holds now, for at most `timeout` seconds; True when the gateway has it all.

        The thread is stopped; on False nothing is lost, and `pending` says how much waits.
        """
        self.stop()
        deadline = time.monotonic() + timeout
        wait = min(self._backoff, 1.0)
        while True:
            try:
                self.push_once()
                return self.pending == 0
            except GatewayError as error:
                if time.monotonic() + wait >= deadline:
                    self._show(f"the gateway at {self._client.base_url} has not been told everything: {error.message}")
                    return False
            time.sleep(wait)
            wait = min(2 * wait, _LONGEST_BACKOFF)

    def push_once(self) -> int:
        """Tell what is new and return the last acked number. Raises GatewayError when telling must be tried again."""
        with self._lock:
            self._read_on()
            self._tell_job()
            while self._waiting:
                self._push_next()
            return self._acked

    def _loop(self) -> None:
        wait = self._backoff
        while not self._stopping.is_set():
            try:
                self.push_once()
                wait = self._backoff
                self._stopping.wait(_IDLE_SECONDS)
            except GatewayError as error:
                _log.info("the gateway at %s was not told, trying again: %s", self._client.base_url, error)
                self._stopping.wait(wait)
                wait = min(2 * wait, _LONGEST_BACKOFF)

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
        try:
            there = self._client.report(self._spec.id, [], job=self._job)
        except GatewayError as error:
            if not error.permanent:
                raise
            self._only_models(f"the gateway at {self._client.base_url} does not take this job: {error.message}")
            return
        self._told_job = True
        if there == 0 < self._acked:  # its records are new: it is told from the beginning
            self._acked, self._offset, self._waiting = 0, 0, []
            self._read_on()
        self._acked = max(self._acked, there)
        self._waiting = [event for event in self._waiting if event.seq > self._acked]

    def _only_models(self, why: str) -> None:
        self._told_job, self._reports = True, False
        self._show(why)

    def _push_next(self) -> None:
        """Tell the next events: one model by itself, or as many others as fit."""
        if self._waiting[0].kind == "model":
            batch = self._waiting[:1]
        else:
            models = (index for index, event in enumerate(self._waiting) if event.kind == "model")
            batch = self._waiting[: min(next(models, _BATCH), _BATCH)]
        self._tell_or_park(batch)
        self._waiting = self._waiting[len(batch) :]
        self._acked = max(self._acked, batch[-1].seq)
        self._write_state()

    def _tell_or_park(self, batch: list[Event]) -> None:
        """Tell the batch; of one that is refused, halve by halve, only the event at fault is set aside."""
        try:
            self._tell(batch)
        except GatewayError as error:
            if not error.permanent:
                raise
            if error.code == "NOT_FOUND" and batch[0].kind != "model":
                self._only_models(f"{self._client.base_url} has no job {self._spec.id} (any more): {error.message}")
            elif len(batch) == 1:
                self._park(batch[0], error)
            else:
                middle = len(batch) // 2
                self._tell_or_park(batch[:middle])
                self._tell_or_park(batch[middle:])

    def _tell(self, batch: list[Event]) -> None:
        if batch[0].kind == "model":
            body = batch[0].body
            self._client.upload_model(Path(body["path"]), body["id"], body=self._model_body(body))
        if self._reports:
            self._client.report(self._spec.id, batch)

    def _model_body(self, body: Mapping[str, Any]) -> dict[str, Any]:
        wanted = ("kind", "peftDetails", "baseModelDetails", "contextLength")
        shown = {key: body[key] for key in wanted if body.get(key) is not None}
        return {**shown, "displayName": str(body["id"]), "description": f"Trained by run {self._spec.id}."}

    def _park(self, event: Event, error: GatewayError) -> None:
        record = {"event": event.model_dump(), "error": error.body()}
        with (self._folder / "sync_parked.jsonl").open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(record, ensure_ascii=False) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        self._show(
            f"the gateway at {self._client.base_url} refused event {event.seq} ({event.kind}) for good: "
            f"{error.message}; kept in {self._folder / 'sync_parked.jsonl'}"
        )

    def _read_on(self) -> None:
        """Take in the journal's whole lines; a torn last line is waited for."""
        path = self._folder / "sync.jsonl"
        if not path.exists():
            return
        with path.open("rb") as stream:
            stream.seek(self._offset)
            data = stream.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        events = [Event.model_validate_json(line) for line in whole.splitlines() if line.strip()]
        self._waiting += [event for event in events if event.seq > self._acked]

    def _read_state(self) -> int:
        try:
            return int(json.loads((self._folder / "sync_state.json").read_bytes())["ackedSeq"])
        except FileNotFoundError:
            return 0

    def _write_state(self) -> None:
        state = {"ackedSeq": self._acked}
        temporary = self._folder / "sync_state.json.tmp"
        with temporary.open("w", encoding="utf-8") as stream:
            stream.write(json.dumps(state) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(self._folder / "sync_state.json")
