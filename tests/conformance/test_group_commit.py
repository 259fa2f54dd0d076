"""Writers that share a commit: each has the records to itself, fails by itself, and returns once its change is kept."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import OperationalError

from tests.conformance.test_stores import PARENT, Open, add, cluster, open_store, record  # noqa: F401  (fixtures)
from tests.gateway_kit import wait_for
from trainer.gateway import group_commit
from trainer.gateway.errors import GatewayError
from trainer.gateway.store import Page, Store


@pytest.fixture
def store(open_store: Open, monkeypatch: pytest.MonkeyPatch) -> Store:  # noqa: F811
    monkeypatch.setattr(group_commit, "_SECONDS", 60.0)  # what is shared must not depend on time
    return open_store()


def commits(store: Store, monkeypatch: pytest.MonkeyPatch, broken: tuple[int, ...] = ()) -> list[str]:
    """How transactions end, as it happens; the commits of these numbers fail."""
    writers, seen = store.database._writers, list[str]()
    end = writers._end

    def noted(connection: sa.Connection, how: str) -> None:
        seen.append(how)
        if how == "COMMIT" and seen.count("COMMIT") - 1 in broken:
            raise OperationalError("COMMIT", {}, Exception("disk is full"))
        end(connection, how)

    monkeypatch.setattr(writers, "_end", noted)
    return seen


@contextmanager
def queued(store: Store, *works: Callable[[], object]) -> Iterator[list[Future[object]]]:
    """`works` in threads, in this order in the queue behind a writer that writes nothing; its future is the last."""
    entered, leave = threading.Event(), threading.Event()

    def first() -> object:
        with store.transaction():
            entered.set()
            assert leave.wait(120)

    with ThreadPoolExecutor(len(works) + 1) as pool:
        holder: Future[object] = pool.submit(first)
        futures: list[Future[object]] = []
        assert entered.wait(120)
        for work in works:
            futures.append(pool.submit(work))
            waiting = store.database._writers._turns._waiting
            wait_for(lambda waiting=waiting: len(waiting) == len(futures), "a writer in the queue")
        leave.set()
        yield [*futures, holder]


def names(store: Store) -> list[str]:
    return sorted(one.id for one in store.every("datasets"))


def test_those_who_wait_share_one_commit(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = commits(store, monkeypatch)
    works = [lambda n=n: add(store, record(f"d{n}")) for n in range(20)]
    with queued(store, *works) as futures:
        for future in futures:
            future.result(120)
    assert seen == ["COMMIT"]
    assert len(names(store)) == 20
    assert store.page(Page("datasets", PARENT))[2] == 20
    add(store, record("alone"))
    assert seen == ["COMMIT", "COMMIT"]


def test_a_group_has_an_end(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = commits(store, monkeypatch)
    monkeypatch.setattr(group_commit, "_MOST", 5)
    with queued(store, *[lambda n=n: add(store, record(f"d{n}")) for n in range(12)]) as futures:
        for future in futures:
            future.result(120)
    assert len(seen) == 3  # 1 + 4, 5, 3
    monkeypatch.setattr(group_commit, "_SECONDS", -1.0)
    with queued(store, *[lambda n=n: add(store, record(f"e{n}")) for n in range(3)]) as futures:
        for future in futures:
            future.result(120)
    assert len(seen) == 3 + 4
    assert len(names(store)) == 15


def test_what_fails_takes_nothing_of_others_with_it(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = commits(store, monkeypatch)

    def half(name: str) -> None:
        with store.transaction() as transaction:
            transaction.insert(record(name))
            raise ValueError(name)

    works = [
        lambda: half("never-0"), lambda: add(store, record("a")), lambda: half("never-1"),
        lambda: add(store, record("a")), lambda: add(store, record("b")), lambda: half("never-2"),
    ]  # fmt: skip
    with queued(store, *works) as futures:
        outcomes = [type(future.exception(120)) for future in futures[:-1]]
    assert outcomes == [ValueError, type(None), ValueError, GatewayError, type(None), ValueError]
    assert names(store) == ["a", "b"]
    assert store.page(Page("datasets", PARENT))[2] == 2
    assert seen == ["COMMIT"]
    with pytest.raises(ValueError, match="alone"):
        half("alone")
    assert seen == ["COMMIT", "ROLLBACK"]


def test_who_reads_in_a_turn_sees_the_turns_before(store: Store) -> None:
    def count() -> int:
        with store.transaction() as transaction:
            return len(transaction.every("datasets"))

    with queued(store, lambda: add(store, record("a")), count, lambda: add(store, record("b")), count) as futures:
        assert [futures[1].result(120), futures[3].result(120)] == [1, 2]


def test_nobody_returns_before_the_commit(store: Store, open_store: Open, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """The last of a group keeps its turn: the others are done and must wait, and nobody else sees their changes."""
    other, reached, go_on = open_store(), threading.Event(), threading.Event()

    def slow() -> None:
        with store.transaction():
            reached.set()
            assert go_on.wait(120)

    with queued(store, lambda: add(store, record("a")), slow) as futures:
        assert reached.wait(120)
        assert not futures[0].done()
        assert other.find(f"{PARENT}/datasets/a") is None
        go_on.set()
        futures[0].result(120)
        assert other.find(f"{PARENT}/datasets/a") is not None


def test_a_commit_that_fails_is_everybodys(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = commits(store, monkeypatch, broken=(0,))
    works = [lambda n=n: add(store, record(f"d{n}")) for n in range(4)]
    with queued(store, *works) as futures:
        errors = [future.exception(120) for future in futures]
    assert [getattr(error, "code", error) for error in errors] == ["RESOURCE_EXHAUSTED"] * 5
    assert seen[:2] == ["COMMIT", "ROLLBACK"]
    assert names(store) == []
    add(store, record("after"))
    assert names(store) == ["after"]


def test_a_group_that_the_database_has_undone_is_nobodys(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some failures (a full disk, a lost connection) end the whole transaction: who was before is told too."""
    if store.database.engine.dialect.name != "sqlite":
        pytest.skip("by a statement that only SQLite takes")

    def undoes() -> None:
        with store.transaction() as transaction:
            transaction.execute(sa.text("ROLLBACK"))
            raise ValueError("after that")

    def undoes_silently() -> None:
        with store.transaction() as transaction:
            transaction.execute(sa.text("ROLLBACK"))

    for work in (undoes, undoes_silently):
        with queued(store, lambda: add(store, record("a")), work, lambda: add(store, record("b"))) as futures:
            errors = [future.exception(120) for future in futures]
        for error in (errors[0], errors[3]):
            assert isinstance(error, GatewayError)
            assert (error.code, error.details[0]["reason"]) == ("UNAVAILABLE", "STORE_UNDONE")
        assert errors[1] is not None
        assert errors[2] is None
        assert names(store) == ["b"]
        with store.transaction() as transaction:
            transaction.delete(f"{PARENT}/datasets/b")
    with pytest.raises(OperationalError, match="no transaction is active"):
        undoes_silently()
    assert names(store) == []
