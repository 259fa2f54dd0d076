"""The same request twice is one change and one answer.

Three ways tell a repeat. A client's own id for the new resource: its second create is ALREADY_EXISTS. An
`Idempotency-Key`: kept for two days; the same request gets the first answer again, another request is refused. And,
where the gateway makes the id and no key came, the digest of the request: the published clients say in
`x-stainless-retry-count` whether they ask again (then ten minutes count, which is more than their time-outs and waits
can add up to) or for the first time (then it is a new wish, however equal). Each number comes once for a wish, so an
equal request whose number has been seen is another wish, whose earlier tries have not come here; where it has not been
seen, the two cannot be told apart, and it is taken for a repeat. Of clients that say neither, an equal request within
two seconds is a repeat: waits before a retry begin below that, and nobody meaning two jobs is swallowed in silence,
for the answer says `idempotent-replayed: true`.

A create and its kept answer are one transaction: a kill leaves both or neither, and equal requests at the same moment
wait for the first. Data sets that are copied from another, or lie at a URL, take too long for that: their equal
requests wait for one another alone, and after a kill between the two the client's own id tells the repeat.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from trainer.gateway.contract import Operation
from trainer.gateway.errors import GatewayError, invalid
from trainer.gateway.gateway import Call
from trainer.gateway.store import Store, Transaction
from trainer.gateway.tables import idempotency

KEPT_SECONDS = 2 * 86_400.0
RETRY_SECONDS = 600.0
SILENT_SECONDS = 2.0
_COUNT = re.compile(r"\d{1,4}", re.ASCII)
_KEY = re.compile(r"[\x21-\x7e]{1,255}")
_TURNS = tuple(threading.Lock() for _ in range(64))  # of long creates; those of one key have one
_SHOWN_ONCE = frozenset({"Gateway_CreateApiKey"})  # what they answer is kept nowhere
_SWEEP_EVERY = 500

Answering = Callable[[Call], Any]


@dataclass(frozen=True)
class Wish:
    """How a request may be told from its repeat. seconds: how old the first may be. key: the client's, or "".

    retry: how often the client says that it has asked before; 0 where it does not say.
    """

    key: str
    seconds: float
    retry: int = 0


def wish(operation: Operation, query: Mapping[str, Any], headers: Mapping[str, str]) -> Wish | None:
    """The wish of a request with these headers, or None when nothing is to be kept. Raises INVALID_ARGUMENT."""
    key = headers.get("idempotency-key", "")
    if operation.method != "POST" or operation.body_type == "multipart/form-data":
        return None
    if key:
        if not _KEY.fullmatch(key):
            raise invalid("Idempotency-Key: expected 1 to 255 printable ASCII characters", field="Idempotency-Key")
        return Wish(key, KEPT_SECONDS)
    if not is_create(operation) or not operation.id_param or query.get(operation.id_param):
        return None
    retries = headers.get("x-stainless-retry-count")
    if retries is None:
        return Wish("", SILENT_SECONDS)
    asked = int(retries) if _COUNT.fullmatch(retries) else 0
    return Wish("", RETRY_SECONDS if asked else 0.0, asked)


def is_create(operation: Operation) -> bool:
    """True for the standard create: POST on a collection."""
    return operation.method == "POST" and ":" not in operation.path.rsplit("/", 1)[-1]


def answered(call: Call, wanted: Wish, answering: Answering) -> tuple[Any, bool]:
    """What `answering(call)` answers, or has answered; and whether it is the kept one.

    Raises INVALID_ARGUMENT (HTTP 422) when the key was used for another request.
    """
    request = _digest(call.operation.id, dict(call.params), dict(call.query), call.body)
    key = _digest(call.account, wanted.key or [call.principal.user, request])
    if not is_create(call.operation):  # may be long, and is safe to repeat
        return _apart(call, key, wanted, request, answering=answering)
    if is_long(call):
        with _TURNS[int(key[:8], 16) % len(_TURNS)]:
            return _apart(call, key, wanted, request, answering=answering)
    with call.gateway.store.transaction() as transaction:
        kept = _kept(transaction, key, wanted, request)
        if kept is not None:
            return kept, True
        answer = answering(call)
        _keep(transaction, key, wanted, request, call=call, answer=answer)
    return answer, False


def _apart(call: Call, key: str, wanted: Wish, request: str, *, answering: Answering) -> tuple[Any, bool]:
    """The answer, found or made outside of a transaction and kept in one of its own."""
    with call.gateway.store.transaction() as transaction:
        kept = _kept(transaction, key, wanted, request)
    if kept is not None:
        return kept, True
    answer = answering(call)
    with call.gateway.store.transaction() as transaction:
        _keep(transaction, key, wanted, request, call=call, answer=answer)
    return answer, False


def is_long(call: Call) -> bool:
    """True for what copies rows, or looks up a host: other writers are not to wait for that."""
    inner = call.body.get("dataset")
    given = inner if isinstance(inner, dict) else call.body
    return bool(call.body.get("sourceDatasetId") or given.get("externalUrl"))


def sweep(store: Store) -> None:
    """Forget what is older than anybody asks for."""
    with store.transaction() as transaction:
        transaction.execute(idempotency.delete().where(idempotency.c.time < time.time() - KEPT_SECONDS))


def _kept(transaction: Transaction, key: str, wanted: Wish, request: str) -> Any:
    row = transaction.execute(sa.select(idempotency).where(idempotency.c.key == key)).first()
    if row is None or time.time() - row.time > wanted.seconds:
        return None
    asked, _, number = row.request.partition(" ")
    if asked != request:
        raise GatewayError(
            "INVALID_ARGUMENT", "Idempotency-Key: was used for another request; choose a new key for a new request",
            reason="IDEMPOTENCY_KEY_REUSED", metadata={"field": "Idempotency-Key"}, http_status=422,
        )  # fmt: skip
    if wanted.retry and wanted.retry <= int(number or 0):
        return None  # that has been asked already: another wish
    if row.resource and not wanted.key and transaction.find(row.resource) is None:
        return None  # deleted meanwhile: whoever asks now wants a new one
    if row.answer is None:
        raise GatewayError(
            "ALREADY_EXISTS", "the first request with this key has been done, and what it answered is shown only once",
            retry=False,
        )  # fmt: skip
    if wanted.retry:
        noted = {"request": f"{request} {wanted.retry}"}
        transaction.execute(idempotency.update().where(idempotency.c.key == key).values(**noted))
    return row.answer


def _keep(transaction: Transaction, key: str, wanted: Wish, request: str, *, call: Call, answer: Any) -> None:
    name = answer.get("name", "") if isinstance(answer, dict) else ""
    known = name if transaction.find(name) is not None else ""
    shown = None if call.operation.id in _SHOWN_ONCE else answer
    transaction.execute(idempotency.delete().where(idempotency.c.key == key))
    request = f"{request} {wanted.retry}" if wanted.retry else request
    values = {"key": key, "request": request, "answer": shown, "resource": known, "time": time.time()}
    transaction.execute(idempotency.insert().values(**values))


def _digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
