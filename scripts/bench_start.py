"""How long until the command line answers: `python scripts/bench_start.py [--rounds 10]`.

Times whole processes, alternating: a bare interpreter, `--help`, a refused configuration, `import torch` for scale; and
`gateway` on a new state folder and on one that is there, until it says its URL, with the CPU it took. Prints medians in
seconds and each as a multiple of the bare interpreter. Ends with 1 when the gateway took 1.5 s or has torch loaded.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ARMS = {
    "python -c pass": ["-c", "pass"],
    "trainer --help": ["-m", "trainer", "--help"],
    "trainer job.epoch=2 (refused)": ["-m", "trainer", "data=quickstart", "job.epoch=2"],
    "import torch": ["-c", "import torch"],
}
GATEWAY = {"trainer gateway (new folder)": True, "trainer gateway (folder there)": False}
BAR = 1.5  # seconds until the gateway says where it listens
_TICKS = os.sysconf("SC_CLK_TCK")


def gateway(home: Path) -> tuple[float, float, bool]:
    """Wall seconds until a gateway on `home` listens, the CPU seconds by then, and whether it has torch loaded."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "trainer", "gateway", "--port", "0"]
    environment = {**os.environ, "TRAINER_HOME": str(home)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        taken = time.perf_counter() - started
        if not line.startswith(b"gateway: http"):
            raise SystemExit(f"the gateway did not start: {line!r}")
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(") ")[2].split()
        torch = "libtorch" in Path(f"/proc/{process.pid}/maps").read_text()
        while not line.startswith(b"clients:"):  # its last word
            line = process.stdout.readline()
        process.terminate()
    return taken, (int(fields[11]) + int(fields[12])) / _TICKS, torch


def once(arguments: list[str]) -> float:
    """Wall seconds of one process."""
    started = time.perf_counter()
    subprocess.run([sys.executable, *arguments], capture_output=True, check=False)
    return time.perf_counter() - started


def main() -> int:
    """Alternate the arms and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    rounds = parser.parse_args().rounds
    taken: dict[str, list[float]] = {name: [] for name in (*ARMS, *GATEWAY)}
    spent: dict[str, list[float]] = {name: [] for name in GATEWAY}
    torch = False
    for _ in range(rounds + 1):  # the first round warms the caches and is left out
        for name, arguments in ARMS.items():
            taken[name].append(once(arguments))
        with tempfile.TemporaryDirectory() as home:
            for name in GATEWAY:  # the second finds what the first has made
                seconds, cpu, loaded = gateway(Path(home))
                taken[name].append(seconds)
                spent[name].append(cpu)
                torch = torch or loaded
    bare = statistics.median(taken["python -c pass"][1:])
    for name, seconds in taken.items():
        median = statistics.median(seconds[1:])
        cpu = f"  {statistics.median(spent[name][1:]):.2f} CPU s" if name in spent else ""
        span = f"({min(seconds[1:]):.3f} to {max(seconds[1:]):.3f})"
        print(f"{name:32s} {median:6.3f} s  {span}  {median / bare:5.1f}x{cpu}")
    late = [name for name in GATEWAY if statistics.median(taken[name][1:]) >= BAR]
    print(f"gateway: bar {BAR} s {'missed' if late else 'met'}, torch {'LOADED' if torch else 'not loaded'}")
    return 1 if late or torch else 0


if __name__ == "__main__":
    sys.exit(main())
