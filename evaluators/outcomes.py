"""What a set of results says together: how many ended how, which rows count, means with confidence intervals.

The one decision: a row without a sound score is *masked*. It is out of the loss, out of its group's mean and standard
deviation, and in the histogram. When too many are masked, `check_invalid_fraction` stops who asked.
"""

from __future__ import annotations

import math
import random
import statistics
from array import array
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from evaluators.protocol import MAX_INVALID_FRACTION, Result, Status

Z95 = 1.959964  # two-sided 95 % of a normal distribution
_ROUNDS = 2_000  # of the bootstrap, fewer where rows are many
_DRAWS = 2_000_000  # of the bootstrap in all
_FEWEST_ROUNDS = 200
_MANY = 10_000  # rows; the bootstrap of so many is the normal interval, and takes seconds
MOST_METRICS = 100  # names in one summary


class TooManyInvalid(RuntimeError):
    """More rows are masked than may be; `histogram` is by status."""

    def __init__(self, message: str, histogram: Mapping[str, int]) -> None:
        super().__init__(message)
        self.histogram = dict(histogram)


@dataclass(frozen=True)
class GroupStatistics:
    """Mean and population standard deviation of a group's unmasked scores; both None where there is none."""

    count: int
    masked: int
    mean: float | None
    std: float | None


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % confidence interval, and how that was found."""

    mean: float
    low: float
    high: float
    count: int
    method: str


@dataclass(frozen=True)
class Summary:
    """All that a table says of one evaluation. `score` is None where no row was scored.

    left_out: values of metrics beyond the first `MOST_METRICS` names, which stand in the rows alone.
    """

    rows: int
    masked: int
    histogram: dict[str, int]
    score: Interval | None
    metrics: dict[str, Interval]
    left_out: int = 0

    @property
    def masked_fraction(self) -> float:
        """Masked rows over all rows; 0 of no rows."""
        return self.masked / self.rows if self.rows else 0.0


def counts(result: Result) -> bool:
    """True where the row's score may be used; every other row is masked."""
    return result.status is Status.OK and result.score is not None and math.isfinite(result.score.score)


def values(results: Sequence[Result]) -> list[float | None]:
    """Each row's score; None where it is masked."""
    return [result.score.score if counts(result) and result.score else None for result in results]


def histogram(results: Iterable[Result]) -> dict[str, int]:
    """How many rows ended how, in the order of `Status`; statuses that no row has are left out."""
    return _in_order(Counter(result.status for result in results))


def _in_order(found: Mapping[Status, int]) -> dict[str, int]:
    return {status.value: found[status] for status in Status if found.get(status)}


def group_statistics(results: Sequence[Result], groups: Sequence[Hashable]) -> dict[Hashable, GroupStatistics]:
    """Mean and standard deviation of each group's unmasked rows. results, groups: one a row, in the same order."""
    members: dict[Hashable, list[float | None]] = defaultdict(list)
    for value, group in zip(values(results), groups, strict=True):
        members[group].append(value)
    found = {}
    for group, scores in members.items():
        kept = [score for score in scores if score is not None]
        mean = statistics.fmean(kept) if kept else None
        std = statistics.pstdev(kept) if kept else None
        found[group] = GroupStatistics(len(kept), len(scores) - len(kept), mean, std)
    return found


def check_invalid_fraction(results: Sequence[Result], limit: float = MAX_INVALID_FRACTION) -> None:
    """Raise `TooManyInvalid` where more than `limit` of the rows are masked, with the histogram in words."""
    masked = sum(not counts(result) for result in results)
    if not results or masked / len(results) <= limit:
        return
    found = histogram(results)
    shares = ", ".join(f"{name} {count:,}" for name, count in found.items())
    first = next(result for result in results if not counts(result))
    raise TooManyInvalid(
        f"{masked:,} of {len(results):,} rows ({masked / len(results):.0%}) have no usable score, max_invalid_fraction "
        f"is {limit:g}: {shares}. The first: {first.status.value}: {first.message or 'no message'}. Mend the "
        "evaluator, its limits or the rows; or raise max_invalid_fraction",
        found,
    )


def wilson(successes: int, count: int, *, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval of a share (E. B. Wilson, 1927): sound near 0 and 1, and for few rows."""
    if count <= 0:
        raise ValueError("an interval needs at least one row")
    share = successes / count
    scale = 1 + z * z / count
    centre = (share + z * z / (2 * count)) / scale
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count)) / scale
    return max(0.0, centre - half), min(1.0, centre + half)


def bootstrap(scores: Sequence[float], *, seed: int = 0) -> tuple[float, float]:
    """Percentile bootstrap of the mean, 95 %; the same seed gives the same interval.

    2,000 rounds, fewer (at least 200) where there are more than 1,000 rows.
    """
    if not scores:
        raise ValueError("an interval needs at least one row")
    rounds = max(_FEWEST_ROUNDS, min(_ROUNDS, _DRAWS // len(scores)))
    draw = random.Random(seed)
    means = sorted(statistics.fmean(draw.choices(scores, k=len(scores))) for _ in range(rounds))
    return means[round(0.025 * (rounds - 1))], means[round(0.975 * (rounds - 1))]


def interval(scores: Sequence[float], *, seed: int = 0) -> Interval | None:
    """The mean with its interval: Wilson's where every score is 0 or 1, else the bootstrap's. None of no scores.

    More than 10,000 rows have the normal interval, from which the bootstrap's could not be told.
    """
    if not scores:
        return None
    mean, count = statistics.fmean(scores), len(scores)
    if all(score in (0.0, 1.0) for score in scores):
        low, high = wilson(round(sum(scores)), count)
        return Interval(mean, low, high, count, "Wilson")
    if count > _MANY:
        half = Z95 * math.sqrt(math.fsum((score - mean) ** 2 for score in scores) / (count - 1) / count)
        return Interval(mean, mean - half, mean + half, count, "normal")
    low, high = bootstrap(scores, seed=seed)
    return Interval(mean, low, high, count, "bootstrap")


def summarise(results: Iterable[Result], *, seed: int = 0) -> Summary:
    """The table's figures: means over the rows that count, and over each metric's valid values.

    Results are read once and not kept; a number is kept of each score and of each metric.
    """
    statuses: Counter[Status] = Counter()
    scores, left_out = array("d"), 0
    found: dict[str, array[float]] = {}
    for result in results:
        statuses[result.status] += 1
        if not counts(result) or result.score is None:
            continue
        scores.append(result.score.score)
        for name, one in result.score.metrics.items():
            if name not in found and len(found) >= MOST_METRICS:
                left_out += 1
            elif one.is_score_valid:
                found.setdefault(name, array("d")).append(one.score)
    metrics = {name: one for name in sorted(found) if (one := interval(found[name], seed=seed))}
    rows = statuses.total()
    own = interval(scores, seed=seed)
    return Summary(rows, rows - len(scores), _in_order(statuses), own, metrics, left_out)


def worst(results: Sequence[Result], count: int) -> list[int]:
    """Indices of the rows to look at first: those without a usable score, then the lowest scores, in row order."""

    def key(index: int) -> tuple[int, float]:
        value = found[index]
        return (0, 0.0) if value is None else (1, value)

    found = values(results)
    return sorted(range(len(results)), key=key)[:count]
