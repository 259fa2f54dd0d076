"""What a run says while it trains: the Reporter protocol and the events it is made of.

A loop talks to a Reporter and knows nothing of consoles, files or gateways. Every report becomes an `Event` in the
run's `sync.jsonl`; whoever watches the run (the command line, the gateway's scheduler) reads the events from there
and tells the gateway. Events carry a sequence number, so telling twice is the same as telling once.
"""

from __future__ import annotations

from typing import Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict

from trainer.jobs import JobState

EventKind = Literal["state", "progress", "metrics", "checkpoint", "model", "log", "results"]


class Event(BaseModel):
    """One line of `sync.jsonl`. `body` by kind:

    state       {"state": "JOB_STATE_...", "code": "OK" or a google.rpc code name, "message": str}
    progress    {"percent": 0..100, "epoch": int, ...}: fields of the contract's gatewayJobProgress
    metrics     {"step": int, "<metric>": float, ...}
    checkpoint  {"id": "step-40", "step": int, "types": ["CHECKPOINT_TYPE_..."], "promotable": bool, "path": str}
    model       {"id": "my-model", "kind": "HF_PEFT_ADDON" | "HF_BASE_MODEL", "path": str (folder of files),
                 "baseModel": str, "peftDetails": {...} | absent, "contextLength": int, "parameterCount": int}
    log         {"line": str}
    results     {"path": str (the scored rows), "metrics": {name: mean}, "stats": {...}}: of an evaluation job
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    seq: int
    time: str
    kind: EventKind
    body: dict[str, Any]


class Reporter(Protocol):
    """Told what happens; never slows or fails the run it is told about."""

    def state(self, state: JobState, message: str = "", *, code: str = "OK") -> None:
        """The job has entered `state`; `code` is a google.rpc code name, not OK when it failed."""
        ...

    def progress(self, percent: float, **fields: int) -> None:
        """`percent` of the job is done (0 to 100); `fields` are those of gatewayJobProgress, snake_case."""
        ...

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Named numbers of optimizer step `step` (1 is the first)."""
        ...

    def checkpoint(self, body: dict[str, Any]) -> None:
        """A checkpoint is complete on disk; `body` as in `Event`."""
        ...

    def model(self, body: dict[str, Any]) -> None:
        """The output model's files are complete on disk; `body` as in `Event`."""
        ...

    def log(self, line: str) -> None:
        """One line for people."""
        ...

    def close(self) -> None:
        """No more reports follow."""
        ...
