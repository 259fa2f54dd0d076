"""The share of the processor that an evaluation's session has, where the kernel gives each session one (autogroup).

Niceness only counts within a session. An evaluation that is to yield therefore has a session of its own, and that a
small share: within the host's session it would use up what the other jails wait for.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from evaluators.sandbox import memory

LEAST, USUAL = "19", "0"  # niceness of a session


def set_share(pid: int, niceness: str) -> bool:
    """Give the session of an evaluation below `pid` another share of the processor; True where there was one."""
    found = False
    with contextlib.suppress(OSError):  # it ended, or this kernel knows no shares of sessions
        own = Path("/proc/self/autogroup").read_text().split()[0]
        for one in memory.descendants(pid):
            group = Path(f"/proc/{one}/autogroup")
            if group.read_text().split()[0] != own:
                group.write_text(niceness)
                found = True
    return found
