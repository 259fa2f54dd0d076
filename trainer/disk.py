"""The file layer beneath checkpoints: few verbs, so that a test can fail or crash at each of them.

`Disk` is the seam (SQLite's VFS is the model), `LocalDisk` the real thing. Reading goes past it: only what must
survive a crash in the right order comes through here. Not guaranteed: durability on a device that lies about fsync.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
from pathlib import Path
from typing import Protocol

_FULL = (errno.ENOSPC, errno.EDQUOT)
_OS_ERROR = re.compile(r"\(os error (\d+)\)")  # how errors from Rust (safetensors) name their cause


class Disk(Protocol):
    """What a checkpoint does to the disk. Every call raises `OSError` when it fails."""

    def make_folder(self, path: Path) -> None:
        """Make `path` and its parents."""
        ...

    def write(self, path: Path, content: bytes) -> None:
        """Write a new file; durable only after `sync_file`, and `sync_folder` of its folder."""
        ...

    def sync_file(self, path: Path) -> None:
        """Make the file's content durable."""
        ...

    def sync_folder(self, path: Path) -> None:
        """Make the names in the folder durable: files created, renamed and removed."""
        ...

    def rename(self, source: Path, target: Path) -> None:
        """Give a folder another name, which nothing bears."""
        ...

    def remove_tree(self, path: Path) -> None:
        """Remove a folder and all in it."""
        ...

    def free(self, path: Path) -> int:
        """Bytes that may still be written to the file system of `path`."""
        ...


class LocalDisk:
    """`Disk` on this machine's file systems."""

    def make_folder(self, path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True)

    def write(self, path: Path, content: bytes) -> None:
        path.write_bytes(content)

    def sync_file(self, path: Path) -> None:
        with path.open("rb") as stream:  # a copy may be read-only
            os.fsync(stream.fileno())

    def sync_folder(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        source.rename(target)

    def remove_tree(self, path: Path) -> None:
        shutil.rmtree(path)

    def free(self, path: Path) -> int:
        return shutil.disk_usage(path).free


LOCAL_DISK = LocalDisk()


class DiskFull(OSError):
    """No room for a checkpoint; the message says where, how much is needed and free, and the way out."""


def is_full(error: BaseException) -> bool:
    """True when `error` says that a file system or a quota is full, be it an `OSError` or one out of Rust."""
    if isinstance(error, OSError):
        return error.errno in _FULL or isinstance(error, DiskFull)
    if type(error).__name__ != "SafetensorError":
        return False
    found = _OS_ERROR.search(str(error))
    return found is not None and int(found[1]) in _FULL


def write_whole(path: Path, content: bytes, *, shared: bool = False) -> None:
    """Replace a small file so that a reader, after a crash too, finds the old content or the new.

    shared: others may do the same at this moment.
    """
    temporary = path.with_name(f".{path.name}-writing{f'-{secrets.token_hex(8)}' if shared else ''}")
    try:
        LOCAL_DISK.write(temporary, content)
        LOCAL_DISK.sync_file(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    LOCAL_DISK.sync_folder(path.parent)
