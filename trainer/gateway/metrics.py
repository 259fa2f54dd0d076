"""What the server counts, as Prometheus' text format has it: requests, their times, jobs, and the process itself."""

from __future__ import annotations

import os
import threading
import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

import sqlalchemy as sa

import trainer
from trainer.gateway.schema import resources
from trainer.gateway.store import Store

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)  # seconds
_PREFIX = "trainer_gateway"
_PAGE = os.sysconf("SC_PAGE_SIZE")


class Metrics:
    """Counters of one server."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._requests: dict[tuple[str, str, int], int] = defaultdict(int)
        self._times: dict[str, list[float]] = defaultdict(lambda: [0.0] * (len(_BOUNDS) + 2))
        self._started = time.time()
        self.in_flight = 0

    def observe(self, operation: str, method: str, status: int, seconds: float) -> None:
        """Count one answered request. operation: its id in the contract, or the endpoint's name."""
        with self._guard:
            self._requests[operation, method, status] += 1
            times = self._times[operation]
            times[bisect_left(_BOUNDS, seconds)] += 1
            times[-1] += seconds

    def text(self, store: Store) -> str:
        """All of it, with the jobs that `store` has by state."""
        with self._guard:
            requests = dict(self._requests)
            times = {operation: list(found) for operation, found in self._times.items()}
        parts = [
            *_family("info", "gauge", "The server's version.", [(f'{{version="{trainer.__version__}"}}', 1)]),
            *_family("requests_total", "counter", "Requests answered.", _counted(requests)),
            *_histogram(times),
            *_family("requests_in_flight", "gauge", "Requests being answered.", [("", self.in_flight)]),
            *_family("resources", "gauge", "Records by collection and state.", _by_state(store)),
            *self._process(),
        ]
        return "\n".join(parts) + "\n"

    def _process(self) -> Iterator[str]:
        statm = Path("/proc/self/statm")
        if statm.exists():
            pages = int(statm.read_text().split()[1])
            yield from _family("resident_memory_bytes", "gauge", "Memory held.", [("", pages * _PAGE)])
            files = len(os.listdir("/proc/self/fd"))  # noqa: PTH208  (names only; nothing is opened)
            yield from _family("open_fds", "gauge", "Open file descriptors.", [("", files)])
        yield from _family("threads", "gauge", "Threads.", [("", threading.active_count())])
        yield from _family("start_time_seconds", "gauge", "When the server began.", [("", self._started)])


def _counted(requests: dict[tuple[str, str, int], int]) -> Iterator[tuple[str, float]]:
    for (operation, method, status), count in sorted(requests.items()):
        yield f'{{operation="{operation}",method="{method}",status="{status}"}}', count


def _histogram(times: dict[str, list[float]]) -> Iterator[str]:
    name = f"{_PREFIX}_request_seconds"
    yield f"# HELP {name} Seconds from a request's head to the end of its answer."
    yield f"# TYPE {name} histogram"
    for operation, found in sorted(times.items()):
        below = 0.0
        for bound, count in zip((*_BOUNDS, "+Inf"), found, strict=False):
            below += count
            yield f'{name}_bucket{{operation="{operation}",le="{bound}"}} {below:g}'
        yield f'{name}_sum{{operation="{operation}"}} {found[-1]:.6f}'
        yield f'{name}_count{{operation="{operation}"}} {below:g}'


def _by_state(store: Store) -> list[tuple[str, float]]:
    query = sa.select(resources.c.collection, resources.c.state, sa.func.count()).where(resources.c.state.is_not(None))
    query = query.group_by(resources.c.collection, resources.c.state).order_by(
        resources.c.collection, resources.c.state
    )
    with store.database.reading() as connection:
        rows = connection.execute(query).all()
    return [(f'{{collection="{_escaped(name)}",state="{_escaped(state)}"}}', count) for name, state, count in rows]


def _family(name: str, kind: str, text: str, samples: Iterable[tuple[str, float]]) -> Iterator[str]:
    yield f"# HELP {_PREFIX}_{name} {text}"
    yield f"# TYPE {_PREFIX}_{name} {kind}"
    for labels, value in samples:
        yield f"{_PREFIX}_{name}{labels} {value:.15g}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
