"""A jail's root: which folders of the system, which devices and made-up files it holds, and how our launcher mounts it.

Everything in it is read-only but for one scratch folder, limited in bytes and inodes, from which nothing is executed.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from evaluators.sandbox import kernel
from evaluators.sandbox.wire import SCRATCH

INSIDE_ID = 1000  # the one user and group in a jail
SYSTEM = ("/usr/bin", "/usr/lib", "/usr/lib32", "/usr/lib64", "/usr/share/zoneinfo", "/etc/ld.so.cache")
LINKS = ("bin", "sbin", "lib", "lib32", "lib64")  # links into /usr where the system has them so, else folders
DEVICES = ("null", "zero", "full", "random", "urandom")
ETC = {
    "passwd": "evaluator:x:1000:1000::/scratch:/bin/sh\n",
    "group": "evaluator:x:1000:\n",
    "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
    "hosts": "127.0.0.1 localhost\n",
}
_HARDENED = kernel.MS_NOSUID | kernel.MS_NODEV


def build(setup: dict[str, Any], blobs: dict[str, bytes], *, inner: str = "") -> Path:
    """Mount the tree in this mount namespace, below `inner` of a new file system in memory; returns the latter.

    With `inner` gVisor mounts it once more, read-only, which the kernel refuses where it would take other flags away.
    """
    kernel.mount("none", "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
    size = sum(map(len, blobs.values())) + (4 << 20)
    base = "/tmp" if Path("/tmp").is_dir() else "/mnt"  # noqa: S108 - covered in this mount namespace only
    shown = [path for path in (*SYSTEM, *setup["readable"]) if Path(path).exists()]
    held = [(path, os.open(path, os.O_PATH | os.O_CLOEXEC)) for path in shown]
    kernel.mount(
        "sandbox", base, "tmpfs", 0 if inner else _HARDENED, f"size={size},nr_inodes={len(blobs) * 4 + 4096},mode=755"
    )
    root = Path(base, inner)
    root.mkdir(exist_ok=True)
    for path, handle in held:
        _bind_into(root, path, f"/proc/self/fd/{handle}")
        os.close(handle)
    for name in LINKS:
        if Path("/", name).is_symlink():
            (root / name).symlink_to(Path("/", name).readlink())
        elif Path("/", name).is_dir():
            _bind_into(root, f"/{name}", f"/{name}")
    write_files(root, {f"/etc/{name}": text.encode() for name, text in ETC.items()} | blobs)
    (root / "scratch").mkdir()
    if not (root / "tmp").exists():  # it does where a readable folder of the host lies below /tmp
        (root / "tmp").symlink_to(SCRATCH)
    return Path(base)


def enter(root: Path, setup: dict[str, Any], *, owner: int) -> None:
    """Make the tree this process's root, with devices and scratch, and drop what was there before."""
    _devices(root)
    os.chdir(root)
    kernel.pivot_root_here()
    kernel.add_flags("/", kernel.MS_RDONLY)
    mount_scratch(setup, owner=owner)


def mount_scratch(setup: dict[str, Any], *, owner: int) -> None:
    """The one folder that can be written."""
    options = f"size={setup['scratch_bytes']},nr_inodes={setup['scratch_inodes']},mode=700,uid={owner},gid={owner}"
    kernel.mount("scratch", SCRATCH, "tmpfs", _HARDENED | kernel.MS_NOEXEC, options)


def write_files(root: Path, files: dict[str, bytes]) -> None:
    """Each below `root`, in folders that are made."""
    for path, content in files.items():
        target = root / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)


def _bind_into(root: Path, path: str, source: str) -> None:
    target = root / path.lstrip("/")
    if target.exists() and _same(target, Path(source)):
        return  # shown already, below a folder that is
    target.parent.mkdir(parents=True, exist_ok=True)
    if Path(source).is_dir():
        target.mkdir(exist_ok=True)
    else:
        target.touch()
    kernel.bind(source, str(target), _HARDENED | kernel.MS_RDONLY)


def _same(one: Path, other: Path) -> bool:
    return one.stat().st_ino == other.stat().st_ino and one.stat().st_dev == other.stat().st_dev


def _devices(root: Path) -> None:
    (root / "dev").mkdir()
    for name in DEVICES:
        (root / "dev" / name).touch()
        kernel.mount(f"/dev/{name}", str(root / "dev" / name), None, kernel.MS_BIND)
        kernel.add_flags(str(root / "dev" / name), kernel.MS_NOSUID | kernel.MS_NOEXEC)
    (root / "dev" / "shm").symlink_to(SCRATCH)  # semaphores count as scratch, and go with it
