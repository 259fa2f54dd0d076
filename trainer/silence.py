"""How long something has shown no change, counted by the looks of whoever waits for it: no clock is compared."""

from __future__ import annotations

import time


class Silence:
    """How long one thing has shown no change, by the looks of whoever asks."""

    def __init__(self, most: float) -> None:
        """most: seconds that one pause between two looks counts for, however long it was."""
        self._most, self._seen, self._looked, self._seconds = most, object(), time.monotonic(), 0.0

    def after(self, sign: object) -> float:
        """Look: `sign` is what shows now; the seconds it has shown no other."""
        now = time.monotonic()
        passed, self._looked = min(now - self._looked, self._most), now
        self._seconds = self._seconds + passed if sign == self._seen else 0.0
        self._seen = sign
        return self._seconds
