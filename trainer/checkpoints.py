"""Checkpoints: a folder written whole or not at all, that says what it is good for.

A checkpoint is written under a temporary name, every file fsynced, the manifest (sizes and sha256 of all files, and of
itself) last, then renamed: whoever finds `step-<n>/` finds all of it. It answers two questions: resumable (training can
go on exactly) and promotable (its `weights/` can become a model). Nothing here knows what is in the files; weights and
state are written by the engine, as safetensors and JSON.

    step-40/manifest.json  weights/...  state/...

One of the same step is moved aside (`.replaced-step-40`) before the new one takes its name, and removed last. Whatever
instant the machine dies in, `clean` and then `newest` give the old checkpoint or the new one. Every write, fsync,
rename and removal goes through a `Disk`, and the tests crash at each of them.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from trainer.disk import LOCAL_DISK, Disk, DiskFull, is_full

_NAME = re.compile(r"step-(\d+)")
_TEMPORARY, _REPLACED, _DAMAGED = ".writing-", ".replaced-", "damaged-"
_LEFT_BEHIND = re.compile(r"\.(?:replaced|writing)-(step-\d+)(?:-\d+)?")
_NEVER_PICKLE = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib"}


class CheckpointCorrupt(ValueError):
    """A checkpoint's files are not what its manifest says; the message names the file and the difference."""


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on disk.

    types: the contract's CHECKPOINT_TYPE_TRAINING[_LORA] and CHECKPOINT_TYPE_INFERENCE_{BASE,LORA}.
    cursor: where the loop stood (its own keys), enough to go on exactly.
    """

    path: Path
    step: int
    types: tuple[str, ...]
    created: str
    cursor: dict[str, Any]
    files: dict[str, dict[str, Any]]

    @property
    def resumable(self) -> bool:
        """Training can go on from here exactly."""
        return any(name.startswith("CHECKPOINT_TYPE_TRAINING") for name in self.types)

    @property
    def promotable(self) -> bool:
        """`weights/` can become a model."""
        return bool({"CHECKPOINT_TYPE_INFERENCE_BASE", "CHECKPOINT_TYPE_INFERENCE_LORA"} & set(self.types))

    @property
    def weights(self) -> Path:
        """Files that plain peft or transformers load."""
        return self.path / "weights"

    @property
    def state(self) -> Path:
        """Optimizer and random state."""
        return self.path / "state"

    @property
    def bytes(self) -> int:
        """Size of all files."""
        return sum(int(entry["size"]) for entry in self.files.values())


def write(
    root: Path,
    step: int,
    *,
    lora: bool,
    cursor: dict[str, Any],
    fill: Callable[[Path, Path], None],
    promotable: bool = True,
    disk: Disk = LOCAL_DISK,
) -> Checkpoint:
    """Write checkpoint `step` below `root` and return it: `draft` and `complete` in one."""
    temporary = draft(root, step, fill=fill, disk=disk)
    return complete(temporary, step, lora=lora, cursor=cursor, promotable=promotable, disk=disk)


def draft(root: Path, step: int, *, fill: Callable[[Path, Path], None], disk: Disk = LOCAL_DISK) -> Path:
    """A temporary folder that `fill(weights, state)` has filled, for `complete`; nothing in it is durable yet.

    Raises `DiskFull` when there is no room, and what `fill` raises; nothing is left behind then.
    """
    temporary = root / f"{_TEMPORARY}step-{step}-{os.getpid()}"
    try:
        if temporary.exists():
            disk.remove_tree(temporary)
        disk.make_folder(temporary / "weights")
        disk.make_folder(temporary / "state")
        fill(temporary / "weights", temporary / "state")
    except BaseException as error:
        _give_up(temporary, error, disk=disk)
        raise
    return temporary


def complete(
    temporary: Path,
    step: int,
    *,
    lora: bool,
    cursor: dict[str, Any],
    promotable: bool = True,
    disk: Disk = LOCAL_DISK,
) -> Checkpoint:
    """Make a draft durable and give it its name, in place of an older checkpoint of the same step, if there is one.

    `promotable` False keeps its weights from becoming a model. Raises as `draft`; an older one is in its place then.
    """
    root, target = temporary.parent, temporary.parent / f"step-{step}"
    try:
        files = _digest_all(temporary, disk)
        training = f"CHECKPOINT_TYPE_TRAINING{'_LORA' if lora else ''}"
        inference = [f"CHECKPOINT_TYPE_INFERENCE_{'LORA' if lora else 'BASE'}"] if promotable else []
        manifest = {
            "version": 1,
            "step": step,
            "types": [training, *inference],
            "created": datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z"),
            "cursor": cursor,
            "files": files,
        }
        manifest["sha256"] = _digest_of(manifest)
        disk.write(temporary / "manifest.json", json.dumps(manifest, indent=1).encode())
        disk.sync_file(temporary / "manifest.json")
        for folder in (temporary / "weights", temporary / "state", temporary, root):
            disk.sync_folder(folder)
        _take_the_name(temporary, target, disk)
    except BaseException as error:
        _give_up(temporary, error, disk=disk)
        raise
    return read(target)


def _take_the_name(temporary: Path, target: Path, disk: Disk) -> None:
    """Rename, by way of a third name where the target exists; each rename is durable before the next begins."""
    root, aside = target.parent, target.with_name(f"{_REPLACED}{target.name}")
    replaces = target.exists()
    if replaces:
        if aside.exists():  # left by a removal that failed
            disk.remove_tree(aside)
        disk.rename(target, aside)
    try:
        if replaces:
            disk.sync_folder(root)
        disk.rename(temporary, target)
    except OSError:
        if replaces:
            disk.rename(aside, target)
        raise
    disk.sync_folder(root)
    if replaces:
        disk.remove_tree(aside)


def _give_up(temporary: Path, error: BaseException, *, disk: Disk) -> None:
    """Remove a draft that failed; a full disk is said in words (raises `DiskFull`)."""
    root = temporary.parent
    written = sum((temporary / name).stat().st_size for name in _names(temporary))
    if temporary.exists():
        disk.remove_tree(temporary)
    if not is_full(error):
        return
    known = [size for path in every(root) if (size := _size(path))]
    needed = f"{'about' if known else 'more than'} {max([*known, written]):,}"
    raise DiskFull(
        f"{root}: no room for a checkpoint of {needed} bytes, {disk.free(root):,} are free ({error}). Nothing is lost "
        "up to the newest checkpoint there; free some space (or raise the quota, or lower train.keep_checkpoints), "
        "then resume the run"
    ) from error


def _size(path: Path) -> int:
    """Bytes of a checkpoint by its manifest; 0 when that cannot be read."""
    try:
        return read(path).bytes
    except CheckpointCorrupt:
        return 0


def read(path: Path) -> Checkpoint:
    """The checkpoint at `path` by its manifest alone. Raises `CheckpointCorrupt` for one that is damaged."""
    try:
        manifest = json.loads((path / "manifest.json").read_bytes())
        if _digest_of({key: value for key, value in manifest.items() if key != "sha256"}) != manifest["sha256"]:
            raise ValueError("it differs from its own digest")
        return Checkpoint(
            path=path,
            step=int(manifest["step"]),
            types=tuple(manifest["types"]),
            created=manifest["created"],
            cursor=manifest["cursor"],
            files=manifest["files"],
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointCorrupt(f"{path}: manifest.json cannot be read ({error})") from error


def verify(checkpoint: Checkpoint) -> None:
    """Compare every file with the manifest. Raises `CheckpointCorrupt` naming the first that differs."""
    for name, entry in checkpoint.files.items():
        path = checkpoint.path / name
        if not path.is_file():
            raise CheckpointCorrupt(f"{checkpoint.path}: {name} is missing")
        size = path.stat().st_size
        if size != entry["size"]:
            raise CheckpointCorrupt(f"{checkpoint.path}: {name} has {size} bytes, the manifest says {entry['size']}")
        if file_sha256(path) != entry["sha256"]:
            raise CheckpointCorrupt(f"{checkpoint.path}: {name} differs from its digest in the manifest")
    extra = {name for name in _names(checkpoint.path) if name != "manifest.json"} - set(checkpoint.files)
    if extra:
        raise CheckpointCorrupt(f"{checkpoint.path}: {sorted(extra)[0]} is not in the manifest")


def every(root: Path) -> list[Path]:
    """Folders of the checkpoints below `root`, by step, whether or not they are whole."""
    found = [path for path in root.glob("step-*") if _NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def newest(root: Path, *, damaged: Callable[[CheckpointCorrupt], None]) -> Checkpoint | None:
    """The newest checkpoint below `root` that is whole and resumable; `damaged` is told of each one passed over."""
    for path in reversed(every(root)):
        try:
            checkpoint = read(path)
            verify(checkpoint)
        except CheckpointCorrupt as error:
            damaged(error)
            continue
        if checkpoint.resumable:
            return checkpoint
    return None


def prune(root: Path, *, keep: int, protect: set[int], disk: Disk = LOCAL_DISK) -> list[int]:
    """Remove all but the newest `keep` checkpoints and those whose step is in `protect`; returns the steps removed."""
    removed = []
    for path in every(root)[:-keep]:
        step = int(path.name.removeprefix("step-"))
        if step not in protect:
            aside = path.with_name(f"{_TEMPORARY}removed-{path.name}")
            if aside.exists():
                disk.remove_tree(aside)
            disk.rename(path, aside)  # out of sight before it is removed, so that nobody finds half of it
            disk.sync_folder(root)
            disk.remove_tree(aside)
            removed.append(step)
    return removed


def set_aside(path: Path, *, disk: Disk = LOCAL_DISK) -> Path:
    """Rename a damaged checkpoint to `damaged-step-<n>`, where it is neither found nor counted; returns the folder."""
    aside = path.with_name(f"{_DAMAGED}{path.name}")
    if aside.exists():
        disk.remove_tree(aside)
    disk.rename(path, aside)
    disk.sync_folder(path.parent)
    return aside


def clean(root: Path, *, disk: Disk = LOCAL_DISK) -> None:
    """Bring back what an interrupted replacement left without a name, then remove what else was left behind.

    A step whose folder is gone takes what was moved aside, or else a draft that was complete but for its name.
    Only for whoever holds the run: a save under way would be taken for a leftover.
    """
    for path in sorted(root.glob(f"{_REPLACED}*")) + sorted(root.glob(f"{_TEMPORARY}step-*")):
        found = _LEFT_BEHIND.fullmatch(path.name)
        if found and not (root / found[1]).exists() and _is_whole(path):
            disk.rename(path, root / found[1])
            disk.sync_folder(root)
    for path in [*root.glob(f"{_REPLACED}*"), *root.glob(f"{_TEMPORARY}*")]:
        disk.remove_tree(path)


def _is_whole(path: Path) -> bool:
    try:
        verify(read(path))
    except CheckpointCorrupt:
        return False
    return True


def file_sha256(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _digest_of(manifest: dict[str, Any]) -> str:
    """sha256 of a manifest's content, however it is laid out."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _digest_all(folder: Path, disk: Disk) -> dict[str, dict[str, Any]]:
    files = {}
    for name in _names(folder):
        path = folder / name
        if path.suffix in _NEVER_PICKLE:
            raise ValueError(f"{name}: a checkpoint holds safetensors and JSON only, never {path.suffix}")
        digest = file_sha256(path)
        disk.sync_file(path)
        files[name] = {"size": path.stat().st_size, "sha256": digest}
    return files
