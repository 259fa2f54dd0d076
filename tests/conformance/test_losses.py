"""What every loss of the table must do: equal its definition, be a sum, stay finite, ignore what must not matter.

The definitions here are written a second time, datum by datum in plain loops and fp64, so that a mistake in the segment
operations or in a shared part shows. Then what the losses are for: exact policy gradients of a two-armed bandit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.loss_kit import run_loss
from trainer.advantages import group_advantages
from trainer.loss_specs import LOSS_SPECS, filled, step_denominator
from trainer.losses.cross_entropy import cross_entropy
from trainer.losses.fields import TokenFields
from trainer.losses.table import LOSSES

LENGTHS = [3, 1, 4, 2, 5, 2]
POLICY = [name for name, spec in LOSS_SPECS.items() if "advantages" in spec.needs]
ALL_ON = {
    "kl_k2": 0.1,
    "kl_k3": 0.2,
    "kl_k3_ratio": 0.3,
    "dual_clip": 1.5,
    "label_smoothing": 0.2,
    "nll_weight": 0.5,
    "clip_low_threshold": 0.7,
    "clip_high_threshold": 1.3,
    "beta": 0.3,
    "orpo_lambda": 0.7,
}


def config_of(name: str, kind: str) -> dict[str, float]:
    return {} if kind == "defaults" else {key: ALL_ON[key] for key in LOSS_SPECS[name].constants}


every_loss = pytest.mark.parametrize("name", LOSSES)
every_config = pytest.mark.parametrize("kind", ["defaults", "all on"])


@dataclass(frozen=True)
class Case:
    """Log-probs now and the fields beside them."""

    logprobs_N: Tensor
    fields: TokenFields


def make_case(seed: int = 0, *, spread: float = 0.4) -> Case:
    """Six datums; advantages one number for each, of both signs and 0; ratios on both sides of every bound."""
    generator = torch.Generator().manual_seed(seed)
    count = sum(LENGTHS)
    datum_N = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS))
    logprobs_N = -torch.rand(count, generator=generator) * 3 - 0.05
    fields = TokenFields(
        weights_N=torch.rand(count, generator=generator) + 0.5,
        datum_N=datum_N,
        datums=len(LENGTHS),
        logprobs_N=logprobs_N + spread * torch.randn(count, generator=generator),
        advantages_N=torch.tensor([1.0, -1.5, 0.0, 0.7, -0.4, 2.0])[datum_N],
        reference_N=logprobs_N + torch.randn(count, generator=generator),
    )
    return Case(logprobs_N, fields)


def taken(case: Case, positions: Tensor, renumbered: Tensor, datums: int) -> Case:
    """The case at some positions, in that order; `renumbered[d]` is what datum d is called there."""
    fields = case.fields

    def at(values: Tensor | None) -> Tensor | None:
        return None if values is None else values[positions]

    return Case(
        case.logprobs_N[positions],
        TokenFields(
            weights_N=fields.weights_N[positions],
            datum_N=renumbered[fields.datum_N[positions]],
            datums=datums,
            logprobs_N=at(fields.logprobs_N),
            advantages_N=at(fields.advantages_N),
            reference_N=at(fields.reference_N),
        ),
    )


# The definitions, again


@dataclass(frozen=True)
class Row:
    """One datum in fp64: log-probs now, of the sampler, of the reference; advantages, weights."""

    p: Tensor
    q: Tensor
    f: Tensor
    a: Tensor
    w: Tensor


Values = Mapping[str, float]


def token_loss(term: Callable[[Tensor, Row, int, Values], Tensor], *, mean: bool = False) -> Definition:
    """Sum (or mean) over a datum's positions of w times a term and the KL penalty, summed over datums."""

    def definition(rows: list[Row], values: Values) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for row in rows:
            parts = [row.w[t] * (term(row.p, row, t, values) + penalty(row, t, values)) for t in range(len(row.p))]
            total = total + sum(parts) / (len(parts) if mean else 1)
        return total

    return definition


def penalty(row: Row, t: int, values: Values) -> Tensor:
    d = row.p[t] - row.f[t]
    k3 = torch.exp(-d) + d - 1
    return (
        values.get("kl_k2", 0) * d * d / 2
        + values.get("kl_k3", 0) * k3
        + values.get("kl_k3_ratio", 0) * torch.exp(row.p[t] - row.q[t]) * k3
    )


def surrogate(ratio: Tensor, a: Tensor, values: Values) -> Tensor:
    low, high, dual = values["clip_low_threshold"], values["clip_high_threshold"], values.get("dual_clip", 0)
    loss = torch.maximum(-ratio * a, -torch.clamp(ratio, low, high) * a)
    return torch.minimum(loss, -dual * a) if dual and a < 0 else loss


def clipped_term(p: Tensor, row: Row, t: int, values: Values) -> Tensor:
    return surrogate(torch.exp(p[t] - row.q[t]), row.a[t], values)


def cispo_term(p: Tensor, row: Row, t: int, values: Values) -> Tensor:
    ratio = math.exp(float(p[t].detach() - row.q[t]))
    return -min(max(ratio, values["clip_low_threshold"]), values["clip_high_threshold"]) * row.a[t] * p[t]


def sequence_term(p: Tensor, row: Row, t: int, values: Values) -> Tensor:
    return surrogate(torch.exp((p - row.q).mean()), row.a[t], values)


def straight_through_term(p: Tensor, row: Row, t: int, values: Values) -> Tensor:
    ratio = torch.exp((p - row.q).mean()).detach() * torch.exp(p[t] - p[t].detach())
    return surrogate(ratio, row.a[t], values)


def rloo_definition(rows: list[Row], values: Values) -> Tensor:
    terms = [surrogate(torch.exp((row.p - row.q).sum()), (row.w * row.a).mean(), values) for row in rows]
    return torch.stack(terms).sum()


def pair_loss(shape: Callable[[Tensor, Values], Tensor], *, mean: bool = False) -> Definition:
    def definition(rows: list[Row], values: Values) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for c, r in zip(rows[::2], rows[1::2], strict=True):
            scores = [(row.w * (row.p - row.f)).sum() / (len(row.p) if mean else 1) for row in (c, r)]
            total = total + shape(scores[0] - scores[1], values) - values["nll_weight"] * (c.w * c.p).mean()
        return total

    return definition


def log_sigmoid(x: Tensor) -> Tensor:
    return -torch.log(1 + torch.exp(-x))


def smoothed(margin: Tensor, values: Values) -> Tensor:
    e, x = values["label_smoothing"], values["beta"] * margin
    return -(1 - e) * log_sigmoid(x) - e * log_sigmoid(-x)


def robust(margin: Tensor, values: Values) -> Tensor:
    e, x = values["label_smoothing"], values["beta"] * margin
    return ((e - 1) * log_sigmoid(x) + e * log_sigmoid(-x)) / (1 - 2 * e)


def orpo_definition(rows: list[Row], values: Values) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for c_row, r_row in zip(rows[::2], rows[1::2], strict=True):
        c, r = ((row.w * row.p).mean() for row in (c_row, r_row))
        odds = torch.exp(c) / (1 - torch.exp(c)) / (torch.exp(r) / (1 - torch.exp(r)))
        total = total - c - values["orpo_lambda"] * log_sigmoid(torch.log(odds))
    return total


Definition = Callable[[list[Row], Values], Tensor]
DEFINITIONS: dict[str, Definition] = {
    "cross_entropy": token_loss(lambda p, row, t, _: -p[t]),
    "dpo": pair_loss(smoothed),
    "dpo_ipo": pair_loss(lambda margin, v: (margin - 1 / (2 * v["beta"])) ** 2, mean=True),
    "dpo_hinge": pair_loss(lambda margin, v: torch.clamp(1 - v["beta"] * margin, min=0)),
    "dpo_robust": pair_loss(robust),
    "dpo_sigmoid_norm": pair_loss(smoothed, mean=True),
    "orpo": orpo_definition,
    "importance_sampling": token_loss(lambda p, row, t, _: -torch.exp(p[t] - row.q[t]) * row.a[t]),
    "ppo": token_loss(clipped_term),
    "grpo": token_loss(clipped_term, mean=True),
    "dapo": token_loss(clipped_term),
    "dr_grpo": token_loss(clipped_term),
    "gspo": token_loss(sequence_term, mean=True),
    "gspo_token": token_loss(straight_through_term, mean=True),
    "cispo": token_loss(cispo_term),
    "dro": token_loss(lambda p, row, t, v: v["beta"] / 2 * (p[t] - row.q[t]) ** 2 - row.a[t] * p[t]),
    "reinforce": token_loss(lambda p, row, t, _: -row.a[t] * p[t]),
    "rloo": rloo_definition,
}


def by_definition(name: str, case: Case, config: Mapping[str, float]) -> tuple[float, Tensor]:
    leaf = case.logprobs_N.double().requires_grad_()
    fields = case.fields
    assert fields.logprobs_N is not None and fields.reference_N is not None and fields.advantages_N is not None
    rows = [
        Row(leaf[own], fields.logprobs_N[own].double(), fields.reference_N[own].double(), *rest)
        for own, rest in (
            (own, (fields.advantages_N[own].double(), fields.weights_N[own].double()))
            for own in (fields.datum_N == d for d in range(fields.datums))
        )
    ]
    total = DEFINITIONS[name](rows, filled(name, config))
    (slopes,) = torch.autograd.grad(total, leaf)
    return float(total.detach()), slopes


def test_every_loss_has_a_definition_here() -> None:
    assert set(DEFINITIONS) == set(LOSSES) == set(LOSS_SPECS)


@every_config
@every_loss
@pytest.mark.parametrize("seed", [0, 1])
def test_value_and_slopes_equal_the_definition(name: str, kind: str, seed: int) -> None:
    case, config = make_case(seed), config_of(name, kind)
    value, slopes = run_loss(name, case.logprobs_N, case.fields, **config)
    expected, expected_slopes = by_definition(name, case, config)
    assert value == pytest.approx(expected, rel=1e-5, abs=1e-5)
    torch.testing.assert_close(slopes.double(), expected_slopes, rtol=1e-4, atol=1e-5)


@every_config
@every_loss
def test_cross_entropy_with_minus_the_slopes_has_the_same_gradient(name: str, kind: str) -> None:
    """The core of forward_backward_custom: weights -dL/dlogp make `cross_entropy` a stand-in for any loss."""
    case, config = make_case(), config_of(name, kind)
    generator = torch.Generator().manual_seed(3)
    logits_NV = torch.randn(sum(LENGTHS), 7, generator=generator, requires_grad=True)
    targets_N = torch.randint(0, 7, (sum(LENGTHS),), generator=generator)
    logprobs_N = torch.log_softmax(logits_NV, -1).gather(1, targets_N[:, None])[:, 0]
    total, _ = LOSSES[name].function(logprobs_N, case.fields, config)
    (built_in,) = torch.autograd.grad(total, logits_NV, retain_graph=True)
    _, slopes = run_loss(name, logprobs_N, case.fields, **config)
    stand_in, _ = cross_entropy(logprobs_N, replace(case.fields, weights_N=-slopes), {})
    (other,) = torch.autograd.grad(stand_in, logits_NV)
    torch.testing.assert_close(other, built_in, rtol=0, atol=1e-6)


# What must not matter


@every_config
@every_loss
def test_order_of_datums_and_layout_do_not_matter(name: str, kind: str) -> None:
    """Pairs swapped whole, and the datums laid in another order than they are numbered, as packing does."""
    case, config = make_case(), config_of(name, kind)
    value, slopes = run_loss(name, case.logprobs_N, case.fields, **config)
    renumbered = torch.tensor([4, 5, 0, 1, 2, 3])
    layout = torch.cat([torch.nonzero(case.fields.datum_N == d)[:, 0] for d in (5, 1, 3, 0, 2, 4)])
    moved = taken(case, layout, renumbered, len(LENGTHS))
    moved_value, moved_slopes = run_loss(name, moved.logprobs_N, moved.fields, **config)
    assert moved_value == pytest.approx(value, rel=1e-5)
    torch.testing.assert_close(moved_slopes, slopes[layout], rtol=1e-5, atol=1e-6)


@every_config
@every_loss
def test_the_sum_of_pieces_is_the_whole(name: str, kind: str) -> None:
    """Any split between datums (between pairs, for those) gives the same sum, slopes and summed metrics."""
    case, config = make_case(), config_of(name, kind)
    value, slopes = run_loss(name, case.logprobs_N, case.fields, **config)
    size = 2 if LOSS_SPECS[name].pairs else 1
    total, parts = 0.0, []
    for first in range(0, len(LENGTHS), size):
        inside = torch.nonzero((case.fields.datum_N >= first) & (case.fields.datum_N < first + size))[:, 0]
        piece = taken(case, inside, torch.arange(len(LENGTHS)) - first, size)
        piece_value, piece_slopes = run_loss(name, piece.logprobs_N, piece.fields, **config)
        total += piece_value
        parts.append(piece_slopes)
    assert total == pytest.approx(value, rel=1e-5)
    torch.testing.assert_close(torch.cat(parts), slopes, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", [name for name in LOSSES if not LOSS_SPECS[name].pairs])
def test_a_datum_that_is_masked_throughout_adds_nothing(name: str) -> None:
    case = make_case()
    wider = replace(case.fields, datums=len(LENGTHS) + 2)
    value = run_loss(name, case.logprobs_N, case.fields)[0]
    assert run_loss(name, case.logprobs_N, wider)[0] == pytest.approx(value, rel=1e-5)
    nothing = taken(case, torch.zeros(0, dtype=torch.int64), torch.arange(len(LENGTHS)), 2)
    total, metrics = LOSSES[name].function(nothing.logprobs_N, nothing.fields, {})
    assert float(total) == 0 and all(math.isfinite(float(value)) for value in metrics.values())


@pytest.mark.parametrize("name", [name for name in POLICY if name != "dro"])
def test_a_completion_without_advantage_has_no_slope(name: str) -> None:
    """Datum 2 has A = 0, here with ratios that overflow. (`dro` keeps its penalty there, see test_loss_dro.)"""
    case = make_case()
    assert case.fields.logprobs_N is not None
    for shift in (0.0, 200.0, -200.0):
        fields = replace(case.fields, logprobs_N=case.fields.logprobs_N + shift)
        slopes = run_loss(name, case.logprobs_N, fields)[1]
        assert slopes[case.fields.datum_N == 2].abs().max() == 0


# Edges

_GAPS = [-200.0, -50.0, -20.0, 0.0, 20.0, 50.0, 200.0]


@every_config
@every_loss
@pytest.mark.parametrize("gap", _GAPS)
def test_finite_far_from_sampler_and_reference(name: str, kind: str, gap: float) -> None:
    """Log-ratios to the sampler and the reference of 0, +-20, +-50, +-200, log-probs up to 0; A of every sign."""
    case = make_case()
    for top, alternate in product((-1.0, -1e-8, 0.0), (False, True)):
        now_N = torch.full_like(case.logprobs_N, top + min(gap, 0.0))
        other_N = torch.full_like(case.logprobs_N, top - max(gap, 0.0))
        near_N = (case.fields.datum_N % 2 == 1) & alternate  # of a pair, only the chosen one is far off then
        fields = replace(
            case.fields,
            logprobs_N=torch.where(near_N, now_N, other_N),
            reference_N=torch.where(near_N, now_N, other_N),
        )
        value, slopes = run_loss(name, now_N, fields, **config_of(name, kind))
        assert math.isfinite(value) and torch.isfinite(slopes).all()


@every_loss
def test_unknown_constants_and_missing_fields_are_refused(name: str) -> None:
    case = make_case()
    with pytest.raises(ValueError, match=rf"{name} does not take \['temperature'\]"):
        run_loss(name, case.logprobs_N, case.fields, temperature=1.0)
    for field in LOSS_SPECS[name].needs:
        with pytest.raises(ValueError, match=f"{name}: the datums have no {field}; it needs Datum.{field}"):
            run_loss(name, case.logprobs_N, replace(case.fields, **{f"{field}_N": None}))


# Rewards to slopes: scale, shift, aggregation


def slopes_of_rewards(name: str, rewards: np.ndarray, std: str, lengths: list[int]) -> tuple[float, Tensor]:
    """On-policy value and slopes of a step of one group per row of `rewards`, divided by the loss's denominator."""
    advantages = group_advantages(rewards, std=std).reshape(-1)  # pyright: ignore[reportArgumentType]
    datum_N = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    logprobs_N = -torch.linspace(0.1, 2, sum(lengths))
    fields = TokenFields(
        torch.ones(sum(lengths)),
        datum_N,
        len(lengths),
        logprobs_N=logprobs_N,
        advantages_N=torch.from_numpy(advantages)[datum_N],
    )
    value, slopes = run_loss(name, logprobs_N, fields)
    divisor = step_denominator(LOSS_SPECS[name].denominator, lengths, max_tokens=10)
    return value / divisor, slopes / divisor


REWARDS = np.array([[1.0, 0.0, 0.5, 0.0], [0.2, 0.9, 0.1, 0.4]])


@pytest.mark.parametrize("name", POLICY)
def test_scale_and_shift_of_rewards(name: str) -> None:
    lengths = [3, 1, 4, 2, 5, 2, 6, 1]
    for std, factor in (("sample", 1.0), ("none", 10.0)):
        plain = slopes_of_rewards(name, REWARDS, std, lengths)[1]
        scaled = slopes_of_rewards(name, REWARDS * 10, std, lengths)[1]
        torch.testing.assert_close(scaled, plain * factor, rtol=1e-3, atol=1e-6)
        moved = slopes_of_rewards(name, REWARDS + 5, std, lengths)[1]
        torch.testing.assert_close(moved, plain, rtol=1e-4, atol=1e-6)


def test_aggregations_agree_in_direction_at_equal_lengths_only() -> None:
    losses = ["grpo", "dapo", "dr_grpo", "reinforce", "rloo", "cispo"]
    for lengths, agree in (([3] * 8, True), ([3, 1, 4, 2, 5, 2, 6, 1], False)):
        found = {name: slopes_of_rewards(name, REWARDS, "none", lengths)[1] for name in losses}
        cosines = [float(torch.cosine_similarity(found["grpo"], found[name], dim=0)) for name in losses[1:]]
        assert all((cosine > 1 - 1e-6) == agree for cosine in cosines)
    values = [slopes_of_rewards(name, REWARDS, "none", [3, 1, 4, 2, 5, 2, 6, 1])[0] for name in losses[:3]]
    assert len({round(value, 6) for value in values}) == 3


# A two-armed bandit, every outcome enumerated

BANDIT_REWARDS = torch.tensor([1.0, -0.4])


def bandit(name: str, q_A: Tensor, theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient in theta of sum_a q(a) l(a), p(a), and dp(a)/dtheta [A, A]; the advantage is the reward itself."""
    p_A = torch.log_softmax(theta, 0)
    fields = TokenFields(
        weights_N=q_A,
        datum_N=torch.arange(2),
        datums=2,
        logprobs_N=q_A.log(),
        advantages_N=BANDIT_REWARDS,
    )
    total, _ = LOSSES[name].function(p_A, fields, {})
    (gradient,) = torch.autograd.grad(total, theta)
    return gradient, p_A.detach(), torch.eye(2) - p_A.detach().exp()


@pytest.mark.parametrize("name", POLICY)
def test_on_policy_every_policy_loss_is_the_policy_gradient(name: str) -> None:
    theta = torch.tensor([0.3, -0.5], requires_grad=True)
    pi_A = torch.softmax(theta.detach(), 0)
    gradient, _, _ = bandit(name, pi_A, theta)
    analytic = pi_A * (BANDIT_REWARDS - (pi_A * BANDIT_REWARDS).sum())  # of the expected reward
    torch.testing.assert_close(gradient, -analytic, rtol=1e-5, atol=1e-6)


def _kept(low: float, high: float) -> Callable[[Tensor], Tensor]:
    """r where the clipped surrogate has a slope, 0 where not."""
    lost = [lambda r: r > high, lambda r: r < low]
    return lambda r: torch.where(torch.where(BANDIT_REWARDS > 0, lost[0](r), lost[1](r)), torch.zeros_like(r), r)


# What multiplies q(a) A(a) grad p(a) off-policy; the ratio itself is unbiased.
OFF_POLICY: dict[str, Callable[[Tensor], Tensor]] = {
    "importance_sampling": lambda r: r,
    "ppo": _kept(0.8, 1.2),
    "grpo": _kept(0.8, 1.2),
    "dapo": _kept(0.8, 1.28),
    "dr_grpo": _kept(0.8, 1.2),
    "gspo": _kept(1 - 3e-4, 1 + 4e-4),
    "gspo_token": _kept(1 - 3e-4, 1 + 4e-4),
    "cispo": lambda r: r.clamp(0.8, 1.28),
    "dro": lambda r: 1 - 0.05 * r.log() / BANDIT_REWARDS,
    "reinforce": torch.ones_like,
    "rloo": _kept(0.8, 1.2),
}


@pytest.mark.parametrize("name", POLICY)
@pytest.mark.parametrize("q_first", [0.2, 0.5, 0.65, 0.75, 0.95])
def test_off_policy_each_has_its_stated_bias(name: str, q_first: float) -> None:
    theta = torch.tensor([0.3, -0.5], requires_grad=True)
    q_A = torch.tensor([q_first, 1 - q_first])
    gradient, p_A, slopes_AA = bandit(name, q_A, theta)
    factor_A = OFF_POLICY[name](p_A.exp() / q_A)
    expected = -(q_A * BANDIT_REWARDS * factor_A) @ slopes_AA
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)
    analytic = (p_A.exp() * BANDIT_REWARDS) @ slopes_AA
    if name == "importance_sampling":
        torch.testing.assert_close(gradient, -analytic, rtol=1e-5, atol=1e-6)
