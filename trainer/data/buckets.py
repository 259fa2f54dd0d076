"""Buckets: rows of about one length, to be padded to the longest of them and computed together.

The one decision: rows are sorted by length and cut where all buckets together cost least, each costing its tokens,
padding included, and `start` tokens more for being one. That is a pure function of the lengths of the rows in a call,
so a resumed run pads as the uninterrupted one does. The bounds were measured (docs/performance.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Bounds:
    """Of one bucket: most tokens, padding included, and most rows; and the tokens that would take as long as what a
    bucket takes besides its tokens."""

    tokens: int
    rows: int
    start: int


# By device. A CPU's are measured (docs/performance.md); a GPU's are not, and hold what its packed micro-batches do.
BOUNDS = {"cpu": Bounds(1024, 64, 64), "cuda": Bounds(16_384, 256, 1024), "mps": Bounds(4096, 64, 256)}


def buckets(lengths: Sequence[int], bounds: Bounds, *, together: int = 1) -> list[list[int]]:
    """Indices of the rows of each bucket, in ascending order; the bucket of the longest rows comes first.

    `together`: so many neighbours (2 = a pair) share a bucket; it divides the number of rows. Neighbours that are over
    the bounds have a bucket of their own.
    """
    longest_U = np.asarray(lengths, np.int64).reshape(-1, together).max(1)
    order_U = np.argsort(longest_U, kind="stable")
    found: list[list[int]] = []
    for first, stop in _cuts(longest_U[order_U] * together, bounds.rows // together, bounds):
        units = np.sort(order_U[first:stop])
        found.append((units[:, None] * together + np.arange(together)).ravel().tolist())
    return found


def tokens_laid(lengths: Sequence[int], bounds: Bounds, *, together: int = 1) -> list[int]:
    """Tokens of each of the `buckets`, padding included."""
    return [
        len(bucket) * max(lengths[index] for index in bucket) for bucket in buckets(lengths, bounds, together=together)
    ]


def _cuts(sizes_U: np.ndarray, most: int, bounds: Bounds) -> list[tuple[int, int]]:
    """(first, stop) of each bucket, the last one first; `sizes_U` are tokens, ascending."""
    least = np.zeros(len(sizes_U) + 1, np.int64)  # cost of the first so many
    begun = np.zeros(len(sizes_U) + 1, np.int64)  # where the last of their buckets begins
    for stop, size in enumerate(sizes_U.tolist(), 1):
        fit = max(1, min(most, bounds.tokens // size))
        firsts = np.arange(max(0, stop - fit), stop)
        costs = least[firsts] + size * (stop - firsts) + bounds.start
        best = int(costs.argmin())
        least[stop], begun[stop] = costs[best], firsts[best]
    cuts, stop = list[tuple[int, int]](), len(sizes_U)
    while stop:
        cuts.append((int(begun[stop]), stop))
        stop = int(begun[stop])
    return cuts
