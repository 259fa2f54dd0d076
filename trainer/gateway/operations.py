"""Long-running operations (AIP-151): work that outlasts its request, and the record that tells how it goes.

An operation is a record like any other, `accounts/{a}/operations/{id}`, so it survives a restart; its work does not.
Each process that works is a holder (`holders`), so that another, on whatever machine, sees when it is gone: the
operation then ends in ABORTED. So does one whose outcome could not be written, which is tried for a while.
"""

from __future__ import annotations

import contextvars
import logging
import secrets
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from trainer.gateway.errors import CODES, GatewayError, precondition
from trainer.gateway.holders import BEAT_SECONDS, Holder
from trainer.gateway.store import Resource, Store, body_value

if TYPE_CHECKING:
    from trainer.gateway.gateway import Call

COLLECTION = "operations"
_WORKERS = 4
_WAITS = (0.2, 1.0, 5.0, 15.0, 30.0)  # seconds between the tries to write how one ended
_log = logging.getLogger("trainer.gateway")


class Running:
    """What the work of an operation has in hand."""

    def __init__(self, operations: Operations, name: str) -> None:
        self._operations, self.name = operations, name
        self.cancelled = threading.Event()

    def tell(self, **metadata: Any) -> None:
        """Merge `metadata` into the operation's. Raises CANCELLED when somebody has asked for the end."""
        if self.cancelled.is_set():
            raise GatewayError("CANCELLED", f"{self.name} was cancelled")
        self._operations.update(self.name, metadata=metadata)


Work = Callable[[Running], Mapping[str, Any]]


class Operations:
    """The operations of one store, and this process's threads that work at them."""

    def __init__(self, store: Store) -> None:
        self._store, self._holder = store, Holder(store)
        self._pool: ThreadPoolExecutor | None = None
        self._beats: threading.Thread | None = None
        self._running: dict[str, Running] = {}  # what is worked at here, or will be
        self._guard = threading.Lock()
        self._signs = threading.Lock()  # never waited for within a transaction
        self._closed = threading.Event()

    def start(self, call: Call, metadata: Mapping[str, Any], work: Work, *, exclusive: str = "") -> dict[str, Any]:
        """Begin `work` and return its operation, as the wire has it.

        work: gets a `Running`, returns the response (with its "@type"); a GatewayError that it raises ends the
        operation in that error. exclusive: a resource that one operation at a time may work at.
        Raises ABORTED when another operation is at `exclusive`.
        """
        running = Running(self, f"{call.parent()}/{COLLECTION}/{secrets.token_hex(8)}")
        with self._signs:
            self._holder.begin()
            self._holder.beat(now=not self._running)
        with self._guard:
            self._running[running.name] = running
        try:
            made = self._insert(call, running.name, metadata, exclusive)
            self._begin(running, work)
        except BaseException:
            with self._guard:
                self._running.pop(running.name, None)
            raise
        return shown(made)

    def _insert(self, call: Call, name: str, metadata: Mapping[str, Any], exclusive: str) -> Resource:
        with self._store.transaction() as transaction:
            if exclusive:
                self._must_be_free(
                    transaction.every(COLLECTION, body_value(["done"]).as_boolean().is_(False)), exclusive
                )
            return transaction.insert(Resource(
                name=name, collection=COLLECTION, parent=call.parent(), id=name.rsplit("/", 1)[-1],
                body={"metadata": dict(metadata), "done": False},
                private={"holder": self._holder.id, "exclusive": exclusive, "owner": call.principal.user},
            ))  # fmt: skip

    def _begin(self, running: Running, work: Work) -> None:
        with self._guard:
            if self._closed.is_set():
                raise GatewayError("UNAVAILABLE", "the gateway is stopping; ask again")
            self._pool = self._pool or ThreadPoolExecutor(_WORKERS, thread_name_prefix="operation")
            if self._beats is None:
                self._beats = threading.Thread(target=self._beat, name="operations", daemon=True)
                self._beats.start()
            self._pool.submit(contextvars.copy_context().run, self._work, running, work)

    def update(self, name: str, *, metadata: Mapping[str, Any] | None = None, **body: Any) -> None:
        """Change the operation's record; one that has been deleted, or is done, stays so."""
        with self._store.transaction() as transaction:
            found = transaction.find(name)
            if found is None or found.body["done"]:
                return
            merged = {**found.body.get("metadata", {}), **(metadata or {})}
            transaction.save(found.changed({"metadata": merged, **body}))

    def settled(self, found: Resource) -> Resource:
        """The record, ended where nobody works at it any more."""
        if found.body["done"] or self._alive(found):
            return found
        self.update(found.name, done=True, error=status(GatewayError(
            "ABORTED", "the gateway stopped before this was done, or could not write how it ended; ask for it again"
        )))  # fmt: skip
        return self._store.get(found.name)

    def cancel(self, found: Resource) -> None:
        """Ask the work to end. Raises FAILED_PRECONDITION where it is done, or another process's."""
        if found.body["done"]:
            raise precondition(f"{found.name} is done; there is nothing to cancel", name=found.name)
        with self._guard:
            running = self._running.get(found.name)
        if running is None:
            raise precondition(f"{found.name} is worked at by another process; ask that one", name=found.name)
        running.cancelled.set()

    def close(self) -> None:
        """Ask all work to end, and wait for it."""
        with self._guard:
            self._closed.set()
            for running in self._running.values():
                running.cancelled.set()
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
        if self._beats is not None:
            self._beats.join()
        self._running.clear()  # what was cancelled before it began
        try:
            self._holder.end()
        except GatewayError as error:  # as when the disk is full: others see by its silence that it is gone
            _log.warning("it could not be written that nobody works at operations here any more: %s", error)

    def _beat(self) -> None:
        while not self._closed.wait(BEAT_SECONDS):
            try:
                with self._signs:
                    if self._running:
                        self._holder.beat()
            except Exception as error:  # noqa: BLE001  (the edge of a thread; the next beat says the same)
                _log.warning("operations: no sign of life could be given: %s", error)

    def _work(self, running: Running, work: Work) -> None:
        outcome = self._outcome(running, work)
        try:
            self._end(running.name, outcome)
        except Exception:  # noqa: BLE001  (the edge of a thread: logged, and told at the next question)
            _log.exception("%s has ended, which could not be written", running.name)
        finally:
            with self._guard:
                self._running.pop(running.name, None)

    def _end(self, name: str, outcome: dict[str, Any]) -> None:
        """Write how it ended, again and again for a while where the records are busy or away."""
        for wait in _WAITS:
            try:
                self.update(name, done=True, **outcome)
                return
            except GatewayError as error:
                if error.code not in ("UNAVAILABLE", "RESOURCE_EXHAUSTED"):
                    raise
                self._closed.wait(wait)
        self.update(name, done=True, **outcome)

    @staticmethod
    def _outcome(running: Running, work: Work) -> dict[str, Any]:
        try:
            return {"response": dict(work(running))}
        except GatewayError as error:
            return {"error": status(error)}
        except Exception:  # noqa: BLE001  (logged, and answered without the traceback)
            _log.exception("%s failed", running.name)
            return {"error": status(GatewayError("INTERNAL", "an unexpected error; the gateway's log has it"))}

    def _alive(self, found: Resource) -> bool:
        """True while somebody works at the operation, in this process or in another one."""
        holder = found.private.get("holder")
        if holder == self._holder.id:
            return found.name in self._running
        return not self._holder.gone(holder)

    def _must_be_free(self, others: list[Resource], exclusive: str) -> None:
        for other in others:
            if other.private.get("exclusive") == exclusive and self._alive(other):
                raise GatewayError(
                    "ABORTED", f"{exclusive} is being worked at by {other.name}; wait for that, or cancel it",
                    metadata={"name": exclusive, "operation": other.name}, retry=False,
                )  # fmt: skip


def shown(found: Resource) -> dict[str, Any]:
    """As the contract's googlelongrunningOperation has it."""
    return {"name": found.name, **found.body}


def status(error: GatewayError) -> dict[str, Any]:
    """The error as google.rpc.Status."""
    return {"code": CODES[error.code][0], "message": error.message, "details": error.details}
