"""Workers as processes on this machine."""

import json
import sys
import time
from pathlib import Path

from tests.gateway_kit import wait_for
from trainer.launch import here

STUBBORN = (
    "import os, signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(os.environ['A']);"
    "open(sys.argv[1] + '/up', 'w').close(); time.sleep(60)"
)


def test_it_starts_in_a_session_of_its_own_and_writes_to_the_log(tmp_path: Path) -> None:
    code = "import os, sys; print(os.getsid(0) == os.getpid(), os.environ['A']); print('err', file=sys.stderr)"
    process = here.start(tmp_path, env={"A": "b"}, log=tmp_path / "log", command=(sys.executable, "-c", code))
    assert process.wait(10) == 0
    assert sorted((tmp_path / "log").read_text().splitlines()) == ["True b", "err"]


def test_one_that_will_not_stop_is_killed(tmp_path: Path) -> None:
    process = here.start(tmp_path, env={"A": "b"}, log=tmp_path / "log", command=(sys.executable, "-c", STUBBORN))
    wait_for((tmp_path / "up").exists, "it is up")
    worker = here.find(tmp_path)
    assert worker is not None
    assert worker.alive
    began = time.monotonic()
    assert here.stop(process, grace=0.2) == -9
    assert time.monotonic() - began < 5
    assert not worker.alive


def test_a_pid_used_again_is_not_taken_for_the_worker(tmp_path: Path) -> None:
    assert here.find(tmp_path) is None
    process = here.start(tmp_path, log=tmp_path / "log", command=(sys.executable, "-c", "input()"))
    process.wait(10)
    worker = here.find(tmp_path)
    assert worker is not None
    assert not worker.alive
    written = json.loads((tmp_path / "worker.json").read_text())
    (tmp_path / "worker.json").write_text(json.dumps({**written, "pid": 1}))
    other = here.find(tmp_path)
    assert other is not None
    assert not other.alive
