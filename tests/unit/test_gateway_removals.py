"""A deletion that its process does not live to finish: the record is gone, and the next process removes the files."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.gateway_kit import ROOT, opened, write_rows
from trainer.gateway import uploads
from trainer.gateway.client import GatewayClient
from trainer.gateway.errors import GatewayError
from trainer.gateway.files import FileStore
from trainer.gateway.gateway import Gateway
from trainer.gateway.store import Resource

DIES = """
import os, signal, sys
from pathlib import Path
from trainer.gateway.client import GatewayClient
from trainer.gateway.files import FileStore
FileStore.take_away = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
with GatewayClient.in_process(Path(sys.argv[1])) as client:
    client.delete(sys.argv[2])
"""
NAME = "accounts/local/datasets/rows"


def notes(gateway: Gateway) -> list[Resource]:
    return gateway.store.every(uploads._REMOVALS)


@pytest.fixture
def killed(tmp_path: Path) -> Path:
    """A gateway's folder in which a process was killed between the end of a data set and that of its files."""
    folder = tmp_path / "gateway"
    with opened(folder):
        pass
    ended = subprocess.run([sys.executable, "-c", DIES, str(folder), NAME], cwd=ROOT, check=False)
    assert ended.returncode == -signal.SIGKILL
    assert (folder / "files" / NAME).is_dir()
    return folder


def test_the_files_of_a_record_that_is_gone_go_when_the_next_process_starts(killed: Path) -> None:
    with GatewayClient.in_process(killed) as client:
        gateway = client._http._transport._app.state.gateway  # type: ignore[union-attr]
        assert [one["name"] for one in client.list("datasets")] == []
        assert not (killed / "files" / NAME).exists()
        assert notes(gateway) == []


def test_a_new_record_of_that_name_keeps_its_files(killed: Path) -> None:
    gateway = Gateway(killed)
    with gateway.store.transaction() as transaction:
        bare = NAME.rsplit("/", 1)[-1]
        transaction.insert(Resource(name=NAME, collection="datasets", parent="accounts/local", id=bare, body={}))
    uploads.finish_removals(gateway)
    assert (killed / "files" / NAME).is_dir()
    assert notes(gateway) == []
    gateway.close()


def test_a_new_record_that_is_not_whole_yet_is_left_alone_until_it_is(tmp_path: Path) -> None:
    with opened(tmp_path / "gateway") as (client, gateway):
        with gateway.store.transaction() as transaction:
            uploads.condemn(transaction, NAME)  # and its process ended
        client.call("Gateway_CreateDataset", body={"datasetId": "rows", "dataset": {}})
        gateway.files.adopt(
            NAME, "on-its-way.jsonl", write_rows(tmp_path / "new.jsonl")
        )  # of which no record speaks yet
        uploads.finish_removals(gateway)
        assert (gateway.files.names(NAME), len(notes(gateway))) == (["on-its-way.jsonl", "rows.jsonl"], 1)
        client.upload_dataset(tmp_path / "new.jsonl", "rows")
        uploads.finish_removals(gateway)
        assert (gateway.files.names(NAME), notes(gateway)) == (["new.jsonl"], [])
        assert client.get(NAME)["state"] == "READY"


def test_a_deletion_that_is_finished_leaves_no_note(tmp_path: Path) -> None:
    with opened(tmp_path / "gateway") as (client, gateway):
        client.delete(NAME)
        assert not (gateway.folder / "files" / NAME).exists()
        assert notes(gateway) == []


def test_files_that_cannot_be_deleted_now_are_deleted_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: object) -> bool:
        raise GatewayError("UNAVAILABLE", "the bucket is away")

    with opened(tmp_path / "gateway") as (client, gateway):
        with monkeypatch.context() as broken:
            broken.setattr(FileStore, "take_away", away)
            client.delete(NAME)
            assert client.find(NAME) is None
            uploads.finish_removals(gateway)  # which keeps nobody from starting
            assert (len(notes(gateway)), (gateway.folder / "files" / NAME).is_dir()) == (1, True)
        uploads.finish_removals(gateway)
        assert (notes(gateway), (gateway.folder / "files" / NAME).exists()) == ([], False)


KILLED = """
import os, signal, sys
from pathlib import Path
from trainer.gateway.client import GatewayClient
from trainer.gateway.database import Database
real, left = Database._end, [10_000]
def end(self, connection, how):
    left[0] -= how == "COMMIT"
    if left[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    real(self, connection, how)
Database._end = end
with GatewayClient.in_process(Path(sys.argv[1])) as client:
    left[0] = int(sys.argv[2])
    client.call("Gateway_SplitDataset", {"dataset_id": "many"}, body={"chunkSize": 200})
"""


def test_a_split_that_is_killed_leaves_whole_chunks_and_is_gone_on_with(tmp_path: Path) -> None:
    """Each chunk takes two commits, a note of its files and the chunk; then come the answer's."""
    folder = tmp_path / "gateway"
    rows = [
        {"messages": [{"role": "user", "content": f"{n}"}, {"role": "assistant", "content": "x"}]} for n in range(500)
    ]
    with opened(folder) as (client, _):
        client.upload_dataset(write_rows(tmp_path / "rows.jsonl", rows), "many")
    for commit, whole in ((2, 0), (4, 1), (5, 2)):  # 2 and 4: the file is in its place, and its record is not
        killed = tmp_path / f"killed-{commit}"
        shutil.copytree(folder, killed)
        ended = subprocess.run([sys.executable, "-c", KILLED, str(killed), str(commit)], cwd=ROOT, check=False)
        assert ended.returncode == -signal.SIGKILL
        with GatewayClient.in_process(killed) as client:
            chunks = [one for one in client.list("datasets") if "chunk" in one["name"]]
            assert [one["state"] for one in chunks] == ["READY"] * whole
            there = sorted(path.name for path in (killed / "files/accounts/local/datasets").iterdir())
            assert there == sorted(["many", "rows", *(one["name"].rsplit("/", 1)[-1] for one in chunks)])
            split = client.call("Gateway_SplitDataset", {"dataset_id": "many"}, body={"chunkSize": 200})
            got = [client.download_dataset(name, tmp_path / name).glob("*") for name in split["chunkDatasetNames"]]
            lines = [json.loads(line) for place in got for file in place for line in file.read_text().splitlines()]
            assert lines == rows
            with pytest.raises(GatewayError, match="many-chunk-0 already exists"):
                client.call("Gateway_SplitDataset", {"dataset_id": "many"}, body={"chunkSize": 200})
