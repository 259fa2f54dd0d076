"""One suite for every place where records can lie: SQLite in the state folder, and PostgreSQL."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
import sqlalchemy as sa

from tests.postgres_kit import Cluster, binaries
from trainer.gateway.database import unused
from trainer.gateway.errors import GatewayError
from trainer.gateway.group_commit import Turns
from trainer.gateway.schema import counts, resources
from trainer.gateway.store import Page, Resource, Store, body_value

Open = Callable[[], Store]
PARENT = "accounts/local"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    place = binaries()
    if place is None:
        pytest.skip("no PostgreSQL server (initdb, postgres) on this machine")
    running = Cluster(place)
    yield running
    running.remove()


@pytest.fixture(params=["sqlite", "postgresql"])
def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Open]:
    """Opens the same records again and again, as several processes would."""
    url = None if request.param == "sqlite" else request.getfixturevalue("cluster").database()
    opened: list[Store] = []

    def open_it() -> Store:
        opened.append(Store(tmp_path / "state", url))
        return opened[-1]

    yield open_it
    for store in opened:
        store.close()


def record(name: str, *, collection: str = "datasets", parent: str = PARENT, **body: object) -> Resource:
    return Resource(f"{parent}/{collection}/{name}", collection, parent, name, dict(body))


def add(store: Store, *records: Resource) -> list[Resource]:
    with store.transaction() as transaction:
        return [transaction.insert(one) for one in records]


def ids(store: Store, page: Page) -> list[str]:
    return [one.id for one in store.page(page)[0]]


def test_a_record_comes_back_as_it_went_in(open_store: Open) -> None:
    store = open_store()
    body = {
        "z": 1, "a": [1.5, None, True, {"deep": {"er": "x"}}], "text": "ünï – 𝄞 \ufdd0 \x00 \ud800 end", "\x00key": "",
        "big": 2**53 + 1, "empty": {}, "quote": "'\"\\;--",
    }  # fmt: skip
    (new,) = add(store, Resource("accounts/local/x/1", "x", PARENT, "1", body, {"secret": ["\x00"]}))
    assert new.revision == 1
    assert new.create_time == new.update_time
    found = open_store().get("accounts/local/x/1")
    assert found == new
    assert list(found.body) == list(body)  # the order of the keys too
    assert store.find("accounts/local/x/2") is None
    with pytest.raises(GatewayError, match="NOT_FOUND"):
        store.get("accounts/local/x/2")


def test_a_name_exists_once(open_store: Open) -> None:
    store, other = open_store(), open_store()
    add(store, record("a", n=1))
    with pytest.raises(GatewayError) as caught:
        add(other, record("b"), record("a", n=2))
    assert caught.value.code == "ALREADY_EXISTS"
    assert caught.value.headers() == {"x-should-retry": "false"}
    assert store.get(f"{PARENT}/datasets/a").body == {"n": 1}
    assert store.find(f"{PARENT}/datasets/b") is None  # its transaction failed
    with store.transaction() as transaction:  # a refused insert leaves the transaction of use
        with pytest.raises(GatewayError):
            transaction.insert(record("a"))
        transaction.insert(record("c"))
    assert ids(store, Page("datasets", PARENT)) == ["a", "c"]


def test_a_stale_record_is_not_saved(open_store: Open) -> None:
    store = open_store()
    (old,) = add(store, record("a", n=1))
    with store.transaction() as transaction:
        new = transaction.save(old.changed({"n": 2}))
    assert new.revision == 2
    assert new.update_time > new.create_time
    with pytest.raises(GatewayError, match="ABORTED"), store.transaction() as transaction:
        transaction.save(old.changed({"n": 3}))
    assert store.get(old.name) == new


def test_nothing_of_a_failed_transaction_stays(open_store: Open) -> None:
    store = open_store()
    with pytest.raises(RuntimeError, match="on purpose"), store.transaction() as transaction:
        transaction.insert(record("a"))
        with store.transaction() as inner:  # is part of the outer one
            inner.insert(record("b"))
        raise RuntimeError("on purpose")
    assert store.page(Page("datasets", PARENT)) == ([], False, 0)


def test_delete_takes_what_lies_below(open_store: Open) -> None:
    store = open_store()
    job = record("j", collection="jobs")
    below = [record(str(n), collection="checkpoints", parent=job.name) for n in range(3)]
    beside = [record("j2", collection="jobs"), record("j-", collection="jobs"), record("j.x", collection="jobs")]
    add(store, job, *below, *beside)
    assert store.page(Page("checkpoints", job.name))[2] == 3
    with store.transaction() as transaction:
        transaction.delete(job.name)
    assert sorted(ids(store, Page("jobs", PARENT))) == ["j-", "j.x", "j2"]
    assert store.page(Page("jobs", PARENT))[2] == 3
    assert store.page(Page("checkpoints", job.name)) == ([], False, 0)


@pytest.mark.parametrize("order", ["create_time", "update_time", "name"])
@pytest.mark.parametrize("descending", [False, True])
def test_pages_are_the_whole_in_order(open_store: Open, order: str, descending: bool) -> None:
    store = open_store()
    added = add(store, *(record(name) for name in ("b", "a", "Z", "ä", "a-b", "a0", "_")))
    with store.transaction() as transaction:
        added[0] = transaction.save(added[0])
    got: list[Resource] = []
    after, more, total = None, True, 0
    while more:
        page = Page("datasets", PARENT, order=order, descending=descending, after=after, size=2)
        found, more, total = store.page(page)
        got += found
        after = (getattr(found[-1], order), found[-1].name)
    assert total == 7
    assert got == sorted(added, key=lambda one: (getattr(one, order), one.name), reverse=descending)


def test_conditions(open_store: Open) -> None:
    store = open_store()
    add(store, record("a", state="READY", n=3, on=True, s="x\x00"), record("b", state="UPLOADING", n=10, s="y"))
    add(store, record("c", state="READY", inner={"deep": "v"}))

    def matching(condition: sa.ColumnElement[bool]) -> list[str]:
        found, _, total = store.page(Page("datasets", PARENT, [condition]))
        assert total == len(found)
        assert store.every("datasets", condition) == found
        return [one.id for one in found]

    assert matching(resources.c.state == "READY") == ["a", "c"]
    assert matching(body_value(["state"]).as_string() == "UPLOADING") == ["b"]
    assert matching(body_value(["n"]).as_float() > 3) == ["b"]
    assert matching(sa.func.coalesce(body_value(["on"]).as_boolean(), sa.false()) == sa.true()) == ["a"]
    assert matching(body_value(["s"]).as_string() == "x\x00") == ["a"]
    assert matching(body_value(["s"]).as_string() == "\ud800") == []
    assert matching(body_value(["inner", "deep"]).as_string() == "v") == ["c"]
    with store.transaction() as transaction:
        transaction.save(transaction.get(f"{PARENT}/datasets/a").changed({"state": "UPLOADING"}))
    assert matching(resources.c.state == "READY") == ["c"]


def test_a_body_s_strings_are_ordered_by_code_point(open_store: Open) -> None:
    store = open_store()
    words = ["a", "B", "ä", "_", "a-b", "A", "\U0001f600"]
    add(store, *(record(f"r{n}", word=word) for n, word in enumerate(words)))
    for limit in words:
        found = store.page(Page("datasets", PARENT, [body_value(["word"]).as_string() > limit]))[0]
        assert sorted(one.body["word"] for one in found) == sorted(word for word in words if word > limit)


def test_a_parent_may_be_any(open_store: Open) -> None:
    store = open_store()
    for account in ("one", "two", "t_o"):
        shapes = f"accounts/{account}/shapes"
        add(store, record("v", collection="versions", parent=f"{shapes}/s1"))
        add(store, record("v", collection="versions", parent=f"{shapes}/s2"))
        add(store, record("v", collection="versions", parent=f"{shapes}/s2/deeper/d"))

    def parents(parent: str | None) -> int:
        found, _, total = store.page(Page("versions", parent))
        assert total == len(found)
        return total

    assert parents("accounts/one/shapes/s1") == 1
    assert parents("accounts/one/shapes/-") == 2
    assert parents("accounts/t_o/shapes/-") == 2
    assert parents("accounts/-/shapes/-") == 6
    assert parents("accounts/-/shapes/s2") == 3
    assert parents("accounts/-") == 0
    assert parents(None) == 9


def test_counts_are_right_after_everything(open_store: Open) -> None:
    store = open_store()
    add(store, *(record(f"r{n}") for n in range(20)), *(record(f"m{n}", collection="models") for n in range(3)))
    with store.transaction() as transaction:
        for n in range(0, 20, 2):
            transaction.delete(f"{PARENT}/datasets/r{n}")
        with pytest.raises(GatewayError):
            transaction.insert(record("r1"))
    with store.transaction() as transaction:
        kept = {tuple(row) for row in transaction.execute(sa.select(counts))}
    assert kept == {("datasets", PARENT, 10), ("models", PARENT, 3)}


def test_read_modify_write_loses_nothing(open_store: Open) -> None:
    """64 writers through two stores, as two processes have them: no error reaches anyone, no update is lost."""
    stores = [open_store(), open_store()]
    add(stores[0], record("sum", n=0))

    def write(index: int) -> None:
        store = stores[index % 2]
        for turn in range(4):
            with store.transaction() as transaction:
                old = transaction.get(f"{PARENT}/datasets/sum")
                transaction.save(old.changed({"n": old.body["n"] + 1}))
                transaction.insert(record(f"w{index}-{turn}"))

    with ThreadPoolExecutor(64) as pool:
        list(pool.map(write, range(64)))
    assert stores[0].get(f"{PARENT}/datasets/sum").body == {"n": 256}
    assert stores[1].page(Page("datasets", PARENT))[2] == 257


def test_one_of_many_creates_the_same(open_store: Open) -> None:
    store = open_store()

    def create(index: int) -> str:
        try:
            add(store, record("same", by=index))
        except GatewayError as error:
            return error.code
        return "OK"

    with ThreadPoolExecutor(16) as pool:
        got = list(pool.map(create, range(32)))
    assert sorted(set(got)) == ["ALREADY_EXISTS", "OK"]
    assert got.count("OK") == 1


@pytest.mark.parametrize("order", ["create_time", "name"])
def test_listing_under_writers(open_store: Open, order: str) -> None:
    """What is there throughout is listed exactly once, whatever comes and goes meanwhile."""
    store = open_store()
    stays = {f"k{n:02}" for n in range(40)}
    add(store, *(record(name) for name in sorted(stays)))
    ended = threading.Event()

    def write(writer: int) -> None:
        turn = 0
        while not ended.is_set():
            add(store, record(f"k{turn % 40:02}w{writer}-{turn}"))
            with store.transaction() as transaction:
                transaction.delete(f"{PARENT}/datasets/k{turn % 40:02}w{writer}-{turn}")
            turn += 1

    with ThreadPoolExecutor(4) as pool:
        writers = [pool.submit(write, n) for n in range(4)]
        try:
            for _ in range(5):
                seen, after, more = [], None, True
                while more:
                    found, more, _ = store.page(Page("datasets", PARENT, order=order, after=after, size=7))
                    seen += [one.name for one in found]
                    after = (getattr(found[-1], order), found[-1].name) if found else after
                assert len(seen) == len(set(seen))
                assert stays <= {name.rsplit("/", 1)[-1] for name in seen}
        finally:
            ended.set()
        for writer in writers:
            writer.result()


def test_a_snapshot_is_one_moment(open_store: Open) -> None:
    store = open_store()
    add(store, record("a"))
    with store.database.snapshot() as connection:
        before = connection.execute(sa.select(sa.func.count()).select_from(resources)).scalar_one()
        add(store, record("b"))
        after = connection.execute(sa.select(sa.func.count()).select_from(resources)).scalar_one()
    assert (before, after) == (1, 1)
    assert store.page(Page("datasets", PARENT))[2] == 2


def test_who_waits_too_long_is_told(open_store: Open) -> None:
    store = open_store()
    with store.transaction():
        turns = Turns(0.01)
        turns.take()
        with pytest.raises(GatewayError, match="ask again") as caught:
            turns.take()
    assert caught.value.code == "UNAVAILABLE"
    assert not turns.hand_over()  # the one who gave up does not stay in the queue
    turns.give()
    turns.take()


def test_a_database_that_went_away_is_unavailable_and_comes_back(tmp_path: Path) -> None:
    place = binaries()
    if place is None:
        pytest.skip("no PostgreSQL server (initdb, postgres) on this machine")
    own = Cluster(place)
    with ExitStack() as stack:
        stack.callback(own.remove)
        store = stack.enter_context(closing(Store(tmp_path, own.database())))
        add(store, record("a"))
        own.stop()
        for ask in (lambda: store.find("x"), lambda: add(store, record("b"))):
            with pytest.raises(GatewayError) as caught:
                ask()
            assert (caught.value.code, caught.value.headers()) == ("UNAVAILABLE", {"retry-after": "2"})
        own.start()
        assert store.get(f"{PARENT}/datasets/a").id == "a"
        add(store, record("b"))


def test_a_folder_knows_where_its_records_are(tmp_path: Path, cluster: Cluster) -> None:
    url = cluster.database()
    with closing(Store(tmp_path / "far", url)) as store:
        add(store, record("a"))
    with closing(Store(tmp_path / "far")) as store:  # without a word: the mark says where
        assert store.get(f"{PARENT}/datasets/a").id == "a"
    Store(tmp_path / "near").close()
    with pytest.raises(GatewayError, match="move them first"):
        Store(tmp_path / "near", url)
    secret = url.replace("trainer@", "trainer:hunter2@")
    with closing(Store(tmp_path / "secret", secret)) as store:
        assert "hunter2" not in store.database.shown
    assert b"hunter2" not in (tmp_path / "secret/store.json").read_bytes()
    with pytest.raises(GatewayError, match="TRAINER_GATEWAY_STORE"):
        Store(tmp_path / "secret")


@pytest.mark.parametrize(
    "url", ["mysql://u:hunter2@h/d", "hunter2", "sqlite:///hunter2.db", "postgresql+asyncpg://h/d"]
)
def test_other_databases_are_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(GatewayError, match=r"expected postgresql://user:password@host:port/database") as caught:
        Store(tmp_path, url)
    assert "hunter2" not in caught.value.message


def test_records_that_take_no_writes_are_said_to_be_so(open_store: Open) -> None:
    store = open_store()
    sqlite = store.database.engine.dialect.name == "sqlite"
    with pytest.raises(GatewayError, match=r"UNAVAILABLE.*can only be read now"), store.transaction() as transaction:
        transaction.execute(sa.text("PRAGMA query_only=ON" if sqlite else "SET TRANSACTION READ ONLY"))
        transaction.insert(record("a"))


def test_records_in_use_are_not_moved_and_those_that_are_moved_are_not_used(open_store: Open, tmp_path: Path) -> None:
    store, folder = open_store(), tmp_path / "state"
    with pytest.raises(GatewayError, match=r"FAILED_PRECONDITION.*in use by another process"), unused(folder):
        pass
    store.close()
    with unused(folder), pytest.raises(GatewayError, match=r"UNAVAILABLE.*being moved"):
        open_store()
    open_store()
