"""Times as text: RFC 3339 in, fixed-width UTC microseconds out, so that records' times compare as strings."""

from __future__ import annotations

import re
from datetime import UTC, datetime

_TIME = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)")


def canonical(text: str) -> str | None:
    """`text` as records hold times (2026-01-31T12:00:00.000000Z), or None when it is no RFC 3339 time."""
    if not _TIME.fullmatch(text):
        return None
    try:
        moment = datetime.fromisoformat(text.upper()).astimezone(UTC)
    except (ValueError, OverflowError):  # a thirteenth month; a zone before the year 1
        return None
    return written(moment)


def written(moment: datetime) -> str:
    """The UTC time `moment` as records hold it."""
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")
