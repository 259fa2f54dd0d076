"""Rates by hand: peak 1.0, 2 steps of warm-up, 6 steps in all."""

import pytest

from trainer.loops.schedule import learning_rate, unreached


def rates(kind: str, min_ratio: float) -> list[float]:
    return [learning_rate(step, 6, peak=1.0, warmup=2, kind=kind, min_ratio=min_ratio) for step in range(1, 7)]


def test_warm_up_then_constant():
    assert rates("constant", 0.0) == [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]


def test_linear_reaches_the_floor_on_the_last_step():
    # Progress after the warm-up is 1/4, 2/4, 3/4, 4/4; the share above the floor of 0.2 falls from 1 to 0.
    assert rates("linear", 0.2) == pytest.approx([0.5, 1.0, 0.8, 0.6, 0.4, 0.2])


def test_cosine_is_half_way_at_half_time():
    # share = (1 + cos(pi p)) / 2 at p = 1/4: 0.853553, 1/2: 0.5, 3/4: 0.146447, 1: 0.
    assert rates("cosine", 0.0) == pytest.approx([0.5, 1.0, 0.8535534, 0.5, 0.1464466, 0.0])


def test_warm_up_longer_than_the_run_never_falls():
    assert [learning_rate(s, 2, peak=1.0, warmup=4, kind="cosine", min_ratio=0.0) for s in (1, 2)] == [0.25, 0.5]


@pytest.mark.parametrize("step", [0, 7])
def test_steps_outside_the_run_are_errors(step):
    with pytest.raises(ValueError, match=f"step {step} is not in 1..6"):
        learning_rate(step, 6, peak=1.0, warmup=0, kind="linear", min_ratio=0.0)


def test_unknown_kinds_are_errors():
    with pytest.raises(ValueError, match="'poly' is not one of"):
        learning_rate(3, 6, peak=1.0, warmup=0, kind="poly", min_ratio=0.0)


def test_only_a_warm_up_beyond_the_run_is_told():
    assert unreached(6, peak=1.0, warmup=6) == ""
    assert "ends at 0.25 and never reaches 1; set learning_rate_warmup_steps to 2" in unreached(2, peak=1.0, warmup=8)
