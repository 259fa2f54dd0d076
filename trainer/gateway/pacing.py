"""When a gateway is asked again: never before the time it named, and more and more rarely while it is of no use.

Waits are drawn at random below a growing limit, so that many runs that lost the same gateway do not come back at once;
what a gateway asks for in a `retry-after` is a floor that no draw goes below. The clock is a seam: tests scale it or
let an hour pass in no time.
"""

from __future__ import annotations

import json
import random
import re
import threading
import time
from collections.abc import Mapping, MutableMapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Protocol

LONGEST_RETRY_AFTER = 86_400.0  # seconds; a gateway that asks for more is asked again after a day
Waits = MutableMapping[str, float]  # host -> when it may be asked again, on the client's clock
_SECONDS = re.compile(r"\d{1,12}(\.\d{1,9})?")


class Clock(Protocol):
    """Time as the client and the Syncer see it."""

    def now(self) -> float:
        """Seconds; only differences mean anything."""
        ...

    def wait(self, seconds: float, until: threading.Event) -> bool:
        """Let `seconds` pass, or less when `until` is set; True when it is."""
        ...


class SystemClock:
    """The machine's own."""

    def now(self) -> float:
        return time.monotonic()

    def wait(self, seconds: float, until: threading.Event) -> bool:
        return until.wait(seconds)


class KeptWaits(dict[str, float]):
    """`Waits` that the next process on the same file goes on with, so that a kill hurries nobody.

    The machine's clock runs on from process to process, but begins anew when the machine does; so no host is left alone
    for longer than it had asked for, counted from when the file is read.
    """

    def __init__(self, path: Path, clock: Clock) -> None:
        super().__init__()
        self._path, self._clock = path, clock
        now = clock.now()
        for host, one in self._read().items():
            left = min(float(one["at"]) - now, float(one["asked"]))
            if left > 0:
                super().__setitem__(host, now + left)

    def __setitem__(self, host: str, at: float) -> None:
        super().__setitem__(host, at)
        now = self._clock.now()
        waits = {host: {"at": at, "asked": at - now} for host, at in self.items() if at > now}
        temporary = self._path.with_name(f"{self._path.name}.tmp")
        temporary.write_text(json.dumps(waits) + "\n", encoding="utf-8")
        temporary.replace(self._path)

    def _read(self) -> dict[str, dict[str, float]]:
        try:
            return json.loads(self._path.read_bytes())
        except (FileNotFoundError, ValueError):  # none yet; or emptied by a power cut, which took the waits with it
            return {}


class Backoff:
    """Waits between attempts: at random between half and all of a limit that doubles from `first` up to `longest`."""

    def __init__(self, first: float, longest: float, *, draw: random.Random | None = None) -> None:
        self._first, self._longest = first, longest
        self._draw = draw or random.Random()
        self._limit = first

    def reset(self) -> None:
        """Something went well: begin anew."""
        self._limit = self._first

    def next(self, retry_after: float = 0.0) -> float:
        """Seconds until the next attempt: at least `retry_after`, and then a little, so that not all come at once."""
        wait = self._limit * self._draw.uniform(0.5, 1.0)
        self._limit = min(2 * self._limit, self._longest)
        return max(wait, retry_after + self._draw.uniform(0.0, 0.1) * self._first if retry_after else 0.0)


def retry_after(headers: Mapping[str, str]) -> float:
    """Seconds that an answer asks to wait: `retry-after-ms`, or `retry-after` in seconds or as a date; 0 = not said.

    A date is read against the answer's own `date`, so that a wrong clock on either side does not matter.
    """
    milliseconds = headers.get("retry-after-ms", "").strip()
    if _SECONDS.fullmatch(milliseconds):
        return min(float(milliseconds) / 1000, LONGEST_RETRY_AFTER)
    text = headers.get("retry-after", "").strip()
    if _SECONDS.fullmatch(text):
        return min(float(text), LONGEST_RETRY_AFTER)
    until = _date(text)
    if until is None:
        return 0.0
    said = _date(headers.get("date", "")) or datetime.now(UTC)
    return min(max((until - said).total_seconds(), 0.0), LONGEST_RETRY_AFTER)


def _date(text: str) -> datetime | None:
    try:
        found = parsedate_to_datetime(text)
    except ValueError:  # no date: the caller has what to do then
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)
