"""Things that happen at the wrong moment: a deletion beside a backup or the queue, a stop amid requests."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import socket
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.gateway_kit import A, make_scheduler, opened, raw, served, wait_for
from trainer.gateway import backup, fetching, uploads
from trainer.gateway.errors import GatewayError, disk_full, not_found
from trainer.gateway.files import FileStore
from trainer.gateway.holders import Holder
from trainer.gateway.server import serve

JOB = "accounts/local/supervisedFineTuningJobs/j"


def test_a_job_of_the_same_name_does_not_fail_for_one_that_was_deleted(tmp_path: Path) -> None:
    with opened(tmp_path / "gateway") as (client, gateway):
        scheduler = make_scheduler(gateway)
        made = {"dataset": "rows", "baseModel": "base"}
        path = f"{A}/supervisedFineTuningJobs"
        assert raw(client, "POST", f"{path}?supervisedFineTuningJobId=j", json=made).is_success

        def gone(name: str) -> Any:
            raise not_found(name)

        scheduler._guarded(JOB, lambda: gone(JOB))
        assert raw(client, "GET", f"{path}/j").json()["state"] == "JOB_STATE_CREATING"
        scheduler._guarded(JOB, lambda: gone("accounts/local/datasets/rows"))
        assert raw(client, "GET", f"{path}/j").json()["state"] == "JOB_STATE_FAILED"
        scheduler._guarded("accounts/local/supervisedFineTuningJobs/none", lambda: gone("accounts/local/datasets/rows"))


def test_a_scheduler_ends_where_nothing_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_self: Holder) -> None:
        raise GatewayError("RESOURCE_EXHAUSTED", "the disk of the gateway's records is full")

    with opened(tmp_path / "gateway") as (_, gateway):
        scheduler = make_scheduler(gateway)
        scheduler.start()
        monkeypatch.setattr(Holder, "end", full)
        scheduler.stop()
        monkeypatch.undo()
        scheduler.stop()


def test_a_backup_beside_deletions_that_never_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In every round but the last, in which writers wait, a data set goes after the records have been read."""
    with opened(tmp_path / "gateway") as (client, gateway):
        held: list[bool] = []
        copy_records = backup._copy_records

        def before_a_deletion(*arguments: Any) -> Any:
            held.append(gateway.store.database._writers._group is not None)
            if held[-1]:
                return copy_records(*arguments)
            path = f"{A}/datasets/d{len(held)}"
            assert raw(client, "POST", f"{A}/datasets", json={"datasetId": f"d{len(held)}", "dataset": {}}).is_success
            form = {"file": ("a.jsonl", b'{"text": "x"}\n')}
            assert raw(client, "POST", f"{path}:upload", files=form).is_success
            found = copy_records(*arguments)
            assert raw(client, "DELETE", path).is_success
            return found

        monkeypatch.setattr(backup, "_copy_records", before_a_deletion)
        made = backup.backup(gateway.store, gateway.files, gateway.folder, tmp_path / "copy")
        assert held == [False] * 4 + [True]
        monkeypatch.undo()
        assert backup.check(tmp_path / "copy") == made
        assert raw(client, "POST", f"{A}/datasets", json={"datasetId": "later", "dataset": {}}).is_success


def test_reads_do_not_wait_behind_writers(tmp_path: Path) -> None:
    """With more writers waiting for the records than there are threads for reads."""
    with opened(tmp_path / "gateway") as (client, gateway):
        answers: list[int] = []

        def write(number: int) -> None:
            body = {"datasetId": f"w{number}", "dataset": {}}
            answers.append(raw(client, "POST", f"{A}/datasets", json=body).status_code)

        writers = [threading.Thread(target=write, args=(number,)) for number in range(60)]
        with gateway.store.transaction():
            for writer in writers:
                writer.start()
            waiting = gateway.store.database._writers._turns._waiting
            wait_for(lambda: len(waiting) >= 40, "40 writers to wait")
            assert raw(client, "GET", f"{A}/datasets/rows").status_code == 200
            assert answers == []
        for writer in writers:
            writer.join()
        assert answers == [200] * 60


def test_the_end_of_a_deletion_spares_what_has_come_for_a_new_data_set(tmp_path: Path) -> None:
    name = "accounts/local/datasets/d"
    with opened(tmp_path / "gateway") as (client, gateway):
        for filename in ("old.jsonl", "new.jsonl"):
            with gateway.store.transaction() as transaction:
                transaction.delete(name)  # the first half of a deletion
            assert raw(client, "POST", f"{A}/datasets", json={"datasetId": "d", "dataset": {}}).is_success
            form = {"file": (filename, b'{"text": "x"}\n')}
            assert raw(client, "POST", f"{A}/datasets/d:upload", files=form).is_success
        assert gateway.files.names(name) == ["new.jsonl", "old.jsonl"]
        uploads.remove(gateway, name)  # its second
        assert gateway.files.names(name) == ["new.jsonl"]
        assert raw(client, "DELETE", f"{A}/datasets/d").is_success
        assert gateway.files.names(name) == []


def test_files_that_go_while_they_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = FileStore(tmp_path)
    for name in ("a/one", "a/two", "three"):
        place = files.path("accounts/local/datasets/d", name)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text("x")
    listing = os.scandir

    def going(path: Any) -> Any:
        if str(path).endswith("/a"):
            shutil.rmtree(path)
        return listing(path)

    monkeypatch.setattr(os, "scandir", going)
    assert files.names("accounts/local/datasets/d") == ["three"]
    assert files.names("accounts/local/datasets/none") == []


def test_a_port_that_is_none(tmp_path: Path) -> None:
    for port in (65_536, -1):
        with pytest.raises(GatewayError, match=f"127.0.0.1:{port} cannot be listened on .ports are 0 to 65535."):
            serve(tmp_path / "gateway", port=port)


def test_a_host_that_there_is_not_is_the_senders_mistake() -> None:
    def resolver(number: int) -> Any:
        def resolve(_host: str, _port: int) -> list[str]:
            raise socket.gaierror(number, "no")

        return resolve

    for number, code in ((socket.EAI_NONAME, "INVALID_ARGUMENT"), (socket.EAI_AGAIN, "UNAVAILABLE")):
        with pytest.raises(GatewayError) as caught:
            fetching.Fetcher(resolver=resolver(number)).check("https://nowhere.example/x")
        assert caught.value.code == code


def test_open_requests_are_told_of_the_stop(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with served(tmp_path / "gateway") as (url, process):
        address = ("127.0.0.1", int(url.rpartition(":")[2]))
        with socket.create_connection(address, timeout=60) as connection:
            head = f"POST {A}/datasets HTTP/1.1\r\nHost: localhost\r\nContent-Length: 30\r\n\r\n{{"
            connection.sendall(head.encode())
            wait_for(lambda: raw_metric(address) >= 1, "the request to be taken")
            process.send_signal(signal.SIGTERM)
            answer = b""
            while got := connection.recv(65_536):
                answer += got
        assert process.wait(30) == 0
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"retry-after: " in answer.lower()
    assert b"the gateway is stopping" in answer
    assert "Traceback" not in capfd.readouterr().err


def raw_metric(address: tuple[str, int]) -> float:
    """How many requests, besides this one, are being answered."""
    with socket.create_connection(address, timeout=60) as connection:
        connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        found = b""
        while got := connection.recv(65_536):
            found += got
    lines = [line for line in found.decode().splitlines() if line.startswith("trainer_gateway_requests_in_flight")]
    return float(lines[0].split()[-1]) - 1


def test_only_a_full_disk_is_called_one() -> None:
    found = disk_full(OSError(errno.ENOSPC, "No space left on device"))
    assert (found is not None and found.http_status) == 429
    assert disk_full(OSError(errno.EACCES, "no")) is None
    assert disk_full(ValueError("no")) is None
