"""Whose turn it is: PILOT jobs first, then the account that has least, then the account that waited longest, then age.

Pure functions of what waits and what runs. An account with a thousand waiting jobs is served as often as one with two.
A job that does not fit now lets others go first, but only so often: then all wait for it, so that a stream of small
jobs cannot keep a large one out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from trainer.gateway.store import Resource
from trainer.jobs import Purpose

OVERTAKEN_AT_MOST = 8  # jobs that may start before one that was there earlier and did not fit


def in_turn(waiting: Sequence[Resource], running: Mapping[str, int], turns: Mapping[str, int]) -> list[Resource]:
    """The waiting jobs in the order in which they may start.

    running: by account, how many of its jobs run. turns: by account, the number of its last start (all starts are
    counted together). Both go on as if the jobs before had started, so that the whole list is fair, not its head only.
    """
    lines: dict[tuple[bool, str], list[Resource]] = {}
    for job in sorted(waiting, key=lambda job: (job.create_time, job.name)):
        lines.setdefault((job.body.get("purpose") != Purpose.PILOT, job.parent), []).append(job)
    has, last = dict(running), dict(turns)
    order: list[Resource] = []
    while lines:
        first = min(lines, key=lambda line: (line[0], has.get(line[1], 0), last.get(line[1], -1), _age(lines[line])))
        account = first[1]
        order.append(lines[first].pop(0))
        has[account] = has.get(account, 0) + 1
        last[account] = max(last.values(), default=0) + 1
        if not lines[first]:
            del lines[first]
    return order


def _age(line: Sequence[Resource]) -> tuple[str, str]:
    return line[0].create_time, line[0].name
