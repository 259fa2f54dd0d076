"""A sandbox for code that is assumed to be hostile: evaluators, and programs that a model wrote.

`run` scores rows with a function in one call; `Sandbox` keeps jails warm; `run_code` runs a model's program;
`describe` and `self_check` say what this machine gives. `docs/security.md` says what is and is not defended. Names are
loaded when they are first used, so that the programs which build a jail start without the host's half.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evaluators.sandbox.code import CodeResult, run_code
    from evaluators.sandbox.interpreter import shares_badly
    from evaluators.sandbox.machine import SandboxRefused, describe
    from evaluators.sandbox.pool import Sandbox
    from evaluators.sandbox.selfcheck import self_check
    from evaluators.sandbox.shared import run

__all__ = ["CodeResult", "Sandbox", "SandboxRefused", "describe", "run", "run_code", "self_check", "shares_badly"]

_HOMES = {
    "CodeResult": "code", "run_code": "code", "shares_badly": "interpreter", "SandboxRefused": "machine",
    "describe": "machine", "Sandbox": "pool", "self_check": "selfcheck", "run": "shared",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
