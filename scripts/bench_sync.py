"""Measures what telling a stormy gateway costs the worker: `python scripts/bench_sync.py --windows 40`.

One short job is trained; in windows of a second or two, in the order off, on, on, off, this process tells a remote
gateway in the storm of `tests/faulty_gateway.py` about it, as `python -m trainer` does, or leaves it alone as with
gateway=off. Compared are neighbours: CPU time of the worker for a step (the kernel's own count, of the worker alone),
and the step times of perf.jsonl. Neighbouring windows meet the same machine, so a busy one makes the figures wide, not
wrong; the stormy server itself runs here too, which a remote one would not. Exit status 1 when the CPU ratio's 95 %
interval lies above 1.01.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.faulty_gateway import STORM, faulty_gateway, summary  # noqa: E402
from trainer.commands.places import Places  # noqa: E402
from trainer.commands.telling import Teller  # noqa: E402
from trainer.compose import compose  # noqa: E402
from trainer.gateway.client import GatewayClient  # noqa: E402
from trainer.gateway.sync import Syncer  # noqa: E402
from trainer.launch import here  # noqa: E402
from trainer.runs import GatewaySettings  # noqa: E402
from trainer.tracking import Journal  # noqa: E402

_LIMIT = 1.01
_SHORT = ["experiment=quickstart", "job.epochs=20", "train.score_rows=0", "train.sample_rows=0"]
_WINDOW = 1.5  # seconds


@dataclass(frozen=True)
class Mark:
    """Where the worker stood at the end of a step."""

    steps: int
    cpu: float


class Job:
    """A run whose worker trains."""

    def __init__(self, folder: Path, words: list[str]) -> None:
        off = GatewaySettings(kind="off")
        composed = compose([*words, "gateway=off"])
        inputs = Places(Teller(off).client).inputs(composed)
        composed.spec(folder.name, inputs, created="2026-01-01T00:00:00Z").save(folder)
        self.folder = folder
        self.process = here.start(folder, log=folder / "worker.log")

    def mark(self, after: float) -> Mark | None:
        """The end of the first step that ends `after` seconds from now or later; None when the worker ends first."""
        earliest = time.monotonic() + after
        before = None
        while self.process.poll() is None:
            steps = self._steps()
            if before is not None and steps > before and time.monotonic() >= earliest:
                return Mark(steps, self._cpu())
            before = steps
            time.sleep(0.01)
        return None

    def seconds(self, first: Mark, last: Mark) -> float:
        """Median step time between two marks."""
        lines = (self.folder / "perf.jsonl").read_bytes().splitlines()[first.steps : last.steps]
        return statistics.median(found for line in lines if (found := json.loads(line).get("perf/seconds")))

    def _steps(self) -> int:
        path = self.folder / "perf.jsonl"
        return path.read_bytes().count(b"\n") if path.exists() else 0

    def _cpu(self) -> float:
        tasks = Path(f"/proc/{self.process.pid}/task").glob("*/schedstat")
        return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9


def measure(job: Job, url: str, *, windows: int) -> list[tuple[bool, float, float]]:
    """For each window: told or not, CPU seconds of a step, median step time."""
    found: list[tuple[bool, float, float]] = []
    job.mark(3.0)  # warm
    for number in range(windows):
        told = number % 4 in (1, 2)
        client = GatewayClient(url, "fw_bench")
        syncer = Syncer(job.folder, client, show=lambda line: None)
        if told:
            syncer.start()
        first = job.mark(0.3)
        last = job.mark(_WINDOW) if first else None
        if told:
            syncer.stop()
        client.close()
        if first is None or last is None:
            break
        found.append((told, (last.cpu - first.cpu) / (last.steps - first.steps), job.seconds(first, last)))
    return found


def ratios(found: list[tuple[bool, float, float]], column: int) -> list[float]:
    """Told over not told, for each pair of neighbouring windows."""
    pairs = zip(found[::2], found[1::2], strict=False)
    return [float((a if a[0] else b)[column] / (b if a[0] else a)[column]) for a, b in pairs]


def journal_cost(top: Path, *, count: int = 5_000) -> float:
    """Seconds that the journal takes for one step's report."""
    folder = top / "journal"
    folder.mkdir()
    journal = Journal(folder)
    values = {f"metric_{number}": number / 7 for number in range(12)}
    began = time.process_time()
    for step in range(count):
        journal.metrics(step, values)
        journal.progress(step / count, epoch=0, input_tokens=step)
    journal.close()
    return (time.process_time() - began) / count


def interval(values: list[float]) -> tuple[float, float]:
    """Mean, and half the width of its 95 % interval."""
    return statistics.mean(values), 2.1 * statistics.stdev(values) / math.sqrt(len(values))


def main() -> int:
    """Train, tell by turns, compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--windows", type=int, default=40, help="at most; at least 4")
    parser.add_argument("words", nargs="*", default=_SHORT, help="what to train, as for trainer")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory(prefix="bench-sync-") as name:
        top = Path(name)
        with faulty_gateway(top / "gateway", rates=STORM) as (server, _):
            job = Job(top / "run-1", options.words)
            try:
                found = measure(job, server.url, windows=options.windows)
            finally:
                here.stop(job.process, grace=30)
            print(summary(server.seen))
        each = journal_cost(top)
    if len(found) < 4:
        raise SystemExit(f"only {len(found)} windows: train longer (job.epochs), or look why the worker ended")
    step = statistics.median(cpu for _, cpu, _ in found)
    (cpu, half), (wall, wall_half) = interval(ratios(found, 1)), interval(ratios(found, 2))
    print(f"a step: {step * 1e3:.1f} ms of CPU; journal: {each * 1e6:.0f} us of it ({each / step:.2%}), told or not")
    print(f"CPU of a step, told / not:   {cpu:.4f} +- {half:.4f} (95 %, {len(found) // 2} pairs of windows)")
    print(f"median step, told / not:     {wall:.4f} +- {wall_half:.4f}")
    return 1 if cpu - half > _LIMIT else 0


if __name__ == "__main__":
    sys.exit(main())
