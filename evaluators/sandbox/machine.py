"""What this machine gives a sandbox: each tier is tried by doing it, and settings are read only to explain a failure.

The one decision: a tier counts as working while its behavioural self-check finds nothing; it is asked at the first use
and again every hour, and a surprise takes the tier away until the next time. Who builds tier standard is
TRAINER_SANDBOX_LAUNCHER: `own` (our launcher), `bwrap` (bubblewrap), or `auto`, the default: our own, which also limits
inodes everywhere and is as fast, and bubblewrap where that does not hold, as under AppArmor on Ubuntu.
"""

from __future__ import annotations

import os
import platform
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from evaluators.protocol import Tier
from evaluators.sandbox import bubblewrap, cgroup, gvisor, landlock
from evaluators.sandbox.jail import BWRAP, OWN
from evaluators.sandbox.selfcheck import self_check
from evaluators.sandbox.syscalls import ARCHITECTURES

LAUNCHER_VARIABLE = "TRAINER_SANDBOX_LAUNCHER"
_TRIED = (Tier.STANDARD, Tier.LANDLOCK)  # by `auto`; strong must be asked for
_LAUNCHERS = {"auto": (OWN, BWRAP), OWN: (OWN,), BWRAP: (BWRAP,)}
_ASKED_AGAIN_SECONDS = 3600.0
_asked: dict[tuple[Tier, str], tuple[float, str]] = {}
_lock = threading.Lock()

_SETTINGS = (
    "/proc/sys/user/max_user_namespaces",
    "/proc/sys/kernel/unprivileged_userns_clone",
    "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
)


class SandboxRefused(RuntimeError):
    """This machine gives no fence that the operator accepts; the message says what is missing and the way out."""


@dataclass(frozen=True)
class Description:
    """What was found. problems: tier -> what does not hold, empty = it works. facts: in words. remedies: what to do."""

    tier: Tier | None
    problems: dict[Tier, str]
    facts: dict[str, str]
    remedies: tuple[str, ...]


def works(tier: Tier, launcher: str = OWN) -> str:
    """Empty when a jail of this tier holds here; else what does not. Remembered for an hour. launcher: of standard."""
    with _lock:
        when, problem = _asked.get((tier, launcher), (-_ASKED_AGAIN_SECONDS, ""))
        if time.monotonic() - when >= _ASKED_AGAIN_SECONDS:
            problem = _problem(tier, launcher)
            _asked[tier, launcher] = (time.monotonic(), problem)
        return problem


def choose(tier: str, *, allow_none: bool, launcher: str | None = None) -> tuple[Tier, str]:
    """The tier and launcher to use for the asked ones, or for `auto`. Raises `SandboxRefused`, or `ValueError`.

    launcher: None = what TRAINER_SANDBOX_LAUNCHER says.
    """
    if tier not in ("auto", *Tier):
        raise ValueError(f"tier {tier!r}; allowed: auto, {', '.join(Tier)}")
    launchers = _wanted(launcher)
    if tier == Tier.NONE and not allow_none:
        raise SandboxRefused("tier none is no fence at all; pass allow_none=True for evaluators of your own")
    if tier == Tier.NONE:
        return Tier.NONE, OWN
    problems: list[str] = []
    for candidate in _TRIED if tier == "auto" else (Tier(tier),):
        for one in launchers if candidate is Tier.STANDARD else (OWN,):
            problem = works(candidate, one)
            if not problem:
                return candidate, one
            problems.append(f"{candidate}{f' by {one}' if one != OWN else ''}: {problem}")
    if tier == "auto" and allow_none:
        return Tier.NONE, OWN
    raise SandboxRefused("; ".join(problems) + "; `python -m trainer doctor` names the remedies")


def _wanted(launcher: str | None) -> tuple[str, ...]:
    word = launcher or os.environ.get(LAUNCHER_VARIABLE) or "auto"
    if word not in _LAUNCHERS:
        raise ValueError(f"{LAUNCHER_VARIABLE} {word!r}; allowed: {', '.join(_LAUNCHERS)}")
    return _LAUNCHERS[word]


def describe() -> Description:
    """Every tier tried, the facts that explain what was found, and what to do about what is missing."""
    launchers = {one: works(Tier.STANDARD, one) for one in (OWN, BWRAP)}
    wanted = [launchers[one] for one in _wanted(None)]
    problems = {Tier.STRONG: works(Tier.STRONG), Tier.STANDARD: "" if "" in wanted else "; ".join(wanted)}
    problems[Tier.LANDLOCK] = works(Tier.LANDLOCK)
    tier = next((tier for tier in _TRIED if not problems[tier]), None)
    facts = {
        "system": f"Linux {platform.release()} {platform.machine()}",
        "user": "root (jails get unprivileged ids of their own)" if os.geteuid() == 0 else f"uid {os.geteuid()}",
        "launchers": "; ".join(f"{one} {problem or 'works'}" for one, problem in launchers.items()),
        "Landlock": f"ABI {landlock.abi()}" if landlock.abi() else "absent",
        "cgroups": cgroup.describe(),
        **{name.removeprefix("/proc/sys/"): _setting(name) for name in _SETTINGS},
    }
    return Description(tier, problems, facts, tuple(_remedies(problems, facts)))


def _problem(tier: Tier, launcher: str) -> str:
    if platform.machine() not in ARCHITECTURES:
        return f"no system call table for {platform.machine()}; there is one for {', '.join(ARCHITECTURES)}"
    missing = gvisor.missing() if tier is Tier.STRONG else bubblewrap.missing() if launcher == BWRAP else ""
    if missing:
        return missing
    needed = 4 if os.geteuid() == 0 else 6  # as root a jail's own uid keeps its signals in; else Landlock must
    if tier is Tier.LANDLOCK and landlock.abi() < needed:
        return f"Landlock ABI {landlock.abi()}; {needed} is needed (Linux {'6.7' if needed == 4 else '6.12'})"
    return "; ".join(self_check(tier, launcher))


def _setting(name: str) -> str:
    try:
        return Path(name).read_text().strip()
    except OSError:
        return "not there"


def _remedies(problems: dict[Tier, str], facts: dict[str, str]) -> list[str]:
    found: list[str] = []
    if problems[Tier.STANDARD]:
        if facts["kernel/apparmor_restrict_unprivileged_userns"] == "1":
            found.append(
                "Ubuntu's AppArmor refuses user namespaces to programs without a profile: give the interpreter one "
                "(`profile evaluators /path/to/python3 flags=(unconfined) { userns, }` in /etc/apparmor.d, then "
                "`apparmor_parser -r`), or install bubblewrap where that has one (`apt install bubblewrap "
                "apparmor-profiles`), or `sysctl -w kernel.apparmor_restrict_unprivileged_userns=0`"
            )
        if facts["user/max_user_namespaces"] == "0":
            found.append("no user namespaces are allowed: `sysctl -w user.max_user_namespaces=65536`")
        if facts["kernel/unprivileged_userns_clone"] == "0":
            found.append("ordinary users may not make namespaces: `sysctl -w kernel.unprivileged_userns_clone=1`")
        if Path("/.dockerenv").exists() or Path("/run/.containerenv").exists():
            found.append(
                "in a Docker or Podman container: `--security-opt seccomp=unconfined --security-opt "
                "apparmor=unconfined --security-opt systempaths=unconfined`, or a seccomp profile that allows unshare, "
                "mount, pivot_root and umount2; as root in the container also `--cap-add SYS_ADMIN`"
            )
        if "KUBERNETES_SERVICE_HOST" in os.environ:
            found.append(
                "in Kubernetes: `hostUsers: false`, `procMount: Unmasked`, and a `localhostProfile` seccomp profile "
                "that allows unshare, mount, pivot_root and umount2"
            )
        if "Permission denied" in problems[Tier.STANDARD] + problems[Tier.LANDLOCK]:
            found.append("the Python interpreter must lie where every user may read it, not in a closed home folder")
    if facts["cgroups"].startswith("none"):
        found.append(
            "without a cgroup of its own a jail's memory is bounded by process and by looking at the sum 20 times a "
            "second: start under `systemd-run --user --scope -p Delegate=yes`, or with a delegated v2 subtree"
        )
    return found


def _renew_lock() -> None:
    """In a forked process: another thread of the parent may have held it, for as long as a self-check takes."""
    global _lock  # noqa: PLW0603
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_renew_lock)
