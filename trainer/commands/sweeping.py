"""A sweep from the command line: compose and check all members, work off their queue, compare what they came to."""

from __future__ import annotations

import argparse
import math
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

from trainer import sweeps
from trainer.beside import beside
from trainer.commands.places import Places
from trainer.commands.telling import Teller
from trainer.compose import Composed, compose, sweep
from trainer.errors import UsageError
from trainer.launch.supervised import Supervised
from trainer.report_page import write_report
from trainer.runs import RunSpec, home, new_run_id
from trainer.sweep_page import summary, write_page
from trainer.sweeps import Budget, MemberState, Queue, Sweep

LIMITS = ("max_runs", "max_minutes", "max_tokens", "jobs")
WORKER_LOG = "worker.log"


def add_limits(parser: argparse.ArgumentParser) -> None:
    """The budget that a sweep's members share, and how many run at a time."""
    group = parser.add_argument_group("sweeps (--multirun)")
    group.add_argument("--max-runs", type=int, metavar="N", help="start at most N members")
    group.add_argument("--max-minutes", type=float, metavar="M", help="pause when the queue has run for M minutes")
    group.add_argument("--max-tokens", type=int, metavar="T", help="pause when the members have trained on T tokens")
    group.add_argument("--jobs", type=int, metavar="N", help="members at a time (default 1)")


def check_limits(options: argparse.Namespace, *, sweeping: bool) -> None:
    """Raises `UsageError` for a limit that is not positive, or that stands without a sweep."""
    for name in LIMITS:
        value, flag = getattr(options, name), f"--{name.replace('_', '-')}"
        if value is not None and not sweeping:
            raise UsageError(f"{flag}: is for sweeps; add --multirun, or leave it out")
        if value is not None and not math.isfinite(value):
            raise UsageError(f"{flag}: {value} is no finite number; leave it out for no limit")
        if value is not None and value <= 0:
            raise UsageError(f"{flag}: {value} is not above 0; leave it out for no limit")


def start_sweep(options: argparse.Namespace) -> int:
    """Describe and run a new sweep; the exit status is 0 all done, 1 some failed, 75 something is left to do."""
    members = composed(options.overrides)
    sweep_id = new_run_id(members[0].name or "sweep")
    folder = Path(members[0].output_dir or home() / sweep_id).absolute()
    created = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    specs = [_described(one, f"{sweep_id}-{number}", created) for number, one in enumerate(members)]
    for note in dict.fromkeys(note for one in members for note in one.notes):
        print(note)
    budget = Budget(**{name: getattr(options, name) for name in LIMITS if name != "jobs"})
    try:
        sweeps.create(folder, specs, sweep_id=sweep_id, created=created, budget=budget, jobs=options.jobs or 1)
    except OSError as error:
        why = error.strerror or error
        raise UsageError(f"{folder}: no sweep can be written there ({why}); TRAINER_HOME is another place") from error
    print(f"sweep {sweep_id} of {len(members)} members in {folder}")
    return work(folder, environments=[_secrets(one) for one in members])


def resume_sweep(folder: Path, options: argparse.Namespace) -> int:
    """Go on with a sweep's queue, under the limits that are typed."""
    reopen(folder, options)
    return work(folder, environments=[{} for _ in Sweep.load(folder).members])


def reopen(folder: Path, options: argparse.Namespace) -> None:
    """Enter typed limits in place of the old ones; members that are done stay done.

    Raises `UsageError` when there is nothing left to do.
    """
    with sweeps.only_queue(folder):
        one = Sweep.load(folder)
        typed = {name: getattr(options, name) for name in LIMITS if getattr(options, name) is not None}
        one.jobs = typed.pop("jobs", one.jobs)
        one.budget = Budget.model_validate(one.budget.model_dump() | typed)
        for member in one.members:
            if options.retry_failed and member.state is MemberState.FAILED:
                member.state = MemberState.QUEUED
        if all(member.state in (MemberState.DONE, MemberState.FAILED) for member in one.members):
            retry = "; --retry-failed goes on with those that failed" if _failed(one) else ""
            raise UsageError(f"{one.id}: {summary(one)}; there is nothing to go on with{retry}")
        one.save(folder)


def composed(overrides: Sequence[str]) -> list[Composed]:
    """All members, checked."""
    return [compose(combination) for combination in sweep(overrides)]


def work(folder: Path, *, environments: Sequence[dict[str, str]]) -> int:
    """Work off the queue and tell how it ended. `environments`: by member, added to this process's environment."""
    with sweeps.only_queue(folder):
        jobs = Sweep.load(folder).jobs
        start = _Starter(environments, quiet=jobs > 1)
        queue = Queue(folder, start=start, tell=lambda line: print(line, flush=True))
        with _signals_to(queue):
            status = queue.run()
    one = queue.sweep
    page = beside("sweep.html", lambda: write_page(one, folder))
    print()
    for line in _aligned(sweeps.table(one)):
        print(line)
    print(f"\n{summary(one)}" + (f"; budget spent: {one.spent}" if one.spent else ""))
    print(f"page     {page}")
    if status == sweeps.EXIT_PAUSED:
        more = " --max-..." if one.spent else ""
        print(f"go on    python -m trainer resume {folder if folder.parent != home() else folder.name}{more}")
    return status


class _Starter:
    """`trainer.sweeps.Start` for workers on this machine; `quiet`: their output goes to worker.log, not here."""

    def __init__(self, environments: Sequence[dict[str, str]], *, quiet: bool) -> None:
        self.environments, self.quiet = environments, quiet

    def __call__(self, spec: RunSpec, folder: Path) -> _Started:
        teller = Teller(spec.gateway)
        teller.client()  # refuses before anything has started
        environment = self.environments[int(folder.name)]
        log = folder / WORKER_LOG if self.quiet else None
        worker = Supervised(folder, env=environment, log=log, say=lambda line: print(f"{spec.id}: {line}", flush=True))
        teller.follow(spec, folder)
        return _Started(worker, teller, folder)


class _Started:
    """A member's worker, and what tells the gateway about it."""

    def __init__(self, worker: Supervised, teller: Teller, folder: Path) -> None:
        self.worker, self.teller, self.folder = worker, teller, folder

    def status(self) -> int | None:
        return self.worker.poll()

    def pause(self) -> None:
        self.worker.terminate()

    def close(self) -> list[str]:
        problems = self.teller.finish()
        beside("report.html", lambda: write_report(self.folder))
        return problems


@contextmanager
def _signals_to(queue: Queue) -> Iterator[None]:
    """Ctrl-C and SIGTERM pause the members that run, and the queue."""

    def pause(number: int, frame: FrameType | None) -> None:
        print("\nstopping: members finish their step and save; the queue is kept", flush=True)
        queue.stop()

    before = {number: signal.signal(number, pause) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _described(one: Composed, run_id: str, created: str) -> RunSpec:
    teller = Teller(one.gateway)
    try:
        return one.spec(run_id, Places(teller.client).inputs(one), created=created)
    finally:
        teller.finish()


def _secrets(one: Composed) -> dict[str, str]:
    config = one.job.wandb_config
    return {"WANDB_API_KEY": config.api_key.get_secret_value()} if config and config.api_key else {}


def _failed(one: Sweep) -> bool:
    return any(member.state is MemberState.FAILED for member in one.members)


def _aligned(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        yield "  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip()
