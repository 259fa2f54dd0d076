"""What results say together: masks, histograms, groups, intervals, worst rows. Values derived by hand."""

import math

import pytest

from evaluators.outcomes import (
    TooManyInvalid,
    bootstrap,
    check_invalid_fraction,
    group_statistics,
    histogram,
    interval,
    summarise,
    values,
    wilson,
    worst,
)
from evaluators.protocol import Metric, Result, Score, Status


def ok(score: float) -> Result:
    return Result(Status.OK, Score(score))


BAD = [Result(status, message=status.value) for status in Status if status is not Status.OK]


def test_every_other_status_is_masked_and_never_a_number() -> None:
    assert values([ok(0.0), *BAD]) == [0.0] + [None] * 12
    assert values([Result(Status.INVALID, Score(1.0, False)), Result(Status.OK)]) == [None, None]
    assert histogram([ok(1), ok(0), *BAD]) == {"ok": 2, **{one.status.value: 1 for one in BAD}}


def test_masked_rows_do_not_move_their_group() -> None:
    clean = group_statistics([ok(1), ok(0), ok(0.5)], ["a", "a", "b"])
    dirty = group_statistics([ok(1), BAD[0], ok(0), BAD[1], ok(0.5)], ["a", "a", "a", "b", "b"])
    for group in ("a", "b"):
        assert (clean[group].mean, clean[group].std) == (dirty[group].mean, dirty[group].std)
    assert (dirty["a"].mean, dirty["a"].std, dirty["a"].masked) == (0.5, 0.5, 1)
    assert group_statistics([BAD[0]], ["a"])["a"].mean is None
    with pytest.raises(ValueError, match="zip"):
        group_statistics([ok(1)], [])


def test_too_many_masked_rows_stop_with_the_histogram() -> None:
    check_invalid_fraction([ok(1)] * 8 + BAD[:2])  # exactly 0.2
    check_invalid_fraction([])
    with pytest.raises(
        TooManyInvalid, match=r"3 of 11 rows \(27%\).*0\.2: ok 8, error 1, timeout 1, oom 1.*first: error"
    ) as raised:
        check_invalid_fraction([ok(1)] * 8 + BAD[:3])
    assert raised.value.histogram == {"ok": 8, "error": 1, "timeout": 1, "oom": 1}


def test_wilson_as_published() -> None:
    # 8 of 10 at 95 %: 0.4902 to 0.9433 (e.g. Agresti and Coull 1998, table of the score interval)
    low, high = wilson(8, 10)
    assert (round(low, 4), round(high, 4)) == (0.4902, 0.9433)
    z2 = 1.959964**2
    assert wilson(0, 5) == (0.0, pytest.approx(z2 / (5 + z2)))
    assert wilson(5, 5)[1] == 1.0


def test_bootstrap_is_repeatable_and_near_the_normal_interval() -> None:
    scores = [place / 99 for place in range(100)]
    assert bootstrap(scores, seed=3) == bootstrap(scores, seed=3) != bootstrap(scores, seed=4)
    half = 1.96 * math.sqrt((100 + 1) / (12 * 99)) / math.sqrt(100)  # of an even spread over 0 to 1
    low, high = bootstrap(scores)
    assert low == pytest.approx(0.5 - half, abs=0.012)
    assert high == pytest.approx(0.5 + half, abs=0.012)


def test_the_interval_fits_the_scores() -> None:
    assert interval([]) is None
    shares, graded = interval([1.0, 0.0, 1.0]), interval([0.2, 0.4])
    assert shares is not None and shares.method == "Wilson"
    assert graded is not None and (graded.method, round(graded.mean, 9)) == ("bootstrap", 0.3)


def test_many_scores_have_the_normal_interval() -> None:
    found = interval([0.25, 0.75] * 6_000)
    deviation = 0.25 * math.sqrt(12_000 / 11_999)  # of the sample
    half = 1.959964 * deviation / math.sqrt(12_000)
    assert found is not None and (found.mean, found.count, found.method) == (0.5, 12_000, "normal")
    assert (found.low, found.high) == (pytest.approx(0.5 - half), pytest.approx(0.5 + half))


def test_a_summary_has_so_many_metrics_and_says_what_it_leaves_out() -> None:
    rows = [Result(Status.OK, Score(1.0, metrics={f"m{n}": Metric(float(n)) for n in range(102)}))] * 3
    summary = summarise(iter(rows))  # read once
    assert (len(summary.metrics), summary.left_out, summary.rows) == (100, 6, 3)
    assert summary.metrics["m99"].mean == 99.0 and "m100" not in summary.metrics


def test_a_summary_counts_valid_metrics_only() -> None:
    metrics = {"a": Metric(1.0), "b": Metric(0.0, False)}
    summary = summarise([Result(Status.OK, Score(1.0, metrics=metrics)), ok(0.0), BAD[0]])
    assert (summary.rows, summary.masked, list(summary.metrics)) == (3, 1, ["a"])
    assert summary.score is not None and (summary.score.mean, summary.score.count) == (0.5, 2)
    assert summary.masked_fraction == pytest.approx(1 / 3)


def test_the_worst_rows_come_first() -> None:
    assert worst([ok(1), ok(0.2), BAD[0], ok(0.1), BAD[1]], 4) == [2, 4, 3, 1]
