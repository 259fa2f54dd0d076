"""`Sandbox`: warm jails for any number of programs, and rows in, results out, in order.

The one decision: a jail belongs to one program for all its life. Each program may keep `workers` jails busy; beyond a
total, idle jails of other programs are ended. A row whose jail failed is tried on another, up to three times; a program
that keeps running into its time limit is given less of the processor, so that it cannot slow the others down.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

from evaluators.judge_desk import Asking, Desk, may_ask
from evaluators.protocol import Isolation, Limits, Program, Result, Status, Tier
from evaluators.sandbox import machine
from evaluators.sandbox.jail import Jail, JailError, NoRoom, Raw
from evaluators.sandbox.verdict import Verdict, finished, judge
from evaluators.sandbox.wire import ACKNOWLEDGED, LATE

ATTEMPTS = 3
AUDITED = 100  # one row in so many is scored again alone
_LATE_OF, _LATE_MOST, _LATE_NICE = 10, 3, 19
_BATCH_ROWS = 256  # rows of one process in batch mode
_KEPT_PER_WORKER = 4
_OF_PROGRAM, _OF_ROWS = 8, 2  # one part in so many of the memory may be a program's files, or the rows of a process
_MOST_SENT = 2 << 30  # bytes, whatever the memory
_REMEMBERED = 10_000  # programs, for how they behaved

Key = tuple[str, Limits, str]
Row = tuple[bytes, int]


@dataclass
class _Record:
    """What the pool knows of one program: its jails, who waits for one of them, and how it behaved."""

    freed: threading.Condition
    idle: list[Jail] = field(default_factory=list)
    live: int = 0
    late: deque[bool] = field(default_factory=lambda: deque(maxlen=_LATE_OF))
    stateful: bool = False
    audited: bool = False

    @property
    def nice(self) -> int:
        return _LATE_NICE if sum(self.late) >= _LATE_MOST else 0


class Sandbox:
    """Scores rows in jails. Thread-safe; a context manager; `close` ends every jail.

    tier: `auto` takes the best that works here. workers: jails that one program may keep busy (None = 1.5 times the
    processors). allow_none: accept no fence at all, for evaluators of one's own; every result then says so.
    launcher: who builds tier standard, `own`, `bwrap` or `auto` (None = what TRAINER_SANDBOX_LAUNCHER says).
    """

    def __init__(
        self, tier: str = "auto", workers: int | None = None, allow_none: bool = False, *, launcher: str | None = None
    ) -> None:
        """Raises `SandboxRefused` when the tier is not to be had."""
        self.tier, self.launcher = machine.choose(tier, allow_none=allow_none, launcher=launcher)
        processors = len(os.sched_getaffinity(0))
        self.workers = workers or max(2, processors * 3 // 2)
        self._most = max(16, self.workers * _KEPT_PER_WORKER)
        self._closed = False
        self._begin()
        _sandboxes.add(self)

    def _begin(self) -> None:
        """Without jails: at first, and in a forked process, which must not read from those of its parent."""
        self._records: dict[Key, _Record] = {}
        # One lock; who waits for a jail of a program is not woken by those of others, which may end by the thousand.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._crowded = 0  # threads that wait for room, rather than for a jail of their program

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End every idle jail now, and every busy one when its rows are done."""
        with self._changed:
            self._closed = True
            idle = [jail for record in self._records.values() for jail in record.idle]
            for record in self._records.values():
                record.idle.clear()
                record.freed.notify_all()
            self._changed.notify_all()
        for jail in idle:
            jail.close()

    def evaluate(
        self,
        program: Program,
        rows: Sequence[Mapping[str, Any]],
        *,
        limits: Limits,
        isolation: Isolation = Isolation.ROW,
        groups: Sequence[int] | None = None,
        desk: Desk | None = None,
    ) -> list[Result]:
        """One result a row, in order. desk: answers what a program asks that imports `evaluator_host`.

        groups: with `Isolation.GROUP`, the group of each row; neighbours of one group share a process (None = all rows
        are one group). In group and batch mode some rows are scored again alone; where that gives another score, the
        program keeps state, every row of this call is scored alone, and so are all later ones; its results say
        `stateful_evaluator` in their details. Raises `TypeError` or `ValueError` for a row that is not JSON.
        """
        self._check_fence()
        encoded = [_encoded(row, place) for place, row in enumerate(rows)]
        desk = desk if desk and may_ask(program) else None
        limits = replace(limits, host_calls=desk.calls_each if desk else 0)
        call = _Call(self, (program.digest, limits, "score"), program, encoded, desk)
        if call.record.stateful:
            isolation = Isolation.ROW
        results = call.run(_units(len(rows), isolation, groups), isolation)
        if isolation is Isolation.ROW or not call.keeps_state(results, isolation):
            return _marked(results) if call.record.stateful else results
        call.record.stateful = True
        return _marked(call.run(_units(len(rows), Isolation.ROW, None), Isolation.ROW))

    def run_raw(self, program: Program, rows: Sequence[Row], *, limits: Limits, mode: str) -> Raw | None:
        """One order in a fresh process of a jail of `mode`: its raw report, or None when three jails failed."""
        self._check_fence()
        if _too_large(program, rows, limits):
            return Raw(ACKNOWLEDGED, 9, 0.0, 0.0, b"", b"", b"", b"", out_of_memory=True)
        key = (program.digest, limits, mode)
        for _ in range(ATTEMPTS):
            try:
                jail = self._acquire(key, program)
                try:
                    raw = jail.run(rows)
                finally:
                    self._release(key, jail)
            except JailError as error:
                self._make_room(error)
                continue
            if raw.out_of_memory or raw.flags & ACKNOWLEDGED:
                return raw
        return None

    def _check_fence(self) -> None:
        """Every hour the self-check is asked again; a surprise takes the tier away."""
        problem = machine.works(self.tier, self.launcher) if self.tier is not Tier.NONE else ""
        if problem:
            raise machine.SandboxRefused(f"tier {self.tier} does not hold any more: {problem}")

    def _record(self, key: Key) -> _Record:
        with self._changed:
            if len(self._records) > _REMEMBERED:
                for old in [old for old, record in self._records.items() if not record.live][: _REMEMBERED // 2]:
                    del self._records[old]
            return self._records.setdefault(key, self._new_record())

    def _acquire(self, key: Key, program: Program) -> Jail:
        """A jail of the program for this thread alone; waits while all of them are busy."""
        evicted: Jail | None = None
        with self._changed:
            record = self._records.pop(key, None) or self._new_record()
            self._records[key] = record  # now the one used last
            while True:
                if self._closed:
                    raise RuntimeError("this Sandbox is closed")
                busy = record.live - len(record.idle)
                if busy >= (1 if record.nice else self.workers):
                    record.freed.wait()
                    continue
                if record.idle:
                    return record.idle.pop()
                if self._live() < self._most:
                    break
                evicted = self._idle_of_another(record)
                if evicted:
                    break
                self._crowded += 1
                self._changed.wait()
                self._crowded -= 1
            record.live += 1
        if evicted:
            evicted.close()
        try:
            return Jail(program, key[1], tier=self.tier, mode=key[2], launcher=self.launcher)
        except BaseException:
            self._forget(record)
            raise

    def _new_record(self) -> _Record:
        return _Record(threading.Condition(self._lock))

    def _live(self) -> int:
        return sum(record.live for record in self._records.values())

    def _idle_of_another(self, own: _Record) -> Jail | None:
        for record in self._records.values():  # the one not used for longest comes first
            if record is not own and record.idle:
                record.live -= 1
                return record.idle.pop(0)
        return None

    def _make_room(self, error: JailError) -> None:
        """Where the host had none for one more jail, those that nobody uses give theirs back before the next try."""
        if isinstance(error, NoRoom):
            with self._changed:
                idle = [(record, jail) for record in self._records.values() for jail in record.idle]
                for record, _ in idle:
                    record.idle.clear()
                for record, _ in idle:
                    record.live -= 1
                    self._tell(record)
            for _, jail in idle:
                jail.close()

    def _forget(self, record: _Record) -> None:
        with self._changed:
            record.live -= 1
            self._tell(record)

    def _tell(self, record: _Record) -> None:
        """A jail of this program is free, or gone."""
        record.freed.notify_all()
        if self._crowded:
            self._changed.notify_all()

    def _release(self, key: Key, jail: Jail) -> None:
        record = self._record(key)
        with self._changed:
            keep = jail.usable and not self._closed
            if keep:
                record.idle.append(jail)
            else:
                record.live -= 1
            self._tell(record)
        if not keep:
            jail.close()


def _begin_in_child() -> None:
    for one in _sandboxes:
        one._begin()


_sandboxes: weakref.WeakSet[Sandbox] = weakref.WeakSet()
os.register_at_fork(after_in_child=_begin_in_child)


class _Call:
    """One call of `evaluate`."""

    def __init__(self, pool: Sandbox, key: Key, program: Program, rows: list[Row], desk: Desk | None) -> None:
        self.pool = pool
        self.key = key
        self.program = program
        self.rows = rows
        self.desk = desk
        self.record = pool._record(key)

    def run(self, units: list[list[int]], isolation: Isolation) -> list[Result]:
        """Score the units, each in a process of its own, over as many jails as the program may have."""
        results: list[Result | None] = [None] * len(self.rows)
        waiting = deque(units)

        def work() -> None:
            while True:
                try:
                    unit = waiting.popleft()
                except IndexError:
                    return
                for place, result in zip(unit, self._unit(unit, isolation), strict=True):
                    results[place] = result

        threads = min(self.pool.workers, len(units))
        if threads <= 1:
            work()
        else:
            with ThreadPoolExecutor(threads, thread_name_prefix="sandbox") as executor:
                try:
                    for done in _started(executor, work, threads):
                        done.result()
                except BaseException:  # what interrupts the host does not wait for the rest
                    waiting.clear()
                    raise
            work()  # what is left where the host could start none
        return [result for result in results if result is not None]

    def keeps_state(self, results: Sequence[Result], isolation: Isolation) -> bool:
        """Score some rows again alone and compare: one in `AUDITED`, and the last of a program's first call."""
        places = {place for place, (_, seed) in enumerate(self.rows) if seed % AUDITED == 0}
        if not self.record.audited and self.rows:
            places.add(len(self.rows) - 1)
        self.record.audited = True
        if isolation is Isolation.ROW:
            return False
        again = [self._unit([place], Isolation.ROW)[0] for place in sorted(places)]
        pairs = zip((results[place] for place in sorted(places)), again, strict=True)
        return any(_differ(first, second) for first, second in pairs)

    def _unit(self, unit: list[int], isolation: Isolation) -> list[Result]:
        """The results of one process's rows. A process that did not finish says nothing: its rows are run alone."""
        rows = [self.rows[place] for place in unit]
        if len(unit) > 1 and _too_large(self.program, rows, self.key[1]):
            return [result for place in unit for result in self._unit([place], isolation)]
        verdicts, raw, attempts, asking = self._attempts(rows)
        self.record.late.append(verdicts[0].status is Status.TIMEOUT)
        alone = len(unit) == 1 or verdicts[0].status is Status.LOAD_ERROR
        if not alone and (raw is None or not finished(raw)):
            return [result for place in unit for result in self._unit([place], isolation)]
        results = [self._result(verdict, raw, isolation, attempts) for verdict in verdicts]
        return [_with(result, asking.record(place)) for place, result in enumerate(results)] if asking else results

    def _attempts(self, rows: list[Row]) -> tuple[list[Verdict], Raw | None, int, Asking | None]:
        key, verdicts, raw, asking = self.key, [], None, None
        names = [hashlib.sha256(text).hexdigest() for text, _ in rows] if self.desk else []
        if problem := _too_large(self.program, rows, key[1]):
            return [problem] * len(rows), None, 1, None
        for attempt in range(1, ATTEMPTS + 1):
            asking = Asking(self.desk, names) if self.desk else None
            try:
                jail = self.pool._acquire(key, self.program)
                try:
                    if jail.load_failed:
                        return [Verdict(Status.LOAD_ERROR, message=jail.load_error)] * len(rows), None, attempt, None
                    raw = jail.run(rows, nice=self.record.nice, answer=asking.answer if asking else None)
                finally:
                    self.pool._release(key, jail)
                verdicts = judge(raw, len(rows), key[1])
            except JailError as error:
                self.pool._make_room(error)
                raw, verdicts = None, [Verdict(Status.INFRA_ERROR, message=str(error)[:300])] * len(rows)
            if verdicts[0].status is not Status.INFRA_ERROR:
                return verdicts, raw, attempt, asking
        if raw is not None and raw.flags & LATE:  # each time before it had read its rows: there is no time at all
            verdicts = [Verdict(Status.TIMEOUT, message=f"longer than {key[1].wall_seconds:g} s")] * len(rows)
        return verdicts, raw, ATTEMPTS, asking

    def _result(self, verdict: Verdict, raw: Raw | None, isolation: Isolation, attempts: int) -> Result:
        details = dict(verdict.details)
        if raw and raw.stderr:
            details["stderr"] = raw.stderr.decode("utf-8", "replace")
        return Result(
            verdict.status, verdict.score, verdict.message, seconds=raw.seconds if raw else 0.0,
            stdout=raw.stdout.decode("utf-8", "replace") if raw else "", tier=self.pool.tier, isolation=isolation,
            attempts=attempts, details=details,
        )  # fmt: skip


def _started(executor: ThreadPoolExecutor, work: Callable[[], None], threads: int) -> list[Future[None]]:
    """As many of `threads` as the host may have."""
    found: list[Future[None]] = []
    with suppress(RuntimeError):  # "can't start new thread"
        while len(found) < threads:
            found.append(executor.submit(work))
    return found


def _encoded(row: Mapping[str, Any], place: int) -> Row:
    """The row's JSON, and the seed that it decides."""
    if not isinstance(row, Mapping):
        raise TypeError(f"row {place} is {type(row).__name__}, not a mapping of field names to JSON values")
    try:
        text = json.dumps(dict(row), separators=(",", ":")).encode()
    except TypeError as error:
        raise TypeError(f"row {place} is not JSON: {error}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"row {place} is not JSON: {error}") from None
    return text, int.from_bytes(hashlib.sha256(text).digest()[:8], "big")


def _too_large(program: Program, rows: Sequence[Row], limits: Limits) -> Verdict | None:
    """What no jail is started for: it could not hold the program's files, or the row and what it is decoded to."""
    most = min(limits.memory_bytes, _MOST_SENT)
    size = sum(map(len, program.files.values()))
    if size > most // _OF_PROGRAM:
        why = f"the program has {size:,} bytes; {most // _OF_PROGRAM:,} are allowed with {most:,} bytes of memory"
        return Verdict(Status.LOAD_ERROR, message=why)
    size = sum(len(text) for text, _ in rows)
    if size > most // _OF_ROWS:
        return Verdict(Status.OOM, message=f"the row has {size:,} bytes, and {most:,} bytes of memory for all")
    return None


def _units(count: int, isolation: Isolation, groups: Sequence[int] | None) -> list[list[int]]:
    """Which rows share a process."""
    places = range(count)
    if isolation is Isolation.ROW:
        return [[place] for place in places]
    if isolation is Isolation.GROUP and groups is not None:
        if len(groups) != count:
            raise ValueError(f"{len(groups)} groups for {count} rows")
        return [list(together) for _, together in groupby(places, key=lambda place: groups[place])]
    size = _BATCH_ROWS if isolation is Isolation.BATCH else max(count, 1)
    return [list(places[start : start + size]) for start in range(0, count, size)]


def _differ(first: Result, second: Result) -> bool:
    if Status.INFRA_ERROR in (first.status, second.status) or Status.TIMEOUT in (first.status, second.status):
        return False  # says nothing about state
    return first.status is not second.status or first.score != second.score


def _marked(results: Iterable[Result]) -> list[Result]:
    return [_with(result, {"stateful_evaluator": True}) for result in results]


def _with(result: Result, details: Mapping[str, Any]) -> Result:
    return replace(result, details={**result.details, **details})
