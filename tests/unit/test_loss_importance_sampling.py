"""Importance sampling: value and slope are the ratio's, and the clamp's edge."""

from __future__ import annotations

import math

import pytest

from tests.loss_kit import run_rows


def test_golden_with_weights() -> None:
    # r = 0.5, 1.5; A = 1, -2; w = 1, 0.5: -(0.5 - 1.5) = 1; slopes -w r A = the terms themselves.
    value, slopes = run_rows(
        "importance_sampling",
        [[-2.0, -3.0]],
        old=[[-2.0 - math.log(0.5), -3.0 - math.log(1.5)]],
        advantages=[[1.0, -2.0]],
        weights=[[1.0, 0.5]],
    )
    assert value == pytest.approx(1.0, abs=1e-6)
    assert slopes == pytest.approx([-0.5, 1.5], abs=1e-6)


def test_beyond_the_clamp_a_value_and_no_slope() -> None:
    value, slopes = run_rows("importance_sampling", [[-1.0]], old=[[-51.0]], advantages=[[-1.0]])
    assert value == pytest.approx(math.exp(20), rel=1e-5) and slopes == [0.0]


@pytest.mark.parametrize("missing", ["old", "advantages"])
def test_missing_fields_are_named(missing: str) -> None:
    given = {name: [[-1.0]] for name in ("old", "advantages") if name != missing}
    with pytest.raises(ValueError, match=r"importance_sampling: the datums have no (logprobs|advantages)"):
        run_rows("importance_sampling", [[-1.0]], **given)  # pyright: ignore[reportArgumentType]
