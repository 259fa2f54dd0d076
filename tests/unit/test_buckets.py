"""Buckets of rows of about one length: within their bounds, every row once, and no cheaper way to cut them."""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from trainer.data.buckets import BOUNDS, Bounds, buckets, tokens_laid

FREE = Bounds(tokens=1000, rows=1000, start=2)


def test_rows_are_joined_where_padding_costs_less_than_a_bucket():
    # 9 and 10 cost 20 + 2 together and 19 + 4 apart; so do 3 and 4, 8 + 2 and 7 + 4. All four would be 40 + 2.
    assert buckets([10, 3, 9, 4], FREE) == [[0, 2], [1, 3]]
    assert tokens_laid([10, 3, 9, 4], FREE) == [20, 8]
    assert buckets([10, 3, 9, 4], Bounds(1000, 1000, 0)) == [[0], [2], [3], [1]]
    assert buckets([10, 3, 9, 4], Bounds(1000, 1000, 100)) == [[0, 1, 2, 3]]
    assert buckets([], FREE) == []


def test_rows_of_one_length_are_never_padded():
    assert tokens_laid([5, 9, 5, 9, 5], Bounds(1000, 1000, 1)) == [18, 15]


def test_a_bucket_is_bounded_by_tokens_and_by_rows_and_a_long_row_goes_alone():
    assert buckets([4] * 5, Bounds(tokens=9, rows=1000, start=50)) == [[3, 4], [1, 2], [0]]
    assert buckets([4] * 5, Bounds(tokens=1000, rows=3, start=50)) == [[2, 3, 4], [0, 1]]
    assert buckets([4, 30, 4], Bounds(tokens=9, rows=1000, start=50)) == [[1], [0, 2]]


def test_pairs_are_kept_together_and_counted_by_their_longer_side():
    # Pairs of 8, 3 and 7 tokens a side: 16 + 14 tokens apart, 32 together.
    assert buckets([8, 1, 3, 3, 2, 7], FREE, together=2) == [[0, 1, 4, 5], [2, 3]]
    assert tokens_laid([8, 1, 3, 3, 2, 7], FREE, together=2) == [32, 6]
    assert buckets([5, 5] * 3, Bounds(tokens=1000, rows=3, start=50), together=2) == [[4, 5], [2, 3], [0, 1]]


def parts(cut: Sequence[int], count: int) -> list[tuple[int, int]]:
    """(first, stop) of buckets that end before these places."""
    return list(zip([0, *cut], [*cut, count], strict=True))


def cheapest(sizes: list[int], bounds: Bounds) -> int:
    """Of all ways to cut sorted lengths."""

    def fits(first: int, stop: int) -> bool:
        rows = stop - first
        return rows == 1 or (rows <= bounds.rows and rows * sizes[stop - 1] <= bounds.tokens)

    count = len(sizes)
    cuts = [parts(cut, count) for n in range(count) for cut in combinations(range(1, count), n)]
    return min(
        sum((stop - first) * sizes[stop - 1] + bounds.start for first, stop in cut)
        for cut in cuts
        if all(fits(*part) for part in cut)
    )


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=9),
    st.sampled_from([Bounds(60, 4, 7), Bounds(1000, 100, 20), Bounds(1, 1, 0)]),
)
def test_every_row_once_within_bounds_and_nothing_cheaper(lengths: list[int], bounds: Bounds) -> None:
    found, laid = buckets(lengths, bounds), tokens_laid(lengths, bounds)
    assert sorted(row for bucket in found for row in bucket) == list(range(len(lengths)))
    for bucket, tokens in zip(found, laid, strict=True):
        assert bucket == sorted(bucket)
        assert len(bucket) == 1 or (len(bucket) <= bounds.rows and tokens <= bounds.tokens)
    longest = [max(lengths[row] for row in bucket) for bucket in found]
    assert longest == sorted(longest, reverse=True)
    assert sum(laid) + bounds.start * len(found) == cheapest(sorted(lengths), bounds)


def test_the_same_rows_are_padded_alike_in_any_order():
    lengths = np.random.default_rng(0).integers(1, 400, 200).tolist()
    assert tokens_laid(lengths, BOUNDS["cpu"]) == tokens_laid(lengths[::-1], BOUNDS["cpu"])
    assert sum(tokens_laid(lengths, BOUNDS["cpu"])) < 1.05 * sum(lengths)
