"""The limits of every process in a jail, set once by whoever becomes its supervisor, and inherited from there."""

from __future__ import annotations

import os
import resource


def restrict(limits: dict, *, queues: bool = True) -> None:
    """For this process and all that it starts, for good. queues: also of POSIX message queues, which gVisor lacks."""
    chosen = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_AS: limits["memory_bytes"],
        resource.RLIMIT_NOFILE: limits["descriptors"],
        resource.RLIMIT_FSIZE: limits["scratch_bytes"],
        resource.RLIMIT_NPROC: limits["process_count"],
    }  # here and not in each child, which has less to do so; the supervisor gets by with them
    if queues:
        chosen[resource.RLIMIT_MSGQUEUE] = 0
    for limit, value in chosen.items():
        resource.setrlimit(limit, (value, value))
    os.umask(0o077)
