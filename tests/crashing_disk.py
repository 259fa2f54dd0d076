"""A disk that dies: it counts a save's operations, stops at one of them, and shows what may be left afterwards.

The model behind `image` is stricter than any file system: what was not fsynced may be lost or torn, and each name that
a folder gained or lost since it was last fsynced may or may not be there, each on its own, so that a rename can be
done, undone, or half of either. Files and folders are known by an id of their own, which they keep when renamed.
"""

from __future__ import annotations

import errno
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from trainer.disk import LocalDisk


class Crash(BaseException):
    """The machine is off; nothing may catch this."""


class QuickDisk(LocalDisk):
    """The real disk without its slow part, for what need not survive."""

    def sync_file(self, path: Path) -> None: ...

    def sync_folder(self, path: Path) -> None: ...


@dataclass(eq=False)
class Node:
    """A file (`now`, `durable`: contents) or a folder (name -> node, as it is and as it is sure to be)."""

    folder: bool
    now: bytes = b""
    durable: bytes | None = None
    names: dict[str, Node] = field(default_factory=dict)
    durable_names: dict[str, Node] = field(default_factory=dict)


class CrashingDisk(LocalDisk):
    """The real disk below `root`, until operation number `crash_at` (from 1; 0 = never), of which half may be done."""

    def __init__(self, root: Path, crash_at: int = 0, *, error: Callable[[], BaseException] = Crash) -> None:
        self.root, self.crash_at, self.error = root, crash_at, error
        self.count = 0
        self.dead = False
        self.top = Node(folder=True)
        self._look()
        self._settle(self.top)

    def make_folder(self, path: Path) -> None:
        self._do(lambda: LocalDisk.make_folder(self, path))

    def write(self, path: Path, content: bytes) -> None:
        self._do(
            lambda: LocalDisk.write(self, path, content), half=lambda: path.write_bytes(content[: len(content) // 2])
        )

    def sync_file(self, path: Path) -> None:
        def sync() -> None:
            node = self._node(path)
            node.durable = node.now

        self._do(sync)

    def sync_folder(self, path: Path) -> None:
        def sync() -> None:
            node = self._node(path)
            node.durable_names = dict(node.names)

        self._do(sync)

    def rename(self, source: Path, target: Path) -> None:
        def rename() -> None:
            self._node(target.parent).names[target.name] = self._node(source.parent).names.pop(source.name)
            LocalDisk.rename(self, source, target)

        self._do(rename)

    def remove_tree(self, path: Path) -> None:
        def half() -> None:
            files = sorted(one for one in path.rglob("*") if one.is_file())
            for one in files[::2]:
                one.unlink()

        self._do(lambda: LocalDisk.remove_tree(self, path), half=half)

    def image(self, target: Path, mode: str, chance: random.Random) -> Path:
        """Write what a crash may leave to `target`. mode: kept (kill -9), lost (power), torn (any mixture)."""
        self._look()
        self._write(self.top, target, mode, chance)
        return target

    def _do(self, operation: Callable[[], object], half: Callable[[], object] | None = None) -> None:
        if self.dead:
            raise self.error()
        self._look()
        self.count += 1
        if self.count == self.crash_at:
            if half is not None:
                half()
            self.dead = isinstance(self.error(), Crash)
            raise self.error()
        operation()
        self._look()

    def _node(self, path: Path) -> Node:
        node = self.top
        for name in path.relative_to(self.root).parts:
            node = node.names[name]
        return node

    def _look(self) -> None:
        """Learn what the engine wrote past this disk."""
        self._scan(self.top, self.root)

    def _scan(self, node: Node, path: Path) -> None:
        found = {one.name: one for one in path.iterdir()}
        for name in set(node.names) - set(found):
            del node.names[name]
        for name, one in found.items():
            child = node.names.setdefault(name, Node(folder=one.is_dir()))
            if one.is_dir():
                self._scan(child, one)
            else:
                child.now = one.read_bytes()

    def _settle(self, node: Node) -> None:
        """What is here from the start is durable."""
        node.durable, node.durable_names = node.now, dict(node.names)
        for child in node.names.values():
            self._settle(child)

    def _write(self, node: Node, path: Path, mode: str, chance: random.Random) -> None:
        if not node.folder:
            lost = b"" if node.durable is None else node.durable
            torn = node.now[: chance.randint(0, len(node.now))] if node.now != node.durable else node.now
            path.write_bytes({"kept": node.now, "lost": lost, "torn": chance.choice((node.now, lost, torn))}[mode])
            return
        path.mkdir()
        for name in sorted(set(node.names) | set(node.durable_names)):
            now, durable = node.names.get(name), node.durable_names.get(name)
            child = {"kept": now, "lost": durable, "torn": now if chance.random() < 0.5 else durable}[mode]
            if child is not None:
                self._write(child, path / name, mode, chance)


class FullDisk(CrashingDisk):
    """A disk that is full from operation `full_at` on, as far as writing goes; removing and renaming still work."""

    def __init__(self, root: Path, full_at: int, *, code: int = errno.ENOSPC) -> None:
        super().__init__(root, 0)
        self.full_at, self.code = full_at, code

    def make_folder(self, path: Path) -> None:
        self._need_room()
        super().make_folder(path)

    def write(self, path: Path, content: bytes) -> None:
        self._need_room(lambda: path.write_bytes(content[: len(content) // 2]))
        super().write(path, content)

    def sync_file(self, path: Path) -> None:
        self._need_room()
        super().sync_file(path)

    def free(self, path: Path) -> int:
        return 1234

    def _need_room(self, half: Callable[[], object] = lambda: None) -> None:
        if self.full_at and self.count + 1 >= self.full_at:
            half()
            raise OSError(self.code, "No space left on device" if self.code == errno.ENOSPC else "Disk quota exceeded")
