"""The tree of the standard tier built by bubblewrap, for machines where our own launcher may not make namespaces.

Ubuntu's AppArmor, for one, allows user namespaces to programs that have a profile, and `bwrap` may be one of them. The
one decision: bubblewrap only makes namespaces and mounts; as root the uid is dropped before it starts, and privileges,
Landlock, system call filter and limits are seen to by our launcher inside, as in every other jail.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from evaluators.sandbox.tree import DEVICES, INSIDE_ID, LINKS, SYSTEM
from evaluators.sandbox.wire import SCRATCH

PROGRAM = "bwrap"
_NAMESPACES = ("user", "pid", "net", "ipc", "uts", "cgroup-try")


def missing() -> str:
    """Empty where bubblewrap is installed, else what to do."""
    return "" if shutil.which(PROGRAM) else "bubblewrap (its program is bwrap) is not installed: apt install bubblewrap"


def write(folder: str, blobs: Mapping[str, bytes], uid: int) -> None:
    """Put the jail's own files below `folder`, which only `uid` may enter and which is bound read-only."""
    for path, content in blobs.items():
        target = Path(folder, path.lstrip("/"))
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    for place, folders, files in os.walk(folder):
        for name in folders:
            Path(place, name).chmod(0o755)
        for name in files:
            Path(place, name).chmod(0o644)
    if uid != os.geteuid():
        os.chown(folder, uid, uid)


def command(setup: Mapping[str, Any], program: list[str]) -> list[str]:
    """bwrap's arguments: the namespaces and the tree for `setup`, in which `program` becomes the first process."""
    words = [shutil.which(PROGRAM) or PROGRAM, *(f"--unshare-{name}" for name in _NAMESPACES), "--as-pid-1"]
    words += ["--uid", str(INSIDE_ID), "--gid", str(INSIDE_ID), "--hostname", "sandbox"]
    words += ["--cap-add", "CAP_SYS_ADMIN"]  # to limit scratch by inodes; our launcher gives it up (`limited_scratch`)
    shown = _outermost(path for path in (*SYSTEM, *setup["readable"]) if Path(path).exists())
    for path in shown:
        words += ["--ro-bind", path, path]
    for name in LINKS:
        if Path("/", name).is_symlink():
            words += ["--symlink", str(Path("/", name).readlink()), f"/{name}"]
        elif Path("/", name).is_dir():
            words += ["--ro-bind", f"/{name}", f"/{name}"]
    for name in DEVICES:
        words += ["--dev-bind", f"/dev/{name}", f"/dev/{name}"]
    words += ["--symlink", SCRATCH, "/dev/shm"]  # noqa: S108 - a path in the jail
    for path in sorted(Path(setup["folder"]).glob("etc/*")):
        words += ["--ro-bind", str(path), f"/etc/{path.name}"]
    for path in sorted(Path(setup["folder"]).iterdir()):
        words += [] if path.name == "etc" else ["--ro-bind", str(path), f"/{path.name}"]
    if not any(path.startswith("/tmp/") for path in shown):  # noqa: S108
        words += ["--symlink", SCRATCH, "/tmp"]  # noqa: S108
    words += ["--perms", "0700", "--size", str(setup["scratch_bytes"]), "--tmpfs", SCRATCH, "--remount-ro", "/"]
    return [*words, "--chdir", "/", *program]


def _outermost(paths: Iterable[str]) -> list[str]:
    """Without those that lie below another."""
    found = list(dict.fromkeys(paths))
    return [one for one in found if not any(one != other and Path(one).is_relative_to(other) for other in found)]
