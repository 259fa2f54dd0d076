"""Proves what the gateway promises of its records: python scripts/prove_store.py [--rounds N] [--only sqlite]

Figures of docs/reliability.md: 10 (kill -9 of the writing process amid creates from 8 clients that retry: none is lost
that was acknowledged, none is there twice), 13 (an acknowledged create survives the database's sudden end), 14 (64
writers, none is refused), 17 (kill -9 in a migration), 18 (a move gives the same rows), 19 (lists while others write),
and how long a list of 50 of 100,000 records takes. PostgreSQL runs where its programs are on this machine. Ends with 1
where a promise does not hold.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sqlite3
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.postgres_kit import Cluster, binaries  # noqa: E402
from trainer.gateway import moving  # noqa: E402
from trainer.gateway.errors import GatewayError  # noqa: E402
from trainer.gateway.migrations import upgrade as _upgrade  # noqa: E402, F401  (imported once, for the children)
from trainer.gateway.schema import resources  # noqa: E402
from trainer.gateway.store import Page, Resource, Store, now  # noqa: E402

PARENT = "accounts/local"
Opened = Callable[[Path], Store]


def record(name: str, **body: Any) -> Resource:
    return Resource(f"{PARENT}/datasets/{name}", "datasets", PARENT, name, body)


def create(store: Store, name: str, **body: Any) -> None:
    with store.transaction() as transaction:
        transaction.insert(record(name, **body))


def ends(times: list[float]) -> str:
    times.sort()
    return f"p50 {times[len(times) // 2] * 1e3:.1f} ms, p99 {times[int(len(times) * 0.99)] * 1e3:.1f} ms"


def names_in(store: Store) -> list[str]:
    return [one.id for one in store.every("datasets")]


def _serve(folder: str, url: str | None, requests: Any, answers: Any) -> None:
    """The gateway's part in figure 10: creates what clients ask for, in 8 threads, and says so afterwards."""
    store = Store(Path(folder), url)

    def work() -> None:
        while True:
            client, name = requests.get()
            try:
                create(store, name, by=client)
                answer = "OK"
            except GatewayError as error:
                answer = error.code
            answers[client].put((name, answer))

    for _ in range(8):
        threading.Thread(target=work, daemon=True).start()
    signal.pause()


def killed_while_creating(folder: Path, url: str | None, *, creates: int, kills: int) -> str:  # noqa: C901  (one story)
    """Figure 10, and with `url` of a durable cluster half of 13."""
    context = multiprocessing.get_context("fork")
    state: dict[str, Any] = {"generation": 0}

    def begin() -> None:
        state["requests"], state["answers"] = context.SimpleQueue(), [context.SimpleQueue() for _ in range(8)]
        state["process"] = context.Process(
            target=_serve, args=(str(folder), url, state["requests"], state["answers"]), daemon=True
        )
        state["process"].start()
        state["generation"] += 1

    begin()
    guard, acknowledged, twice, ended = threading.Lock(), set[str](), list[str](), threading.Event()

    def client(number: int) -> None:
        for index in range(creates // 8):
            name, asked_again = f"c{number}-{index}", False
            while True:
                with guard:
                    generation, requests, answers = state["generation"], state["requests"], state["answers"][number]
                    requests.put((number, name))
                while answers.empty() and generation == state["generation"]:
                    time.sleep(0.001)
                if answers.empty():
                    asked_again = True
                    continue
                _, answer = answers.get()
                if answer == "ALREADY_EXISTS" and not asked_again:
                    twice.append(name)
                if answer in ("OK", "ALREADY_EXISTS"):
                    acknowledged.add(name)
                    break
                asked_again = True

    def kill() -> None:
        for _ in range(kills):
            ended.wait(random.uniform(0.05, 0.25))
            if ended.is_set():
                return
            with guard:
                os.kill(state["process"].pid, signal.SIGKILL)
                state["process"].join()
                begin()

    with ThreadPoolExecutor(9) as pool:
        killer = pool.submit(kill)
        for one in [pool.submit(client, number) for number in range(8)]:
            one.result()
        ended.set()
        killer.result()
    os.kill(state["process"].pid, signal.SIGKILL)
    state["process"].join()
    store = Store(folder, url)
    found = names_in(store)
    total = store.page(Page("datasets", PARENT))[2]
    store.close()
    assert len(acknowledged) == creates // 8 * 8
    assert not twice, f"created twice: {twice}"
    assert sorted(found) == sorted(acknowledged), set(found) ^ acknowledged
    assert total == len(found)
    return f"{len(found)} of {len(acknowledged)} acknowledged are there once, {state['generation'] - 1} kills"


def sudden_end_of_the_cluster(cluster: Cluster, folder: Path, url: str) -> str:
    """Figure 13 on PostgreSQL: SIGQUIT of the whole server, without a checkpoint, amid creates."""
    lost = 0
    for turn in range(3):
        store, acknowledged, ended = Store(folder, url), list[str](), threading.Event()

        def write(turn: int, writer: int, store: Store, told: list[str], ended: threading.Event) -> None:
            index = 0
            while not ended.is_set():
                try:
                    create(store, f"t{turn}w{writer}-{index}")
                    told.append(f"t{turn}w{writer}-{index}")
                except GatewayError as error:
                    assert error.code == "UNAVAILABLE", error
                    return
                index += 1

        with ThreadPoolExecutor(4) as pool:
            running = [pool.submit(write, turn, n, store, acknowledged, ended) for n in range(4)]
            time.sleep(0.5)
            cluster.stop(signal.SIGQUIT)
            ended.set()
            for one in running:
                one.result()
        cluster.start()
        lost += len(set(acknowledged) - set(names_in(store)))
        store.close()
    assert lost == 0
    return "3 sudden ends of the server, 0 acknowledged creates lost"


def settings_of_sqlite(folder: Path) -> str:
    store = Store(folder)
    with store.database.reading() as connection:
        found = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in ("synchronous", "journal_mode")
        }
    store.close()
    assert found == {"synchronous": 2, "journal_mode": "wal"}
    return "synchronous=FULL (2) in WAL mode on every connection: SQLite's own promise for a power cut"


def writers_64(opened: Opened, folder: Path) -> str:
    """Figure 14: 64 threads through one store, as the server has them."""
    store, times = opened(folder), list[float]()

    def write(writer: int) -> None:
        for turn in range(10):
            began = time.perf_counter()
            create(store, f"w{writer}-{turn}", displayName="x" * 100)
            times.append(time.perf_counter() - began)

    with ThreadPoolExecutor(64) as pool:
        list(pool.map(write, range(64)))
    assert len(names_in(store)) == 640
    store.close()
    return f"640 creates, 0 errors, {ends(times)}"


def lists_under_writers(opened: Opened, folder: Path, *, lists: int) -> str:
    """Figure 19: 10 writers insert and delete among records that stay."""
    store, ended, wrong = opened(folder), threading.Event(), 0
    stays = {f"k{n:03}" for n in range(120)}
    with store.transaction() as transaction:
        for name in sorted(stays):
            transaction.insert(record(name))
    writes = [0]

    def write(writer: int) -> None:
        chance = random.Random(writer)
        while not ended.is_set():
            name = f"k{chance.randrange(120):03}w{writer}"
            create(store, name)
            with store.transaction() as transaction:
                transaction.delete(f"{PARENT}/datasets/{name}")
            writes[0] += 2

    with ThreadPoolExecutor(10) as pool:
        writers = [pool.submit(write, n) for n in range(10)]
        try:
            for turn in range(lists):
                order, descending = ("create_time", "name", "update_time")[turn % 3], turn % 2 == 1
                seen, after, more = list[str](), None, True
                while more:
                    page = Page("datasets", PARENT, order=order, descending=descending, after=after, size=25)
                    found, more, _ = store.page(page)
                    seen += [one.id for one in found]
                    after = (getattr(found[-1], order), found[-1].name) if found else after
                wrong += len(seen) != len(set(seen)) or not stays <= set(seen)
        finally:
            ended.set()
        for one in writers:
            one.result()
    store.close()
    assert wrong == 0
    return f"{lists} lists of 5 pages and more, {writes[0]} writes meanwhile, {wrong} with a gap or a repeat"


def list_of_100000(opened: Opened, folder: Path) -> str:
    store, times = opened(folder), dict[str, list[float]]()
    for start in range(0, 100_000, 1000):
        listed = [record(f"d{n}", state="READY", displayName="x" * 100) for n in range(start, start + 1000)]
        rows = [{**vars(one), "create_time": now(), "update_time": now()} for one in listed]
        with store.transaction() as transaction:
            transaction.execute(resources.insert(), rows)
    for order in ("create_time", "update_time", "name"):
        (middle,) = store.page(Page("datasets", PARENT, order=order, size=1))[0]
        for _ in range(50):
            page = Page("datasets", PARENT, order=order, after=(getattr(middle, order), middle.name))
            began = time.perf_counter()
            found, more, total = store.page(page)
            times.setdefault(order, []).append(time.perf_counter() - began)
            assert (len(found), more, total) == (50, True, 100_000)
    store.close()
    return "; ".join(f"{order} {ends(listed)}" for order, listed in times.items())


def migrations_killed(top: Path) -> str:
    """Figure 17: kill -9 before each statement of the migration of a database of the first release."""
    from tests.unit.test_gateway_store_versions import KILLED, write_version_1

    write_version_1(top / "0", rows=500)
    folders = [top / str(n) for n in range(40)]
    for folder in folders[1:]:
        shutil.copytree(folders[0], folder)
    import subprocess

    ran = subprocess.run([sys.executable, "-c", KILLED, *map(str, folders)], cwd=ROOT, capture_output=True, check=True)
    killed, between = [int(line) == 9 for line in ran.stdout.split()], 0
    for folder in folders:
        with closing(sqlite3.connect(folder / "gateway.db")) as connection, connection:
            names = {row[0] for row in connection.execute("SELECT name FROM sqlite_master")}
        connection.close()
        new = {"counts", "alembic_version", "resources_added", "resources_by_state", "audit_log"}
        between += bool(names & new) and not names >= new
        store = Store(folder)
        assert len(names_in(store)) == 500
        store.close()
    assert between == 0
    return f"{sum(killed)} kills, {between} between two versions, all open in the newest with every row"


def move(cluster: Cluster, top: Path) -> str:
    """Figure 18."""
    store, chance = Store(top), random.Random(7)
    with store.transaction() as transaction:
        for n in range(2000):
            text = "".join(chr(chance.choice((0, 65, 0xE9, 0xD800, 0x1F600, 0xFDD0, 92, 34))) for _ in range(8))
            transaction.insert(record(f"m{n}", text=text, number=chance.random() * 10 ** chance.randrange(-300, 300)))
    before = [vars(one) for one in store.every("datasets")]
    store.close()
    there = moving.move_records(top, cluster.database())
    store = Store(top)
    assert [vars(one) for one in store.every("datasets")] == before
    store.close()
    back = moving.move_records(top, None)
    store = Store(top)
    assert [vars(one) for one in store.every("datasets")] == before
    store.close()
    assert there == back
    digest = there["resources"].sha256[:16]
    return f"{there['resources'].rows} records there and back, equal rows; sha256 {digest}... both ways"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="rounds of figure 10, of 1,000 creates each")
    parser.add_argument("--lists", type=int, default=200, help="lists of figure 19")
    parser.add_argument("--only", choices=["sqlite", "postgresql"], help="one of the two")
    parser.add_argument("--figures", help="those alone, as 10,14 (and list); default: all")
    options = parser.parse_args()
    chosen = options.figures.split(",") if options.figures else None
    top, place, failed = Path(tempfile.mkdtemp(prefix="prove-store-")), binaries(), 0
    cluster = Cluster(place, durable=True) if place and options.only != "sqlite" else None
    where = [name for name in ("sqlite", "postgresql") if options.only in (None, name)]
    if cluster is None and "postgresql" in where:
        print("PostgreSQL: not on this machine, left out")
        where.remove("postgresql")

    def prove(what: str, proof: Callable[[], str]) -> None:
        nonlocal failed
        if chosen is not None and what.split(maxsplit=1)[0] not in chosen:
            return
        began, used = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_utime
        try:
            said = proof()
        except Exception as error:  # noqa: BLE001  (each proof is told by itself)
            said, failed = f"FAILED: {type(error).__name__}: {error}", failed + 1
        cpu = resource.getrusage(resource.RUSAGE_SELF).ru_utime - used
        print(f"{what}: {said}  ({time.perf_counter() - began:.1f} s, {cpu:.1f} CPU s)", flush=True)

    try:
        for name in where:
            new = cluster.database if name == "postgresql" and cluster else (lambda: None)
            for turn in range(options.rounds):
                prove(f"10 {name} round {turn + 1}", lambda t=turn, n=name, u=new: killed_while_creating(
                    top / f"{n}-10-{t}", u(), creates=1000, kills=8))  # fmt: skip
            opened = lambda folder, u=new: Store(folder, u())  # noqa: E731
            prove(f"14 {name}", lambda n=name, o=opened: writers_64(o, top / f"{n}-14"))
            prove(f"19 {name}", lambda n=name, o=opened: lists_under_writers(o, top / f"{n}-19", lists=options.lists))
            prove(f"list of 50 of 100,000 {name}", lambda n=name, o=opened: list_of_100000(o, top / f"{n}-list"))
        if "sqlite" in where:
            prove("13 sqlite", lambda: settings_of_sqlite(top / "13"))
            prove("17 sqlite", lambda: migrations_killed(top / "17"))
        if cluster:
            prove("13 postgresql", lambda: sudden_end_of_the_cluster(cluster, top / "13p", cluster.database()))
            prove("18", lambda: move(cluster, top / "18"))
    finally:
        if cluster:
            cluster.remove()
        shutil.rmtree(top)
    print(json.dumps({"failed": failed}))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
