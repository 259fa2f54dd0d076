"""Applies a run's events to its job: in order, each once, whoever tells us and however often.

The last applied number is stored in the transaction that applies the event. Metrics and log lines go to files, which no
transaction covers; their length is stored too, and a file that is longer (a crash came between) is cut back first.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from trainer.gateway import job_families, jobstate, uploads
from trainer.gateway.errors import GatewayError, invalid
from trainer.gateway.gateway import Gateway, checked_id
from trainer.gateway.journal import read_lines
from trainer.gateway.resources.jobs import LOG, METRICS
from trainer.gateway.store import Resource, Transaction
from trainer.jobs import JobState
from trainer.report import Event

_TYPES = "CHECKPOINT_TYPE_UNSPECIFIED"
_MODEL_FIELDS = ("kind", "peftDetails", "baseModelDetails", "contextLength")


def apply(gateway: Gateway, name: str, events: Sequence[Event], *, token: int | None = None) -> int:
    """Apply `events` to the job `name`; returns the number of the last event applied so far.

    All or none are applied. token: of the scheduler that reads them; None for a job that is trained elsewhere.
    Raises INVALID_ARGUMENT naming the event that cannot be read, ABORTED when the token is no longer the newest.
    """
    with gateway.store.transaction() as transaction:
        job = transaction.get(name)
        work = _Work(gateway, transaction, job if token is None else jobstate.fenced(job, token))
        acked = int(work.job.private.get("ackedSeq", 0))
        for event in events:
            if event.seq <= acked:
                continue
            try:
                _APPLY[event.kind](work, event)
            except (KeyError, TypeError, ValueError) as error:
                raise _unreadable(event, f"{type(error).__name__}: {error}") from error
            except GatewayError as error:
                raise _unreadable(event, error.message) from error
            acked = event.seq
        work.write_files()
        transaction.save(work.job.changed(private={"ackedSeq": acked}))
    return acked


def logged(gateway: Gateway, transaction: Transaction, job: Resource, lines: Sequence[str]) -> Resource:
    """The job with `lines` of the gateway's own at the end of its log; to be saved in `transaction`."""
    work = _Work(gateway, transaction, job, log="".join(f"{line}\n" for line in lines).encode("utf-8", "replace"))
    work.write_files()
    return work.job


def parse(values: Sequence[dict[str, Any]]) -> list[Event]:
    """Events from JSON. Raises INVALID_ARGUMENT naming the first bad one."""
    events = []
    for index, value in enumerate(values):
        try:
            events.append(Event.model_validate({"time": "", **value}))
        except ValidationError as error:
            raise invalid(f"events[{index}]: {error.errors()[0]['msg']}", field=f"events[{index}]") from error
    return events


def read_journal(path: Path, offset: int) -> tuple[list[Event], int]:
    """The next events of a run's journal from byte `offset` on, a bounded piece of them, and the offset after them."""
    lines, offset = read_lines(path, offset)
    return [Event.model_validate_json(line) for line in lines if line.strip()], offset


@dataclass
class _Work:
    """A job while events are applied to it."""

    gateway: Gateway
    transaction: Transaction
    job: Resource
    metrics: bytes = b""
    log: bytes = b""
    cut_from: int | None = None

    def write_files(self) -> None:
        sizes = dict(self.job.private.get("bytes", {}))
        for filename, added in ((METRICS, self.metrics), (LOG, self.log)):
            if added:
                path = self.gateway.files.path(self.job.name, filename)
                cut = self.cut_from if filename == METRICS else None
                sizes[filename] = _append(path, added, known=sizes.get(filename, 0), cut_from=cut)
        self.job = self.job.changed(private={"bytes": sizes})


def _state(work: _Work, event: Event) -> None:
    state = JobState(event.body["state"])
    if not jobstate.may_report(work.job, state):
        return
    message, code = str(event.body.get("message", "")), event.body.get("code", "OK")
    if state is JobState.FAILED and not jobstate.is_external(work.job):
        # Kept until the worker has ended: the scheduler may start another, and an end is not taken back.
        work.job = work.job.changed(private={"failure": {"code": code, "message": message}})
        return
    begins = {"newAttempt": True, "failure": None} if state is JobState.VALIDATING else {}
    work.job = jobstate.moved(work.job, state, message, code=code).changed(private=begins)


def _progress(work: _Work, event: Event) -> None:
    whole = {key: int(value) if isinstance(value, float) else value for key, value in event.body.items()}
    read = work.gateway.contract.read("gatewayJobProgress", whole).value
    work.job = work.job.changed({"jobProgress": {**work.job.body.get("jobProgress", {}), **read}})


def _metrics(work: _Work, event: Event) -> None:
    step = int(event.body["step"])
    if work.job.private.get("newAttempt"):
        # A worker that goes on from a checkpoint repeats the steps after it; the numbers of the first try give way.
        work.cut_from = step if not work.metrics else work.cut_from
        work.job = work.job.changed(private={"newAttempt": None})
    work.metrics += _line(event.body)


def _log(work: _Work, event: Event) -> None:
    work.log += str(event.body["line"]).encode("utf-8", "replace") + b"\n"


def _checkpoint(work: _Work, event: Event) -> None:
    body = event.body
    checkpoint_id = checked_id(str(body["id"]), what="checkpoint.id")
    types = [str(name) for name in body.get("types", [])]
    shown = {
        "checkpointType": next((name for name in types if "INFERENCE" in name), next(iter(types), _TYPES)),
        "checkpointTypes": types,
        "promotable": bool(body.get("promotable")),
        "step": int(body["step"]),
    }
    work.gateway.contract.read("trainerJobCheckpoint", shown)
    name, private = f"{work.job.name}/checkpoints/{checkpoint_id}", {"path": str(body.get("path", ""))}
    old = work.transaction.find(name)
    if old is not None:
        work.transaction.save(old.changed(shown, private))
        return
    new = Resource(
        name=name, collection="checkpoints", parent=work.job.name, id=checkpoint_id, body=shown, private=private
    )
    work.transaction.insert(new)


def _model(work: _Work, event: Event) -> None:
    model_id = checked_id(str(event.body["id"]), what="model.id")
    name = f"{work.job.parent}/models/{model_id}"
    body = {key: event.body[key] for key in _MODEL_FIELDS if event.body.get(key) is not None}
    body = {**work.gateway.contract.read("gatewayModel", body).value, "fineTuningJob": work.job.name}
    old = work.transaction.find(name)
    if old is None:
        body |= {"state": uploads.UPLOADING, "status": {"code": "OK", "message": ""}}
        parent = work.job.parent
        work.transaction.insert(Resource(name=name, collection="models", parent=parent, id=model_id, body=body))
    elif old.body.get("fineTuningJob") == work.job.name and not jobstate.is_external(work.job):
        return  # the scheduler has registered it, with the gateway's own names in it
    elif old.body.get("fineTuningJob") in (None, work.job.name):
        work.transaction.save(old.changed(body))
    else:
        raise ValueError(f"{name} is the result of {old.body['fineTuningJob']}; choose another outputModel")
    work.job = job_families.with_output_model(work.job, name)


def _results(work: _Work, event: Event) -> None:
    metrics = {str(name): float(value) for name, value in event.body["metrics"].items()}
    stats = json.dumps(event.body["stats"], ensure_ascii=False)
    work.job = work.job.changed({"metrics": metrics, "outputStats": stats})


_APPLY = {
    "state": _state,
    "progress": _progress,
    "metrics": _metrics,
    "checkpoint": _checkpoint,
    "model": _model,
    "log": _log,
    "results": _results,
}


def _append(path: Path, added: bytes, *, known: int, cut_from: int | None) -> int:
    """Make the file its first `known` bytes (less the metrics from step `cut_from` on) and `added`; its new size."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("r+b" if path.exists() else "w+b") as stream:
        known = min(known, os.fstat(stream.fileno()).st_size)  # one that was cut, and told so to no record
        if cut_from is not None:
            lines = stream.read(known).splitlines(keepends=True)
            known = sum(len(line) for line in lines if json.loads(line)["step"] < cut_from)
            stream.seek(0)
            stream.writelines(line for line in lines if json.loads(line)["step"] < cut_from)
        stream.truncate(known)
        stream.seek(known)
        stream.write(added)
        stream.flush()
        os.fsync(stream.fileno())
        return stream.tell()


def _line(value: dict[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode() + b"\n"


def _unreadable(event: Event, why: str) -> GatewayError:
    return GatewayError(
        "INVALID_ARGUMENT", f"event {event.seq} ({event.kind}): {why}", reason="EVENT_INVALID",
        metadata={"seq": str(event.seq)},
    )  # fmt: skip
