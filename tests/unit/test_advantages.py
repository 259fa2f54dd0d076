"""Advantages: golden numbers, unscorable rewards, invariances, length shaping."""

from __future__ import annotations

import math

import numpy as np
import pytest

from trainer.advantages import group_advantages, leave_one_out, overlong_penalty, rloo_advantages

GROUP = [[1.0, 0.0, 0.0, 0.0]]


def test_golden_group() -> None:
    # mean 0.25; sample std sqrt((0.5625 + 3 * 0.0625) / 3) = 0.5; population std sqrt(0.75 / 4) = 0.433013.
    np.testing.assert_allclose(group_advantages(GROUP), [[1.499700, -0.499900, -0.499900, -0.499900]], atol=1e-6)
    expected = np.array([[0.75, -0.25, -0.25, -0.25]])
    np.testing.assert_allclose(group_advantages(GROUP, std="population"), expected / (0.433013 + 1e-4), atol=1e-5)
    np.testing.assert_allclose(group_advantages(GROUP, std="none"), expected)
    np.testing.assert_allclose(rloo_advantages(GROUP), [[1, -1 / 3, -1 / 3, -1 / 3]], atol=1e-7)
    np.testing.assert_allclose(leave_one_out(GROUP), [[0, 1 / 3, 1 / 3, 1 / 3]])


def test_rloo_is_the_centred_reward_times_g_over_g_minus_1() -> None:
    rewards = np.random.default_rng(0).normal(size=(3, 5))
    np.testing.assert_allclose(rloo_advantages(rewards), 5 / 4 * group_advantages(rewards, std="none"), atol=1e-6)


def test_batch_std_is_one_number_for_all_prompts() -> None:
    rewards = [[1.0, 0.0], [3.0, 3.0]]
    expected = np.array([[0.5, -0.5], [0, 0]]) / (np.std([1, 0, 3, 3], ddof=1) + 1e-4)
    np.testing.assert_allclose(group_advantages(rewards, std="batch"), expected, rtol=1e-6)


def test_unscorable_is_left_out_and_gets_zero() -> None:
    # [1, None, 0, 0]: mean 1/3, not 1/4; sample std of 1, 0, 0: sqrt((4/9 + 1/9 + 1/9) / 2) = sqrt(1/3).
    three = group_advantages([[1.0, 0.0, 0.0]])[0]
    found = group_advantages([[1.0, None, 0.0, 0.0]])
    np.testing.assert_allclose(found, [[three[0], 0, three[1], three[2]]], atol=1e-7)
    np.testing.assert_allclose(found[0, 0], (2 / 3) / (math.sqrt(1 / 3) + 1e-4), rtol=1e-6)
    np.testing.assert_allclose(rloo_advantages([[1.0, math.nan, 0.0, 0.0]]), [[1, 0, -0.5, -0.5]])
    np.testing.assert_allclose(leave_one_out([[1.0, math.nan, 0.0, 0.0]]), [[0, 1 / 3, 0.5, 0.5]])


@pytest.mark.parametrize("std", ["sample", "population", "batch", "none"])
@pytest.mark.parametrize("epsilon", [1e-4, 0.0])
def test_nothing_to_compare_gives_zero(std: str, epsilon: float) -> None:
    # All equal; one scorable; none scorable. Epsilon 0 too: 0/0 is never made.
    rewards = [[0.1, 0.1, 0.1], [7.0, None, None], [None, None, None]]
    found = group_advantages(rewards, std=std, epsilon=epsilon)  # pyright: ignore[reportArgumentType]
    np.testing.assert_allclose(found, np.zeros((3, 3)), atol=1e-7)
    assert found.dtype == np.float32
    np.testing.assert_allclose(rloo_advantages(rewards), np.zeros((3, 3)), atol=1e-7)


@pytest.mark.parametrize("std", ["sample", "population", "batch", "none"])
def test_a_constant_changes_nothing_and_a_scale_only_what_has_no_std(std: str) -> None:
    rewards = np.random.default_rng(1).normal(size=(4, 6))
    plain, moved, scaled = (
        group_advantages(r, std=std)  # pyright: ignore[reportArgumentType]
        for r in (rewards, rewards + 100, rewards * 10)
    )
    np.testing.assert_allclose(moved, plain, atol=1e-5)
    np.testing.assert_allclose(scaled, plain * (10 if std == "none" else 1), rtol=1e-3)
    np.testing.assert_allclose(rloo_advantages(rewards * 10), 10 * rloo_advantages(rewards), rtol=1e-5)


@pytest.mark.parametrize("rewards", [[1.0, 2.0], [[1.0], [2.0]], np.zeros((0, 4)), [[1.0, math.inf]]])
def test_refused(rewards: object) -> None:
    for function in (group_advantages, rloo_advantages, leave_one_out):
        with pytest.raises(ValueError, match="rewards: "):
            function(rewards)  # pyright: ignore[reportArgumentType]


def test_unknown_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="std: 'group' is not one of"):
        group_advantages(GROUP, std="group")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="epsilon: want a finite number"):
        group_advantages(GROUP, epsilon=-1)


def test_overlong_golden() -> None:
    lengths = [0, 16384, 18432, 20480, 20481]
    np.testing.assert_allclose(overlong_penalty(lengths, max_tokens=20480, cache_tokens=4096), [0, 0, -0.5, -1, -1])
    np.testing.assert_allclose(overlong_penalty([9, 10, 11], max_tokens=10, cache_tokens=0), [0, 0, -1])
    with pytest.raises(ValueError, match="overlong: want 0 <= cache_tokens <= max_tokens"):
        overlong_penalty([1], max_tokens=10, cache_tokens=11)
