"""Sweeps: one queue, one budget, one comparison. Members are real processes; the slow test's are real workers."""

import argparse
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.gateway_kit import wait_for
from trainer import sweeps
from trainer.__main__ import main
from trainer.commands import sweeping
from trainer.commands.sweeping import reopen
from trainer.compose import compose, sweep
from trainer.errors import UsageError
from trainer.launch import here
from trainer.runs import Inputs, RowSource, RunSpec
from trainer.sweep_page import render, write_page
from trainer.sweeps import Budget, Member, MemberState, Queue, Result, Sweep

WORKER = (sys.executable, str(Path(__file__).parents[1] / "data" / "sweep_worker.py"))
RUN_TOKENS = 1000  # of a member of the stand-in worker


class Started:
    """A stand-in worker's process."""

    def __init__(self, folder: Path) -> None:
        self.process = here.start(folder, command=WORKER)

    def status(self) -> int | None:
        return self.process.poll()

    def pause(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def close(self) -> list[str]:
        return []


def started(spec: RunSpec, folder: Path) -> Started:
    assert spec == RunSpec.load(folder)
    return Started(folder)


def make(folder: Path, rates: str, *, jobs: int = 1, **budget: float) -> Path:
    """A sweep over learning rates, described and not begun."""
    words = ["data=quickstart", "gateway=off", f"job.learning_rate={rates}"]
    inputs = Inputs(base_model="m", train=RowSource(name="rows", path="rows"))
    specs = [
        compose(one).spec(f"s-{number}", inputs, created="2030-01-01T00:00:00Z")
        for number, one in enumerate(sweep(words))
    ]
    sweeps.create(folder, specs, sweep_id="s", created="now", budget=Budget.model_validate(budget), jobs=jobs)
    return folder


def work(folder: Path, tell: list[str] | None = None) -> int:
    return Queue(folder, start=started, tell=(tell if tell is not None else []).append, poll_seconds=0.02).run()


def states(folder: Path) -> list[str]:
    return [str(member.state) for member in Sweep.load(folder).members]


def starts(folder: Path) -> list[int]:
    """How often each member's worker has been started."""
    files = [folder / str(number) / "started" for number in range(len(states(folder)))]
    return [len(path.read_text().splitlines()) if path.exists() else 0 for path in files]


def test_members_run_in_order_and_a_failed_one_does_not_stop_the_rest(tmp_path):
    folder, told = make(tmp_path / "s", "0.3,0.5,0.25,0.1"), []
    assert work(folder, told) == sweeps.EXIT_FAILED
    assert states(folder) == ["done", "failed", "failed", "done"]
    done = Sweep.load(folder)
    assert done.members[1].message == "learning_rate: <0.5> is too high"
    assert "ended with status -9" in done.members[2].message
    assert done.members[3].result.model_dump(exclude={"seconds"}) == {
        "loss": 1.0, "held_out": 0.1, "exact": None, "tokens": RUN_TOKENS,
    }  # fmt: skip
    assert done.best == 3
    assert [line for line in told if line.startswith("[2/4]")] == ["[2/4] failed: learning_rate: <0.5> is too high"]
    assert done.members[0].differs == ["job.learning_rate=0.3"]


@pytest.mark.parametrize("saves", [2, 3, 4])  # then the first member ends, the second begins, or ends
def test_a_queue_that_cannot_be_written_pauses_and_goes_on_later(tmp_path, monkeypatch, saves):
    folder, told, save, saved = make(tmp_path / "s", "0.1,0.2,0.3"), [], Sweep.save, []

    def full(sweep, place):
        saved.append(1)
        if len(saved) > saves:
            raise OSError(28, "No space left on device")
        save(sweep, place)

    with monkeypatch.context() as broken:
        broken.setattr(Sweep, "save", full)
        assert work(folder, told) == sweeps.EXIT_PAUSED
    assert sum("No space left on device): the sweep is paused" in line for line in told) == 1
    assert starts(folder)[2] == 0
    assert work(folder) == sweeps.EXIT_DONE
    assert states(folder) == ["done", "done", "done"]


def test_a_budget_of_runs_is_shared_and_resuming_with_more_goes_on(tmp_path):
    folder = make(tmp_path / "s", "0.1,0.2,0.3", max_runs=2)
    assert work(folder) == sweeps.EXIT_PAUSED
    assert states(folder) == ["done", "done", "not started (budget)"]
    assert Sweep.load(folder).spent == "2 of 2 runs"
    assert work(folder) == sweeps.EXIT_PAUSED  # the budget counts earlier attempts
    assert starts(folder) == [1, 1, 0]
    one = Sweep.load(folder)
    one.budget = Budget(max_runs=3)
    one.save(folder)
    assert work(folder) == sweeps.EXIT_DONE
    assert starts(folder) == [1, 1, 1]


def test_a_budget_of_tokens_pauses_the_member_that_runs(tmp_path):
    folder = make(tmp_path / "s", "0.1,0.125,0.3", max_tokens=RUN_TOKENS + 300)
    assert work(folder) == sweeps.EXIT_PAUSED
    assert states(folder) == ["done", "paused", "not started (budget)"]
    used = sum(member.result.tokens for member in Sweep.load(folder).members)
    assert RUN_TOKENS + 300 <= used < 2 * RUN_TOKENS
    one = Sweep.load(folder)
    one.budget = Budget()
    one.save(folder)
    assert work(folder) == sweeps.EXIT_DONE
    assert starts(folder) == [1, 2, 1]
    assert [member.result.tokens for member in Sweep.load(folder).members] == [RUN_TOKENS] * 3  # none twice


def test_minutes_count_earlier_attempts(tmp_path):
    folder = make(tmp_path / "s", "0.125,0.2", max_minutes=1.0)
    one = Sweep.load(folder)
    one.seconds = 59.5
    one.save(folder)
    now = [1000.0]  # the queue's clock: it stands still until the first member is at work

    def starter(spec: RunSpec, folder: Path) -> Started:
        running = started(spec, folder)
        wait_for((folder / "metrics.jsonl").exists, "it has made a step")
        now[0] += 0.75
        return running

    queue = Queue(folder, start=starter, tell=lambda line: None, clock=lambda: now[0], poll_seconds=0.02)
    assert queue.run() == sweeps.EXIT_PAUSED
    assert states(folder) == ["paused", "not started (budget)"]
    assert Sweep.load(folder).seconds == 60.25
    assert Sweep.load(folder).spent == "1.0 of 1 minutes"


def test_stopping_pauses_the_member_and_keeps_the_queue(tmp_path):
    folder = make(tmp_path / "s", "0.125,0.2")  # the first waits half-way until it is asked to pause
    queue: Queue

    def starter(spec: RunSpec, folder: Path) -> Started:
        running = started(spec, folder)
        wait_for((folder / "metrics.jsonl").exists, "it has made a step")
        queue.stop()
        return running

    queue = Queue(folder, start=starter, tell=lambda line: None, poll_seconds=0.02)
    assert queue.run() == sweeps.EXIT_PAUSED
    assert states(folder) == ["paused", "queued"]
    assert work(folder) == sweeps.EXIT_DONE
    assert starts(folder) == [2, 1]


@pytest.mark.parametrize("jobs", [1, 2, 3])
def test_as_many_members_run_at_a_time_as_there_are_jobs(tmp_path, jobs):
    folder = make(tmp_path / "s", "0.1,0.2,0.3", jobs=jobs)
    running, most = 0, 0

    class Counted(Started):
        """Runs, for the queue, from its start until the queue sees that it has ended."""

        def status(self) -> int | None:
            nonlocal running
            found = super().status()
            running -= found is not None
            return found

    def starter(spec: RunSpec, folder: Path) -> Counted:
        nonlocal running, most
        running += 1
        most = max(most, running)
        return Counted(folder)

    assert Queue(folder, start=starter, tell=lambda line: None, poll_seconds=0.02).run() == sweeps.EXIT_DONE
    assert (most, running) == (jobs, 0)


def test_a_member_that_cannot_be_started_is_recorded(tmp_path):
    folder = make(tmp_path / "s", "0.1,0.2")

    def starter(spec: RunSpec, folder: Path) -> Started:
        if folder.name == "0":
            raise UsageError("gateway=remote: the key is missing")
        return started(spec, folder)

    assert Queue(folder, start=starter, tell=lambda line: None, poll_seconds=0.02).run() == sweeps.EXIT_FAILED
    assert Sweep.load(folder).members[0].message == "could not be started: gateway=remote: the key is missing"
    assert states(folder) == ["failed", "done"]


def test_after_a_crash_of_the_queue_it_waits_for_no_worker_and_takes_none_twice(tmp_path):
    folder = make(tmp_path / "s", "0.1")
    one = Sweep.load(folder)
    one.members[0].state, one.members[0].started = MemberState.RUNNING, True
    one.save(folder)
    RunSpec.load(folder / "queue" / "0").save(folder / "0")
    lock = (
        "import fcntl, sys, time; f = open(sys.argv[1], 'ab'); fcntl.flock(f, 2); print(1, flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", lock, str(folder / "0" / "worker.lock")], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    with holder:
        holder.stdout.readline()
        with pytest.raises(UsageError, match="a worker is still at work on member 0"):
            work(folder)
        holder.kill()
    assert work(folder) == sweeps.EXIT_DONE


def test_one_process_works_off_a_queue(tmp_path):
    folder = make(tmp_path / "s", "0.1")
    with sweeps.only_queue(folder), pytest.raises(UsageError, match="another process"), sweeps.only_queue(folder):
        pass


def test_failed_members_are_tried_again_only_when_asked(tmp_path):
    folder = make(tmp_path / "s", "0.5,0.1")
    work(folder)
    options = argparse.Namespace(max_runs=None, max_minutes=None, max_tokens=None, jobs=None, retry_failed=False)
    with pytest.raises(UsageError, match=r"1 done, 1 failed.*--retry-failed"):
        reopen(folder, options)
    options.retry_failed, options.max_runs, options.jobs = True, 5, 2
    reopen(folder, options)
    assert (Sweep.load(folder).budget, Sweep.load(folder).jobs) == (Budget(max_runs=5), 2)
    assert work(folder) == sweeps.EXIT_FAILED
    assert starts(folder) == [2, 1]


def test_the_best_is_by_held_out_loss_among_those_that_are_done():
    def member(number: int, state: MemberState, **result: float) -> Member:
        return Member(number=number, overrides=[], differs=[], state=state, result=Result.model_validate(result))

    done, failed = MemberState.DONE, MemberState.FAILED
    assert sweeps.best([member(0, done, held_out=2.0), member(1, failed, held_out=1.0)]) == 0
    assert sweeps.best([member(0, done, loss=2.0), member(1, done, loss=1.0)]) == 1
    assert sweeps.best([member(0, done, loss=0.1), member(1, done, held_out=1.0)]) == 1
    assert sweeps.best([member(0, failed)]) is None


def test_the_page_escapes_everything_and_loads_nothing(tmp_path):
    folder = make(tmp_path / "s", "0.3,0.5,0.1")
    work(folder)
    one = Sweep.load(folder)
    one.members[0].differs = ['name="<script>alert(1)</script>"']
    page = render(one, folder)
    assert "<script" not in page and "&lt;script&gt;" in page
    assert "learning_rate: &lt;0.5&gt; is too high" in page
    assert page.count("<polyline") == 2 * 2  # two curves, each with its line in the legend
    assert "http" not in page.replace("http-equiv", "")
    assert 'name="viewport"' in page and "default-src &#39;none&#39;" in page
    assert write_page(one, folder).read_text() == render(one, folder)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["data=quickstart", "--max-runs", "2"], "--max-runs: is for sweeps; add --multirun"),
        (["data=quickstart", "-m", "--jobs", "0", "job.epochs=1,2"], "--jobs: 0 is not above 0"),
        (["data=quickstart", "-m", "job.epochs=1,-2"], "job.epochs: Input should be greater than or equal to 0"),
    ],
)
def test_what_is_typed_wrong_is_refused_before_anything_starts(words, says, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TRAINER_HOME", str(tmp_path))
    assert main(words) == 2
    assert says in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_is_found_by_a_part_of_its_name(tmp_path, monkeypatch):
    monkeypatch.setenv("TRAINER_HOME", str(tmp_path))
    folder = make(tmp_path / "20300101-000000-rates", "0.1")
    assert sweeps.find("rates") == folder == sweeps.find(str(folder))
    assert sweeps.find("other") is None


@pytest.mark.slow
def test_real_workers_share_a_queue_and_resume(tmp_path):
    words = [
        "data=quickstart", "data.max_rows=64", "job.batch_size_samples=8", "gateway=off", "name=sweep",
        "train.sample_rows=1", "--multirun", "job.learning_rate=1e-3,1e-2", "job.max_context_length=null,8",
    ]  # fmt: skip
    environment = {**os.environ, "TRAINER_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    run = [sys.executable, "-m", "trainer"]
    first = subprocess.run(
        [*run, *words, "--max-runs", "2"], env=environment, capture_output=True, text=True, check=False
    )
    assert first.returncode == sweeps.EXIT_PAUSED, first.stdout + first.stderr
    folder = next(path.parent for path in tmp_path.glob(f"*/{sweeps.SWEEP}"))
    assert states(folder) == ["done", "failed", "not started (budget)", "not started (budget)"]
    more = [*run, "resume", "sweep", "--max-runs", "4", "--jobs", "2"]
    second = subprocess.run(more, env=environment, capture_output=True, text=True, check=False)
    assert second.returncode == sweeps.EXIT_FAILED, second.stdout + second.stderr
    assert states(folder) == ["done", "failed", "done", "failed"]
    assert "overlong" in Sweep.load(folder).members[1].message
    best = Sweep.load(folder).members[Sweep.load(folder).best or 0]
    assert best.number == 2 and best.result.held_out is not None and best.result.tokens == 954
    assert "2 *" in second.stdout and (folder / "sweep.html").exists()
    assert (folder / "2" / sweeping.WORKER_LOG).exists() and not (folder / "0" / sweeping.WORKER_LOG).exists()
    assert json.loads((folder / "2" / "confession.json").read_text())["lines"]
