"""What a request brings that the contract does not know: never acted on, and never passed over in silence.

Fields of a record are kept in it and shown. All of them are named in the answer's header `x-gateway-unknown`, and those
of a job's create, patch, report and verbs in the job's log, once each; parameters of the query begin with `?`.
"""

from __future__ import annotations

import json
import re
from typing import Any
from urllib.parse import quote

from pydantic.alias_generators import to_camel

from trainer.gateway import events, idempotency, job_families
from trainer.gateway.gateway import Call
from trainer.gateway.resources.jobs import LOG

HEADER = "x-gateway-unknown"
_MOST = 100  # paths that a job remembers
_NAMELESS = '""'  # a field may have the empty name; a header may not end in a blank
_SHOWN, _LONGEST = 20, 100  # paths in a header, and characters of one
_INDEX = re.compile(r"\[\d+\]")


class Query(dict[str, Any]):
    """A request's parameters, which note what has been read of them by name."""

    def __init__(self, values: dict[str, Any]) -> None:
        super().__init__(values)
        self.read: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        self.read.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        """As a dict's."""
        self.read.add(key)
        return super().get(key, default)


def paths(call: Call) -> list[str]:
    """Of the body's fields and the query's parameters those that nothing has read, after the call was answered."""
    read = getattr(call.query, "read", set())
    found = (path for path in call.unknown if not (path[:1] == "?" and to_camel(path[1:]) in read))
    return list(dict.fromkeys(_INDEX.sub("[]", path) for path in found))


def header(found: list[str]) -> dict[str, str]:
    """The answer's header; empty where everything is known."""
    if not found:
        return {}
    shown = [quote(path[:_LONGEST], safe="?[].") or _NAMELESS for path in found[:_SHOWN]]
    more = [f"and {len(found) - _SHOWN} more"] if len(found) > _SHOWN else []
    return {HEADER: ", ".join([*shown, *more])}


def note(call: Call, name: str, found: list[str]) -> None:
    """Remember `found` with the job `name`, and put what is new into its log; nothing for what is no job.

    The log of a job that has not been started begins with what its record remembers (`job_families.unknown_fields`).
    """
    if idempotency.is_create(call.operation):
        found = [path for path in found if path.startswith("?")]  # the record itself tells the others
    parts = name.split("/")
    if not found or len(parts) < 4 or parts[2] not in job_families.FAMILIES:
        return
    with call.gateway.store.transaction() as transaction:
        job = transaction.find("/".join(parts[:4]))
        had = [] if job is None else job.private.get("unknown", [])
        new = [path for path in found if path not in had][: max(0, _MOST - len(had))]
        if job is None or not new:
            return
        job = job.changed(private={"unknown": [*had, *new]})
        if job.private.get("external") or LOG in job.private.get("bytes", {}):
            job = events.logged(call.gateway, transaction, job, [line(new)])
        transaction.amend(job)


def line(found: list[str]) -> str:
    """A line of a job's log."""
    why = "the contract does not know these fields: kept where they are a record's, never acted on"
    return json.dumps({"unknownFields": found, "message": why}, ensure_ascii=False)
