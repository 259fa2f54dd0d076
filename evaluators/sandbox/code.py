"""The nested, lower-trust runner: a program that a *model* wrote, apart from whatever judges it.

The one decision: such code runs in a jail of its own that holds nothing but it and its input, no tests, no expected
answers, no evaluator; each run is a process of its own. Whoever judges sees its output and exit status, nothing else.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from evaluators.protocol import Limits, Program, Status, Tier
from evaluators.sandbox.jail import Raw
from evaluators.sandbox.pool import Sandbox
from evaluators.sandbox.shared import shared_pool
from evaluators.sandbox.verdict import ended
from evaluators.sandbox.wire import OUT_OF_MEMORY

_NOTHING = Program({}, "answer::main")


@dataclass(frozen=True)
class CodeResult:
    """How a program ended.

    status: ok = exit status 0, error = another one, else as for evaluators. exit_status: None when it did not exit by
    itself. stdout, stderr: what was kept, at most `Limits.stdout_kept_bytes` each. seconds: wall.
    """

    status: Status
    exit_status: int | None
    stdout: str
    stderr: str
    seconds: float = 0.0
    message: str = ""
    tier: Tier = Tier.STANDARD

    @property
    def ok(self) -> bool:
        """True when it ended by itself with exit status 0."""
        return self.status is Status.OK


def run_code(code: str, stdin: str = "", limits: Limits | None = None, *, sandbox: Sandbox | None = None) -> CodeResult:
    """Run `code` as a Python program with `stdin` as its standard input. Nothing that it does raises here.

    sandbox: the pool to use (None = the one this process shares). Raises `SandboxRefused` where there is no fence.
    """
    sandbox = sandbox or shared_pool()
    limits = limits or Limits.snippet()
    texts = [(text.encode("utf-8", "replace"), 0) for text in (code, stdin)]
    raw = sandbox.run_raw(_NOTHING, texts, limits=limits, mode="code")
    if raw is None:
        return CodeResult(Status.INFRA_ERROR, None, "", "", message="no jail could run it", tier=sandbox.tier)
    return _result(raw, limits, sandbox.tier)


def _result(raw: Raw, limits: Limits, tier: Tier) -> CodeResult:
    stdout, stderr = (text.decode("utf-8", "replace") for text in (raw.stdout, raw.stderr))
    verdict = ended(raw, 1, limits)
    if verdict is not None:
        return CodeResult(verdict.status, None, stdout, stderr, raw.seconds, verdict.message, tier)
    code = os.waitstatus_to_exitcode(raw.wait_status)
    if code == OUT_OF_MEMORY:
        return CodeResult(Status.OOM, code, stdout, stderr, raw.seconds, "out of memory", tier)
    status = Status.ERROR if code else Status.OK
    return CodeResult(status, code, stdout, stderr, raw.seconds, f"exit status {code}" if code else "", tier)
