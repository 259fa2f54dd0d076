"""Tier strong: the jail runs on a kernel of its own, gVisor's `runsc`, which is given the tree that the launcher built.

The one decision: gVisor goes inside the namespaces of the standard tier, not beside them. An ordinary user's process
in namespaces of its own is all that a flaw of gVisor's leads to; system calls of the jail never reach the host's kernel
but through it. It has no network (`--network=none`), and /proc and /sys are empty.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from evaluators.sandbox.tree import INSIDE_ID
from evaluators.sandbox.wire import SCRATCH

PROGRAM = "runsc"
_NAMESPACES = ("pid", "network", "ipc", "uts", "mount")
_FLAGS = ("--rootless", "--network=none", "--platform=ptrace", "--ignore-cgroups")
_HARDENED = ["nosuid", "nodev", "noexec"]


def missing() -> str:
    """Empty where gVisor is installed, else what to do."""
    found = shutil.which(PROGRAM)
    return "" if found else "gVisor (its program is runsc) is not installed: apt install runsc, or gvisor.dev's package"


def command(setup: dict[str, Any], base: Path, supervisor: list[str]) -> list[str]:
    """Write a bundle below `base`, whose folder `root` is the tree; the command that runs `supervisor` in it."""
    bundle, state = base / "bundle", base / "state"
    for folder in (bundle, state):
        folder.mkdir(mode=0o700)
    (bundle / "config.json").write_text(json.dumps(_bundle(setup, base / "root", supervisor)))
    return [setup["kernel"], *_FLAGS, f"--root={state}", "run", "--bundle", str(bundle), "jail"]


def _bundle(setup: dict[str, Any], root: Path, supervisor: list[str]) -> dict[str, Any]:
    """The specification of the Open Container Initiative for one process without privileges."""
    scratch = [f"size={setup['scratch_bytes']}", "mode=700", f"uid={INSIDE_ID}", f"gid={INSIDE_ID}", *_HARDENED]
    empty = [{"destination": place, "type": "tmpfs", "source": "none", "options": ["ro", "size=4096", *_HARDENED]}
             for place in ("/proc", "/sys")]  # fmt: skip
    return {
        "ociVersion": "1.0.0",
        "process": {
            "terminal": False, "user": {"uid": INSIDE_ID, "gid": INSIDE_ID}, "args": supervisor, "cwd": SCRATCH,
            "env": [f"{name}={value}" for name, value in setup["environment"].items()], "capabilities": {},
            "noNewPrivileges": True,
        },
        "root": {"path": str(root), "readonly": True},
        "hostname": "sandbox",
        "mounts": [*empty, {"destination": SCRATCH, "type": "tmpfs", "source": "none", "options": scratch}],
        "linux": {"namespaces": [{"type": name} for name in _NAMESPACES]},
    }  # fmt: skip
