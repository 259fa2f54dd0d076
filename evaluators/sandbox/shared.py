"""The one-call form: `run(source, entry, rows, limits)`, over one pool that this process keeps warm."""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from evaluators.protocol import Limits, Program, Result
from evaluators.sandbox.pool import Sandbox

_FILE = "evaluator.py"
_lock = threading.Lock()
_pool: list[Sandbox] = []


def run(source: str, entry: str, rows: Sequence[Mapping[str, Any]], limits: Limits | None = None) -> list[Result]:
    """Score `rows` with the function `entry` of one Python file, each row in a process of its own; one result a row.

    The function gets the row's fields as keyword arguments, those that it takes; a first parameter that is no field
    (`row`) gets the whole row. It returns a number, `{"score": ...}`, `(score, metrics)` or an object with `score`.
    Nothing that the source does raises here: every row ends with a status. Raises `SandboxRefused` when this machine
    gives no fence, `TypeError` or `ValueError` for a row that is not JSON, `TypeError` for a source that is no text.

        run("def length(answer): return len(answer) / 10", "length", [{"answer": "ab"}])[0].score.score  # 0.2
    """
    for name, value in (("source", source), ("entry", entry)):
        if not isinstance(value, str):
            raise TypeError(f"{name} is {type(value).__name__}, not a text")
    program = Program({_FILE: source.encode("utf-8", "surrogatepass")}, f"{_FILE}::{entry}")
    return shared_pool().evaluate(program, list(rows), limits=limits or Limits.snippet())


def shared_pool() -> Sandbox:
    """The pool behind `run` and `run_code`; made at the first use, closed when this process ends."""
    with _lock:
        if not _pool:
            _pool.append(Sandbox())
        return _pool[0]


def _close() -> None:
    for one in _pool:
        one.close()


def _renew_lock() -> None:
    """In a forked process: another thread of the parent may have held it. The pool begins anew by itself."""
    global _lock  # noqa: PLW0603
    _lock = threading.Lock()


atexit.register(_close)
os.register_at_fork(after_in_child=_renew_lock)
