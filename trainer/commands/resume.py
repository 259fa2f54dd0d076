"""Go on with a paused, failed or interrupted run from its newest whole checkpoint, in the same folder."""

from __future__ import annotations

import argparse

from trainer import history
from trainer.commands.telling import Teller
from trainer.commands.train import attend
from trainer.errors import UsageError
from trainer.jobs import JobState


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The run."""
    parser.add_argument("run", nargs="?", default="last", help="a folder, an id or part of it; default: the last run")


def run(options: argparse.Namespace) -> int:
    """Start the run's worker again. A key that was typed (W&B) must be in the environment this time."""
    one = history.read(history.find(options.run))
    if history.held(one.folder):
        raise UsageError(f"{one.spec.id}: a worker is at work on it")
    if one.state in (JobState.COMPLETED, JobState.EARLY_STOPPED):
        raise UsageError(f"{one.spec.id}: is {one.words}; there is nothing to go on with")
    return attend(one.spec, one.folder, Teller(one.spec.gateway), environment={})
