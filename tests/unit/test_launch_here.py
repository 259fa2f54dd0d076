"""Workers as processes on this machine."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.gateway_kit import wait_for
from trainer.errors import UsageError
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


# Starts a worker that takes a moment to say who it is, and is killed before that.
KILLED = """
import os, signal, sys, threading
from pathlib import Path
from trainer.launch import here
here.start(Path(sys.argv[1]), env={"PATH": sys.argv[2]}, log=Path(sys.argv[1], "log"),
           command=(sys.executable, "-c", "import time; time.sleep(60)"))
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_worker_whose_starter_is_killed_at_once_is_known_and_alone(tmp_path: Path) -> None:
    slow = tmp_path / "bin/mv"
    slow.parent.mkdir()
    slow.write_text('#!/bin/sh\nPATH=/bin:/usr/bin\nsleep 0.3\nexec mv "$@"\n')
    slow.chmod(0o755)
    run = tmp_path / "run"
    run.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    command = [sys.executable, "-c", KILLED, str(run), str(slow.parent)]
    assert subprocess.run(command, env=environment, check=False).returncode == -signal.SIGKILL
    worker = here.find(run)
    assert worker is not None
    assert (worker.alive, worker.pid) == (True, None)
    wait_for(lambda: worker.pid, "it says who it is")
    with pytest.raises(UsageError, match=f"pid {worker.pid}"):
        here.start(run)
    worker.stop(grace=5)
    wait_for(lambda: not worker.alive, "it has ended")


def test_a_start_that_was_killed_before_there_was_a_process_leaves_nothing(tmp_path: Path) -> None:
    here.start(tmp_path, log=tmp_path / "log", command=(sys.executable, "-c", "")).wait()
    assert here.find(tmp_path) is not None
    with here._launch_lock(tmp_path):
        found = here.find(tmp_path)
        assert found is not None
        assert (found.alive, found.pid) == (True, None)
    assert here.find(tmp_path) is None
