"""Show one run: its job, ledger totals, numbers, checkpoints, model, and answers before and after."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from trainer import history
from trainer.history import History, in_short
from trainer.report_page import write_report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The run, and whether its page is wanted."""
    parser.add_argument("run", nargs="?", default="last", help="a folder, an id or part of it; default: the last run")
    parser.add_argument("--report", action="store_true", help="write the run's report.html again and print its path")


def run(options: argparse.Namespace) -> int:
    """Print what the run's files tell."""
    folder = history.find(options.run)
    if options.report:
        print(write_report(folder))
        return 0
    one = history.read(folder)
    print(f"{one.spec.id}  {one.words}  {one.percent} %" + (f"\n  {one.message}" if one.message else ""))
    print(f"  folder      {one.folder}")
    for name, value in one.spec.job.wire().items():
        print(f"  {name:<28}{value}")
    _ledger(one.folder)
    for title, values in (("last step", one.metrics), ("last evaluation", one.evaluation)):
        if values:
            print(f"  {title}: " + ", ".join(f"{name} {value:.6g}" for name, value in values.items()))
    for body in one.checkpoints:
        print(f"  checkpoint  {body['path']}" + ("  promotable" if body["promotable"] else ""))
    if one.model:
        print(f"  model       {one.model['id']} ({one.model['kind']})")
    for line in history.parked(one.folder):
        print(f"  refused by the gateway: {line}")
    _answers(one)
    return 0


def _ledger(folder: Path) -> None:
    for path in sorted(folder.glob("ledger*.json")):
        for group, counts in _read(path).get("totals", {}).items():
            print(f"  {path.stem} {group}: " + ", ".join(f"{key} {value}" for key, value in counts.items()))


def _read(path: Path) -> dict[str, Any]:
    """A file of the run; where it was damaged that is said, and the rest is shown."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        print(f"  {path.name}: cannot be read ({in_short(error)})")
        return {}
    return found if isinstance(found, dict) else {}


def _answers(one: History) -> None:
    path = one.folder / "samples.json"
    if not path.exists():
        return
    samples: dict[str, list[dict[str, Any]]] = _read(path)
    for when, answers in samples.items():
        if answers and one.spec.train.score_rows:
            share = sum(answer["exact"] for answer in answers) / len(answers)
            print(f"  exact match {when}: {share:.1%} of {len(answers)} held-out rows")
    after = samples.get("after") or samples.get("before") or []
    for position, answer in enumerate(after[: max(1, one.spec.train.sample_rows)]):
        before = samples["before"][position]["given"]
        print(f"  {answer['asked']!r} -> {before!r} before, {answer['given']!r} after (want {answer['expected']!r})")
