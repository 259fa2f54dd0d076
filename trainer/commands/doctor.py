"""Say what this machine offers for running untrusted evaluators: the fence, what was tried, and what to do about gaps.

Every line comes from doing it: jails are started and told to break out. The exit status is 0 when there is a fence that
evaluators are run behind, else 1.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from evaluators.protocol import Tier
from evaluators.sandbox import describe

_MEANING = {
    Tier.STRONG: "a kernel of its own, gVisor's, inside the namespaces; only where it is asked for",
    Tier.STANDARD: "namespaces, system call filter, Landlock where present",
    Tier.LANDLOCK: "Landlock and system call filter without namespaces: weaker",
}
_HELD = "reading a secret, loopback, fork, /usr, unshare, vsock, outliving, memory, a neighbour's scratch: all refused"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Only the form of the answer."""
    parser.add_argument("--json", action="store_true", help="print it as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Print the description; 1 when there is no fence."""
    found = describe()
    if arguments.json:
        print(json.dumps(asdict(found), indent=2))
        return 0 if found.tier else 1
    print(f"evaluators run in tier: {found.tier or 'none: they are refused'}\n")
    for tier, problem in found.problems.items():
        print(f"  {tier:<10} {'works' if not problem else 'does not'}  ({_MEANING[tier]})")
        print(f"  {'':<10} {problem or _HELD}")
    print()
    for name, fact in found.facts.items():
        print(f"  {name}: {fact}")
    for remedy in found.remedies:
        print(f"\n  to do: {remedy}")
    if found.tier is Tier.LANDLOCK:
        print("\nwarning: without namespaces `stat` reaches every path, and processes are counted by user.")
    return 0 if found.tier else 1
