"""What scoring behind the fence costs: `python scripts/bench_sandbox.py [--rows 2000] [--rounds 3]`.

One trivial reward, side by side in one run and alternating: row-isolated, groups of eight, an interpreter spawned for
each score, and a worker that calls `exec`'d code in its own process (no isolation at all). Counted in CPU seconds of
every process involved, since wall time says little on a shared machine; starting the jails is measured apart. Then each
fence that works here, side by side: a cold start, and one evaluation in a warm jail.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

from evaluators.protocol import Isolation, Limits, Program, Tier
from evaluators.sandbox import Sandbox
from evaluators.sandbox.jail import Jail
from evaluators.sandbox.machine import works

SOURCE = "def score(answer, truth):\n    return float(truth in answer)\n"
PROGRAM = Program({"reward.py": SOURCE.encode()}, "reward.py::score")
LIMITS = Limits.snippet()
GROUP = 8
WARM = 30  # evaluations in each jail, where fences are compared
BARS = {"row": 450, "group of 8": 2500}
_SPAWNED = SOURCE + "import json, sys\nprint(json.dumps(score(**json.load(sys.stdin))))\n"
_WORKER = """\
import json, sys
for line in sys.stdin:
    space = {}
    exec(json.loads(line)["source"], space)
    print(json.dumps(space["score"](**json.loads(line)["row"])), flush=True)
"""


def rows(count: int) -> list[dict[str, str]]:
    """Rows of a sentence and what must be in it."""
    return [{"answer": f"the answer is {n}" + " and so on" * 10, "truth": str(n % 7)} for n in range(count)]


def cpu_seconds() -> float:
    """Of this process and of all its children that were waited for."""
    return sum(os.times()[:4])


def sandboxed(count: int, isolation: Isolation) -> list[float]:
    """Score `count` rows in a fresh pool; the seconds of each process."""
    groups = [place // GROUP for place in range(count)]
    with Sandbox() as sandbox:
        results = sandbox.evaluate(PROGRAM, rows(count), limits=LIMITS, isolation=isolation, groups=groups)
    assert all(result.ok for result in results)
    return [result.seconds for result in results]


def spawned(count: int) -> list[float]:
    """One interpreter for each score."""
    seconds = []
    for row in rows(count):
        started = time.perf_counter()
        command = [sys.executable, "-I", "-S", "-c", _SPAWNED]
        subprocess.run(command, input=json.dumps(row), text=True, capture_output=True, check=True)
        seconds.append(time.perf_counter() - started)
    return seconds


def executed(count: int) -> list[float]:
    """A worker that runs the source in its own process, fresh globals each time."""
    seconds = []
    command = [sys.executable, "-I", "-S", "-c", _WORKER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdin and worker.stdout
        for row in rows(count):
            started = time.perf_counter()
            worker.stdin.write(json.dumps({"source": SOURCE, "row": row}) + "\n")
            worker.stdin.flush()
            json.loads(worker.stdout.readline())
            seconds.append(time.perf_counter() - started)
        worker.stdin.close()
    return seconds


ARMS: dict[str, tuple[Callable[[int], list[float]], float]] = {  # and the share of the rows that it gets
    "row": (lambda count: sandboxed(count, Isolation.ROW), 1.0),
    "group of 8": (lambda count: sandboxed(count, Isolation.GROUP), 2.0),
    "spawn per score": (spawned, 0.1),
    "exec in a worker": (executed, 1.0),
}


def measure(arm: str, count: int) -> tuple[float, list[float]]:
    """Scores per CPU second, less what the same arm takes to start; and the seconds of each."""
    run, share = ARMS[arm]
    count = max(GROUP, int(count * share) // GROUP * GROUP)
    before = cpu_seconds()
    run(GROUP)
    start = cpu_seconds() - before
    seconds = run(count)
    used = cpu_seconds() - before - start
    return (count - GROUP) / max(used - start, 1e-9), seconds


FENCES = {
    "standard, own": (Tier.STANDARD, "own"),
    "standard, bwrap": (Tier.STANDARD, "bwrap"),
    "landlock": (Tier.LANDLOCK, "own"),
    "strong": (Tier.STRONG, "own"),
}


def start(tier: Tier, launcher: str) -> tuple[float, float, list[float]]:
    """Wall and CPU seconds from nothing to the first score, and wall seconds of each of some more in the same jail."""
    row = [(json.dumps(rows(1)[0]).encode(), 0)]
    before, started = cpu_seconds(), time.perf_counter()
    jail = Jail(PROGRAM, LIMITS, tier=tier, launcher=launcher)
    jail.run(row)
    cold, later = time.perf_counter() - started, []
    jail.close()
    used = cpu_seconds() - before
    jail = Jail(PROGRAM, LIMITS, tier=tier, launcher=launcher)
    for _ in range(WARM):
        started = time.perf_counter()
        jail.run(row)
        later.append(time.perf_counter() - started)
    jail.close()
    return cold, used, later


def fences(rounds: int) -> None:
    """Print what each fence costs, in turns."""
    print(f"{'':<18}{'cold ms':>10}{'worst':>8}{'CPU ms':>9}{'warm p50 ms':>13}{'p99 ms':>9}")
    usable = {name: fence for name, fence in FENCES.items() if not works(*fence)}
    found: dict[str, list[tuple[float, float, list[float]]]] = {name: [] for name in usable}
    for _ in range(rounds):
        for name, fence in usable.items():
            found[name].append(start(*fence))
    for name, each in found.items():
        colds, warm = sorted(cold for cold, _, _ in each), sorted(one for _, _, later in each for one in later)
        used = statistics.median(used for _, used, _ in each)
        print(f"{name:<18}{statistics.median(colds) * 1e3:>10.0f}{colds[-1] * 1e3:>8.0f}{used * 1e3:>9.0f}"
              f"{warm[len(warm) // 2] * 1e3:>13.2f}{warm[int(len(warm) * 0.99)] * 1e3:>9.2f}")  # fmt: skip
    print("cold start: bar 150 ms for tier standard; load average", *os.getloadavg())


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--starts", type=int, default=15, help="cold starts of each fence")
    parser.add_argument("--only-fences", action="store_true", help="only compare the fences")
    words = parser.parse_args()
    if words.only_fences:
        return fences(words.starts)
    sandboxed(GROUP, Isolation.ROW)  # the self-check, once
    found: dict[str, list[tuple[float, list[float]]]] = {arm: [] for arm in ARMS}
    for _ in range(words.rounds):
        for arm in ARMS:
            found[arm].append(measure(arm, words.rows))
    print(f"{'':<18}{'per CPU second':>16}{'bar':>8}{'p50 ms':>9}{'p99 ms':>9}{'p99/p50':>9}")
    for arm, rounds in found.items():
        rate = statistics.median(one for one, _ in rounds)
        ordered = [sorted(seconds) for _, seconds in rounds]
        median = statistics.median(one[len(one) // 2] for one in ordered)
        late = statistics.median(one[int(len(one) * 0.99)] for one in ordered)
        print(
            f"{arm:<18}{rate:>16,.0f}{BARS.get(arm, ''):>8}{median * 1e3:>9.2f}{late * 1e3:>9.2f}{late / median:>9.1f}"
        )
    print("group rows carry the seconds of their whole process; load average", *os.getloadavg())
    fences(words.starts)


if __name__ == "__main__":
    main()
