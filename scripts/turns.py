"""Arms of a benchmark as processes that take turns, so that what else the machine does falls on all of them alike.

The program runs itself once for each arm, with `--child TASK`; an arm works through a round when it is told to, reports
it as one line of JSON, and waits. Each process has one thread.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Generic, TypeVar

MARK = "@@"
TaskT = TypeVar("TaskT")


class Turn:
    """The arm's side of taking turns."""

    def __init__(self) -> None:
        self._cpu = self._wall = 0.0
        self._idle = _rss_mb()

    def wait(self) -> None:
        """Until the parent says go; then start the clocks."""
        if not sys.stdin.readline():
            sys.exit(0)
        self._cpu, self._wall = time.process_time(), time.perf_counter()

    def tell(self, done: int) -> None:
        """Report a finished round of `done` tokens or pairs."""
        cpu, wall = time.process_time() - self._cpu, time.perf_counter() - self._wall
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        say({"done": done, "cpu": cpu, "wall": wall, "peak_mb": peak, "idle_mb": self._idle})


def say(message: dict[str, Any]) -> None:
    """One line to the parent."""
    print(MARK + json.dumps(message), flush=True)


def _rss_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


class Child(Generic[TaskT]):
    """An arm's process, as its parent sees it. task: a dataclass, from which the child makes its own."""

    def __init__(self, program: str, task: TaskT, label: str) -> None:
        self.task, self.label = task, label
        environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        self.log = tempfile.TemporaryFile()  # noqa: SIM115 # closed by `close`
        self.process = subprocess.Popen(
            [sys.executable, program, "--child", json.dumps(asdict(task))],  # pyright: ignore[reportArgumentType]
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True, env=environment,
        )  # fmt: skip

    def read(self) -> dict[str, Any]:
        """The next report."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(MARK):
                return json.loads(line[len(MARK) :])
        self.log.seek(0)
        raise SystemExit(f"{self.label} ended:\n{self.log.read().decode()[-3000:]}")

    def round(self) -> dict[str, Any]:
        """Let it work through one round."""
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        return self.read()

    def close(self) -> None:
        """End it by closing its input."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()
        self.log.close()


@contextmanager
def children(program: str, tasks: Sequence[tuple[str, TaskT]]) -> Iterator[list[Child[TaskT]]]:
    """The processes of all arms (label, task), ended on the way out."""
    started: list[Child[TaskT]] = []
    try:
        started.extend(Child(program, task, label) for label, task in tasks)
        yield started
    finally:
        for child in started:
            child.close()


def in_turn(started: Sequence[Child[Any]], rounds: int) -> list[list[dict[str, Any]]]:
    """Reports of `rounds` rounds of each arm, after one to warm up; who begins rotates."""
    told: list[list[dict[str, Any]]] = [[] for _ in started]
    for child in started:
        child.round()
    for turn in range(rounds):
        for at in range(len(started)):
            index = (turn + at) % len(started)
            told[index].append(started[index].round())
    return told
