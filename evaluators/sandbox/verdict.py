"""From a jail's raw report to one status per row, by the host's own code.

The one decision: the most specific cause wins, and what cannot be read exactly is never a score. A report without the
end mark says nothing about any of its rows but for why the process ended.
"""

from __future__ import annotations

import math
import os
import signal
from dataclasses import dataclass, field
from typing import Any

from evaluators.protocol import Limits, Score, Status
from evaluators.sandbox.jail import Raw, whole_cpu_seconds
from evaluators.sandbox.wire import (
    ACKNOWLEDGE,
    ACKNOWLEDGED,
    CANNOT_FORK,
    END_MARK,
    LATE,
    OUTPUT_FLOOD,
    RESULT_FLOOD,
)  # fmt: skip
from evaluators.scores import BadResult, decode, legible, parse

_MESSAGE = 300
_TOLD = {Status.ERROR, Status.OOM, Status.PIDS, Status.LOAD_ERROR, Status.BAD_RESULT, Status.RESULT_FLOOD}
_CPU_SLACK = 0.2  # seconds; what the kernel limits and what it reports are counted differently


@dataclass(frozen=True)
class Verdict:
    """How one row ended, before the pool adds where and how often."""

    status: Status
    score: Score | None = None
    message: str = ""
    details: dict[str, Any] = field(default_factory=dict)


def judge(raw: Raw, rows: int, limits: Limits) -> list[Verdict]:
    """One verdict for each row. When the process was ended, all rows of it get the same one."""
    early = ended(raw, rows, limits)
    if early is None and not finished(raw):
        code = os.waitstatus_to_exitcode(raw.wait_status)
        said = f"ended with exit status {code} without a result"
        early = Verdict(Status.NO_RESULT, message=said, details={"exit_status": code})
    if early is not None:
        return [early] * rows
    lines = _lines(raw, rows)
    if lines is None:
        return [Verdict(Status.BAD_RESULT, message="the result channel carried something else")] * rows
    return [_row(status, text, limits) for status, text in lines]


def finished(raw: Raw) -> bool:
    """True when every row of the process was answered and the end mark came."""
    return raw.result.endswith(raw.nonce + END_MARK) and not raw.flags & (LATE | OUTPUT_FLOOD | RESULT_FLOOD)


def ended(raw: Raw, rows: int, limits: Limits) -> Verdict | None:
    """Why the process was ended; None when it exited by itself."""
    if raw.out_of_memory:
        return Verdict(Status.OOM, message=f"more than {limits.memory_bytes >> 20} MiB of memory")
    if raw.flags & CANNOT_FORK or not raw.flags & ACKNOWLEDGED:
        return Verdict(Status.INFRA_ERROR, message="the jail could not start an evaluation")
    passed = {
        OUTPUT_FLOOD: Verdict(Status.OUTPUT_FLOOD, message=f"printed more than {limits.stdout_bytes:,} bytes"),
        RESULT_FLOOD: Verdict(Status.RESULT_FLOOD, message=f"returned more than {limits.result_bytes:,} bytes"),
        LATE: Verdict(Status.TIMEOUT, message=f"longer than {limits.wall_seconds:g} s"),
    }
    for flag, verdict in passed.items():
        if raw.flags & flag:
            return verdict
    code = os.waitstatus_to_exitcode(raw.wait_status)
    if code < 0:
        return _signalled(-code, raw, rows, limits)
    return None


def _signalled(number: int, raw: Raw, rows: int, limits: Limits) -> Verdict:
    allowed = whole_cpu_seconds(limits, rows)
    used: dict[int, float] = {
        signal.SIGXCPU: allowed / 2,
        signal.SIGKILL: allowed - _CPU_SLACK,
    }  # anybody can send these
    if raw.cpu_seconds >= used.get(number, math.inf):
        return Verdict(Status.TIMEOUT, message=f"more than {limits.cpu_seconds:g} s of CPU time")
    name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
    return Verdict(Status.CRASH, message=f"ended by {name}", details={"signal": number})


def _lines(raw: Raw, rows: int) -> list[tuple[Status, bytes]] | None:
    """Status and text of each row, if the bytes are exactly what the child writes."""
    lines = raw.result.split(b"\n")
    if len(lines) != rows + 2 or lines[-1] or lines[-2] + b"\n" != raw.nonce + END_MARK or lines[0][:1] != ACKNOWLEDGE:
        return None
    lines[0] = lines[0][1:]
    found: list[tuple[Status, bytes]] = []
    for place, line in enumerate(lines[:rows]):
        words = line.split(b" ", 3)
        if len(words) != 4 or words[0] != raw.nonce or words[1] != b"%d" % place or words[2] not in _WORDS:
            return None
        found.append((_WORDS[words[2]], words[3]))
    return found


def _row(status: Status, text: bytes, limits: Limits) -> Verdict:
    try:
        if status is Status.OK:
            score = parse(text, max_bytes=limits.result_bytes)
            reason = score.reason[:_MESSAGE]
            return Verdict(Status.OK, score) if score.is_score_valid else Verdict(Status.INVALID, score, reason)
        told = decode(text, max_bytes=limits.result_bytes)
    except BadResult as error:
        return Verdict(Status.BAD_RESULT, message=legible(str(error)[:_MESSAGE]))
    if not isinstance(told, dict):
        return Verdict(Status.BAD_RESULT, message="the result channel carried something else")
    message = legible(str(told.get("message") or _DEFAULTS.get(status, ""))[:_MESSAGE])
    details = {"type": legible(str(told["type"])[:100])} if "type" in told else {}
    return Verdict(status, message=message, details=details)


_WORDS = {status.value.encode(): status for status in (Status.OK, *_TOLD)}
_DEFAULTS = {Status.OOM: "out of memory", Status.RESULT_FLOOD: "the result is too large"}
