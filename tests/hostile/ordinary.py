"""Runs a Python program as an ordinary user, when the tests themselves run as root.

The interpreter may live where only root can go (a home folder), so it is shown to the program in a mount namespace of
its own, under the same path; nothing on the machine changes.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def python(arguments: list[str], *, timeout: float) -> subprocess.CompletedProcess[str]:
    """`python arguments` as a user that nobody else is, with the checkout's packages importable. The caller is root.

    Tests may run side by side, and the kernel counts the processes of a user, not of a test.
    """
    command = [sys.executable, "-I", str(Path(__file__)), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False, cwd="/")


def _become_ordinary(arguments: list[str]) -> None:
    sys.path.insert(0, str(ROOT))
    from evaluators.sandbox import kernel
    from evaluators.sandbox.identity import spare_uid
    from evaluators.sandbox.interpreter import interpreter

    here, user = interpreter(None), spare_uid()
    kernel.unshare(kernel.CLONE_NEWNS)
    kernel.mount("none", "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
    needed = [*map(Path, here.readable), ROOT / "evaluators", ROOT / "tests"]
    held = [(path, os.open(path, os.O_PATH)) for path in needed]
    closed = {parent for path in needed for parent in path.parents if not parent.stat().st_mode & 0o001}
    covered = [one for one in closed if not closed & set(one.parents)]
    for one in covered:
        kernel.mount("shown", str(one), "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, "mode=755")
    for path, handle in held:
        if any(path.is_relative_to(one) for one in covered):
            path.mkdir(parents=True, exist_ok=True)
            kernel.mount(f"/proc/self/fd/{handle}", str(path), None, kernel.MS_BIND | kernel.MS_REC)
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", "LANG": "C.UTF-8"}
    os.execve(here.executable, [here.executable, "-P", "-s", *arguments], environment)


if __name__ == "__main__":
    _become_ordinary(sys.argv[1:])
