"""Mathematical equality by sympy, for answers that `expressions.py` cannot decide; sympy runs in a jail only.

The one decision: it is an optional second opinion. Whatever `maths` finds equal stays equal; what it does not is asked
here, many rows in one process, since importing sympy takes most of a second. What is not decided in time is masked.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from evaluators.kinds.base import Runner, failed
from evaluators.protocol import Isolation, Limits, Program, Result, Status

_PACKAGES = ("sympy", "mpmath")
_IMPORT_SECONDS = 10.0  # beside the comparison's own, for the first row of a process on a busy machine
_SLACK_SECONDS = 1.0  # the alarm in the jail rings first
_FILES = {"main.py": "symbolic_jail.py", "expressions.py": "expressions.py"}


def program() -> Program:
    """What runs in the jail. Raises `ValueError` where sympy is not installed."""
    folders = [_folder(name) for name in _PACKAGES]
    here = Path(__file__).parent
    files = {name: (here / file).read_bytes() for name, file in _FILES.items()}
    paths = dict.fromkeys(str(folder.parent) for folder in folders)
    return Program(
        files, "main.py::score", environment={"PYTHONPATH": ":".join(paths)}, readable=tuple(map(str, folders))
    )


def decide(pairs: Sequence[tuple[str, list[str]]], runner: Runner, *, asked: Program, seconds: float) -> list[Result]:
    """For each (given, truths) whether one of the truths is equal: 1 or 0, or masked with why not.

    seconds: for one pair.
    """
    rows = [{"given": given, "truths": truths, "seconds": seconds} for given, truths in pairs]
    whole = seconds + _IMPORT_SECONDS + _SLACK_SECONDS
    limits = Limits(wall_seconds=whole, cpu_seconds=whole)
    results = runner.evaluate(asked, rows, limits=limits, isolation=Isolation.BATCH)
    return [_told(result, seconds) for result in results]


def _told(result: Result, seconds: float) -> Result:
    if result.status in (Status.INVALID, Status.TIMEOUT):
        return failed(Status.TIMEOUT, f"sympy did not decide within {seconds:g} s", seconds=result.seconds)
    return result


def _folder(name: str) -> Path:
    """Where an installed package lies, found without importing it."""
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        raise ValueError(
            f"symbolic='sympy' needs the package {name}, which is not installed here: pip install 'sympy>=1.13', or "
            "leave symbolic='off'"
        )
    return Path(spec.origin).parent
