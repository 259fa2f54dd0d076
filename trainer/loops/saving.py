"""Checkpoints as the loop wants them: written now or in the background, reported, and the old ones let go of.

In the background the training thread writes the files (the snapshot: they hold this very moment, though only in the
page cache), and a thread digests, fsyncs and names them meanwhile; at most one is under way, the next waits for it.
A checkpoint that fails in the background is reported and the run goes on without it; the last one is waited for, and
its failure is the run's, as a full disk always is. No number of the run depends on which way it is.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trainer import checkpoints
from trainer.checkpoints import Checkpoint
from trainer.disk import LOCAL_DISK, Disk, DiskFull
from trainer.finite import NotFinite, check_folder
from trainer.report import Reporter


@dataclass(frozen=True, eq=False)
class _UnderWay:
    step: int
    protect: set[int]
    done: Future[Checkpoint]


class Saver:
    """Writes the checkpoints of one run below `root`. `last` is the newest that is complete, of cursor `cursor`."""

    def __init__(
        self, root: Path, *, lora: bool, keep: int, background: bool, reporter: Reporter, disk: Disk = LOCAL_DISK
    ) -> None:
        self.root, self.lora, self.keep, self.reporter, self.disk = root, lora, keep, reporter, disk
        self.last: Checkpoint | None = None
        self.cursor: Any = None
        self._pool = ThreadPoolExecutor(1, "checkpoint") if background else None
        self._under_way: _UnderWay | None = None

    def save(self, cursor: Any, *, metrics_bytes: int, fill: Callable[[Path, Path], bool], protect: set[int]) -> None:
        """Write a checkpoint of this very moment; `fill(weights, state)` says whether it may be promoted.

        Raises `DiskFull`, and `NotFinite` for weights that are not; in the background, those of an earlier one too.
        """
        self.wait()
        promotable: list[bool] = []

        def filled(weights: Path, state: Path) -> None:
            promotable.append(fill(weights, state))

        stands = {"loop": asdict(cursor), "metrics_bytes": metrics_bytes}
        step: int = cursor.step

        def complete() -> Checkpoint:
            try:
                check_folder(temporary / "weights")
            except NotFinite:
                self.disk.remove_tree(temporary)
                raise
            return checkpoints.complete(
                temporary, step, lora=self.lora, cursor=stands, promotable=promotable[0], disk=self.disk
            )

        try:
            temporary = checkpoints.draft(self.root, step, fill=filled, disk=self.disk)
            future = self._pool.submit(complete) if self._pool else _now(complete)
        except OSError as error:
            self._failed(step, error)
            return
        self.cursor = cursor
        self._under_way = _UnderWay(step, protect, future)
        if self._pool is None:
            self.wait()

    def collect(self) -> None:
        """Report the checkpoint under way if it is complete by now."""
        if self._under_way is not None and self._under_way.done.done():
            self.wait()

    def wait(self) -> None:
        """Wait for the checkpoint under way, let go of old ones, and report it."""
        if self._under_way is None:
            return
        one, self._under_way = self._under_way, None
        try:
            self.last = one.done.result()
        except OSError as error:
            self._failed(one.step, error)
            return
        self.prune(one.protect)
        self.reporter.checkpoint(
            {
                "id": f"step-{one.step}",
                "step": one.step,
                "types": list(self.last.types),
                "promotable": self.last.promotable,
                "path": str(self.last.path),
            }
        )

    def prune(self, protect: set[int]) -> None:
        """Let go of all but the newest and the protected ones."""
        checkpoints.prune(self.root, keep=self.keep, protect=protect, disk=self.disk)

    def close(self) -> None:
        """Let a checkpoint that is being written come to its end."""
        if self._pool is not None:
            self._pool.shutdown(wait=True)

    def _failed(self, step: int, error: OSError) -> None:
        self.cursor = None
        if self._pool is None or isinstance(error, DiskFull):
            raise error
        self.reporter.log(f"the checkpoint of step {step} failed, training goes on without it: {error}")


def _now(make: Callable[[], Checkpoint]) -> Future[Checkpoint]:
    done: Future[Checkpoint] = Future()
    done.set_result(make())
    return done
