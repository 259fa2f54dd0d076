"""Group commit: writers that come while another one writes share its transaction, and one sync of the disk.

Each has the records to itself in its turn, behind a savepoint, so what fails takes only its own changes with it. At the
end of its turn a writer hands the open transaction to the next who waits; the last of a group commits for all. Nobody
returns before that commit: what is acknowledged is on disk. A commit that fails is everybody's failure.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import sqlalchemy as sa

from trainer.gateway.errors import GatewayError

_MOST = 64  # writers in one transaction
_SECONDS = 0.05  # then the first have waited long enough, and other processes too


class Turns:
    """A lock whose waiters get it in the order in which they came. seconds: how long one waits, then UNAVAILABLE."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self._guard = seconds, threading.Lock()
        self._waiting: deque[threading.Lock] = deque()
        self._taken = False

    def take(self) -> None:
        """Wait for one's turn. Raises UNAVAILABLE."""
        with self._guard:
            if not self._taken:
                self._taken = True
                return
            ticket = threading.Lock()
            ticket.acquire()
            self._waiting.append(ticket)
        if ticket.acquire(timeout=self.seconds):
            return
        with self._guard:
            if ticket not in self._waiting:  # given in the last moment
                return
            self._waiting.remove(ticket)
        raise busy(self.seconds)

    def hand_over(self) -> bool:
        """Give the turn to the first who waits; False, and it stays the caller's, where nobody does."""
        with self._guard:
            if self._waiting:
                self._waiting.popleft().release()
                return True
            return False

    def give(self) -> None:
        """End one's turn."""
        with self._guard:
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._taken = False


@dataclass
class _Group:
    """An open transaction. writers: how many have had their turn in it."""

    connection: sa.Connection
    began: float = field(default_factory=time.monotonic)
    writers: int = 0
    over: threading.Event = field(default_factory=threading.Event)
    error: BaseException | None = None


class GroupCommit:
    """Writing transactions of one process. begin(): a connection that holds the write lock; end(connection, how)."""

    def __init__(
        self, begin: Callable[[], sa.Connection], end: Callable[[sa.Connection, str], None], *, seconds: float
    ) -> None:
        self._begin, self._end = begin, end
        self._turns = Turns(seconds)
        self._group: _Group | None = None  # whose turn it is may touch it

    @contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """A connection to write with; returns when it is committed. Raises what the commit did, and UNAVAILABLE."""
        self._turns.take()
        group = self._entered()
        shared = group.writers > 0
        try:
            if shared:
                group.connection.exec_driver_sql("SAVEPOINT turn")
            yield group.connection
            if shared:
                group.connection.exec_driver_sql("RELEASE SAVEPOINT turn")
        except BaseException as error:
            self._undone(group, error)
            raise
        group.writers += 1
        self._left(group)
        group.over.wait()
        if group.error is not None:
            raise group.error

    def _entered(self) -> _Group:
        if self._group is None:
            try:
                self._group = _Group(self._begin())
            except BaseException:
                self._turns.give()
                raise
        return self._group

    def _undone(self, group: _Group, why: BaseException) -> None:
        """Take back this turn's changes; the whole group's where the database has done that, or is gone."""
        if not group.writers:
            self._close(group, "ROLLBACK")
            return
        try:
            group.connection.exec_driver_sql("ROLLBACK TO SAVEPOINT turn")
            group.connection.exec_driver_sql("RELEASE SAVEPOINT turn")
        except BaseException:  # noqa: BLE001  (every writer of the group is told)
            group.error = _gone_with_another(why)
            self._close(group, "ROLLBACK")
            return
        self._left(group)

    def _left(self, group: _Group) -> None:
        whole = group.writers >= _MOST or time.monotonic() - group.began > _SECONDS
        if whole or not self._turns.hand_over():
            self._close(group, "COMMIT")

    def _close(self, group: _Group, how: str) -> None:
        """End the transaction and the turn."""
        try:
            try:
                self._end(group.connection, how)
            except BaseException as error:  # noqa: BLE001  (every writer of the group gets it)
                group.error = group.error or error
                if how == "COMMIT":
                    self._end(group.connection, "ROLLBACK")
        except BaseException as error:  # noqa: BLE001  (as above: the connection is gone)
            group.error = group.error or error
        finally:
            self._group = None
            group.connection.close()
            group.over.set()
            self._turns.give()


def _gone_with_another(why: BaseException) -> GatewayError:
    found = GatewayError(
        "UNAVAILABLE", "the database gave up this change together with another one; ask again", reason="STORE_UNDONE"
    )
    found.__cause__ = why
    return found


def busy(seconds: float) -> GatewayError:
    """UNAVAILABLE: others have been writing for too long."""
    return GatewayError(
        "UNAVAILABLE", f"the gateway's records were being written by others for {seconds:g} s; ask again",
        reason="STORE_BUSY",
    )  # fmt: skip
