"""Checkpoints: a folder written whole or not at all, that says what it is good for.

A checkpoint is written under a temporary name, every file fsynced, the manifest (sizes and sha256 of all files) last,
then renamed: whoever finds `step-<n>/` finds all of it. It answers two questions: resumable (training can go on
exactly) and promotable (its `weights/` can become a model). Nothing here knows what is in the files; weights and
state are written by the engine, as safetensors and JSON.

    step-40/manifest.json  weights/...  state/...
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

_NAME = re.compile(r"step-(\d+)")
_TEMPORARY = ".writing-"
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
    root: Path, step: int, *, lora: bool, cursor: dict[str, Any], fill: Callable[[Path, Path], None]
) -> Checkpoint:
    """Write checkpoint `step` below `root` and return it; `fill(weights, state)` writes the files.

    Replaces a checkpoint of the same step. On any error nothing but a temporary folder, removed, has been there.
    """
    root.mkdir(parents=True, exist_ok=True)
    target, temporary = root / f"step-{step}", root / f"{_TEMPORARY}step-{step}-{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        (temporary / "weights").mkdir(parents=True)
        (temporary / "state").mkdir()
        fill(temporary / "weights", temporary / "state")
        files = _digest_all(temporary)
        kind = "LORA" if lora else "BASE"
        manifest = {
            "version": 1,
            "step": step,
            "types": [f"CHECKPOINT_TYPE_TRAINING{'_LORA' if lora else ''}", f"CHECKPOINT_TYPE_INFERENCE_{kind}"],
            "created": datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z"),
            "cursor": cursor,
            "files": files,
        }
        _write_synced(temporary / "manifest.json", json.dumps(manifest, indent=1).encode())
        for folder in (temporary / "weights", temporary / "state", temporary):
            sync_folder(folder)
        if target.exists():
            shutil.rmtree(_aside(target))
        temporary.rename(target)
        sync_folder(root)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return read(target)


def read(path: Path) -> Checkpoint:
    """The checkpoint at `path` by its manifest alone. Raises `CheckpointCorrupt` if that cannot be read."""
    try:
        manifest = json.loads((path / "manifest.json").read_bytes())
        return Checkpoint(
            path=path,
            step=int(manifest["step"]),
            types=tuple(manifest["types"]),
            created=manifest["created"],
            cursor=manifest["cursor"],
            files=manifest["files"],
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
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


def prune(root: Path, *, keep: int, protect: set[int]) -> list[int]:
    """Remove all but the newest `keep` checkpoints and those whose step is in `protect`; returns the steps removed."""
    removed = []
    for path in every(root)[:-keep]:
        step = int(path.name.removeprefix("step-"))
        if step not in protect:
            shutil.rmtree(_aside(path))
            removed.append(step)
    return removed


def clean(root: Path) -> None:
    """Remove what interrupted writes and removals left behind."""
    for path in root.glob(f"{_TEMPORARY}*"):
        shutil.rmtree(path)


def file_sha256(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _digest_all(folder: Path) -> dict[str, dict[str, Any]]:
    files = {}
    for name in _names(folder):
        path = folder / name
        if path.suffix in _NEVER_PICKLE:
            raise ValueError(f"{name}: a checkpoint holds safetensors and JSON only, never {path.suffix}")
        with path.open("rb+") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
            os.fsync(stream.fileno())
        files[name] = {"size": path.stat().st_size, "sha256": digest}
    return files


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def _aside(path: Path) -> Path:
    """Rename a folder out of sight before it is removed, so that nobody finds half of it."""
    aside = path.with_name(f"{_TEMPORARY}removed-{path.name}-{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    path.rename(aside)
    return aside
