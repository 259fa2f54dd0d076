"""Prove that a killed run ends as if it had never been: kill -9 real workers and compare every file, bit by bit.

    python scripts/prove_resume.py --rounds 50

A round takes one of seven small jobs on the shipped tiny model (rows or pairs, LoRA with dropout or all parameters, by
tokens or by rows, packed or padded, saved now or in the background, with and without early stopping), kills its worker
once or twice by SIGKILL, at a random time or at a chosen moment (a training call, a reference pass, an evaluation or a
sample, any operation of a save on the disk, the hand-over), starts it again until it ends, and compares metrics,
samples, ledgers, reference log-probs, model, the checkpoints' weights, optimizer, random state and cursor with those of
an uninterrupted run. Prints a line per round and N/N; exit 1 on any difference. CPU only: that is where bits repeat.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer import history
from trainer.attempt import Worker
from trainer.compose import compose
from trainer.disk import LocalDisk
from trainer.engine.base import Engine
from trainer.jobs import JobState
from trainer.runs import Inputs, RowSource, RunSpec, shipped

_COMMON = (
    "gateway=off", "model=tiny", "engine.device=cpu", "engine.threads=1", "data.max_rows=96",
    "train.evaluate_every_steps=3", "train.checkpoint_every_steps=2", "train.score_rows=4",
    "train.sample_rows=2", "train.sample_max_tokens=8",
)  # fmt: skip
_ROWS = ("data=quickstart", "job.epochs=2", "job.learning_rate=0.01")
_PAIRS = ("job=dpo", "data=pairs", "job.training_config.epochs=2", "job.loss_config.dpo.ref_cache_batch_size=16")
JOBS: dict[str, tuple[str, ...]] = {
    "lora by tokens": (*_ROWS, "job.lora_rank=4", "model.lora.dropout=0.1", "job.batch_size=320"),
    "lora by rows, in the background": (
        *_ROWS, "job.lora_rank=4", "model.lora.dropout=0.1", "job.batch_size_samples=10",
        "job.gradient_accumulation_steps=2", "train.async_checkpoints=true",
    ),
    "padded lora": (
        *_ROWS, "job.lora_rank=4", "model.lora.dropout=0.1", "job.batch_size=320", "engine.attention=sdpa",
    ),
    "full by tokens, early stop": (
        *_ROWS, "job.lora_rank=0", "job.batch_size=320", "job.early_stop=true", "train.score_every_evaluation=true",
        "job.learning_rate=0.003",
    ),
    "full by rows": (*_ROWS, "job.lora_rank=0", "job.batch_size_samples=20", "job.learning_rate=0.003"),
    "pairs, lora by pairs": (
        *_PAIRS, "job.training_config.lora_rank=4", "job.training_config.lora_dropout=0.1",
        "job.training_config.batch_size_samples=16", "job.training_config.learning_rate=0.003",
    ),
    "pairs, full by tokens, early stop": (
        *_PAIRS, "job.training_config.lora_rank=0", "job.training_config.batch_size=512", "train.early_stop=true",
        "train.best_metric=eval/preference", "train.best_mode=max", "job.training_config.learning_rate=0.001",
    ),
}  # fmt: skip
_CALLS = ("forward_backward", "optim_step", "forward", "sample", "save_weights", "save_state")
_DISK = ("make_folder", "write", "sync_file", "sync_folder", "rename", "remove_tree")
_COUNTS = "counts.json"
_COMPOSING = threading.Lock()  # hydra composes one configuration at a time
_HELD_OUT_ROWS = 24
_HELD_OUT_PAIRS = "held_out_pairs.jsonl"
_SECONDS = 900  # of one worker, on a busy machine


# --- The victim: a real worker that kills itself at a chosen moment ---


class Moments:
    """Counts what happens, by name; SIGKILL at occurrence `number` of `name`, before it (even) or after (odd)."""

    def __init__(self, name: str, number: int, *, after: bool) -> None:
        self.name, self.number, self.after = name, number, after
        self.seen: Counter[str] = Counter()

    def of(self, name: str, call: Any) -> Any:
        """`call`, counted as `name`."""

        def counted(*arguments: Any, **keywords: Any) -> Any:
            self.seen[name] += 1
            now = name == self.name and self.seen[name] == self.number
            if now and not self.after:
                die()
            result = call(*arguments, **keywords)
            if now:
                die()
            return result

        return counted


def die() -> None:
    """As kill -9 does it."""
    os.kill(os.getpid(), signal.SIGKILL)


class CountedEngine:
    """An engine whose calls are moments."""

    def __init__(self, engine: Engine, moments: Moments) -> None:
        self._engine, self._moments = engine, moments

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._engine, name)
        return self._moments.of(name, found) if name in _CALLS else found


class CountedDisk(LocalDisk):
    """A disk whose operations are moments, and which can be killed in the midst of removing or writing."""

    def __init__(self, moments: Moments) -> None:
        for name in _DISK:
            setattr(self, name, moments.of("disk", getattr(super(), name)))


class Victim(Worker):
    """The real worker, with moments in its engine, its disk and its hand-over."""

    def __init__(self, spec: RunSpec, folder: Path, moments: Moments) -> None:
        super().__init__(spec, folder, disk=CountedDisk(moments))
        self.moments = moments
        self._hand_over = moments.of("hand_over", super()._hand_over)

    def _loop(self, engine: Any, prepared: Any, parity: Any) -> Any:
        return super()._loop(CountedEngine(engine, self.moments), prepared, parity)  # pyright: ignore[reportArgumentType]


def be_victim(folder: Path, at: str) -> int:
    """Run the worker of `folder` and die at the moment `at`, `name:number:before|after`, or count if it is empty."""
    name, number, when = at.split(":") if at else ("", "0", "before")
    moments = Moments(name, int(number), after=when == "after")
    status = Victim(RunSpec.load(folder), folder, moments).run()
    (folder / _COUNTS).write_text(json.dumps(moments.seen))
    return status


# --- The judge ---


@dataclass(frozen=True)
class Baseline:
    """An uninterrupted run: its files, how often each moment comes, and the seconds from its first word to its end."""

    folder: Path
    counts: dict[str, int]
    seconds: float


def make_run(folder: Path, words: tuple[str, ...], held_out: Path) -> Path:
    """A run's folder with its run.json."""
    with _COMPOSING:
        composed = compose([*_COMMON, *words])
    if composed.kind == "dpo":
        held_out = held_out.with_name(_HELD_OUT_PAIRS)
    inputs = Inputs(
        base_model=composed.model.path, train=RowSource(name="train", path=composed.job.dataset),
        evaluation=RowSource(name="eval", path=str(held_out)),
    )  # fmt: skip
    composed.spec("run", inputs, created="2026-01-01T00:00:00Z").save(folder)
    return folder


def start(folder: Path, at: str | None = None) -> subprocess.Popen[bytes]:
    """The plain worker, or with `at` a victim."""
    plain = [sys.executable, "-m", "trainer.worker", str(folder)]
    command = plain if at is None else [sys.executable, __file__, "--victim", str(folder), "--at", at]
    root = str(Path(__file__).resolve().parents[1])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": root}
    with (folder / "worker.log").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment)


def baseline(top: Path, name: str) -> Baseline:
    """Run the job `name` without a break, counting its moments."""
    folder = make_run(top / "whole", JOBS[name], _held_out(top.parent))
    process = start(folder, "")
    _wait_for_training(folder, process)
    began = time.monotonic()
    status = process.wait(_SECONDS)
    if status:
        raise SystemExit(f"{name}: the uninterrupted run ended with {status}; see {folder / 'worker.log'}")
    return Baseline(folder, json.loads((folder / _COUNTS).read_text()), time.monotonic() - began)


def one_round(top: Path, whole: Baseline, chance: random.Random, name: str) -> tuple[list[str], str]:
    """Kill and go on; returns the differences and how it was killed."""
    folder, kills = top / "run", list[str]()
    while not kills:  # a worker that ended before it could be killed proves nothing: begin again
        shutil.rmtree(folder, ignore_errors=True)
        make_run(folder, JOBS[name], _held_out(top.parent))
        kills = [how for _ in range(chance.choice((1, 1, 2))) if (how := _kill(folder, whole, chance))]
    status = start(folder).wait(_SECONDS)
    if status:
        return [f"the worker ended with {status}; see {folder / 'worker.log'}"], ", ".join(kills)
    return differences(whole.folder, folder), ", ".join(kills)


def _kill(folder: Path, whole: Baseline, chance: random.Random) -> str:
    """Start a worker and have it killed; says when, or "" if it ended before."""
    if chance.random() < 0.4:
        process = start(folder)
        _wait_for_training(folder, process)
        seconds = chance.uniform(0, whole.seconds)
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
        return f"{seconds:.2f} s into it" if process.wait() == -signal.SIGKILL else ""
    name = chance.choice(("forward_backward", "optim_step", "forward", "sample", "disk", "disk", "disk", "hand_over"))
    at = f"{name}:{chance.randint(1, whole.counts[name])}:{chance.choice(('before', 'after'))}"
    status = start(folder, at).wait(_SECONDS)
    return at if status == -signal.SIGKILL else ""


def _wait_for_training(folder: Path, process: subprocess.Popen[bytes]) -> None:
    before = _runs(folder)
    while process.poll() is None and _runs(folder) == before:
        time.sleep(0.01)


def _runs(folder: Path) -> int:
    """How often the run has begun to train."""
    return sum(event.body.get("state") == JobState.RUNNING for event in history.events(folder))


def differences(one: Path, other: Path) -> list[str]:
    """What differs in all that must repeat: file by file, the checkpoints by what their manifests say of the run."""
    mine, theirs = dict(_repeatable(one)), dict(_repeatable(other))
    found = [f"only one has {name}" for name in sorted(set(mine) ^ set(theirs))]
    found += [f"{name} differs" for name in sorted(set(mine) & set(theirs)) if mine[name] != theirs[name]]
    state = history.read(other).state
    return found + ([] if state == history.read(one).state else [f"ended {state}"])


def _repeatable(folder: Path) -> Iterator[tuple[str, bytes]]:
    for pattern in ("metrics.jsonl", "samples.json", "ledger*.json", "model/**/*", "checkpoints/**/*",
                    "reference/**/*"):  # fmt: skip
        for path in folder.glob(pattern):
            if path.is_file() and path.name != "manifest.json":
                yield str(path.relative_to(folder)), path.read_bytes()
    for path in folder.glob("checkpoints/*/manifest.json"):
        manifest = json.loads(path.read_bytes())
        del manifest["created"], manifest["sha256"]  # the time, and the digest that it is part of
        yield str(path.relative_to(folder)), json.dumps(manifest).encode()


def prove(rounds: int, *, seed: int, side_by_side: int, top: Path, only: str = "") -> int:
    """Print a line per round and the count; returns how many rounds differed. `only`: jobs with that in their name."""
    names = [name for name in JOBS if only in name][: max(1, min(rounds, len(JOBS)))]
    write_held_out(top)
    failed = 0

    def whole_of(name: str) -> Baseline:
        return baseline(_folder(top, f"whole-{list(JOBS).index(name)}"), name)

    def attempt(number: int) -> tuple[int, str, list[str], str, float]:
        began = time.monotonic()
        name = names[number % len(names)]
        place = _folder(top, f"round-{number}")
        found, how = one_round(place, wholes[name], random.Random(f"{seed}:{number}"), name)
        if not found:
            shutil.rmtree(place)
        return number, name, found, how, time.monotonic() - began

    with ThreadPoolExecutor(side_by_side) as pool:
        wholes = dict(zip(names, pool.map(whole_of, names), strict=True))
        for number, name, found, how, seconds in pool.map(attempt, range(rounds)):
            failed += bool(found)
            words = f"DIFFERS in {top / f'round-{number}'}: {'; '.join(found[:5])}" if found else "equal"
            print(f"round {number + 1:3}  {name}: killed {how}: {words} ({seconds:.0f} s)", flush=True)
    print(f"{rounds - failed}/{rounds} rounds are bit-equal to the uninterrupted run")
    return failed


def write_held_out(top: Path) -> None:
    """The first held-out rows and pairs that ship, as files in `top`."""
    for source, target in (("quickstart", _held_out(top)), ("pairs", top / _HELD_OUT_PAIRS)):
        rows = shipped(f"datasets/{source}/eval.jsonl").read_text().splitlines(keepends=True)
        target.write_text("".join(rows[:_HELD_OUT_ROWS]))


def _held_out(top: Path) -> Path:
    return top / "held_out.jsonl"


def _folder(top: Path, name: str) -> Path:
    (top / name).mkdir(parents=True)
    return top / name


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--only", default="", help="only jobs with this in their name, such as pairs")
    parser.add_argument("--seed", type=int, default=0, help="another seed kills at other moments")
    parser.add_argument("--side-by-side", type=int, default=min(4, os.cpu_count() or 1), help="rounds at a time")
    parser.add_argument("--victim", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--at", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.victim:
        return be_victim(options.victim, options.at)
    top = Path(tempfile.mkdtemp(prefix="prove-resume-"))
    failed = prove(options.rounds, seed=options.seed, side_by_side=options.side_by_side, top=top, only=options.only)
    if not failed:
        shutil.rmtree(top)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
