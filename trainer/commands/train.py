"""Compose a job and run it on this machine.

Words are key=value overrides of the configuration in configs/ (job.epochs=2, model=qwen3_0_6b, data.train=rows.jsonl).
With no word at all: the quick start.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import signal
import tempfile
import threading
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

from trainer import history
from trainer.beside import beside
from trainer.commands import sweeping
from trainer.commands.places import Places
from trainer.commands.telling import Teller
from trainer.compose import Composed, compose
from trainer.errors import UsageError
from trainer.jobs import JobState
from trainer.launch import here
from trainer.launch.supervised import Supervised
from trainer.report_page import write_report
from trainer.runs import RunSpec, home, new_run_id


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Overrides and what to do with them."""
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="configuration to choose or override")
    parser.add_argument("--dry-run", action="store_true", help="read every row, print the batch arithmetic, stop")
    parser.add_argument("-m", "--multirun", action="store_true", help="one run for each combination of comma lists")
    sweeping.add_limits(parser)


def run(options: argparse.Namespace) -> int:
    """Run one job, or every job of a sweep; the exit status is the worker's, or the sweep's."""
    sweeping.check_limits(options, sweeping=options.multirun)
    if options.multirun:
        return _dry_sweep(options.overrides) if options.dry_run else sweeping.start_sweep(options)
    composed = compose(options.overrides)
    if options.dry_run:
        return _dry_run(composed)
    label = composed.name or f"{Path(composed.job.dataset).stem}-{composed.model.name.rsplit('/', 1)[-1]}"
    run_id = new_run_id(label)
    return start(composed, Path(composed.output_dir or home() / run_id).absolute(), run_id)


def start(composed: Composed, folder: Path, run_id: str) -> int:
    """Write the run's description, start its worker, tell the gateway while it trains; returns the exit status."""
    if (folder / "run.json").exists():
        raise UsageError(f"output_dir: {folder} holds a run already; resume it, or name another folder")
    for note in composed.notes:
        print(note)
    teller = Teller(composed.gateway)
    try:
        teller.client()  # a gateway that cannot be spoken to refuses the run before anything is written
        spec = composed.spec(run_id, Places(teller.client).inputs(composed), created=_now())
        describe(spec, folder)
    except UsageError:
        teller.finish()
        raise
    print(f"run {run_id} in {folder}")
    return attend(spec, folder, teller, environment=secrets(composed))


def describe(spec: RunSpec, folder: Path) -> None:
    """Write the run's description. Raises `UsageError` for a place where nothing can be written."""
    try:
        spec.save(folder)
    except OSError as error:
        raise UsageError(
            f"{folder}: no run can be written there ({error.strerror or error}); choose another place by TRAINER_HOME "
            "or output_dir"
        ) from error


def attend(spec: RunSpec, folder: Path, teller: Teller, *, environment: dict[str, str]) -> int:
    """Start the worker of a described run, again where it hangs, and stay until it ends and the gateway knows all."""
    worker = Supervised(folder, env=environment)
    with _signals_to(worker):
        teller.follow(spec, folder)
        status = worker.wait()
    problems = teller.finish()
    beside("report.html", lambda: write_report(folder))  # again: it may have died without a word
    _last_words(folder, problems)
    return status


def secrets(composed: Composed) -> dict[str, str]:
    """What the worker gets by environment alone."""
    config = composed.job.wandb_config
    return {"WANDB_API_KEY": config.api_key.get_secret_value()} if config and config.api_key else {}


def _dry_run(composed: Composed) -> int:
    for note in composed.notes:
        print(note)
    with Teller(composed.gateway) as teller:
        inputs = Places(teller.client).inputs(composed)
    with tempfile.TemporaryDirectory(prefix="trainer-dry-run-") as folder:
        composed.spec(new_run_id("dry-run"), inputs, created=_now()).save(Path(folder))
        return here.start(Path(folder), command=(*here.COMMAND, "--dry-run")).wait()


def _dry_sweep(overrides: Sequence[str]) -> int:
    members = sweeping.composed(overrides)
    worst = 0
    for number, composed in enumerate(members):
        print(f"\n[{number + 1}/{len(members)}] {' '.join(composed.overrides)}", flush=True)
        worst = max(worst, _dry_run(composed))
    return worst


class _signals_to:
    """Ctrl-C and SIGTERM reach the worker once, which saves and stops; this process waits for it."""

    def __init__(self, worker: Supervised) -> None:
        self.worker = worker
        self.before: dict[int, Any] = {}

    def __enter__(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self.before[number] = signal.signal(number, self._pass_on)

    def __exit__(self, *error: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        print("\nstopping: the worker finishes its step and saves (resume goes on from there)", flush=True)
        self.worker.terminate()


def _last_words(folder: Path, problems: list[str]) -> None:
    one = history.read(folder)
    for problem in problems:
        print(f"gateway: {problem}")
    if one.model and one.state.terminal and one.state is not JobState.FAILED:
        told = not problems and one.spec.gateway.kind != "off"
        name = one.model["id"] if told else _name_of(folder)
        if told:
            print(f"model    accounts/{one.spec.gateway.account}/models/{name} is READY in the gateway")
        example = _example(folder)
        prompt = f" {_quoted(example)}" if example else ""
        print(f"talk     python -m trainer chat {name}{prompt}")
    elif one.state is JobState.PAUSED or one.interrupted:
        print(f"go on    python -m trainer resume {_name_of(folder)}")


def _quoted(text: str) -> str:
    """A word as a shell takes it; in double quotes where no sign in it means anything to a shell."""
    return f'"{text}"' if re.fullmatch(r"[A-Za-z0-9 .,:?+=-]+", text) else shlex.quote(text)


def _name_of(folder: Path) -> str:
    """What `resume` and `chat` find the run by: its folder's name below the home folder, elsewhere its path."""
    return folder.name if folder.parent == home().absolute() else shlex.quote(str(folder))


def _example(folder: Path) -> str | None:
    path = folder / "samples.json"
    if not path.exists():
        return None
    answers = json.loads(path.read_text(encoding="utf-8")).get("after")
    return answers[0]["asked"] if answers and len(answers[0]["asked"]) <= 60 else None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
