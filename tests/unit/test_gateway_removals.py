"""A deletion that its process does not live to finish: the record is gone, and the next process removes the files."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.gateway_kit import ROOT, opened
from trainer.gateway import uploads
from trainer.gateway.client import GatewayClient
from trainer.gateway.gateway import Gateway
from trainer.gateway.store import Resource

DIES = """
import os, signal, sys
from pathlib import Path
from trainer.gateway.client import GatewayClient
from trainer.gateway.files import FileStore
FileStore.remove = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
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


def test_a_deletion_that_is_finished_leaves_no_note(tmp_path: Path) -> None:
    with opened(tmp_path / "gateway") as (client, gateway):
        client.delete(NAME)
        assert not (gateway.folder / "files" / NAME).exists()
        assert notes(gateway) == []
