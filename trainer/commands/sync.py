"""Tell the gateway what it has not heard yet: of one run, or of all runs in TRAINER_HOME."""

from __future__ import annotations

import argparse

from trainer import history
from trainer.commands.telling import Teller
from trainer.runs import find_runs, home


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The run."""
    parser.add_argument("run", nargs="?", help="a folder, an id or part of it; default: all runs")


def run(options: argparse.Namespace) -> int:
    """Drain the outboxes; 1 when something could not be told."""
    folders = [history.find(options.run)] if options.run else find_runs(home())
    failed = 0
    for folder in folders:
        one = history.read(folder)
        teller = Teller(one.spec.gateway)
        teller.follow(one.spec, folder)
        problems = teller.finish()
        failed += bool(problems)
        print(f"{one.spec.id}: {'; '.join(problems) or 'the gateway knows all'}")
    return 1 if failed else 0
