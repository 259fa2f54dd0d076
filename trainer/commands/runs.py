"""List the runs in TRAINER_HOME (./outputs): state, progress, loss and model."""

from __future__ import annotations

import argparse

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
    lines = [("run", "kind", "state", "done", "step", "loss", "held-out loss", "model")]
    for folder in folders:
        name = str(folder.relative_to(home()))
        try:
            one = history.read(folder)
        except UsageError as error:
            lines.append((name, "?", str(error), "", "", "", "", ""))
            continue
        lines.append(
            (name, one.spec.kind, one.words, f"{one.percent} %", _number(one.metrics, "step"),
             _number(one.metrics, "loss"), _number(one.evaluation, "eval/loss"), one.model["id"] if one.model else "")
        )  # fmt: skip
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    for line in lines:
        print("  ".join(word.ljust(width) for word, width in zip(line, widths, strict=True)).rstrip())
    return 0


def _number(values: dict[str, float], name: str) -> str:
    value = values.get(name)
    return "" if value is None else str(value) if isinstance(value, int) else f"{value:.4f}"
