"""Tell the gateway what it has not heard yet: of one run, or of all runs in TRAINER_HOME."""

from __future__ import annotations

import argparse
from pathlib import Path

from trainer import history
from trainer.commands.telling import Teller
from trainer.runs import find_runs, home


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The run."""
    parser.add_argument("run", nargs="?", help="a folder, an id or part of it; default: all runs")


def run(options: argparse.Namespace) -> int:
    """Drain the outboxes and show what gateways refused for good; 1 when something could not be told."""
    folders = [history.find(options.run)] if options.run else find_runs(home())
    return max([_tell(folder) for folder in folders], default=0)


def _tell(folder: Path) -> int:
    one = history.read(folder)
    if one.spec.gateway.kind == "off":
        print(f"{one.spec.id}: gateway=off, there is nobody to tell")
        return 0
    teller = Teller(one.spec.gateway)
    teller.follow(one.spec, folder)
    problems = teller.finish()
    print(f"{one.spec.id}: {'; '.join(problems) or 'the gateway knows all'}")
    for line in history.parked(folder):
        print(f"  set aside   {line}")
    return 1 if problems else 0
