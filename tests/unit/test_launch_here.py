"""Workers as processes on this machine."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.gateway_kit import ROOT, wait_for
from trainer.errors import UsageError
from trainer.launch import here
from trainer.launch.beat import BEAT_VARIABLE
from trainer.launch.supervised import Supervised
from trainer.silence import Silence

STUBBORN = (
    "import os, signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(os.environ['A']);"
    "open(sys.argv[1] + '/up', 'w').close(); time.sleep(60)"
)


def test_it_starts_in_a_session_of_its_own_and_writes_to_the_log(tmp_path: Path) -> None:
    code = "import os, sys; print(os.getsid(0) == os.getpid(), os.environ['A']); print('err', file=sys.stderr)"
    process = here.start(tmp_path, env={"A": "b"}, log=tmp_path / "log", command=(sys.executable, "-c", code))
    assert process.wait(60) == 0
    assert sorted((tmp_path / "log").read_text().splitlines()) == ["True b", "err"]


def test_one_that_will_not_stop_is_killed(tmp_path: Path) -> None:
    process = here.start(tmp_path, env={"A": "b"}, log=tmp_path / "log", command=(sys.executable, "-c", STUBBORN))
    wait_for((tmp_path / "up").exists, "it is up")
    worker = here.find(tmp_path)
    assert worker is not None
    assert worker.alive
    began = time.monotonic()
    assert here.stop(process, grace=0.2) == -9
    assert time.monotonic() - began < 30  # it would go on for 60
    assert not worker.alive


def test_a_pid_used_again_is_not_taken_for_the_worker(tmp_path: Path) -> None:
    assert here.find(tmp_path) is None
    process = here.start(tmp_path, log=tmp_path / "log", command=(sys.executable, "-c", "input()"))
    process.wait(60)
    worker = here.find(tmp_path)
    assert worker is not None
    assert not worker.alive
    written = json.loads((tmp_path / "worker.json").read_text())
    (tmp_path / "worker.json").write_text(json.dumps({**written, "pid": 1}))
    other = here.find(tmp_path)
    assert other is not None
    assert not other.alive


# Starts a worker that does not say who it is before it may, and is killed at once.
KILLED = """
import os, signal, sys, threading
from pathlib import Path
from trainer.launch import here
from trainer.launch.beat import BEAT_VARIABLE
from trainer.launch.supervised import Supervised
here.start(Path(sys.argv[1]), env={"PATH": sys.argv[2]}, log=Path(sys.argv[1], "log"),
           command=(sys.executable, "-c", "import time; time.sleep(60)"))
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_worker_whose_starter_is_killed_at_once_is_known_and_alone(tmp_path: Path) -> None:
    slow, may = tmp_path / "bin/mv", tmp_path / "may"
    slow.parent.mkdir()
    waits = f"n=0; while [ ! -e '{may}' ] && [ $n -lt 3000 ]; do sleep 0.02; n=$((n + 1)); done"
    slow.write_text(f'#!/bin/sh\nPATH=/bin:/usr/bin\n{waits}\nexec mv "$@"\n')
    slow.chmod(0o755)
    run = tmp_path / "run"
    run.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    command = [sys.executable, "-c", KILLED, str(run), str(slow.parent)]
    assert subprocess.run(command, env=environment, check=False).returncode == -signal.SIGKILL
    worker = here.find(run)
    assert worker is not None
    assert (worker.alive, worker.pid) == (True, None)
    may.touch()
    wait_for(lambda: worker.pid, "it says who it is")
    with pytest.raises(UsageError, match=f"pid {worker.pid}"):
        here.start(run)
    worker.stop(grace=30)
    wait_for(lambda: not worker.alive, "it has ended")


def test_a_start_that_was_killed_before_there_was_a_process_leaves_nothing(tmp_path: Path) -> None:
    here.start(tmp_path, log=tmp_path / "log", command=(sys.executable, "-c", "")).wait()
    assert here.find(tmp_path) is not None
    with here._launch_lock(tmp_path):
        found = here.find(tmp_path)
        assert found is not None
        assert (found.alive, found.pid) == (True, None)
    assert here.find(tmp_path) is None


def test_a_start_with_an_older_token_is_refused(tmp_path: Path) -> None:
    here.fence(tmp_path, 3)
    here.fence(tmp_path, 2)  # an older one changes nothing
    with pytest.raises(UsageError, match="token 3, not 2"):
        here.start(tmp_path, token=2, command=("true",))
    assert here.start(tmp_path, token=3, command=("true",)).wait(60) == 0
    assert here.start(tmp_path, command=("true",)).wait(60) == 0  # a person needs none


STANDS_WHILE_IT_FENCES = (
    "import os, signal, sys; from pathlib import Path; from trainer import disk; from trainer.launch import here\n"
    "sync = disk.LOCAL_DISK.sync_file\n"
    "def stands(path): os.kill(os.getpid(), signal.SIGSTOP); sync(path)\n"
    "disk.LOCAL_DISK.sync_file = stands\n"
    "here.fence(Path(sys.argv[1]), 3)\n"
)


def test_a_holder_that_stands_still_while_it_fences_keeps_nobody_waiting(tmp_path: Path) -> None:
    command = (sys.executable, "-c", STANDS_WHILE_IT_FENCES, str(tmp_path))
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}) as process:
        try:
            wait_for(
                lambda: Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T", "it stands"
            )
            here.fence(tmp_path, 4)
            assert sorted(path.name for path in tmp_path.glob("fence.*")) == ["fence.4"]
        finally:
            process.send_signal(signal.SIGCONT)
        assert process.wait(60) == 0
    with pytest.raises(UsageError, match="token 4, not 3"):
        here.start(tmp_path, token=3, command=("true",))
    assert sorted(path.name for path in tmp_path.glob("fence.*")) == ["fence.3", "fence.4"]
    here.fence(tmp_path, 5)
    assert sorted(path.name for path in tmp_path.glob("fence.*")) == ["fence.5"]


# Counts its starts in the file `starts`; argv: what to do each time, then the run folder.
FALTERING = (
    "import os, signal, sys, time; from pathlib import Path; from trainer.launch.beat import beating\n"
    "folder = Path(sys.argv[-1]); starts = folder / 'starts'\n"
    "count = len(starts.read_text()) if starts.exists() else 0; starts.write_text('x' * (count + 1))\n"
    "what = sys.argv[1:-1][min(count, len(sys.argv) - 3)]\n"
    "with beating(folder):\n"
    "    if what == 'still': os.kill(os.getpid(), signal.SIGSTOP)\n"
    "    if what == 'wait': time.sleep(60)\n"
    "    os._exit(int(what))\n"
)


def supervised(folder: Path, *what: str) -> tuple[Supervised, list[str]]:
    said: list[str] = []
    environment = {"PYTHONPATH": str(ROOT), BEAT_VARIABLE: "0.1"}
    command = (sys.executable, "-c", FALTERING, *what)
    return Supervised(folder, env=environment, log=folder / "log", say=said.append, command=command), said


@pytest.mark.parametrize(
    ("what", "status", "starts"),
    [
        (("76", "76", "0"), 0, 3), (("76",), 76, 3), (("still", "0"), 0, 2), (("1", "0"), 1, 1), (("2",), 2, 1),
        (("76", "75"), 75, 2),
    ],
)  # fmt: skip
def test_a_worker_that_hung_is_started_again_a_few_times_and_no_other(
    tmp_path: Path, what: tuple[str, ...], status: int, starts: int
) -> None:
    worker, said = supervised(tmp_path, *what)
    assert worker.wait() == status
    assert len((tmp_path / "starts").read_text()) == starts
    again = [line for line in said if "goes on from the newest checkpoint" in line]
    assert len(again) == starts - 1
    assert [line for line in said if line not in again] == (
        ["the worker hung (a stage was past its deadline) for the 3. time; it is not started again"]
        if status == 76
        else []
    )


def test_a_worker_that_was_asked_to_stop_is_not_started_again(tmp_path: Path) -> None:
    worker, said = supervised(tmp_path, "wait")
    wait_for((tmp_path / "beat").exists, "it beats")
    worker.terminate()
    assert worker.wait() == -signal.SIGTERM
    assert (worker.poll(), said) == (-signal.SIGTERM, [])


def test_silence_is_counted_by_looks_and_ends_with_a_sign() -> None:
    silence = Silence(0.05)
    assert silence.after(1) == 0
    time.sleep(0.3)  # a pause of the watcher itself counts for little
    assert silence.after(1) <= 0.05
    time.sleep(0.02)
    assert 0.02 <= silence.after(1) <= 0.1
    assert silence.after(2) == 0
