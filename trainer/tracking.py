"""Reporters: the journal, the metrics files, the console, Weights & Biases, and the tee that feeds them all.

The journal (`sync.jsonl`) is what the gateway is told from; `metrics.jsonl` holds the numbers that a repeated run
would repeat to the bit, `perf.jsonl` the times, which it would not. This is the only home of rich and of wandb, and
wandb is imported only for a job that enables it.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import IO, Any

from pydantic.alias_generators import to_camel
from rich.console import Console as RichConsole
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from trainer.jobs import JobState
from trainer.report import Event, EventKind, Reporter
from trainer.runs import RunSpec

PERF = "perf/"
_PLAIN_SECONDS = 2.0  # between two progress lines where there is no terminal


class Quiet:
    """A reporter that ignores everything; the others override what concerns them."""

    def state(self, state: JobState, message: str = "", *, code: str = "OK") -> None: ...

    def progress(self, percent: float, **fields: int) -> None: ...

    def metrics(self, step: int, values: dict[str, float]) -> None: ...

    def checkpoint(self, body: dict[str, Any]) -> None: ...

    def model(self, body: dict[str, Any]) -> None: ...

    def log(self, line: str) -> None: ...

    def close(self) -> None: ...


class Tee:
    """Tells several reporters, in order; one thread at a time."""

    def __init__(self, reporters: Sequence[Reporter]) -> None:
        self.reporters = list(reporters)
        self._lock = threading.RLock()

    def state(self, state: JobState, message: str = "", *, code: str = "OK") -> None:
        self._all(lambda one: one.state(state, message, code=code))

    def progress(self, percent: float, **fields: int) -> None:
        self._all(lambda one: one.progress(percent, **fields))

    def metrics(self, step: int, values: dict[str, float]) -> None:
        self._all(lambda one: one.metrics(step, values))

    def checkpoint(self, body: dict[str, Any]) -> None:
        self._all(lambda one: one.checkpoint(body))

    def model(self, body: dict[str, Any]) -> None:
        self._all(lambda one: one.model(body))

    def log(self, line: str) -> None:
        self._all(lambda one: one.log(line))

    def close(self) -> None:
        self._all(lambda one: one.close())

    def _all(self, tell: Callable[[Reporter], None]) -> None:
        with self._lock:
            for one in self.reporters:
                tell(one)


class Journal(Quiet):
    """Appends every report to `sync.jsonl` as an `Event`; goes on counting after a restart.

    State, checkpoint and model events are on disk (fsync) when the call returns; a line torn by a crash is cut off
    when the journal is opened again. Times (`perf/...`) are left out: the gateway keeps what repeats.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / "sync.jsonl"
        self._seq = _repair(path)
        self._stream = path.open("ab")

    @property
    def empty(self) -> bool:
        """True before the first report of the first attempt."""
        return self._seq == 0

    def state(self, state: JobState, message: str = "", *, code: str = "OK") -> None:
        self._write("state", {"state": str(state), "code": code, "message": message}, durable=True)

    def progress(self, percent: float, **fields: int) -> None:
        self._write("progress", {"percent": int(percent), **{to_camel(name): value for name, value in fields.items()}})

    def metrics(self, step: int, values: dict[str, float]) -> None:
        self._write("metrics", {"step": step, **repeatable(values)})

    def checkpoint(self, body: dict[str, Any]) -> None:
        self._write("checkpoint", body, durable=True)

    def model(self, body: dict[str, Any]) -> None:
        self._write("model", body, durable=True)

    def log(self, line: str) -> None:
        self._write("log", {"line": line})

    def results(self, body: dict[str, Any]) -> None:
        """The scored rows of an evaluation are complete on disk; `body` as in `Event`."""
        self._write("results", body, durable=True)

    def close(self) -> None:
        self._stream.close()

    def _write(self, kind: EventKind, body: dict[str, Any], *, durable: bool = False) -> None:
        self._seq += 1
        now = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        event = Event(seq=self._seq, time=now, kind=kind, body=body)
        self._stream.write(event.model_dump_json().encode() + b"\n")
        self._stream.flush()
        if durable:
            os.fsync(self._stream.fileno())


class MetricsFiles(Quiet):
    """`metrics.jsonl` and `perf.jsonl`. After a restart from a checkpoint the former is cut back to where it stood."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "metrics.jsonl"
        self._metrics = self._path.open("ab")
        self._perf = (folder / "perf.jsonl").open("ab")

    def metrics(self, step: int, values: dict[str, float]) -> None:
        steady = repeatable(values)
        _line(self._metrics, {"step": step, **steady})
        timed = {name: value for name, value in values.items() if name not in steady}
        if timed:
            _line(self._perf, {"step": step, "time": time.time(), **timed})

    def position(self) -> int:
        """Bytes of `metrics.jsonl` written so far, all of them on disk."""
        os.fsync(self._metrics.fileno())
        return self._metrics.tell()

    def cut(self, position: int) -> int:
        """Forget what was written after `position`: a resumed run writes it again. Returns how many bytes are missing
        before it: none, unless somebody changed the file."""
        missing = max(0, position - self._path.stat().st_size)
        if not missing:  # a longer file would be filled up with zeros
            self._metrics.truncate(position)
        self._metrics.seek(0, os.SEEK_END)
        return missing

    def close(self) -> None:
        self._metrics.close()
        self._perf.close()


class Console(Quiet):
    """For people: a progress bar on a terminal, plain lines elsewhere."""

    def __init__(self, stream: IO[str] | None = None) -> None:
        self._console = RichConsole(file=stream or sys.stdout, highlight=False, soft_wrap=True)
        self._bar: Progress | None = None
        self._started = self._last = 0.0
        self._percent = 0.0

    def state(self, state: JobState, message: str = "", *, code: str = "OK") -> None:
        if state is JobState.RUNNING:
            self._started = time.monotonic()
        else:
            self._stop_bar()
        word = state.removeprefix("JOB_STATE_").lower().replace("_", " ")
        self.log(f"{word}: {message}" if message else word)

    def progress(self, percent: float, **fields: int) -> None:
        self._percent = percent
        if self._console.is_terminal:
            if self._bar is None:
                self._bar = _bar(self._console)
            self._bar.update(self._bar.task_ids[0], completed=percent)

    def metrics(self, step: int, values: dict[str, float]) -> None:
        numbers = _numbers(values)
        if not numbers:
            return  # figures for the files, not for people
        line = f"step {step}  {numbers}"
        if any(name.startswith("eval/") for name in values):
            self.log(line)
        elif self._bar is not None:
            self._bar.update(self._bar.task_ids[0], description=line)
        elif time.monotonic() - self._last >= _PLAIN_SECONDS:
            self._last = time.monotonic()
            self._console.print(f"{self._percent:3.0f} %  {line}  {self._left()}", markup=False)

    def checkpoint(self, body: dict[str, Any]) -> None:
        self.log(f"checkpoint {body['path']}")

    def log(self, line: str) -> None:
        self._console.print(line, markup=False)

    def close(self) -> None:
        self._stop_bar()

    def _left(self) -> str:
        if self._percent < 1:
            return ""  # too early to tell
        seconds = (time.monotonic() - self._started) * (100 - self._percent) / self._percent
        return f"{int(seconds) // 60}:{int(seconds) % 60:02d} left"

    def _stop_bar(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


class Wandb(Quiet):
    """Weights & Biases. The key comes from the environment; `WANDB_MODE=offline` needs none."""

    def __init__(self, spec: RunSpec, folder: Path) -> None:
        config = spec.job.wandb_config
        if config is None:
            raise ValueError("wandb_config is not set")
        try:
            wandb = import_module("wandb")
        except ModuleNotFoundError:
            raise ValueError(
                "wandb_config.enabled is true, but wandb is not installed: pip install 'gateway-trainer[wandb]', "
                "or set job.wandb_config.enabled=false"
            ) from None
        try:
            self._run = wandb.init(
                project=config.project or "trainer",
                entity=config.entity,
                id=config.run_id or spec.id,
                name=spec.id,
                resume="allow",
                dir=str(folder),
                config=spec.model_dump(mode="json", include={"hyper", "train", "data", "engine", "model", "objective"}),
            )
        except wandb.Error as error:  # no key, a key or a project that it does not know, no way to it
            raise ValueError(
                f"wandb_config: Weights & Biases cannot be used: {str(error).strip()} Put the key in WANDB_API_KEY, "
                "set WANDB_MODE=offline, or set job.wandb_config.enabled=false"
            ) from error

    def metrics(self, step: int, values: dict[str, float]) -> None:
        self._run.log(values, step=step)

    def state(self, state: JobState, message: str = "", *, code: str = "OK") -> None:
        self._run.summary["state"] = str(state)

    def close(self) -> None:
        self._run.finish()


def repeatable(values: dict[str, float]) -> dict[str, float]:
    """The metrics that an equal run would repeat to the bit: all but the times."""
    return {name: value for name, value in values.items() if not name.startswith(PERF)}


def _line(stream: IO[bytes], values: dict[str, Any]) -> None:
    stream.write(json.dumps(values).encode() + b"\n")
    stream.flush()


def _repair(path: Path) -> int:
    """Cut a torn last line off the journal and return the last sequence number (0 = none)."""
    if not path.exists():
        return 0
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with path.open("rb+") as stream:
            stream.truncate(whole)
    lines = content[:whole].splitlines()
    return int(json.loads(lines[-1])["seq"]) if lines else 0


def _numbers(values: dict[str, float]) -> str:
    shown = []
    for name, value in values.items():
        if name == f"{PERF}tokens_per_second":
            shown.append(f"{value / 1000:.1f}k tok/s")
        elif name == "learning_rate":
            shown.append(f"lr {value:.1e}")
        elif name == "loss" or name.startswith("eval/"):
            shown.append(f"{name} {value:.4f}")
    return "  ".join(shown)


def _bar(console: RichConsole) -> Progress:
    bar = Progress(
        BarColumn(), TextColumn("{task.percentage:3.0f} %"), TimeElapsedColumn(), TimeRemainingColumn(),
        TextColumn("{task.description}"), console=console, transient=True,
    )  # fmt: skip
    bar.add_task("", total=100)
    bar.start()
    return bar
