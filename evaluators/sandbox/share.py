"""The share of the processor that an evaluation's session has, where the kernel gives each session one (autogroup).

Niceness only counts within a session. An evaluation that is to yield therefore has a session of its own, and that a
small share: within the host's session it would use up what the other jails wait for. Who may not change a share (a
root without CAP_DAC_OVERRIDE) finds out at the first try; from then on an evaluation that yields stays in the host's
session, where its niceness counts: a session of its own would have the same share as the host's.
"""

from __future__ import annotations

from pathlib import Path

from evaluators.sandbox import memory

LEAST, USUAL = "19", "0"  # niceness of a session
_OWN = Path("/proc/self/autogroup")
_refusals: list[str] = []


def refusal() -> str:
    """Why evaluations that yield get no session of their own on this machine; "" where they do, as far as is known."""
    if not _refusals and not _OWN.exists():
        _refusals.append("this kernel gives sessions no shares")
    return _refusals[0] if _refusals else ""


def group_of(told: Path) -> str:
    """The name of the group in an `autogroup` file. "" is the kernel's own group, which has no share: it holds the
    processes that have never been below a `setsid`, such as a container's first and all that it starts."""
    return told.read_text().partition(" ")[0]


def set_share(pid: int, niceness: str) -> bool:
    """Give the session of an evaluation below `pid` another share of the processor; True where there was one."""
    found = False
    if refusal():
        return found
    own = group_of(_OWN)
    for one in memory.descendants(pid):
        group = Path(f"/proc/{one}/autogroup")
        try:
            if group_of(group) not in ("", own):
                group.write_text(niceness)
                found = True
        except (FileNotFoundError, ProcessLookupError, BlockingIOError):
            continue  # it ended, or the kernel wants to be asked again later
        except OSError as error:
            _refusals.append(f"a session's share cannot be changed here: {error}")
            return found
    return found
