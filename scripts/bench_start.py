"""How long until the command line answers: `python scripts/bench_start.py [--rounds 10]`.

Times whole processes, alternating: a bare interpreter, `--help`, a refused configuration, and `import torch` for
scale. Prints medians in seconds and each as a multiple of the bare interpreter.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

ARMS = {
    "python -c pass": ["-c", "pass"],
    "trainer --help": ["-m", "trainer", "--help"],
    "trainer job.epoch=2 (refused)": ["-m", "trainer", "data=quickstart", "job.epoch=2"],
    "import torch": ["-c", "import torch"],
}


def once(arguments: list[str]) -> float:
    """Wall seconds of one process."""
    started = time.perf_counter()
    subprocess.run([sys.executable, *arguments], capture_output=True, check=False)
    return time.perf_counter() - started


def main() -> None:
    """Alternate the arms and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    rounds = parser.parse_args().rounds
    taken: dict[str, list[float]] = {name: [] for name in ARMS}
    for _ in range(rounds + 1):  # the first round warms the caches and is left out
        for name, arguments in ARMS.items():
            taken[name].append(once(arguments))
    bare = statistics.median(taken["python -c pass"][1:])
    for name, seconds in taken.items():
        median = statistics.median(seconds[1:])
        print(f"{name:32s} {median:6.3f} s  ({min(seconds[1:]):.3f} to {max(seconds[1:]):.3f})  {median / bare:5.1f}x")


if __name__ == "__main__":
    main()
