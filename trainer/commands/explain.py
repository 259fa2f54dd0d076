"""Say what a job or a method trains: the objective with every constant, and how it differs from what others call so.

python -m trainer explain job=dpo job.loss_config.dpo.beta=0.2     of a job, as it would be trained
python -m trainer explain job=dpo objective=dpo@trl                of a job that trains by somebody else's definition
python -m trainer explain grpo                                     of a method
python -m trainer explain grpo@trl                                 of a method as somebody else defines it
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from trainer.compose import Composed, compose
from trainer.errors import UsageError
from trainer.presets import OBJECTIVES, Objective, differences, find_objective, peers


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to explain."""
    parser.add_argument("words", nargs="*", metavar="METHOD | key=value", help="a method, or a job's configuration")


def run(options: argparse.Namespace) -> int:
    """Print the objective; of every method by name where nothing was typed."""
    methods = [word for word in options.words if "=" not in word]
    if methods and len(options.words) > 1:
        raise UsageError(f"explain: {methods[0]!r} is a method; give one method, or only key=value words of a job")
    if not options.words:
        print("methods: " + ", ".join(OBJECTIVES))
        return 0
    if methods:
        return _method(methods[0])
    return _job(compose(options.words))


def _job(composed: Composed) -> int:
    """The job's expanded objective, and how it differs from what others train by its method's name."""
    objective = composed.objective
    method = str(objective.get("method", composed.kind)).lower()
    for note in composed.notes:
        print(note)
    print(f"{composed.kind} job, method {method}")
    _lines(objective)
    mine = Objective(str(objective["name"]), OBJECTIVES[method].divided_by, objective.get("constants", {})).expanded()
    _others(mine, {f"{method}@{who}": one for who, one in peers(method).items()})
    return 0


def _method(name: str) -> int:
    try:
        objective = find_objective(name)
    except ValueError as error:
        raise UsageError(str(error)) from error
    mine = objective.expanded()
    print(name + (f"  (read in {objective.read_in})" if objective.read_in else ""))
    _lines(mine)
    for remark in objective.also:
        print(f"  also                  {remark}")
    method, _, peer = name.partition("@")
    others = {method: OBJECTIVES[method]} if peer else {f"{method}@{who}": one for who, one in peers(method).items()}
    _others(mine, others)
    return 0


def _others(mine: Mapping[str, Any], others: Mapping[str, Objective]) -> None:
    """Line by line what `others` do otherwise; the words of an equation only where it is another loss."""
    for other, theirs in others.items():
        found = differences(mine, theirs.expanded())
        print(f"\nnot as {other}" if found or not theirs.exact else f"\nthe same constants and divisor as {other}")
        for key, (left, right) in found.items():
            if key not in ("equation", "sum over") or "loss" in found:
                print(f"  {key:<22}{_shown(left)}\n  {'':<22}there: {_shown(right)}")
        for remark in theirs.also:
            print(f"  {'':<22}there: {remark}")


def _lines(expanded: Mapping[str, Any]) -> None:
    for key, value in expanded.items():
        inner = value if isinstance(value, Mapping) else {}
        print(f"  {key:<22}{'' if inner else _shown(value)}".rstrip())
        for name, one in inner.items():
            print(f"    {name:<20}{_shown(one)}")


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
