"""Measures what a kill costs a run: `python scripts/bench_restart.py --rounds 10`.

A real worker on the shipped tiny model is killed (SIGKILL) at a random moment of its training and started again. Two
figures a round: the time from the second start to its first step over that of the first start (promised: at most 2),
and the steps it must make again (promised: at most one checkpoint interval and the step it was in). Both starts run on
the same machine one after the other, so a busy one makes the ratio wide; CPU seconds are given beside it. Exit status 1
when the median ratio, or any round's steps, are over what is promised.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from scripts.prove_resume import make_run, start  # noqa: E402
from trainer.runs import shipped  # noqa: E402

_MOST_RATIO = 2.0
_INTERVAL = 4  # steps between checkpoints
_WORDS = (
    "data=quickstart", "job.learning_rate=0.01",
    "job.lora_rank=8", "job.batch_size=640", "job.epochs=6", f"train.checkpoint_every_steps={_INTERVAL}",
    "train.score_rows=0", "train.sample_rows=0", "train.evaluate_every_steps=0", "data.max_rows=400",
)  # fmt: skip
_LONGEST = 120.0


@dataclass(frozen=True)
class First:
    """From the start of a worker to the end of its first step. step: its number."""

    seconds: float
    cpu: float
    step: int


def steps_of(folder: Path) -> list[int]:
    """The numbers of the steps that the run's journal tells of, in the order in which they were made."""
    path = folder / "sync.jsonl"
    content = path.read_bytes() if path.exists() else b""
    events = [json.loads(line) for line in content[: content.rfind(b"\n") + 1].splitlines()]
    return [one["body"]["step"] for one in events if one["kind"] == "metrics" and "loss" in one["body"]]


def first_step(folder: Path, *, then: float) -> First:
    """Start a worker, wait for its first step, and kill it `then` seconds later. Raises RuntimeError if it ends."""
    before, began = len(steps_of(folder)), time.monotonic()
    process = start(folder)
    while not len(steps_of(folder)) > before:
        if process.poll() is not None or time.monotonic() - began > _LONGEST:
            process.kill()
            raise RuntimeError(f"no step within {time.monotonic() - began:.0f} s; see {folder / 'worker.log'}")
        time.sleep(0.01)
    seconds, cpu = time.monotonic() - began, _cpu(process.pid)
    time.sleep(then)
    process.kill()
    process.wait()
    return First(seconds, cpu, steps_of(folder)[before])


def one_round(folder: Path, held_out: Path, draw: random.Random) -> tuple[First, First, int]:
    """A cold start, a kill, a restart; and how many steps were made again."""
    folder.mkdir()
    make_run(folder, _WORDS, held_out)
    cold = first_step(folder, then=draw.uniform(0.2, 2.0))
    made = max(steps_of(folder))
    warm = first_step(folder, then=0.0)
    return cold, warm, made - warm.step + 1


def _cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> int:
    """The rounds and their figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    draw = random.Random(options.seed)
    wall, cpu, again = [], [], []
    with tempfile.TemporaryDirectory(prefix="bench-restart-") as name:
        held_out = Path(name) / "held_out.jsonl"
        held_out.write_text("".join(shipped("datasets/quickstart/eval.jsonl").read_text().splitlines(True)[:8]))
        for number in range(options.rounds):
            cold, warm, lost = one_round(Path(name) / f"run-{number}", held_out, draw)
            wall.append(warm.seconds / cold.seconds)
            cpu.append(warm.cpu / cold.cpu)
            again.append(lost)
            print(f"round {number + 1}: cold {cold.seconds:.2f} s, restart {warm.seconds:.2f} s to step {warm.step}; "
                  f"{lost} steps made again", flush=True)  # fmt: skip
    print(f"restart / cold start, to the first step: median {statistics.median(wall):.2f}, most {max(wall):.2f} "
          f"(CPU: {statistics.median(cpu):.2f}, {max(cpu):.2f})")  # fmt: skip
    print(f"steps made again: at most {max(again)}, the checkpoint interval is {_INTERVAL}")
    return 1 if statistics.median(wall) > _MOST_RATIO or max(again) > _INTERVAL + 1 else 0


if __name__ == "__main__":
    sys.exit(main())
