"""A new key for the secrets at rest: whatever dies when, every secret can be read, and the old keys go at the end."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.command_line import ROOT
from tests.gateway_kit import A, opened, raw, served, wait_for
from trainer.__main__ import main
from trainer.gateway import job_secrets
from trainer.gateway.errors import GatewayError
from trainer.gateway.gateway import Gateway
from trainer.gateway.resources.secrets import value_of
from trainer.gateway.sealing import KEY_FILE, KEY_VARIABLE, Sealer, new_key
from trainer.gateway.secret_rotation import rotate
from trainer.gateway.store import Resource

PARENT = "accounts/local"


def keys_in(folder: Path) -> list[str]:
    return (folder / KEY_FILE).read_text().split()


def planted(gateway: Gateway, count: int = 5) -> dict[str, str]:
    """Records that hold sealed values: secrets, a job's variables, a deleted trainer's; name -> value."""
    seal = Sealer(gateway.folder)
    secrets = {f"{PARENT}/secrets/s{n}": f"value-{n}" for n in range(count)}
    jobs = {f"{PARENT}/dpoJobs/j": "dpoJobs", f"{PARENT}/rlorTrainerJobs/t": "rlorTrainerJobs/deleted"}
    with gateway.store.transaction() as transaction:
        for name, value in secrets.items():
            body, sealed = {"keyName": "K"}, seal.seal(value.encode(), about=name)
            bare = name.rsplit("/", 1)[1]
            transaction.insert(Resource(name, "secrets", PARENT, bare, body, {"value": sealed, "owner": "local"}))
        for name, collection in jobs.items():
            private = {"secrets": {"WANDB_API_KEY": seal.seal(name.encode(), about=f"{name} WANDB_API_KEY")}, "x": 1}
            body = {"state": "JOB_STATE_CREATING", "note": 'says "sealed1.x'}
            transaction.insert(Resource(name, collection, PARENT, name.rsplit("/", 1)[1], body, private))
    return secrets | {name: name for name in jobs}


def read(gateway: Gateway, names: dict[str, str]) -> dict[str, str]:
    """What is read of them by a process that starts now."""
    job_secrets.sealer.cache_clear()
    found: dict[str, str] = {}
    for name in names:
        if "/secrets/" in name:
            found[name] = value_of(gateway, name, parent=PARENT)
        else:
            found[name] = job_secrets.environment(gateway, gateway.store.get(name))["WANDB_API_KEY"]
    return found


def test_every_value_is_sealed_anew_and_the_old_key_goes(tmp_path: Path) -> None:
    gateway = Gateway(tmp_path / "gateway")
    names = planted(gateway)
    before = {name: gateway.store.get(name) for name in names}
    (old,) = keys_in(gateway.folder)
    done = rotate(gateway.store, gateway.folder)
    assert (done.records, done.values, done.dropped, done.broken) == (7, 7, 1, [])
    (new,) = keys_in(gateway.folder)
    assert new != old
    assert read(gateway, names) == names
    for name, was in before.items():
        now = gateway.store.get(name)
        assert (now.body, now.update_time, now.collection) == (was.body, was.update_time, was.collection)
        assert now.revision == was.revision + 1  # whoever has read it before must read it again
        assert now.private.keys() == was.private.keys()
        assert now.private != was.private
    assert {path.name for path in gateway.folder.glob("secret*")} == {KEY_FILE, "secret.lock"}
    assert rotate(gateway.store, gateway.folder).values == 7  # and again
    gateway.close()


KILLED = """
import os, signal, sys
from pathlib import Path
from trainer.gateway import sealing, secret_rotation
from trainer.gateway.gateway import Gateway
gateway, countdown = Gateway(Path(sys.argv[1])), int(sys.argv[2])
def counted(what):
    def instead(*given, **named):
        global countdown
        if countdown == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        countdown -= 1
        return what(*given, **named)
    return instead
def at(owner, name):
    setattr(owner, name, counted(getattr(owner, name)))
at(os, "fsync"), at(Path, "replace"), at(sealing, "_temporary"), at(type(gateway.store.database), "_end")
at(type(gateway.store.database), "_begin"), at(secret_rotation, "_seal")
secret_rotation._BATCH = 2
secret_rotation.rotate(gateway.store, gateway.folder)
print("whole")
"""


@pytest.mark.slow
def test_killed_at_any_moment_every_secret_can_be_read(tmp_path: Path) -> None:
    """kill -9 before each operation on the disk or the records; then what is there is read, and rotated to the end."""
    whole, moment = False, 0
    while not whole:
        gateway = Gateway(tmp_path / str(moment))
        names = planted(gateway)
        (old,) = keys_in(gateway.folder)
        ran = subprocess.run(
            [sys.executable, "-c", KILLED, str(gateway.folder), str(moment)], capture_output=True, text=True,
            cwd=ROOT, check=False,
        )  # fmt: skip
        whole = ran.stdout == "whole\n"
        assert whole or ran.returncode == -signal.SIGKILL, ran.stderr
        assert read(gateway, names) == names, moment
        rotate(gateway.store, gateway.folder)
        assert old not in keys_in(gateway.folder)
        assert len(keys_in(gateway.folder)) == 1
        assert read(gateway, names) == names, moment
        gateway.close()
        moment += 1
    assert moment > 25


def test_one_that_was_cut_short_is_ended_with_its_key(tmp_path: Path) -> None:
    gateway = Gateway(tmp_path / "gateway")
    names = planted(gateway)
    Sealer(gateway.folder).rotate()  # all that the cut one came to
    new, old = keys_in(gateway.folder)
    assert rotate(gateway.store, gateway.folder).dropped == 1
    assert keys_in(gateway.folder) == [new]
    assert old != new
    assert read(gateway, names) == names
    gateway.close()


def test_what_cannot_be_opened_is_named_and_keeps_the_old_keys(tmp_path: Path) -> None:
    gateway = Gateway(tmp_path / "gateway")
    names = planted(gateway)
    lost = f"{PARENT}/secrets/s3"
    with gateway.store.transaction() as transaction:
        found = transaction.get(lost)
        transaction.save(found.changed(private={"value": Sealer(tmp_path).seal(b"x", about=lost)}))
    done = rotate(gateway.store, gateway.folder)
    assert (done.values, done.dropped, len(done.broken)) == (6, 0, 1)
    assert lost in done.broken[0]
    assert len(keys_in(gateway.folder)) == 2
    del names[lost]
    assert read(gateway, names) == names
    gateway.close()


def test_a_server_that_is_up_goes_on(tmp_path: Path) -> None:
    """Creates go on while the key changes three times: each value is read by the server and by another process."""
    folder = tmp_path / "gateway"
    with opened(folder) as (client, gateway):
        made: list[str] = []
        ended = threading.Event()

        def write() -> None:
            while not ended.is_set():
                bare = f"k{len(made)}"
                body = {"keyName": "K", "name": bare, "value": f"value of {bare}"}
                answer = raw(client, "POST", f"{A}/secrets", json=body)
                assert answer.status_code == 200, answer.text
                made.append(bare)

        writer = threading.Thread(target=write)
        writer.start()
        other = Gateway(folder)
        try:
            seen = {keys_in(folder)[0]} if (folder / KEY_FILE).exists() else set()
            for _ in range(3):
                before = len(made)
                wait_for(lambda before=before: len(made) >= before + 5 or not writer.is_alive(), "five more")
                assert rotate(other.store, folder).broken == []
                seen.add(*keys_in(folder))
        finally:
            ended.set()
            writer.join()
        assert len(seen) >= 3
        for where in (gateway, other):
            for bare in made:
                assert value_of(where, f"{PARENT}/secrets/{bare}", parent=PARENT) == f"value of {bare}"
        other.close()


def test_two_at_once_are_one_too_many(tmp_path: Path) -> None:
    gateway = Gateway(tmp_path / "gateway")
    planted(gateway)
    code = "import fcntl, sys, time; f = open(sys.argv[1], 'w'); fcntl.flock(f, 2); print(flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, str(gateway.folder / "secret.lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdin is not None
        process.stdout.readline()
        with pytest.raises(GatewayError, match="another rotation"):
            rotate(gateway.store, gateway.folder)
        process.stdin.close()
    assert rotate(gateway.store, gateway.folder).values == 7
    gateway.close()


def test_keys_of_the_environment(tmp_path: Path) -> None:
    folder, old, new = tmp_path / "gateway", new_key(), new_key()
    gateway = Gateway(folder)
    name = f"{PARENT}/secrets/s"
    sealed = Sealer(folder, environment={KEY_VARIABLE: old}).seal(b"v", about=name)
    with gateway.store.transaction() as transaction:
        transaction.insert(Resource(name, "secrets", PARENT, "s", {"keyName": "K"}, {"value": sealed}))
    both = {KEY_VARIABLE: f"{new} {old}"}
    with served(folder), pytest.raises(GatewayError, match="a server is up"):
        rotate(gateway.store, folder, environment=both)
    assert rotate(gateway.store, folder, environment=both).values == 1
    now = gateway.store.get(name).private["value"]
    assert Sealer(folder, environment={KEY_VARIABLE: new}).open(now, about=name) == b"v"
    assert rotate(gateway.store, folder, environment=both).values == 0
    assert not (folder / KEY_FILE).exists()
    gateway.close()


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("TRAINER_HOME", str(tmp_path))
    gateway = Gateway(tmp_path / "gateway")
    names = planted(gateway)
    assert main(["gateway", "secrets"]) == 2
    assert "secrets rotate" in capsys.readouterr().err
    assert main(["gateway", "secrets", "rotate"]) == 0
    assert capsys.readouterr().out == ("sealed anew: 7 values of 7 records\ndropped: 1 old key from secret.key\n")
    assert read(gateway, names) == names
    (gateway.folder / KEY_FILE).replace(tmp_path / "lost")
    assert main(["gateway", "secrets", "rotate"]) == 1
    printed = capsys.readouterr().out
    assert "left as it is: accounts/local/secrets/s0" in printed
    assert "Old keys are kept" in printed
    gateway.close()
