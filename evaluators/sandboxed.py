"""The sandbox as evaluators see it (`kinds.base.Runner`), opened when it is first needed and closed at the end."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from evaluators.judge_desk import Desk
from evaluators.protocol import Isolation, Limits, Program, Result
from evaluators.sandbox import CodeResult, Sandbox, run_code


class SandboxRunner:
    """A `Runner` over one `Sandbox`. tier and allow_none: as there. desk: who answers what evaluators ask a judge."""

    def __init__(
        self, tier: str = "auto", *, workers: int | None = None, allow_none: bool = False, desk: Desk | None = None
    ) -> None:
        self._tier, self._workers, self._allow_none = tier, workers, allow_none
        self._desk = desk
        self._opened: Sandbox | None = None

    @property
    def sandbox(self) -> Sandbox:
        """The sandbox itself. Raises `SandboxRefused` where this machine gives none."""
        if self._opened is None:
            self._opened = Sandbox(self._tier, self._workers, self._allow_none)
        return self._opened

    def asking(self, desk: Desk | None) -> SandboxRunner:
        """Another over the same sandbox, whose evaluators ask `desk`; whoever made the sandbox closes it."""
        other = SandboxRunner(self._tier, workers=self._workers, allow_none=self._allow_none, desk=desk)
        other._opened = self.sandbox
        return other

    def evaluate(
        self,
        program: Program,
        rows: Sequence[Any],
        *,
        limits: Limits,
        isolation: Isolation = Isolation.ROW,
        groups: Sequence[int] | None = None,
    ) -> list[Result]:
        """Rows through a program."""
        return self.sandbox.evaluate(program, rows, limits=limits, isolation=isolation, groups=groups, desk=self._desk)

    def run_code(self, code: str, stdin: str, limits: Limits) -> CodeResult:
        """Code that the model wrote."""
        return run_code(code, stdin, limits, sandbox=self.sandbox)

    def close(self) -> None:
        """End every jail."""
        if self._opened is not None:
            self._opened.close()
            self._opened = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
