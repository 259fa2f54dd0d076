"""Runs hostile evaluators one after another, with decoys on the host, and a harmless one after each.

A program of its own as well, so that it can run as another user: `python tests/hostile/suite.py STEP TIER LAUNCHER`
prints one JSON line for each case (every STEPth).
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from evaluators.protocol import Limits, Program, Result, Status, Tier
from evaluators.sandbox import Sandbox
from tests.hostile.cases import CASES, Case

LIMITS = Limits(wall_seconds=0.8, cpu_seconds=1.0, memory_bytes=256 << 20)
# Of what ends by itself, so that a busy machine changes no outcome; the limits of time are for what must run into them.
PATIENT = replace(LIMITS, wall_seconds=60.0, cpu_seconds=10.0)
CANARY = Program({"canary.py": b"def canary(answer):\n    return 0.25 * len(answer)\n"}, "canary.py::canary")
CANARY_SECONDS = 1.5  # after any case
_ATTEMPTS = 5
SECRET = "planted-secret-4711"
WITHIN_A_KERNEL_OF_ITS_OWN = {  # works there, and reaches nothing outside: case -> why that is
    "resources/fills-scratch": "gVisor before 2023 limits no scratch folder; it counts as the jail's memory",
    "resources/fills-inodes": "the same",
    "resources/timers": "gVisor counts no timers of a user; they are the guest's, and count as the jail's memory",
    "resources/higher-priority": "only the guest's word for it; the host gives no more of its processor",
    "files/exec-from-scratch": "noexec is not kept; what runs is the guest's",
    "files/map-code-from-scratch": "the same",
    "kernel/32-bit-call": "gVisor takes int 0x80 for a call of its own, with the numbers and the filter of 64 bits",
}


class World:
    """The decoys: a secret file and variable, listeners on loopback, a path that must stay absent."""

    def __init__(self, folder: Path) -> None:
        secret = folder / "secret"
        secret.write_text(SECRET)
        os.environ["EVALUATOR_PLANTED"] = SECRET
        self.marker = folder / "marker"
        self.visitors: list[str] = []
        self.tcp, self.udp = _one_port()
        self.abstract = socket.socket(socket.AF_UNIX)
        name = f"evaluator-decoy-{os.getpid()}"
        self.abstract.bind("\0" + name)
        self.abstract.listen()
        self.datagrams = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.datagrams.bind(str(folder / "datagrams"))
        self.row = {"secret": str(secret), "marker": str(self.marker), "port": self.tcp.getsockname()[1],
                    "abstract": name, "datagrams": str(folder / "datagrams"), "pid": os.getpid(),
                    "needle": "needle-in-the-row"}  # fmt: skip

    def visited(self) -> list[str]:
        """The decoys that somebody reached."""
        found = []
        decoys = {"tcp": self.tcp, "udp": self.udp, "abstract": self.abstract, "datagrams": self.datagrams}
        for name, one in decoys.items():
            one.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                one.recv(1) if one.type is socket.SOCK_DGRAM else one.accept()
                found.append(name)
        return [*found, *(["marker"] if self.marker.exists() else [])]

    def close(self) -> None:
        for one in (self.tcp, self.udp, self.abstract, self.datagrams):
            one.close()
        os.environ.pop("EVALUATOR_PLANTED", None)


def _one_port() -> tuple[socket.socket, socket.socket]:
    """A listener and a socket for datagrams on the same free port; what is free for one may be taken for the other."""
    while True:
        tcp, udp = socket.create_server(("127.0.0.1", 0)), socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            udp.bind(tcp.getsockname())
            return tcp, udp
        except OSError as error:
            tcp.close()
            udp.close()
            if error.errno != errno.EADDRINUSE:
                raise


@contextlib.contextmanager
def world() -> Iterator[World]:
    """Decoys for as long as the block runs."""
    with tempfile.TemporaryDirectory() as folder:
        decoys = World(Path(folder))
        try:
            yield decoys
        finally:
            decoys.close()


def problems(case: Case, results: Sequence[Result]) -> list[str]:
    """What is wrong with how a case ended; empty when it was contained."""
    found = []
    for result in results:
        if result.tier is Tier.STRONG and result.status is not Status.INFRA_ERROR:
            late = result.status is Status.TIMEOUT  # its calls take ten times as long
            if late or f"{case.group}/{case.name}" in WITHIN_A_KERNEL_OF_ITS_OWN:
                continue
        told = f"{result.status.value} {result.score.score if result.score else ''} {result.message}"
        if result.status not in case.expected:
            found.append(f"ended as {told}, expected {', '.join(case.expected)}")
        elif result.status is Status.OK and result.score and result.score.score != case.score:
            found.append(f"got through: {told} {result.stdout[:200]}")
        if SECRET in json.dumps([result.message, result.stdout, dict(result.details)]):
            found.append("the secret came out")
    return found


def limits_of(case: Case, tier: Tier) -> Limits:
    """Short where being ended in time is right; in a kernel of its own it always is, see `problems`."""
    return LIMITS if tier is Tier.STRONG or Status.TIMEOUT in case.expected else PATIENT


def play(cases: Sequence[Case], sandbox: Sandbox, decoys: World) -> Iterator[dict[str, object]]:
    """One record for each case: its name, what is wrong, and how long the canary took afterwards, in seconds."""
    sandbox.evaluate(CANARY, [{"answer": "a"}], limits=PATIENT)
    for case in cases:
        rows = [decoys.row | {"row_number": number} for number in range(case.rows)]
        program = Program({"hostile.py": case.source.encode("utf-8", "surrogatepass")}, "hostile.py::f")
        wrong = problems(case, sandbox.evaluate(program, rows, limits=limits_of(case, sandbox.tier)))
        canary, seconds = _canary(sandbox)
        for _ in range(_ATTEMPTS - 1):  # what holds the canary up does so every time, another's work does not
            if seconds < CANARY_SECONDS:
                break
            sandbox.evaluate(program, rows, limits=limits_of(case, sandbox.tier))
            canary, again = _canary(sandbox)
            seconds = min(seconds, again)
        if not (canary.ok and canary.score and canary.score.score == 0.75):
            wrong.append(f"the canary ended as {canary.status} {canary.message}")
        wrong += [f"reached the decoy {name}" for name in decoys.visited()]
        yield {"case": f"{case.group}/{case.name}", "wrong": wrong, "canary": seconds, "tier": canary.tier.value}


def _canary(sandbox: Sandbox) -> tuple[Result, float]:
    """A good evaluator's row, and the seconds until it was scored."""
    started = time.monotonic()
    (canary,) = sandbox.evaluate(CANARY, [{"answer": "abc"}], limits=PATIENT)
    return canary, time.monotonic() - started


def left_behind() -> list[str]:
    """Processes below this one, after every jail was closed."""
    listed = Path(f"/proc/self/task/{threading.get_native_id()}/children")
    return listed.read_text().split() if listed.exists() else []


def main(step: int, tier: str, launcher: str) -> None:
    with world() as decoys:
        with Sandbox(tier, launcher=launcher) as sandbox:
            for record in play(CASES[::step], sandbox, decoys):
                print(json.dumps(record), flush=True)
        print(json.dumps({"case": "nothing left behind", "wrong": left_behind(), "canary": 0.0, "tier": "-"}))


if __name__ == "__main__":
    step_, tier_, launcher_ = (*sys.argv[1:], *("1", "auto", "auto")[len(sys.argv) - 1 :])
    main(int(step_), tier_, launcher_)
