"""A program somebody else wrote, as an evaluator: rows through the sandbox, with the stand-in packages where wanted."""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field

from evaluators import standin
from evaluators.kinds.base import Runner
from evaluators.protocol import Isolation, Limits, Program, Result
from evaluators.rows import Row

_NAMES = ("eval-protocol", "eval_protocol", "reward-kit", "reward_kit")
_IMPORTS = re.compile(rb"\b(?:eval_protocol|reward_kit)\b")


@dataclass(frozen=True)
class ProgramEvaluator:
    """Rows through one program. isolation: GROUP only for functions that keep no state; it is audited."""

    program: Program
    runner: Runner
    limits: Limits = field(default_factory=Limits.snippet)
    isolation: Isolation = Isolation.ROW

    def evaluate(self, rows: Sequence[Row], *, groups: Sequence[Hashable] | None = None) -> list[Result]:
        """One result a row."""
        numbers = None if groups is None else _numbered(groups)
        return self.runner.evaluate(
            self.program, list(rows), limits=self.limits, isolation=self.isolation, groups=numbers
        )


def with_standin(files: Mapping[str, bytes], requirements: str = "") -> dict[str, bytes]:
    """The files, and the stand-in for eval-protocol and reward-kit where they import it and do not require it.

    Files of the program's own go first.
    """
    if requires_real(requirements) or not any(_IMPORTS.search(content) for content in files.values()):
        return dict(files)
    return {**standin.files(), **files}


def requires_real(requirements: str) -> bool:
    """Whether requirements.txt names eval-protocol or reward-kit."""
    names = {re.split(r"[\s\[<>=!~;@#(]", line.strip(), maxsplit=1)[0].lower() for line in requirements.splitlines()}
    return bool(names.intersection(_NAMES))


def entry_of(entry_point: str, files: Mapping[str, bytes]) -> str:
    """`path::function` from what clients send: a path or a dotted module, with or without `.py`.

    Raises `ValueError` naming what is wrong.
    """
    target, _, function = entry_point.partition("::")
    function = function.partition("[")[0]  # pytest's parameters
    if not target or not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", function):
        raise ValueError(f"entryPoint {entry_point!r} is not path::function, such as test_score.py::test_score")
    target = target.removeprefix("./")
    tries = [target, f"{target}.py", target.replace(".", "/") + ".py"]
    found = next((path for path in tries if path in files), None)
    if found is None:
        scripts = ", ".join(sorted(path for path in files if path.endswith(".py"))[:20])
        raise ValueError(
            f"entryPoint {entry_point!r}: there is no file {target!r}; there are {scripts or 'no .py files'}"
        )
    return f"{found}::{function}"


def _numbered(groups: Sequence[Hashable]) -> list[int]:
    numbers: dict[Hashable, int] = {}
    return [numbers.setdefault(group, len(numbers)) for group in groups]
