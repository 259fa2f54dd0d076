"""What an evaluation is: rows in, one `Result` a row out; the words that every evaluator, sandbox and caller shares.

The one decision: every row ends with exactly one `Status`, and only `ok` carries a score. A status is never turned into
a number: whoever trains leaves such rows out of the loss and of the group's statistics, and counts them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

MAX_INVALID_FRACTION = 0.2  # above it a job pauses with the histogram by status

_LIMITS: dict[str, tuple[float, float]] = {  # least and most of each of `Limits`
    "wall_seconds": (0, 86_400),
    "cpu_seconds": (0, 86_400),
    "memory_bytes": (16 << 20, 1 << 46),
    "processes": (1, 1 << 15),
    "descriptors": (16, 1 << 16),
    "scratch_bytes": (4096, 1 << 40),  # 0 would be no limit at all
    "scratch_inodes": (1, 1 << 31),
    "result_bytes": (64, 1 << 30),
    "stdout_kept_bytes": (0, 1 << 24),
    "stdout_bytes": (0, 1 << 30),
    "host_calls": (0, 1 << 20),
}


class Status(StrEnum):
    """How one row ended."""

    OK = "ok"
    ERROR = "error"  # the evaluator raised
    TIMEOUT = "timeout"  # wall or CPU limit
    OOM = "oom"  # memory limit
    PIDS = "pids"  # limit of processes and threads
    CRASH = "crash"  # a signal
    NO_RESULT = "no_result"  # it ended without a result
    BAD_RESULT = "bad_result"  # a result that is not one: NaN, out of range, not JSON, too deep, wrong count
    OUTPUT_FLOOD = "output_flood"  # printed too much
    RESULT_FLOOD = "result_flood"  # returned too much
    LOAD_ERROR = "load_error"  # does not compile, or its entry is missing
    INFRA_ERROR = "infra_error"  # ours: the sandbox died; retried elsewhere first
    INVALID = "invalid"  # the evaluator says that its score does not count


class Tier(StrEnum):
    """What stands between an evaluator and the host; the strongest first."""

    STRONG = "strong"  # a kernel of its own
    STANDARD = "standard"  # namespaces, seccomp, Landlock where present
    LANDLOCK = "landlock"  # Landlock and seccomp without namespaces: weaker
    NONE = "none"  # rlimits only: refused unless the operator allows it


class Isolation(StrEnum):
    """What shares a process: nothing, one prompt's rows, or a whole batch."""

    ROW = "row"
    GROUP = "group"
    BATCH = "batch"


@dataclass(frozen=True)
class Metric:
    """One named part of a score."""

    score: float
    is_score_valid: bool = True
    reason: str = ""


@dataclass(frozen=True)
class StepOutput:
    """The reward of one step of a rollout of several turns."""

    step_index: int
    base_reward: float
    terminated: bool = False


@dataclass(frozen=True)
class Score:
    """What an evaluator says of one row. `score` is finite; 0 to 1 by convention, which is not enforced."""

    score: float
    is_score_valid: bool = True
    reason: str = ""
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    step_outputs: tuple[StepOutput, ...] = ()


@dataclass(frozen=True)
class Limits:
    """What one evaluation may use. `snippet()` and `bundle()` are the defaults of the two sizes of evaluator.

    Raises `ValueError` for what is no number, or none that a jail can be built with.
    """

    wall_seconds: float = 2.0
    cpu_seconds: float = 2.0
    memory_bytes: int = 512 << 20
    processes: int = 24  # and threads
    descriptors: int = 64
    scratch_bytes: int = 8 << 20
    scratch_inodes: int = 1024
    result_bytes: int = 64 << 10
    stdout_kept_bytes: int = 64 << 10
    stdout_bytes: int = 512 << 10  # printed beyond it: output_flood
    host_calls: int = 0  # questions to the host's broker that a row may ask; only where one serves

    def __post_init__(self) -> None:
        for name, (least, most) in _LIMITS.items():
            value = getattr(self, name)
            kinds = int | float if name.endswith("_seconds") else int
            if isinstance(value, bool) or not isinstance(value, kinds) or not least <= value <= most:
                what = "number" if name.endswith("_seconds") else "whole number"
                raise ValueError(f"Limits.{name} is {value!r}; allowed: a {what} from {least:,} to {most:,}")

    @classmethod
    def snippet(cls) -> Limits:
        """Of a function in a file or two."""
        return cls()

    @classmethod
    def bundle(cls) -> Limits:
        """Of an uploaded project with packages of its own; a row, at most 300 s."""
        return cls(wall_seconds=30.0, cpu_seconds=30.0, memory_bytes=2 << 30, scratch_bytes=64 << 20)


@dataclass(frozen=True)
class Program:
    """One version of an evaluator: its files, and where it begins.

    files: relative path -> content. entry: `path::function`. python: interpreter of its prepared environment (None = a
    bare one). environment: further variables, no secrets among them. readable: folders of the host that it may read.
    """

    files: Mapping[str, bytes]
    entry: str
    python: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    readable: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """sha256 over everything that may change a score, in hex."""
        digest = hashlib.sha256()
        parts = [self.entry, self.python or "", *self.readable]
        parts += [f"{key}={value}" for key, value in sorted(self.environment.items())]
        for part in parts:
            text = part.encode("utf-8", "surrogatepass")
            digest.update(len(text).to_bytes(8, "big") + text)
        for path, content in sorted(self.files.items()):
            digest.update(len(path.encode()).to_bytes(8, "big") + path.encode())
            digest.update(len(content).to_bytes(8, "big") + content)
        return digest.hexdigest()


@dataclass(frozen=True)
class Result:
    """How one row ended. `score` is set if and only if the status is ok (or invalid, where it is the one disowned).

    message: why, at most 300 characters. seconds: wall. stdout: what was kept of the printed text. tier and isolation:
    under which fence. attempts: more than 1 after infra_error.
    """

    status: Status
    score: Score | None = None
    message: str = ""
    seconds: float = 0.0
    stdout: str = ""
    tier: Tier = Tier.STANDARD
    isolation: Isolation = Isolation.ROW
    attempts: int = 1
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """True when the score counts."""
        return self.status is Status.OK
