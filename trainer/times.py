"""How long a run took, attempt by attempt, by its journal and `perf.jsonl`.

Seconds go from the first word of an attempt (VALIDATING) to its last, summed over attempts; the time between attempts
and the start of Python are left out, and an attempt that was killed counts up to its last word.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import Field

from trainer import history
from trainer.jobs import JobState
from trainer.report import Event
from trainer.runs import Closed


class Times(Closed):
    """Seconds, summed over attempts."""

    attempts: int
    total: float
    startup: float = Field(description="From the first word to the first step.")
    training: float = Field(description="Within optimizer steps.")

    @property
    def other(self) -> float:
        """Evaluating, answering, saving."""
        return max(0.0, self.total - self.startup - self.training)


def times_of(folder: Path) -> Times:
    """Times of the run in `folder`; zeros where it has not begun."""
    attempts = list(_attempts(folder))
    training = sum(one["perf/seconds"] for one in lines_of(folder / "perf.jsonl") if "perf/seconds" in one)
    total = startup = 0.0
    for events in attempts:
        begin = _moment(events[0])
        total += _moment(events[-1]) - begin
        running = next((one for one in events if one.body.get("state") == JobState.RUNNING), events[-1])
        startup += _moment(running) - begin
    return Times(attempts=len(attempts), total=total, startup=startup, training=training)


def lines_of(path: Path) -> list[dict[str, Any]]:
    """Whole lines of a JSONL file of numbers; one that is being written, that a crash tore, or that is no object since
    somebody changed it, is left out (the report counts those)."""
    if not path.exists():
        return []
    content = path.read_bytes()
    read = (_line(line) for line in content[: content.rfind(b"\n") + 1].split(b"\n"))
    return [one for one in read if isinstance(one, dict)]


def _line(line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError:  # no JSON, or no text
        return None


def _attempts(folder: Path) -> Iterator[list[Event]]:
    """The journal's events by attempt: each begins with VALIDATING."""
    current: list[Event] = []
    for event in history.events(folder):
        if event.kind == "state" and event.body.get("state") == JobState.VALIDATING and current:
            yield current
            current = []
        current.append(event)
    if current:
        yield current


def _moment(event: Event) -> float:
    return datetime.fromisoformat(event.time).timestamp()
