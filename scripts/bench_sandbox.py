"""What scoring behind the fence costs: `python scripts/bench_sandbox.py [--rows 2000] [--rounds 3]`.

One trivial reward, side by side in one run and alternating: row-isolated, groups of eight, an interpreter spawned for
each score, and a worker that calls `exec`'d code in its own process (no isolation at all). Counted in CPU seconds of
every process involved, since wall time says little on a shared machine; starting the jails is measured apart.
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

SOURCE = "def score(answer, truth):\n    return float(truth in answer)\n"
PROGRAM = Program({"reward.py": SOURCE.encode()}, "reward.py::score")
LIMITS = Limits.snippet()
GROUP = 8
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


def cold_start() -> float:
    """Wall seconds from nothing to the first score."""
    started = time.perf_counter()
    jail = Jail(PROGRAM, LIMITS, tier=Tier.STANDARD)
    jail.run([(json.dumps(rows(1)[0]).encode(), 0)])
    seconds = time.perf_counter() - started
    jail.close()
    return seconds


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    words = parser.parse_args()
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
    colds = sorted(cold_start() for _ in range(15))
    print(f"cold start, ms: {colds[7] * 1e3:.0f} median, {colds[-1] * 1e3:.0f} worst of 15 (bar 150)")
    print("group rows carry the seconds of their whole process; load average", *os.getloadavg())


if __name__ == "__main__":
    main()
