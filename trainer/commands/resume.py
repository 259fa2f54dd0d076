"""Go on with a paused, failed or interrupted run from its newest whole checkpoint, or with the queue of a sweep."""

from __future__ import annotations

import argparse

from trainer import history, sweeps
from trainer.commands import sweeping
from trainer.commands.telling import Teller
from trainer.commands.train import attend
from trainer.errors import UsageError
from trainer.jobs import JobState


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The run or the sweep."""
    parser.add_argument("run", nargs="?", default="last", help="a folder, an id or part of it; default: the last run")
    sweeping.add_limits(parser)
    parser.add_argument("--retry-failed", action="store_true", help="of a sweep: go on with failed members too")


def run(options: argparse.Namespace) -> int:
    """Start the run's worker again. A key that was typed (W&B) must be in the environment this time."""
    sweep = sweeps.find(options.run)
    sweeping.check_limits(options, sweeping=sweep is not None)
    if sweep is not None:
        return sweeping.resume_sweep(sweep, options)
    if options.retry_failed:
        raise UsageError(f"--retry-failed: is for sweeps, and {options.run!r} names none; a failed run needs no flag")
    one = history.read(history.find(options.run))
    if history.held(one.folder):
        raise UsageError(f"{one.spec.id}: a worker is at work on it")
    if one.state in (JobState.COMPLETED, JobState.EARLY_STOPPED):
        raise UsageError(f"{one.spec.id}: is {one.words}; there is nothing to go on with")
    return attend(one.spec, one.folder, Teller(one.spec.gateway), environment={})
