"""From an evaluator's source to one that can run: where a build begins, and where its outcome is recorded.

`begin` is called once for every revision, when its source is whole. There is no builder here yet, so an evaluator stays
in STATE_UNSPECIFIED and says why; a builder takes the place of `begin`'s body and calls `settle` when it is done.
"""

from __future__ import annotations

from typing import Any

from trainer.gateway.gateway import Gateway
from trainer.gateway.store import Resource

BUILD_LOG = "build.log"
STATES = frozenset({"BUILDING", "ACTIVE", "BUILD_FAILED"})
_WAITS = "its source is here; this gateway cannot build evaluators yet"


def begin(gateway: Gateway, evaluator: Resource) -> Resource:
    """Begin to build `evaluator` (its record, with `private["source"]`: the name below which its files lie)."""
    return _saved(gateway, evaluator.name, {"state": "STATE_UNSPECIFIED", "status": _status("OK", _WAITS)})


def settle(gateway: Gateway, name: str, *, state: str, message: str = "", log: bytes = b"") -> Resource:
    """Record how the build of evaluator `name` goes: a state of `STATES`, and the log so far."""
    if state not in STATES:
        raise ValueError(f"state: got {state!r}; expected one of {', '.join(sorted(STATES))}")
    if log:
        with gateway.files.incoming(name, BUILD_LOG, size=None) as incoming:
            incoming.write(log)
            incoming.finish()
            incoming.place()
    code = "INVALID_ARGUMENT" if state == "BUILD_FAILED" else "OK"
    return _saved(gateway, name, {"state": state, "status": _status(code, message)})


def _saved(gateway: Gateway, name: str, body: dict[str, Any]) -> Resource:
    with gateway.store.transaction() as transaction:
        return transaction.save(transaction.get(name).changed(body))


def _status(code: str, message: str) -> dict[str, str]:
    return {"code": code, "message": message}
