"""What an account may use at a time: one function, asked wherever a limit is enforced.

A limit of None is no limit: the machine is then the only one.
"""

from __future__ import annotations

from trainer.gateway.store import Store

RUNNING_JOBS, GPUS = "running-jobs", "gpus"

DEFAULTS: dict[str, int | None] = {RUNNING_JOBS: None, GPUS: None}


def quota(account: str, name: str, *, store: Store) -> int | None:
    """The most of `name` (a key of `DEFAULTS`) that `account` (`accounts/<id>`) may use at a time; None = no limit.

    A quota that was set is a record, `<account>/quotas/<name>`, with its `value`.
    """
    found = store.find(f"{account}/quotas/{name}")
    if found is None:
        return DEFAULTS[name]
    value = found.body.get("value")
    return None if value in (None, "") else int(value)
