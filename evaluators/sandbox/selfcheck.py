"""The behavioural self-check: does a jail hold here, now? Asked by doing what must not work, never by reading settings.

A jail is told to read a planted secret, reach a listener on loopback, fork past its limit, write to /usr, unshare, open
a vsock, outlive its row, take too much memory, and read what a neighbour left. One surprise, and the tier is not used.
"""

from __future__ import annotations

import json
import socket
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from evaluators.protocol import Limits, Program, Status, Tier
from evaluators.sandbox import memory
from evaluators.sandbox.jail import OWN, Jail, JailError
from evaluators.sandbox.verdict import Verdict, judge

_LIMITS = Limits(wall_seconds=5.0, cpu_seconds=5.0, memory_bytes=1 << 30, processes=8)
_SOURCE = b"""\
import os, socket, subprocess, time
def works(probe):
    return 1.0
def secret(probe):
    return refused(lambda: open(probe).read())
def loopback(probe):
    return refused(lambda: socket.create_connection(("127.0.0.1", probe), 1))
def vsock(probe):
    return refused(lambda: socket.socket(40, socket.SOCK_STREAM))
def system(probe):
    return refused(lambda: open("/usr/lib/evaluator-self-check", "w"))
def unshare(probe):
    done = subprocess.run(["unshare", "--user", "true"], stdin=-3, stdout=-3, stderr=-3)
    return float(done.returncode != 0)
def fork(probe):
    while True:
        if os.fork() == 0:
            time.sleep(60)
def take(probe):
    return float(len(bytearray(1 << 40)))
def outlive(probe):
    if os.fork() == 0:
        os.setsid()
        time.sleep(600)
    return 1.0
def alone(probe):
    others = [pid for pid in range(2, 1000) if pid != os.getpid()]
    return min(refused(lambda: os.kill(pid, 0)) for pid in others)
def leave(probe):
    with open(os.path.join(os.environ["HOME"], "left"), "w") as file:
        file.write("left")
    time.sleep(probe)
    return 1.0
def find(probe):
    time.sleep(0.05)
    return refused(lambda: open(os.path.join(probe or os.environ["HOME"], "left")))
def refused(act):
    try:
        act()
    except OSError:
        return 1.0
    return 0.0
def entry(probe, value):
    return globals()[probe](value)
"""
_NOT_RUN = "the self-check could not run"
_PATIENCE, _ATTEMPTS = 3.0, 3  # seconds and times until that is believed
_PROGRAM = Program({"self_check.py": _SOURCE}, "self_check.py::entry")


def self_check(tier: Tier = Tier.STANDARD, launcher: str = OWN) -> list[str]:
    """What did not hold, in words; empty when everything did. About a third of a second.

    launcher: of tier standard, `own` or `bwrap`.
    """
    begun = time.monotonic()
    found = _checked_once(tier, launcher)
    # A surprise is told at once. But where processes are counted by user, those that come and go may stop a probe.
    while found and found[0].startswith(_NOT_RUN) and time.monotonic() < begun + _PATIENCE:
        begun -= _PATIENCE / _ATTEMPTS
        found = _checked_once(tier, launcher)
    return found


def _checked_once(tier: Tier, launcher: str) -> list[str]:
    try:
        with ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            Path(folder).chmod(0o755)  # only the fence, no file mode, keeps the jail out
            secret = Path(folder, "secret")
            secret.write_text("planted")
            secret.chmod(0o644)
            listener = _listener(stack)
            jail = Jail(_PROGRAM, _LIMITS, tier=tier, launcher=launcher)
            stack.callback(jail.close)
            neighbour = Jail(_PROGRAM, _LIMITS, tier=tier, launcher=launcher)
            stack.callback(neighbour.close)
            return _surprises(jail, neighbour, str(secret), listener)
    except (JailError, OSError, RuntimeError) as error:  # the last for want of a thread
        return [f"{_NOT_RUN}: {error}"]


def _listener(stack: ExitStack) -> int:
    """The port of a listener on loopback; any other where this host has no loopback itself."""
    try:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    except OSError:
        return 9
    return listener.getsockname()[1]


def _surprises(jail: Jail, neighbour: Jail, secret: str, port: int) -> list[str]:
    expected: list[tuple[str, object, Callable[[Verdict], bool], str]] = [
        ("works", None, _contained, "a trivial evaluator does not score"),
        ("secret", secret, _contained, "it read a planted secret"),
        ("loopback", port, _contained, "it reached a listener on loopback"),
        ("vsock", None, _contained, "it opened a vsock"),
        ("system", None, _contained, "it wrote to /usr"),
        ("unshare", None, _contained, "it made a user namespace"),
        ("fork", None, lambda verdict: verdict.status is Status.PIDS, "it forked past its limit"),
        ("take", None, lambda verdict: verdict.status is Status.OOM, "it took more memory than its limit"),
        ("outlive", None, _contained, "a child in the background kept its row from scoring"),
        ("alone", None, _contained, "a process outlived its row"),
    ]
    found = [said for probe, value, right, said in expected if not right(_probe(jail, probe, value))]
    if jail.tier is not Tier.STRONG and not all(_supervises(jail, pid) for pid in memory.descendants(jail.process.pid)):
        found.append("a process outlived its row")  # a kernel of its own has processes of its own
    with ThreadPoolExecutor(1) as executor:
        leaving = executor.submit(_probe, neighbour, "leave", 0.15)
        if not _contained(_probe(jail, "find", _scratch_on_host(neighbour))):
            found.append("it read what a neighbour left in its scratch folder")
        if not _contained(leaving.result()):
            found.append("a neighbour could not use its scratch folder")
    return found


def _probe(jail: Jail, probe: str, value: object) -> Verdict:
    row = json.dumps({"probe": probe, "value": value}).encode()
    verdict = judge(jail.run([(row, 0)]), 1, _LIMITS)[0]
    if verdict.status is Status.INFRA_ERROR:
        raise JailError(verdict.message)
    return verdict


def _contained(verdict: Verdict) -> bool:
    return verdict.status is Status.OK and verdict.score is not None and verdict.score.score == 1.0


def _scratch_on_host(jail: Jail) -> str | None:
    return f"{jail.folder}/scratch" if jail.way == "folder" else None


def _supervises(jail: Jail, pid: int) -> bool:
    """With namespaces the supervisor is the launcher's only child; without, it is the launched process itself."""
    return jail.way != "folder" and pid in memory.children(jail.process.pid)
