"""Moving a gateway and backing it up: what comes out is what went in, compared by digests and by the API's answers."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest

from tests.bucket_kit import has_moto, new_bucket, s3_server
from tests.gateway_kit import ROOT
from tests.postgres_kit import Cluster, binaries
from trainer.gateway import backup, moving
from trainer.gateway.client import GatewayClient
from trainer.gateway.errors import GatewayError
from trainer.gateway.files import FileStore
from trainer.gateway.gateway import Gateway
from trainer.gateway.sealing import Sealer
from trainer.gateway.store import Page, Resource, Store
from trainer.gateway.tables import audit_log

PARENT = "accounts/local"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    place = binaries()
    if place is None:
        pytest.skip("no PostgreSQL server (initdb, postgres) on this machine")
    running = Cluster(place)
    yield running
    running.remove()


def fill(folder: Path) -> None:
    """Records of several collections, rows of another table, and files."""
    store, files = Store(folder), FileStore(folder)
    with store.transaction() as transaction:
        for n in range(30):
            body = {"state": "READY", "n": n, "text": "é\x00\ud800\ufdd0", "nested": {"list": [1.5, None, True]}}
            transaction.insert(Resource(f"{PARENT}/models/m{n}", "models", PARENT, f"m{n}", body, {"p": [n]}))
        row = {column.name: "x" for column in audit_log.c} | {"is_admin": True, "payload": {"a": [1]}}
        transaction.execute(audit_log.insert().values(**row))
        for n in range(3):
            sums = {f"f{n}": {"size": 2, "sha256": files.adopt(f"{PARENT}/datasets/d{n}", f"f{n}", written(folder, n))}}
            transaction.insert(Resource(
                f"{PARENT}/datasets/d{n}", "datasets", PARENT, f"d{n}", {"state": "READY"}, {"files": sums}
            ))  # fmt: skip
    log = files.path(f"{PARENT}/models/m0", "log.txt")
    log.parent.mkdir(parents=True)
    log.write_text("a log, of which the record says nothing\n")
    store.close()


def written(folder: Path, n: int) -> Path:
    path = folder.parent / f"source{n}"
    path.write_text(f"r{n}")
    return path


def content(folder: Path, url: str | None = None) -> tuple[Any, ...]:
    """All that the records and files say, in every order and page."""
    store, files = Store(folder, url), FileStore(folder)
    pages = []
    for collection in ("models", "datasets", "accounts"):
        for order in ("name", "create_time", "update_time"):
            for descending in (False, True):
                page = Page(collection, PARENT, order=order, descending=descending, size=7)
                pages.append(store.page(page))
    records = [store.every(collection) for collection in ("models", "datasets")]
    names = {one.name: files.names(one.name) for listed in records for one in listed}
    told = {(name, file): files.path(name, file).read_bytes() for name, listed in names.items() for file in listed}
    store.close()
    return pages, records, told


def test_records_move_there_and_back(tmp_path: Path, cluster: Cluster) -> None:
    folder, url = tmp_path / "g", cluster.database()
    fill(folder)
    before = content(folder)
    moved = moving.move_records(folder, url)
    assert (moved["resources"].rows, moved["audit_log"].rows) == (33, 1)
    assert not (folder / "gateway.db").exists()
    assert content(folder) == before  # the mark says where
    assert content(folder, url) == before
    with pytest.raises(GatewayError, match="already"):
        moving.move_records(folder, url)
    assert moving.move_records(folder, None) == moved
    assert not (folder / "store.json").exists()
    assert content(folder) == before
    with pytest.raises(GatewayError, match="has records already"):
        moving.move_records(folder, url)
    assert content(folder) == before
    assert not list(folder.glob("moving.*"))


def test_what_a_killed_move_has_left_does_not_spoil_the_way_back(tmp_path: Path, cluster: Cluster) -> None:
    folder = tmp_path / "g"
    fill(folder)
    before = content(folder)
    store = Store(folder)
    with store.transaction() as transaction:  # in the log beside the file, as long as somebody has it open
        transaction.delete(f"{PARENT}/models/m1")
        transaction.insert(Resource(f"{PARENT}/models/m1", "models", PARENT, "m1", {"state": "OLD"}))
    left = {path.name: path.read_bytes() for path in folder.glob("gateway.db*")}
    assert left["gateway.db-wal"]
    with store.transaction() as transaction:
        transaction.delete(f"{PARENT}/models/m1")
        transaction.insert(next(one for one in before[1][0] if one.id == "m1"))
    store.close()
    moving.move_records(folder, cluster.database())
    for name, old in left.items():
        (folder / name).write_bytes(old)
    there = content(folder)
    moving.move_records(folder, None)
    assert content(folder) == there
    assert [one.body["state"] for one in there[1][0] if one.id == "m1"] == ["READY"]


def test_answers_are_the_same_after_a_move(tmp_path: Path, cluster: Cluster) -> None:
    folder = tmp_path / "g"

    def answers() -> list[Any]:
        with GatewayClient.in_process(folder) as client:
            found = [client.call("Gateway_GetAccount")]
            for order in ("", "name desc", "updateTime desc,name"):
                for chosen in ("", 'state="UPLOADING"', 'displayName>"b"'):
                    query = {"orderBy": order, "filter": chosen, "pageSize": 3}
                    listed = client.call("Gateway_ListDatasets", query=query)
                    found += [listed, *(client.get(one["name"]) for one in listed["datasets"])]
            return found

    with GatewayClient.in_process(folder) as client:
        for n in range(7):
            client.call("Gateway_CreateDataset", body={"datasetId": f"d{n}", "dataset": {"displayName": "aZbÄc_-"[n]}})
    before = answers()
    moving.move_records(folder, cluster.database())
    assert answers() == before


def test_no_move_while_a_server_runs(tmp_path: Path) -> None:
    fill(tmp_path / "g")
    with moving.not_served(tmp_path / "g"):
        for move in (moving.move_records, moving.move_files):
            with pytest.raises(GatewayError, match="stop that server first"):
                move(tmp_path / "g", "postgresql://nowhere/x")


def test_no_move_while_a_command_uses_the_records(tmp_path: Path) -> None:
    with GatewayClient.in_process(tmp_path / "g"):
        for move in (moving.move_records, moving.move_files):
            with pytest.raises(GatewayError, match="in use by another process"):
                move(tmp_path / "g", "postgresql://nowhere/x")


def test_a_restoration_that_is_killed_leaves_nothing_that_can_be_used(tmp_path: Path) -> None:
    fill(tmp_path / "g")
    store = Store(tmp_path / "g")
    backup.backup(store, FileStore(tmp_path / "g"), tmp_path / "g", tmp_path / "b")
    store.close()
    dies = (
        "import os, signal, sys; from pathlib import Path; from trainer.gateway import backup\n"
        "from trainer.gateway.files import FileStore\n"
        "FileStore.adopt = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)\n"
        "backup.restore(Path(sys.argv[1]), Path(sys.argv[2]))"
    )
    words = [sys.executable, "-c", dies, str(tmp_path / "b"), str(tmp_path / "new")]
    assert subprocess.run(words, cwd=ROOT, check=False).returncode == -signal.SIGKILL
    assert (tmp_path / "new/gateway.db").is_file()
    with pytest.raises(GatewayError, match="is being restored, or that was cut off"):
        Store(tmp_path / "new")
    with pytest.raises(GatewayError, match="not empty"):
        backup.restore(tmp_path / "b", tmp_path / "new")
    shutil.rmtree(tmp_path / "new")
    backup.restore(tmp_path / "b", tmp_path / "new")
    assert content(tmp_path / "new") == content(tmp_path / "g")


def test_a_file_that_is_not_what_its_record_says_is_not_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not has_moto():
        pytest.skip("moto and s3fs are not installed")
    fill(tmp_path / "g")
    FileStore(tmp_path / "g").path(f"{PARENT}/datasets/d1", "f1").write_bytes(b"no")
    with s3_server() as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(GatewayError, match=r"DATA_LOSS.*d1 says"):
            moving.move_files(tmp_path / "g", new_bucket())
    assert not FileStore(tmp_path / "g").in_bucket


def test_files_move_there_and_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not has_moto():
        pytest.skip("moto and s3fs are not installed")
    folder = tmp_path / "g"
    fill(folder)
    before = content(folder)
    with s3_server() as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        url = new_bucket()
        assert moving.move_files(folder, url) == 4
        assert FileStore(folder).in_bucket
        assert content(folder) == before
        elsewhere = FileStore(tmp_path / "other", url)
        assert elsewhere.path(f"{PARENT}/datasets/d1", "f1").read_bytes() == b"r1"
        assert elsewhere.path(f"{PARENT}/models/m0", "log.txt").is_file()  # of which no record speaks
        assert moving.move_files(folder, None) == 4
    assert content(folder) == before  # without the bucket


@pytest.mark.parametrize("to", ["sqlite", "postgresql"])
def test_backup_and_restore(tmp_path: Path, to: str, request: pytest.FixtureRequest) -> None:
    url = None if to == "sqlite" else request.getfixturevalue("cluster").database()
    fill(tmp_path / "g")
    sealed = Sealer(tmp_path / "g").seal(b"hunter2")
    before = content(tmp_path / "g")
    store, files = Store(tmp_path / "g"), FileStore(tmp_path / "g")
    made = backup.backup(store, files, tmp_path / "g", tmp_path / "b")
    link = files.url("GET", f"{PARENT}/datasets/d1", "f1", base_url="http://x")
    store.close()
    assert (made.rows["resources"], made.rows["audit_log"], made.files) == (33, 1, 4)
    assert backup.check(tmp_path / "b") == made
    assert stat.S_IMODE((tmp_path / "b").stat().st_mode) == 0o700
    assert backup.restore(tmp_path / "b", tmp_path / "new", url=url) == made
    assert content(tmp_path / "new") == before
    assert Sealer(tmp_path / "new").open(sealed) == b"hunter2"
    assert stat.S_IMODE((tmp_path / "new/secret.key").stat().st_mode) == 0o600
    split = urlsplit(link)  # what was signed before is still good
    FileStore(tmp_path / "new").verify("GET", split.path, dict(parse_qsl(split.query, keep_blank_values=True)))
    for place in (tmp_path / "new", tmp_path / "g"):
        with pytest.raises(GatewayError, match="not empty"):
            backup.restore(tmp_path / "b", place)
    if url is not None:
        with pytest.raises(GatewayError, match="has records already"):
            backup.restore(tmp_path / "b", tmp_path / "again", url=url)
        assert not (tmp_path / "again").exists()


def test_a_backup_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    fill(tmp_path / "g")
    gateway = Gateway(tmp_path / "g")
    backup.backup(gateway.store, gateway.files, gateway.folder, tmp_path / "b")
    with pytest.raises(GatewayError, match="is there already"):
        backup.backup(gateway.store, gateway.files, gateway.folder, tmp_path / "b")
    gateway.close()
    kept = {path: path.read_bytes() for path in sorted((tmp_path / "b").rglob("*")) if path.is_file()}
    assert len(kept) == 4 + 1 + 2 + 1  # files, records, manifest and its sum, the signing key
    for path, whole in kept.items():
        for damaged in (whole[:-1], whole[: len(whole) // 2] + bytes([whole[len(whole) // 2] ^ 1]) +
                        whole[len(whole) // 2 + 1 :], None):  # fmt: skip
            path.unlink() if damaged is None else path.write_bytes(damaged)
            with pytest.raises((GatewayError, ValueError, KeyError, FileNotFoundError)):
                backup.restore(tmp_path / "b", tmp_path / "new")
            assert not (tmp_path / "new").exists()
            path.write_bytes(whole)
    manifest = json.loads((tmp_path / "b/manifest.json").read_bytes())
    other = json.dumps({**manifest, "schema": "0999"}).encode()
    (tmp_path / "b/manifest.json").write_bytes(other)
    (tmp_path / "b/manifest.sha256").write_text(hashlib.sha256(other).hexdigest())
    with pytest.raises(GatewayError, match="version 0999"):
        backup.restore(tmp_path / "b", tmp_path / "new")


def test_a_backup_of_a_gateway_that_is_written_to(tmp_path: Path) -> None:
    """Data sets with files come and go meanwhile: what the backup's records speak of, it has."""
    folder, ended = tmp_path / "g", threading.Event()
    fill(folder)
    store, files = Store(folder), FileStore(folder)

    def write() -> None:
        n = 0
        while not ended.is_set():
            name = f"{PARENT}/datasets/w{n % 5}"
            with store.transaction() as transaction:
                if transaction.find(name) is None:
                    path = tmp_path / "w"
                    path.write_text(str(n))
                    entry = {"size": len(str(n)), "sha256": files.adopt(name, "f", path, link=False)}
                    transaction.insert(Resource(name, "datasets", PARENT, f"w{n % 5}", {}, {"files": {"f": entry}}))
                else:
                    transaction.delete(name)
                    files.remove(name)
            n += 1
            ended.wait(0.02)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for n in range(5):
            made = backup.backup(store, files, folder, tmp_path / f"b{n}")
            assert backup.check(tmp_path / f"b{n}") == made
    finally:
        ended.set()
        writer.join()
        store.close()
    for n in range(5):
        backup.restore(tmp_path / f"b{n}", tmp_path / f"new{n}")
        restored, there = Store(tmp_path / f"new{n}"), FileStore(tmp_path / f"new{n}")
        for one in restored.every("datasets"):
            assert there.names(one.name) == sorted(one.private["files"])
        restored.close()
