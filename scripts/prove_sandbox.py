"""Long proofs of the sandbox: `python scripts/prove_sandbox.py statuses|reproducible|fairness|kills|all`.

statuses: rows with planted faults of every kind, each must end with exactly its status. reproducible: the same rows
over fresh pools, worker counts and isolation modes must score the same. fairness: one evaluator that only times out
must not make another's 99th percentile more than twice as long. kills: a random jail is killed with SIGKILL every
second; no row may be lost or scored twice, and at least 70 % of the throughput must stay. The exit status is 0 when
the proof holds.
"""

from __future__ import annotations

import argparse
import collections
import os
import random
import signal
import statistics
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from evaluators.protocol import Isolation, Limits, Program, Status
from evaluators.sandbox import Sandbox

Taken = TypeVar("Taken")
LIMITS = Limits(wall_seconds=1.0, cpu_seconds=1.0, memory_bytes=256 << 20)
FAULTS = b"""
import os
def f(kind, n):
    return KINDS[kind](n)
def spin(n):
    while True: pass
def bomb(n):
    while True: os.fork()
def flood(n):
    while True: print("x" * 1000)
def raises(n):
    raise ValueError(n)
KINDS = {
    "ok": lambda n: n / 16, "invalid": lambda n: {"score": 0.0, "is_score_valid": False}, "error": raises,
    "timeout": spin, "oom": lambda n: len(bytearray(1 << 40)), "pids": bomb,
    "crash": lambda n: os.kill(os.getpid(), 11), "no_result": lambda n: os._exit(n % 3),
    "bad_result": lambda n: [float("nan"), True, "1", None, {}, float("inf")][n % 6], "output_flood": flood,
    "result_flood": lambda n: {"score": 1.0, "reason": "x" * (1 << 18)},
}
"""
RANDOM = b"""
import random
def f(n, words):
    order = list(set(words) | {None, True, n})
    return {"score": random.random() + hash(words[0]) % 1000 + len(order), "reason": repr(order)}
"""
PURE = b"def f(n):\n    return float(n)\n"
LATE = b"def f(n):\n    while True: pass\n"
_BULLY = Limits(wall_seconds=0.3, cpu_seconds=1.0, memory_bytes=256 << 20)
_TURN_SECONDS = 1.0
_RARE = ("timeout", "pids", "output_flood")  # they take their time
_NOT_PLANTED = (Status.LOAD_ERROR, Status.INFRA_ERROR)


def program(source: bytes) -> Program:
    """One file with the function f."""
    return Program({"f.py": source}, "f.py::f")


def statuses(words: argparse.Namespace) -> bool:
    """Every row has exactly its planted status, and only scored rows have scores."""
    draw = random.Random(words.seed)
    faults = [status.value for status in Status if status is not Status.OK and status not in _NOT_PLANTED]
    weights = [1 if fault in _RARE else 8 for fault in faults]
    kinds = [draw.choices(faults, weights)[0] if draw.random() < 0.2 else "ok" for _ in range(words.rows)]
    with Sandbox() as sandbox:
        rows = [{"kind": kind, "n": n} for n, kind in enumerate(kinds)]
        results = sandbox.evaluate(program(FAULTS), rows, limits=LIMITS)
        broken = sandbox.evaluate(program(b"def f(n) return"), [{"n": 1}] * 10, limits=LIMITS)
    wrong = []
    for n, (kind, one) in enumerate(zip(kinds, results, strict=True)):
        right = not one.ok or (one.score is not None and one.score.score == n / 16)
        if one.status.value != kind or not right:
            wrong.append((n, kind, one.status.value, one.message))
    print("planted:", dict(collections.Counter(kinds)), "and load_error: 10")
    print(f"wrong: {len(wrong)} of {len(kinds)}", wrong[:5])
    return not wrong and {one.status for one in broken} == {Status.LOAD_ERROR}


def reproducible(words: argparse.Namespace) -> bool:
    """Scores and reasons are equal whatever the pool looks like."""
    rows = [{"n": n, "words": [f"w{n}", f"x{n * 7}", "y"]} for n in range(words.rows)]
    groups = [n // 8 for n in range(words.rows)]
    seen = set()
    for workers, isolation in ((1, Isolation.ROW), (3, Isolation.ROW), (2, Isolation.GROUP), (3, Isolation.BATCH)):
        with Sandbox(workers=workers) as sandbox:
            results = sandbox.evaluate(program(RANDOM), rows, limits=LIMITS, isolation=isolation, groups=groups)
        assert all(one.isolation is isolation for one in results), "taken for stateful"
        seen.add(tuple((one.score.score, one.score.reason) for one in results if one.score))
        print(f"{workers} workers, {isolation}: {len(results)} rows, {len(seen)} different outcome(s) so far")
    return len(seen) == 1 and len(next(iter(seen))) == words.rows


def fairness(words: argparse.Namespace) -> bool:
    """The 99th percentile beside an evaluator that never answers, as a multiple of the one without.

    The two take turns of a second, and medians over turns are compared, so that whatever else the machine does falls on
    both. The bully asks with as many rows at once as a program may have jails; its first time-outs, from which the pool
    learns what it is, come before. Ends when its turns are over, `--fair-seconds` after the start or a little later.
    """
    late: dict[bool, list[float]] = {False: [], True: []}
    count = 0
    started = time.monotonic()
    with Sandbox() as sandbox:
        _bullied(sandbox, lambda: time.sleep(_BULLY.wall_seconds * 4))
        sandbox.evaluate(program(PURE), [{"n": n} for n in range(200)], limits=LIMITS)
        while time.monotonic() - started < words.fair_seconds:
            for beside in random.sample((False, True), 2):
                taken = sorted(_bullied(sandbox, lambda: _turn(sandbox)) if beside else _turn(sandbox))
                late[beside].append(taken[int(len(taken) * 0.99)])
                count += len(taken)
    alone, beside_bully = statistics.median(late[False]), statistics.median(late[True])
    print(f"{len(late[True])} turns each, {count:,} rows in {time.monotonic() - started:.0f} s "
          f"(stated: {words.fair_seconds:.0f}); p99 alone {alone * 1e3:.1f} ms, beside {beside_bully * 1e3:.1f} ms: "
          f"{beside_bully / alone:.2f} times (bar 2); load average {os.getloadavg()[0]:.1f}")  # fmt: skip
    return beside_bully <= 2 * alone


def _turn(sandbox: Sandbox) -> list[float]:
    """The seconds of the rows that a turn is enough for."""
    found: list[float] = []
    ends = time.monotonic() + _TURN_SECONDS
    while time.monotonic() < ends:
        results = sandbox.evaluate(program(PURE), [{"n": n} for n in range(50)], limits=LIMITS)
        assert all(one.ok for one in results), [one for one in results if not one.ok][:3]
        found += [one.seconds for one in results]
    return found


def _bullied(sandbox: Sandbox, act: Callable[[], Taken]) -> Taken:
    """What `act` gives while others keep timing out."""
    stop = threading.Event()

    def bully() -> None:
        while not stop.is_set():
            sandbox.evaluate(program(LATE), [{"n": 0}], limits=_BULLY)

    with ThreadPoolExecutor(sandbox.workers) as executor:
        bullies = [executor.submit(bully) for _ in range(sandbox.workers)]
        try:
            return act()
        finally:
            stop.set()
            for one in bullies:
                one.result()


def kills(words: argparse.Namespace) -> bool:
    """Throughput while jails die, against throughput before; every row scored exactly once."""
    draw = random.Random(words.seed)
    with Sandbox() as sandbox:
        quiet, _ = _throughput(sandbox, words.seconds / 3)
        stop = threading.Event()
        killed: list[int] = []

        def killer() -> None:
            while not stop.wait(1.0):
                victims = [int(pid) for pid in _children()]
                if victims:
                    killed.append(draw.choice(victims))
                    os.kill(killed[-1], signal.SIGKILL)

        thread = threading.Thread(target=killer)
        thread.start()
        disturbed, attempts = _throughput(sandbox, words.seconds)
        stop.set()
        thread.join()
    print(f"killed {len(killed)}, rows tried again {attempts}; {quiet:.0f}/s before, {disturbed:.0f}/s meanwhile: "
          f"{disturbed / quiet:.0%} (bar 70 %)")  # fmt: skip
    return disturbed >= 0.7 * quiet and len(killed) >= words.seconds // 2


def _throughput(sandbox: Sandbox, seconds: float) -> tuple[float, int]:
    """Rows a second, and how many of them took more than one attempt."""
    started, done, again = time.monotonic(), 0, 0
    while time.monotonic() - started < seconds:
        results = sandbox.evaluate(program(PURE), [{"n": n} for n in range(200)], limits=LIMITS)
        scores = [one.score.score if one.score else None for one in results]
        assert scores == [float(n) for n in range(200)], "a row was lost, or got another's score"
        done += len(results)
        again += sum(one.attempts > 1 for one in results)
    return done / (time.monotonic() - started), again


def _children() -> list[str]:
    """Processes that this one started: launchers, which take their jails along."""
    found: list[str] = []
    for task in Path("/proc/self/task").iterdir():
        found += (task / "children").read_text().split()
    return found


PROOFS = {"statuses": statuses, "reproducible": reproducible, "fairness": fairness, "kills": kills}


def main() -> int:
    """Run one proof, or all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("proof", choices=[*PROOFS, "all"])
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--fair-seconds", type=float, default=30.0, help="of the proof of fairness")
    parser.add_argument("--seed", type=int, default=17)
    words = parser.parse_args()
    held = {name: PROOFS[name](words) for name in (PROOFS if words.proof == "all" else [words.proof])}
    for name, holds in held.items():
        print(f"{name}: {'holds' if holds else 'DOES NOT HOLD'}")
    return 0 if all(held.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
