"""Secrets by name, on the host's side: who may use which, how often, and never in a jail by default.

The one decision: a value leaves the broker only towards host code that spends it at once (a judge's key), or into the
environment of an evaluator for which the operator granted that very name. Each job has a budget of look-ups. Values
are struck out of any text by `redact`, and no `repr` shows them.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Collection, Iterable

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,127}")
_SHORTEST_STRUCK = 4  # shorter values would strike out half of any text
_KEPT_BACK = ("LD_", "PYTHON", "PATH", "HOME", "EP_", "EVALUATOR_", "TRAINER_")  # names that change how a jail runs


class SecretRefused(RuntimeError):
    """The secret is not given; the message names it, never its value."""


class Broker:
    """Secrets of one job.

    lookup: name -> value, or None where there is none. usable: names that host-side kinds may spend. granted: names
    that the operator lets into the evaluator's environment. calls: look-ups in all; beyond them every one is refused.
    """

    def __init__(self, lookup: Callable[[str], str | None], *, usable: Collection[str] = (),
                 granted: Collection[str] = (), calls: int = 10_000) -> None:  # fmt: skip
        for name in (*usable, *granted):
            _check_name(name)
        for name in granted:
            if name.startswith(_KEPT_BACK):
                raise ValueError(f"the secret {name!r} cannot be granted: the name steers the sandbox itself")
        if calls < 1:
            raise ValueError(f"calls={calls} is no budget; give at least 1")
        self._lookup, self._usable, self._granted = lookup, frozenset(usable), frozenset(granted)
        self._calls, self.used = calls, 0
        self._seen: set[str] = set()
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"Broker(usable={sorted(self._usable)}, granted={sorted(self._granted)}, used={self.used})"

    def spend(self, name: str) -> str:
        """The value, for host code that uses it at once. Raises `SecretRefused`."""
        if name not in self._usable:
            raise SecretRefused(f"the secret {name!r} is not among those this job may use ({_list(self._usable)})")
        return self._value(name)

    def environment(self, names: Iterable[str]) -> dict[str, str]:
        """The variables for an evaluator that asks for `names`. Raises `SecretRefused` for one that is not granted."""
        asked = list(names)
        for name in asked:
            if name not in self._granted:
                raise SecretRefused(
                    f"the secret {name!r} is not granted to this evaluator; an operator grants it by name "
                    f"(granted: {_list(self._granted)})"
                )
        return {name: self._value(name) for name in asked}

    def redact(self, text: str) -> str:
        """The text without any value that was given out."""
        with self._lock:
            seen = sorted(self._seen, key=len, reverse=True)
        for value in seen:
            text = text.replace(value, "[secret]")
        return text

    def _value(self, name: str) -> str:
        with self._lock:
            if self.used >= self._calls:
                raise SecretRefused(f"this job's {self._calls:,} look-ups of secrets are spent")
            self.used += 1
        value = self._lookup(name)
        if value is None or "\0" in value:
            raise SecretRefused(f"there is no secret {name!r}")
        if len(value) >= _SHORTEST_STRUCK:
            with self._lock:
                self._seen.add(value)
        return value


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name[:60]!r} is no name of a secret: letters, digits, _ and -, at most 128")


def _list(names: Collection[str]) -> str:
    return ", ".join(sorted(names)) or "none"
