"""The limits of every process in a jail, set once by whoever becomes its supervisor, and inherited from there."""

from __future__ import annotations

import os
import resource

_SIGNALS = 1024  # queued signals and timers, which the kernel keeps


def restrict(limits: dict, *, queues: bool = True) -> None:
    """For this process and all that it starts, for good. queues: also of messages and signals, which gVisor lacks."""
    chosen = {
        resource.RLIMIT_CORE: 1,  # a byte: no file, and, unlike 0, no program of the host's that takes cores in
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_AS: limits["memory_bytes"],
        resource.RLIMIT_NOFILE: limits["descriptors"],
        resource.RLIMIT_FSIZE: limits["scratch_bytes"],
        resource.RLIMIT_NPROC: limits["process_count"],
    }  # here and not in each child, which has less to do so; the supervisor gets by with them
    if queues:
        chosen |= {resource.RLIMIT_MSGQUEUE: 0, resource.RLIMIT_SIGPENDING: _SIGNALS}
    for limit, value in chosen.items():
        _, most = resource.getrlimit(limit)
        least = value if most == resource.RLIM_INFINITY else min(value, most)  # the host may have less itself
        resource.setrlimit(limit, (least, least))
    os.umask(0o077)
