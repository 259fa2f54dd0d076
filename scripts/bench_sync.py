"""Measures what telling a stormy gateway costs the worker: `python scripts/bench_sync.py --minutes 10`.

One job is trained for as long as that takes; in windows of about a second, in blocks off, on, on, off, this process
tells a remote gateway in the storm of `tests/faulty_gateway.py` about it, as `python -m trainer` does, or leaves it
alone as with gateway=off. The rows keep their order from epoch to epoch and a window is as many steps as whole epochs
have, so every window holds the same batches wherever it begins. Compared within a block, where slow drift cancels:
CPU time of the worker (the kernel's own count, of the worker alone) and the step times of perf.jsonl. Blocks are
averaged without the outermost fifths (Yuen's trimmed mean and its interval): a busy moment of the machine spoils a
block, not the figure. Beside it stands what no noise touches: the CPU that the journal takes in the worker, and that
the thread that tells takes in this process. Exit status 1 when the 95 %
interval of the CPU ratio lies above 1.01; it proves the promise when all of it lies below.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import tempfile
import threading
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
_ROWS = 96  # of an epoch
_WORDS = (
    "experiment=quickstart", f"data.max_rows={_ROWS}", "data.shuffle=false", "job.batch_size=256", "engine.threads=1",
    "train.score_rows=0", "train.sample_rows=0", "train.checkpoint_every_steps=1000000",
    "train.evaluate_every_steps=1000000",
)  # fmt: skip
_LEAST_EPOCH = 0.15  # seconds: an epoch of these rows is longer on any machine
_WINDOW = 1.0  # seconds at least: whole epochs
_SETTLE = 0.15  # seconds between switching and the next window
_TRIM = 0.2
_POLL = 0.002


@dataclass(frozen=True)
class Mark:
    """Where the worker stood at the end of a step."""

    steps: int
    cpu: float


class Job:
    """A run whose worker trains for at least `seconds`."""

    def __init__(self, folder: Path, words: list[str], *, seconds: float) -> None:
        off = GatewaySettings(kind="off")
        epochs = math.ceil(seconds / _LEAST_EPOCH)
        composed = compose([*_WORDS, f"job.epochs={epochs}", *words, "gateway=off"])
        inputs = Places(Teller(off).client).inputs(composed)
        composed.spec(folder.name, inputs, created="2026-01-01T00:00:00Z").save(folder)
        self.folder, self._read, self._steps = folder, 0, 0
        self.seconds_of: list[float] = []  # of each step
        self.process = here.start(folder, log=folder / "worker.log")
        while not (folder / "estimate.json").exists():
            self._must_live()
            time.sleep(0.1)
        epoch = round(json.loads((folder / "estimate.json").read_bytes())["steps"] / epochs)
        began = time.monotonic()
        self.after(max(20, 4 * epoch))  # warm, and how long a step takes
        self.window = epoch * math.ceil(_WINDOW * self._steps / (time.monotonic() - began) / epoch)

    def after(self, steps: int) -> Mark:
        """The end of the step that ends `steps` steps from now."""
        wanted = self._now() + steps
        while self._now() < wanted:
            self._must_live()
            time.sleep(_POLL)
        return Mark(self._steps, self._cpu())

    def _must_live(self) -> None:
        if self.process.poll() is not None:
            log = (self.folder / "worker.log").read_text()
            raise SystemExit(f"the worker has ended; the end of its log:\n{log[-2000:]}")

    def _now(self) -> int:
        with (self.folder / "perf.jsonl").open("rb") as stream:
            stream.seek(self._read)
            new = stream.read()
        whole = new[: new.rfind(b"\n") + 1]
        self._read += len(whole)
        self.seconds_of += [found for line in whole.splitlines() if (found := json.loads(line).get("perf/seconds"))]
        self._steps = len(self.seconds_of)
        return self._steps

    def _cpu(self) -> float:
        tasks = Path(f"/proc/{self.process.pid}/task").glob("*/schedstat")
        return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9


@dataclass(frozen=True)
class Window:
    """Some whole epochs' worth of steps. cpu: seconds of a step. wall: median seconds of a step. own: CPU seconds
    of the thread that tells, in a second."""

    told: bool
    cpu: float
    wall: float
    own: float


def teller_cpu() -> float:
    """CPU seconds so far of the thread that tells; 0 where there is none."""
    tellers = [thread.native_id for thread in threading.enumerate() if thread.name == "gateway sync"]
    tasks = (Path(f"/proc/self/task/{each}/schedstat") for each in tellers)
    return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9


def measure(job: Job, url: str, *, seconds: float) -> list[Window]:
    """Windows in whole blocks of off, on, on, off, until `seconds` have passed."""
    found: list[Window] = []
    ends = time.monotonic() + seconds
    while len(found) % 4 or time.monotonic() < ends:
        told = len(found) % 4 in (1, 2)
        client = GatewayClient(url, "fw_bench")
        syncer = Syncer(job.folder, client, show=lambda line: None)
        if told:
            syncer.start()
        time.sleep(_SETTLE)
        first = job.after(1)
        own, began = teller_cpu(), time.monotonic()
        last = job.after(job.window)
        own = (teller_cpu() - own) / (time.monotonic() - began)
        if told:
            syncer.stop()
        client.close()
        times = job.seconds_of[first.steps : last.steps]
        cpu = (last.cpu - first.cpu) / (last.steps - first.steps)
        found.append(Window(told, cpu, statistics.median(times), own))
    return found


def blocks(values: list[float]) -> list[float]:
    """ln(told / not told) of each block of four windows."""
    fours = zip(*(map(math.log, values[start::4]) for start in range(4)), strict=False)
    return [(b + c - a - d) / 2 for a, b, c, d in fours]


def trimmed(values: list[float]) -> tuple[float, float]:
    """The trimmed mean, and half the width of its 95 % interval from the winsorized variance (Yuen 1974)."""
    ordered, cut = sorted(values), int(_TRIM * len(values))
    kept = ordered[cut : len(ordered) - cut]
    winsorized = [kept[0]] * cut + kept + [kept[-1]] * cut
    error = statistics.stdev(winsorized) / ((1 - 2 * cut / len(values)) * math.sqrt(len(values)))
    freedom = len(kept) - 1
    return statistics.mean(kept), (1.96 + 2.4 / freedom) * error  # Student's t, to 1 % from 4 degrees on


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


def main() -> int:
    """Train, tell by turns, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="of windows")
    parser.add_argument("words", nargs="*", help="what to train otherwise, as for trainer")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    seconds = options.minutes * 60
    with tempfile.TemporaryDirectory(prefix="bench-sync-") as name:
        top = Path(name)
        with faulty_gateway(top / "gateway", rates=STORM) as (server, _):
            job = Job(top / "run-1", options.words, seconds=2 * seconds + 60)
            try:
                found = measure(job, server.url, seconds=seconds)
            finally:
                here.stop(job.process, grace=5)
            print(summary(server.seen))
        each = journal_cost(top)
    step = statistics.median(one.cpu for one in found)
    cpu, wall = blocks([one.cpu for one in found]), blocks([one.wall for one in found])
    if len(cpu) < 5:
        raise SystemExit(f"only {len(cpu)} blocks of four windows: give it more --minutes")
    print(f"a step: {step * 1e3:.1f} ms of CPU, {job.window} steps a window; journal: {each * 1e6:.0f} us of it "
          f"({each / step:.2%}), told or not")  # fmt: skip
    share = statistics.mean(one.own for one in found if one.told)
    print(f"telling: {share:.2%} of a core. Had the worker no other core, it would lose so much time")
    lowest = 0.0  # of the CPU ratio
    for what, values in (("CPU of a step", cpu), ("median step time", wall)):
        mean, half = trimmed(values)
        low, high = math.exp(mean - half), math.exp(mean + half)
        lowest = lowest or low
        print(f"{what}, told / not: {math.exp(mean):.4f}, 95 % interval {low:.4f} to {high:.4f} "
              f"({len(values)} blocks of four windows)")  # fmt: skip
    return 1 if lowest > _LIMIT else 0


if __name__ == "__main__":
    sys.exit(main())
