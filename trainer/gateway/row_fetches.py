"""Fetches the rows that jobs read elsewhere, beside the scheduler: its look at the queue never waits for a network.

Each job has one fetch, in a thread of its own, a few of them at a time. A store that could not be asked is asked again,
later and later, a few times; then the job fails, and its resume begins anew. Nothing of it must survive a crash: what
was fetched whole is in the job's record, and the rest is fetched again.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass, field

from trainer.gateway import external_inputs
from trainer.gateway.errors import GatewayError
from trainer.gateway.fetching import shown
from trainer.gateway.gateway import Gateway
from trainer.gateway.store import Resource

_AT_A_TIME = 2
_ATTEMPTS = 3
_PASSING = frozenset({"UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED", "RESOURCE_EXHAUSTED"})
_log = logging.getLogger("trainer.gateway.rows")


@dataclass
class _Fetch:
    """Of one job's rows. error: of the last attempt, once that has ended. again: when the next may begin."""

    attempts: int = 0
    again: float = 0.0
    ended: threading.Event = field(default_factory=threading.Event)
    error: GatewayError | None = None


class RowFetches:
    """The fetches of one scheduler, which alone calls it. pause: seconds before the second attempt, then 6 times."""

    def __init__(self, gateway: Gateway, *, pause: float = 5.0) -> None:
        self._gateway, self._pause = gateway, pause
        self._room = threading.BoundedSemaphore(_AT_A_TIME)
        self._fetches: dict[tuple[str, str], _Fetch] = {}
        self._here: set[tuple[str, str]] = set()

    def waits(self, job: Resource) -> str | None:
        """Why the job cannot start yet, in words; None once all its rows are here. Begins to fetch what is not.

        Raises the error of a fetch that has failed for good, once: asking again begins anew.
        """
        key = (job.name, job.create_time)
        if not job.private.get("elsewhere") or key in self._here:
            return None
        fetch = self._fetches.get(key)
        if fetch is None:
            if not external_inputs.lacking(self._gateway, job):
                self._here.add(key)
                return None
            fetch = self._fetches[key] = _Fetch()
            self._begin(job, fetch)
        if fetch.ended.is_set():
            return self._after(job, key, fetch)
        urls = ", ".join(shown(source["url"]) for source in job.private["elsewhere"].values())
        return f"fetching rows from {urls}" + (f", attempt {fetch.attempts}" if fetch.attempts > 1 else "")

    def _after(self, job: Resource, key: tuple[str, str], fetch: _Fetch) -> str | None:
        """What follows an attempt: the end, its error, a pause, or the next attempt."""
        error = fetch.error
        if error is None or error.code not in _PASSING or fetch.attempts >= _ATTEMPTS:
            del self._fetches[key]
            if error is not None:
                raise _final(error, fetch.attempts)
            return self.waits(job)
        if fetch.again <= time.monotonic():
            self._begin(job, fetch)
        return f"{error.message}; it is asked again"

    def _begin(self, job: Resource, fetch: _Fetch) -> None:
        fetch.attempts += 1
        fetch.error = None
        fetch.ended.clear()
        # A daemon: a gateway that is stopped does not wait for somebody's bucket.
        threading.Thread(target=self._work, args=(job, fetch), name="rows", daemon=True).start()

    def _work(self, job: Resource, fetch: _Fetch) -> None:
        try:
            with self._room:
                for path in external_inputs.lacking(self._gateway, job):
                    external_inputs.bring(self._gateway, job, path)
        except GatewayError as error:
            _log.warning("%s: %s", job.name, error)
            fetch.error = error
            fetch.again = time.monotonic() + self._pause * 6 ** (fetch.attempts - 1)
        except Exception:  # noqa: BLE001  (the edge of a thread: logged, and the job's failure without the traceback)
            _log.exception("%s: its rows could not be fetched", job.name)
            fetch.error = GatewayError("INTERNAL", "its rows could not be fetched; the gateway's log says why")
        finally:
            fetch.ended.set()


def _final(error: GatewayError, attempts: int) -> GatewayError:
    if error.code not in _PASSING:
        return error
    return GatewayError(
        "FAILED_PRECONDITION", f"{error.message} ({error.code}, {attempts} times); :resume the job to try again"
    )
