"""PPO: the clip table of losses.md 4.4, slopes inside, at and beyond the bounds, dual clip, refusals."""

from __future__ import annotations

import math

import pytest

from tests.loss_kit import fields_of, flat, run_rows
from trainer.losses.table import LOSSES, find_loss

RATIOS = [0.5, 1.0, 1.5, 4.0]


def one(ratio: float, advantage: float, **config: float) -> tuple[float, float]:
    """Value and slope at one position of this ratio."""
    value, slopes = run_rows("ppo", [[math.log(ratio) - 2]], old=[[-2.0]], advantages=[[advantage]], **config)
    return value, slopes[0]


@pytest.mark.parametrize(
    ("advantage", "config", "values", "slopes"),
    [
        (1, {}, [-0.5, -1, -1.2, -1.2], [-0.5, -1, 0, 0]),
        (1, {"clip_high_threshold": 1.28}, [-0.5, -1, -1.28, -1.28], [-0.5, -1, 0, 0]),
        (-1, {}, [0.8, 1, 1.5, 4], [0, 1, 1.5, 4]),
        (-1, {"dual_clip": 3}, [0.8, 1, 1.5, 3], [0, 1, 1.5, 0]),
        (-1, {"dual_clip": 2}, [0.8, 1, 1.5, 2], [0, 1, 1.5, 0]),
        (1, {"dual_clip": 2}, [-0.5, -1, -1.2, -1.2], [-0.5, -1, 0, 0]),
        (0, {"dual_clip": 2}, [0, 0, 0, 0], [0, 0, 0, 0]),
    ],
)
def test_golden_values_and_slopes(
    advantage: float, config: dict[str, float], values: list[float], slopes: list[float]
) -> None:
    found = [one(ratio, advantage, **config) for ratio in RATIOS]
    assert [value for value, _ in found] == pytest.approx(values, abs=1e-5)
    assert [slope for _, slope in found] == pytest.approx(slopes, abs=1e-5)


def test_on_policy_the_slope_is_whole_at_a_tie() -> None:
    # r = 1 makes both arms of the minimum equal; with bounds [1, 1] it is an edge as well.
    bounds = {"clip_low_threshold": 1.0, "clip_high_threshold": 1.0}
    assert one(1.0, 2.0) == (-2.0, -2.0)
    assert one(1.0, 2.0, **bounds) == (-2.0, -2.0)


def test_metrics_count_what_lost_its_slope() -> None:
    fields = fields_of([4], old=[[-1.0] * 4], advantages=[[1.0, 1.0, -1.0, -1.0]])
    logprobs = flat([[math.log(r) - 1 for r in (2.0, 0.5, 0.5, 4.0)]])
    _, metrics = LOSSES["ppo"].function(logprobs, fields, {"dual_clip": 3.0})
    found = {name: float(value) for name, value in metrics.items()}
    assert found == pytest.approx(
        {
            "ratios:sum": 4,
            "ratio:sum": 7,
            "ratio:min": 0.5,
            "ratio:max": 4,
            "clipped_low:sum": 1,
            "clipped_high:sum": 1,
            "clipped_dual:sum": 1,
        },
        rel=1e-5,
    )


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"clip_high_threshold": 0.28}, r"ppo\.clip_high_threshold is 0\.28, wanted 1 to"),  # epsilon, not the bound
        ({"clip_low_threshold": math.nan}, "clip_low_threshold is nan"),
        ({"dual_clip": 1.1}, r"clip_high_threshold 1\.2 is above dual_clip 1\.1"),
        ({"epsilon": 0.2}, r"does not take \['epsilon'\]"),
    ],
)
def test_constants_out_of_range_are_refused(config: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find_loss("ppo", config)
