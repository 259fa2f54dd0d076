"""List the runs in TRAINER_HOME (./outputs): state, progress, loss and model."""

from __future__ import annotations

import argparse

from rich.console import Console
from rich.table import Table

from trainer import history
from trainer.errors import UsageError
from trainer.runs import find_runs, home


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None."""


def run(options: argparse.Namespace) -> int:
    """Print one line per run, oldest first."""
    folders = find_runs(home())
    if not folders:
        print(f"no runs in {home()} yet; python -m trainer starts the quick start")
        return 0
    table = Table("run", "kind", "state", "done", "step", "loss", "held-out loss", "model", box=None, pad_edge=False)
    for folder in folders:
        try:
            one = history.read(folder)
        except UsageError as error:
            table.add_row(folder.name, "?", str(error))
            continue
        model = one.model["id"] if one.model else ""
        table.add_row(
            str(folder.relative_to(home())), one.spec.kind, one.words, f"{one.percent} %", _number(one.metrics, "step"),
            _number(one.metrics, "loss"), _number(one.evaluation, "eval/loss"), model,
        )  # fmt: skip
    Console(soft_wrap=True, highlight=False).print(table)
    return 0


def _number(values: dict[str, float], name: str) -> str:
    value = values.get(name)
    return "" if value is None else str(value) if isinstance(value, int) else f"{value:.4f}"
