"""A sweep: several runs that share one queue and one budget, and end in one comparison.

    <home>/<sweep>/sweep.json     the queue: members, what differs, states, results; replaced as a whole at each change
    <home>/<sweep>/queue/<n>/     run.json of member n, written for all members before the first one starts
    <home>/<sweep>/<n>/           the run of member n, a run like any other
    <home>/<sweep>/sweep.html     the comparison (`trainer.sweep_page`)

Members start in order, `jobs` at a time. A failed one is recorded and the rest go on. When the budget is spent no more
start, and those that run are asked to pause, which they do after the step they are in: minutes and tokens may be
exceeded by that much. Minutes are those in which the queue ran, earlier attempts included; tokens are counted from the
members' metrics. Whoever stops the queue stops it resumably. How a member is started is `Start`'s business.
"""

from __future__ import annotations

import fcntl
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from pydantic import BaseModel, ConfigDict, Field

from trainer import history
from trainer.disk import write_whole
from trainer.errors import UsageError
from trainer.jobs import JobState
from trainer.runs import Closed, RunSpec, home
from trainer.times import lines_of, times_of

SWEEP, QUEUE = "sweep.json", "queue"
EXIT_DONE, EXIT_FAILED, EXIT_PAUSED = 0, 1, 75
_SAVE_SECONDS = 10.0  # between two writes of the time spent, while nothing else changes


class MemberState(StrEnum):
    """Where a member stands in the queue."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    PAUSED = "paused"
    BUDGET = "not started (budget)"


_TO_DO = (MemberState.PAUSED, MemberState.QUEUED, MemberState.BUDGET, MemberState.RUNNING)


class Budget(Closed):
    """What all members may use together; None = no limit."""

    max_runs: int | None = Field(default=None, ge=1, description="Members started.")
    max_minutes: float | None = Field(default=None, gt=0, description="Minutes in which the queue runs.")
    max_tokens: int | None = Field(default=None, ge=1, description="Tokens trained on, epochs counted.")


class Result(Closed):
    """What a member came to; None = there is no such number."""

    loss: float | None = Field(default=None, description="Of the last optimizer step.")
    held_out: float | None = Field(default=None, description="Best held-out loss.")
    exact: float | None = Field(default=None, description="Exact match after training, 0 to 1.")
    tokens: int = 0
    seconds: float = 0.0


class Member(BaseModel):
    """One run of the sweep. `differs`: the typed words in which it is not like all others."""

    model_config = ConfigDict(extra="forbid")

    number: int
    overrides: list[str]
    differs: list[str]
    state: MemberState = MemberState.QUEUED
    started: bool = False
    message: str = ""
    result: Result = Result()


class Sweep(BaseModel):
    """`sweep.json`."""

    model_config = ConfigDict(extra="forbid")

    version: int = 1
    id: str
    created: str
    budget: Budget = Budget()
    jobs: int = Field(default=1, ge=1)
    seconds: float = 0.0
    members: list[Member]
    best: int | None = None
    spent: str = ""

    def save(self, folder: Path) -> None:
        """Replace `sweep.json`."""
        write_whole(folder / SWEEP, self.model_dump_json(indent=1).encode() + b"\n")

    @classmethod
    def load(cls, folder: Path) -> Sweep:
        """Read `sweep.json`. Raises `UsageError` when it cannot be read by this version."""
        path = folder / SWEEP
        try:
            return cls.model_validate_json(path.read_bytes())
        except (OSError, ValueError) as error:
            raise UsageError(f"{path}: cannot be read by this version ({history.in_short(error)})") from error


class Running(Protocol):
    """A member that has been started."""

    def status(self) -> int | None:
        """Its exit status; None while it runs."""
        ...

    def pause(self) -> None:
        """Ask it to save and stop; does not wait."""
        ...

    def close(self) -> list[str]:
        """After its end: finish what stands beside it; returns problems, in words."""
        ...


class Start(Protocol):
    """Starts the member whose run is described in `folder`. Raises `UsageError` or `OSError` when it cannot."""

    def __call__(self, spec: RunSpec, folder: Path) -> Running:
        """Start it, or go on with it."""
        ...


@dataclass
class _Job:
    member: Member
    running: Running
    asked: bool = False


class Queue:
    """Works off a sweep's members; `stop()` from a signal handler pauses members and queue."""

    def __init__(
        self,
        folder: Path,
        *,
        start: Start,
        tell: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
        poll_seconds: float = 0.2,
    ) -> None:
        self.folder, self.start, self.tell, self.clock, self.poll_seconds = folder, start, tell, clock, poll_seconds
        self.sweep = Sweep.load(folder)
        self.jobs: list[_Job] = []
        self.stopping = self._unwritten = False
        self._before, self._began, self._saved = self.sweep.seconds, clock(), clock()

    def stop(self) -> None:
        """Start no more, and let those that run pause."""
        self.stopping = True

    def run(self) -> int:
        """Work until nothing is left, the budget is spent or `stop`; returns the exit status."""
        self._take_over()
        while True:
            self._reap()
            spent = self._spent()
            if spent or self.stopping:
                self._pause_all(spent)
            else:
                self._fill()
            if not self.jobs:
                break
            self._tick()
            time.sleep(self.poll_seconds)
        return self._close()

    def _take_over(self) -> None:
        """Members that an earlier attempt left running, paused or without budget stand in the queue again."""
        for member in self.sweep.members:
            if member.state in (MemberState.RUNNING, MemberState.PAUSED) and history.held(self._run(member)):
                raise UsageError(
                    f"{self.sweep.id}: a worker is still at work on member {member.number} "
                    f"({self._run(member)}); wait for it or stop it, then resume the sweep"
                )
            if member.state in _TO_DO:
                member.state = MemberState.QUEUED
            if member.started:
                member.result = read_result(self._run(member))
        self.sweep.spent = ""
        self.sweep.save(self.folder)

    def _fill(self) -> None:
        limit = self.sweep.budget.max_runs
        for member in self.sweep.members:
            if len(self.jobs) >= self.sweep.jobs or self.stopping:
                return
            none_left = limit is not None and not member.started and self._started() >= limit
            if member.state is MemberState.QUEUED and not none_left:  # one that has been started may be finished
                self._begin(member)

    def _begin(self, member: Member) -> None:
        run = self._run(member)
        before = member.started
        member.state, member.started, member.message = MemberState.RUNNING, True, ""
        if not self._save():  # none is started of which the queue does not know
            member.state, member.started = MemberState.QUEUED, before
            return
        self.tell(f"\n[{member.number + 1}/{len(self.sweep.members)}] {_words(member)}  ({run})")
        try:
            spec = RunSpec.load(self.folder / QUEUE / str(member.number))
            if not (run / "run.json").exists():
                spec.save(run)
            self.jobs.append(_Job(member, self.start(spec, run)))
        except (UsageError, OSError) as error:  # the boundary: one member's trouble is recorded, the rest go on
            self._ended(member, MemberState.FAILED, f"could not be started: {error}")

    def _reap(self) -> None:
        for job in list(self.jobs):
            status = job.running.status()
            if status is None:
                continue
            self.jobs.remove(job)
            for problem in job.running.close():
                self.tell(f"gateway: {problem}")
            state, message = _outcome(self._run(job.member), status, asked=job.asked)
            self._ended(job.member, state, message)

    def _ended(self, member: Member, state: MemberState, message: str) -> None:
        member.state, member.message = state, message
        member.result = read_result(self._run(member))
        first = message.partition("\n")[0]
        self.tell(f"[{member.number + 1}/{len(self.sweep.members)}] {state}" + (f": {first}" if first else ""))
        self._tick(save=True)

    def _pause_all(self, why: str) -> None:
        if why and not self.sweep.spent:
            self.sweep.spent = why
            self.tell(f"the sweep's budget is spent: {why}")
        for job in self.jobs:
            if not job.asked:
                job.asked = True
                job.running.pause()

    def _spent(self) -> str:
        """Why no more may be used, in words; empty while there is some left."""
        budget = self.sweep.budget
        if budget.max_minutes is not None and self._seconds() >= budget.max_minutes * 60:
            return f"{self._seconds() / 60:.1f} of {budget.max_minutes:g} minutes"
        if budget.max_tokens is not None and (tokens := self._tokens()) >= budget.max_tokens:
            return f"{tokens:,} of {budget.max_tokens:,} tokens"
        return ""

    def _close(self) -> int:
        sweep = self.sweep
        left = [one for one in sweep.members if one.state is MemberState.QUEUED]
        if left and not self.stopping:
            sweep.spent = sweep.spent or f"{self._started()} of {sweep.budget.max_runs} runs"
            for member in left:
                member.state = MemberState.PAUSED if member.started else MemberState.BUDGET
        sweep.best = best(sweep.members)
        self._tick(save=True)
        states = {member.state for member in sweep.members}
        if states & set(_TO_DO) or self._unwritten:
            return EXIT_PAUSED
        return EXIT_FAILED if MemberState.FAILED in states else EXIT_DONE

    def _tick(self, *, save: bool = False) -> None:
        """Keep the time that has been spent."""
        self.sweep.seconds = self._seconds()
        if save or self.clock() - self._saved > _SAVE_SECONDS:
            self._saved = self.clock()
            self._save()

    def _save(self) -> bool:
        """Write the queue; where that cannot be done (a full disk), pause what runs, and start no more."""
        try:
            self.sweep.save(self.folder)
        except OSError as error:
            if not self._unwritten:
                why = error.strerror or error
                self.tell(
                    f"{self.folder / SWEEP} cannot be written ({why}): the sweep is paused; resume it when it can"
                )
            self._unwritten = self.stopping = True
            return False
        self._unwritten = False
        return True

    def _seconds(self) -> float:
        return self._before + self.clock() - self._began

    def _tokens(self) -> int:
        running = [job.member for job in self.jobs]
        ended = sum(one.result.tokens for one in self.sweep.members if one not in running)
        return ended + sum(_count_tokens(self._run(one)) for one in running)

    def _started(self) -> int:
        return sum(member.started for member in self.sweep.members)

    def _run(self, member: Member) -> Path:
        return self.folder / str(member.number)


def create(folder: Path, specs: Sequence[RunSpec], *, sweep_id: str, created: str, budget: Budget, jobs: int) -> Sweep:
    """Describe a sweep in a new `folder`: all its runs, and the queue. Raises `UsageError` when one is there."""
    if (folder / SWEEP).exists():
        raise UsageError(f"{folder}: holds a sweep already; resume it, or name another folder")
    words = [spec.overrides for spec in specs]
    common = set.intersection(*map(set, words))
    members = [
        Member(number=number, overrides=one, differs=[word for word in one if word not in common])
        for number, one in enumerate(words)
    ]
    for member, spec in zip(members, specs, strict=True):
        spec.save(folder / QUEUE / str(member.number))
    sweep = Sweep(id=sweep_id, created=created, budget=budget, jobs=jobs, members=members)
    sweep.save(folder)
    return sweep


def find(word: str) -> Path | None:
    """The folder of the sweep that `word` names: a folder, an id, or an unambiguous part of one; None = no sweep."""
    direct = Path(word).expanduser()
    if (direct / SWEEP).is_file():
        return direct.absolute()
    folders = [path.parent for path in home().glob(f"*/{SWEEP}")]
    exact = [folder for folder in folders if folder.name == word]
    matching = exact or [folder for folder in folders if word in folder.name]
    return matching[0] if len(matching) == 1 else None


@contextmanager
def only_queue(folder: Path) -> Iterator[None]:
    """Hold the sweep's lock. Raises `UsageError` when another process works off the same queue."""
    with (folder / "sweep.lock").open("ab") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"{folder}: another process works off this sweep's queue; wait for it") from None
        yield


def best(members: Sequence[Member]) -> int | None:
    """The number of the best member that is done: by held-out loss, or where there is none by the last step's loss."""
    done = [one for one in members if one.state is MemberState.DONE]
    for key in ("held_out", "loss"):
        scored = [(value, one.number) for one in done if (value := getattr(one.result, key)) is not None]
        if scored:
            return min(scored)[1]
    return None


def table(sweep: Sweep) -> list[tuple[str, ...]]:
    """The comparison: a heading and one row a member; the best one's first cell ends in a star."""
    rows = [("member", "differs", "state", "loss", "held-out loss", "exact match", "tokens", "seconds")]
    for one in sweep.members:
        r = one.result
        rows.append(
            (
                f"{one.number}{' *' if one.number == sweep.best else ''}",
                _words(one),
                str(one.state),
                "" if r.loss is None else f"{r.loss:.4f}",
                "" if r.held_out is None else f"{r.held_out:.4f}",
                "" if r.exact is None else f"{r.exact:.1%}",
                f"{r.tokens:,}" if r.tokens else "",
                f"{r.seconds:.1f}" if r.seconds else "",
            )
        )
    return rows


def read_result(run: Path) -> Result:
    """What a member's folder tells; all unknown where there is none."""
    if not (run / "run.json").exists():
        return Result()
    metrics = lines_of(run / "metrics.jsonl")
    losses = [one["loss"] for one in metrics if "loss" in one]
    held_out = [one["eval/loss"] for one in metrics if "eval/loss" in one]
    return Result(
        loss=losses[-1] if losses else None,
        held_out=min(held_out, default=None),
        exact=_exact(run),
        tokens=sum(int(one.get("tokens", 0)) for one in metrics),
        seconds=times_of(run).total,
    )


def held_out_curve(run: Path) -> list[tuple[float, float]]:
    """(step, held-out loss) of a member."""
    return [(one["step"], one["eval/loss"]) for one in lines_of(run / "metrics.jsonl") if "eval/loss" in one]


def _outcome(run: Path, status: int, *, asked: bool) -> tuple[MemberState, str]:
    """How a member ended, by what it wrote and its exit status; one that was asked to stop early has not failed."""
    one = history.read(run)
    if one.state in (JobState.COMPLETED, JobState.EARLY_STOPPED):
        return MemberState.DONE, ""
    if one.state is JobState.PAUSED:
        return MemberState.PAUSED, one.message
    if one.state.terminal:
        return MemberState.FAILED, one.message
    if asked:
        return MemberState.PAUSED, "stopped before it could save; goes on from its newest checkpoint"
    return MemberState.FAILED, f"its worker ended with status {status} while it was {one.words}"


def _exact(run: Path) -> float | None:
    path = run / "samples.json"
    if not path.exists() or not RunSpec.load(run).train.score_rows:
        return None
    after = json.loads(path.read_text(encoding="utf-8")).get("after")
    return sum(bool(one["exact"]) for one in after) / len(after) if after else None


def _count_tokens(run: Path) -> int:
    return sum(int(one.get("tokens", 0)) for one in lines_of(run / "metrics.jsonl"))


def _words(member: Member) -> str:
    return " ".join(member.differs or member.overrides) or "the quick start"
