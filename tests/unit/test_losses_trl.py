"""TRL 1.16 as an oracle: its own loss code on our numbers, and by how much and why ours differs where it does.

TRL's loss methods take a trainer and a model; here the trainer is the few attributes they read, and the "model" hands
back the log-probs. B completions (chosen ones first, then rejected, as TRL lays pairs), T positions, padded right.
"""

from __future__ import annotations

import math
import warnings
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers.loss.loss_utils import ForCausalLMLoss
from trl.import_utils import TRLExperimentalWarning
from trl.rewards.other_rewards import get_soft_overlong_punishment
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.rloo_trainer import RLOOTrainer
from trl.trainer.utils import nanstd

from tests.loss_kit import run_loss
from trainer.advantages import group_advantages, overlong_penalty, rloo_advantages
from trainer.loss_specs import LOSS_SPECS, step_denominator
from trainer.losses.fields import TokenFields
from trainer.losses.orpo import log1mexp

with warnings.catch_warnings():  # on import it warns that any release may change it; the version is pinned
    warnings.simplefilter("ignore", TRLExperimentalWarning)
    from trl.experimental.orpo import ORPOTrainer

LENGTHS = [3, 1, 4, 2, 5, 2]
LIMIT = 7  # TRL's max_completion_length
ADVANTAGES = [1.0, -1.5, 0.0, 0.7, -0.4, 2.0]


class Batch:
    """Completions of these lengths: random log-probs now, of the sampler and of the reference, [B, T]."""

    def __init__(
        self, lengths: list[int], *, seed: int = 0, spread: float = 0.4, advantages: list[float] | None = None
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        shape = (len(lengths), max(lengths))
        self.lengths = lengths
        self.mask_BT = (torch.arange(shape[1])[None] < torch.tensor(lengths)[:, None]).long()
        self.now_BT = -torch.rand(shape, generator=generator) * 3 - 0.05
        self.old_BT = self.now_BT + spread * torch.randn(shape, generator=generator)
        self.reference_BT = self.now_BT + torch.randn(shape, generator=generator)
        self.advantages_B = torch.tensor(ADVANTAGES[: len(lengths)] if advantages is None else advantages)

    def ours(self, name: str, **config: float) -> tuple[float, Tensor]:
        """Our loss and slopes [B, T], divided by the loss's denominator for this step."""
        inside = self.mask_BT.bool()
        rows = torch.arange(len(self.lengths))[:, None].expand_as(self.now_BT)[inside]
        fields = TokenFields(
            weights_N=torch.ones_like(self.now_BT)[inside],
            datum_N=rows,
            datums=len(self.lengths),
            logprobs_N=self.old_BT[inside],
            advantages_N=self.advantages_B[rows],
            reference_N=self.reference_BT[inside],
        )
        value, slopes_N = run_loss(name, self.now_BT[inside], fields, **config)
        divisor = step_denominator(LOSS_SPECS[name].denominator, self.lengths, max_tokens=LIMIT)
        slopes_BT = torch.zeros_like(self.now_BT)
        slopes_BT[inside] = slopes_N
        return value / divisor, slopes_BT / divisor


def accelerator() -> SimpleNamespace:
    return SimpleNamespace(
        num_processes=1,
        device=torch.device("cpu"),
        reduce=lambda values, reduction: values,
        gather=lambda values: values,
        gather_for_metrics=lambda values: values,
    )


def trainer_stub(now_BT: Tensor, **attributes: Any) -> SimpleNamespace:
    return SimpleNamespace(
        accelerator=accelerator(),
        model=SimpleNamespace(training=True),
        aux_loss_enabled=False,
        _metrics=defaultdict(lambda: defaultdict(list)),
        _get_per_token_logps_and_entropies=lambda *_, **__: (now_BT, torch.zeros_like(now_BT), None),
        **attributes,
    )


def trl_grpo(
    batch: Batch,
    loss_type: str,
    *,
    level: str = "token",
    epsilon: tuple[float, float] = (0.2, 0.2),
    delta: float | None = None,
    beta: float = 0.0,
    kl_times_ratio: bool = True,
    window_tokens: int | None = None,
    steps_per_generation: int = 1,
) -> tuple[float, Tensor]:
    """Loss and slopes [B, T] of `GRPOTrainer._compute_loss`; `window_tokens`: of the whole generation batch."""
    now_BT = batch.now_BT.clone().requires_grad_()
    stub = trainer_stub(
        now_BT,
        loss_type=loss_type,
        importance_sampling_level=level,
        epsilon_low=epsilon[0],
        epsilon_high=epsilon[1],
        beta=beta,
        args=SimpleNamespace(
            delta=delta, use_bias_correction_kl=kl_times_ratio, steps_per_generation=steps_per_generation
        ),
        max_completion_length=LIMIT,
        current_gradient_accumulation_steps=1,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        use_vllm=False,
        _entropy_bonus_enabled=False,
    )
    ids = torch.zeros_like(batch.mask_BT)
    inputs = {
        "prompt_ids": ids[:, :1],
        "prompt_mask": ids[:, :1] + 1,
        "completion_ids": ids,
        "completion_mask": batch.mask_BT,
        "advantages": batch.advantages_B,
        "old_per_token_logps": batch.old_BT,
        "ref_per_token_logps": batch.reference_BT,
        "num_items_in_batch": torch.tensor(float(window_tokens or sum(batch.lengths))),
    }
    loss = GRPOTrainer._compute_loss(stub, None, inputs)  # pyright: ignore[reportArgumentType]
    (slopes_BT,) = torch.autograd.grad(loss, now_BT)
    return float(loss.detach()), slopes_BT


def assert_same(ours: tuple[float, Tensor], theirs: tuple[float, Tensor]) -> None:
    assert ours[0] == pytest.approx(theirs[0], rel=1e-5, abs=1e-6)
    torch.testing.assert_close(ours[1], theirs[1], rtol=1e-5, atol=1e-6)


# GRPO and its family

CLIPS = {"clip_low_threshold": 0.8, "clip_high_threshold": 1.28}


@pytest.mark.parametrize(
    ("name", "loss_type"), [("grpo", "grpo"), ("dapo", "dapo"), ("dapo", "bnpo"), ("dr_grpo", "dr_grpo")]
)
@pytest.mark.parametrize("delta", [None, 1.5])
@pytest.mark.parametrize("kl", [None, "kl_k3", "kl_k3_ratio"])
def test_grpo_family_is_trls(name: str, loss_type: str, delta: float | None, kl: str | None) -> None:
    """One micro-batch: value and slopes are TRL's, with its `delta` as our dual clip, and k3 with or without ratio."""
    batch = Batch(LENGTHS)
    config = {**CLIPS, **({"dual_clip": delta} if delta else {}), **({kl: 0.04} if kl else {})}
    theirs = trl_grpo(
        batch, loss_type, epsilon=(0.2, 0.28), delta=delta, beta=0.04 if kl else 0.0, kl_times_ratio=kl == "kl_k3_ratio"
    )
    assert_same(batch.ours(name, **config), theirs)


def test_trls_generation_window_is_an_average() -> None:
    """Two optimizer steps of one generation batch, 2 and 8 tokens: TRL divides both by (2 + 8) / 2 = 5, we each by its
    own count, so TRL's first step has 0.4 and its second 1.6 of our gradient. A long step then weighs more."""
    for lengths, factor in (([2], 2 / 5), ([8], 8 / 5)):
        batch = Batch(lengths)
        value, slopes = batch.ours("dapo", **CLIPS)
        theirs = trl_grpo(batch, "dapo", epsilon=(0.2, 0.28), window_tokens=10, steps_per_generation=2)
        assert_same((value * factor, slopes * factor), theirs)


def test_trls_bnpo_depends_on_the_split() -> None:
    """Micro-batches of 2 and 8 tokens, on policy, A +1 and -1: TRL's mean of means is (-1 + 1) / 2 = 0; over the
    tokens of the step it is (-2 + 8) / 10 = 0.6, whatever the split."""
    parts = [Batch([2], spread=0.0, advantages=[1.0]), Batch([8], spread=0.0, advantages=[-1.0])]
    assert sum(trl_grpo(part, "bnpo")[0] for part in parts) / 2 == pytest.approx(0.0, abs=1e-6)
    sums = [part.ours("dapo")[0] * part.lengths[0] for part in parts]
    assert sum(sums) / 10 == pytest.approx(0.6, rel=1e-6)


@pytest.mark.parametrize("name", ["gspo", "gspo_token"])
@pytest.mark.parametrize("spread", [0.4, 0.0])
def test_gspo_is_trls_sequence_level_grpo(name: str, spread: float) -> None:
    batch = Batch(LENGTHS, spread=spread)
    assert_same(batch.ours(name), trl_grpo(batch, "grpo", level="sequence", epsilon=(3e-4, 4e-4)))
    assert_same(
        batch.ours(name, kl_k3=0.04),
        trl_grpo(batch, "grpo", level="sequence", epsilon=(3e-4, 4e-4), beta=0.04, kl_times_ratio=False),
    )


def test_gspo_kl_has_the_tokens_ratio_here_and_the_sequences_in_trl() -> None:
    """k3 is a token's: corrected by its own ratio its expectation is the KL, by the sequence's it is not. The
    difference in value is beta mean_i mean_t (s_i - r_t) k3_t."""
    batch = Batch(LENGTHS, spread=1.0)
    ours = batch.ours("gspo", kl_k3_ratio=0.04)[0]
    theirs = trl_grpo(batch, "grpo", level="sequence", epsilon=(3e-4, 4e-4), beta=0.04)[0]
    mask_BT, counts_B1 = batch.mask_BT, batch.mask_BT.sum(1, keepdim=True)
    log_r_BT = (batch.now_BT - batch.old_BT) * mask_BT
    s_B1 = (log_r_BT.sum(1, keepdim=True) / counts_B1).exp()
    behind_BT = batch.reference_BT - batch.now_BT
    k3_BT = behind_BT.exp() - behind_BT - 1
    gap = 0.04 * float(((s_B1 - log_r_BT.exp()) * k3_BT * mask_BT / counts_B1).sum(1).mean())
    assert abs(gap) > 1e-4
    assert theirs - ours == pytest.approx(gap, abs=1e-6)


def test_cispo_with_trls_cap() -> None:
    """TRL's epsilon_high is the bound itself, and there is none below: low 0, high 5 here."""
    batch = Batch(LENGTHS)
    bounds = {"clip_low_threshold": 0.0, "clip_high_threshold": 5.0}
    assert_same(batch.ours("cispo", **bounds), trl_grpo(batch, "cispo", epsilon=(0.2, 5.0)))
    assert_same(
        batch.ours("cispo", kl_k3_ratio=0.04, **bounds), trl_grpo(batch, "cispo", epsilon=(0.2, 5.0), beta=0.04)
    )


def test_cispo_with_trls_default_is_a_constant_weight() -> None:
    """Left at 0.2 every ratio above it counts 0.2: on policy a fifth of our gradient, and no correction off policy.
    `clip_high_threshold` 0.2 is refused here (test_loss_cispo)."""
    batch = Batch(LENGTHS, spread=0.0)
    _, slopes = batch.ours("cispo")
    torch.testing.assert_close(trl_grpo(batch, "cispo")[1], slopes * 0.2, rtol=1e-5, atol=1e-6)


def test_beyond_20_nats_trl_explodes() -> None:
    """A -1, log-ratio 50: TRL's value and slope are e^50 = 5.2e21; ours e^20 = 4.9e8, and no slope. The same for k3 at
    d = -50. At 89 nats TRL's is infinite in fp32."""
    batch = Batch([1], advantages=[-1.0])
    batch.now_BT[:], batch.old_BT[:] = -1.0, -51.0
    value, slopes = trl_grpo(batch, "grpo")
    assert value == pytest.approx(math.exp(50), rel=1e-4) and float(slopes.max()) == pytest.approx(
        math.exp(50), rel=1e-4
    )
    value, slopes = batch.ours("grpo")
    assert value == pytest.approx(math.exp(20), rel=1e-4) and float(slopes.abs().max()) == 0
    batch.now_BT[:], batch.old_BT[:], batch.reference_BT[:] = -51.0, -51.0, -1.0
    assert trl_grpo(batch, "grpo", beta=1.0, kl_times_ratio=False)[0] == pytest.approx(math.exp(50), rel=1e-4)
    assert batch.ours("grpo", kl_k3=1.0)[0] == pytest.approx(math.exp(20), rel=1e-4)
    batch.now_BT[:], batch.old_BT[:] = -1.0, -91.0
    assert math.isinf(trl_grpo(batch, "grpo")[0])


# RLOO


def trl_rloo(batch: Batch) -> tuple[float, Tensor]:
    now_BT = batch.now_BT.clone().requires_grad_()
    ids = torch.zeros_like(batch.mask_BT)
    inputs = {
        "prompt_ids": ids[:, :1],
        "prompt_mask": ids[:, :1] + 1,
        "completion_ids": ids,
        "completion_mask": batch.mask_BT,
        "advantages": batch.advantages_B,
        "old_logps": (batch.old_BT * batch.mask_BT).sum(1),
    }
    stub = trainer_stub(now_BT, epsilon_low=0.2, epsilon_high=0.2)
    loss = RLOOTrainer._compute_loss(stub, None, inputs)  # pyright: ignore[reportArgumentType]
    (slopes_BT,) = torch.autograd.grad(loss, now_BT)
    return float(loss.detach()), slopes_BT


@pytest.mark.parametrize("spread", [0.4, 0.05, 0.0])
def test_rloo_is_trls(spread: float) -> None:
    batch = Batch(LENGTHS, spread=spread)
    assert_same(batch.ours("rloo"), trl_rloo(batch))


def test_rloo_products_overflow_in_trl() -> None:
    """4 tokens of +25 nats: e^100 is infinite in fp32, times 0 it is NaN. Ours holds at e^20, and 0."""
    for advantage, check, value in ((-1.0, math.isinf, math.exp(20)), (0.0, math.isnan, 0.0)):
        batch = Batch([4], advantages=[advantage])
        batch.now_BT[:], batch.old_BT[:] = -1.0, -26.0
        assert check(trl_rloo(batch)[0])
        assert batch.ours("rloo")[0] == pytest.approx(value, rel=1e-5)


# DPO


def trl_dpo(batch: Batch, loss_type: str, **settings: float) -> tuple[float, Tensor]:
    """Loss and slopes [B, T] of `DPOTrainer._compute_loss`. Our order of pairs is (c, r, c, r), TRL's (c, c, r, r)."""
    order = torch.cat([torch.arange(0, len(batch.lengths), 2), torch.arange(1, len(batch.lengths), 2)])
    now_BT = batch.now_BT.clone().requires_grad_()
    mask_BT = batch.mask_BT[order]
    reference_B = (batch.reference_BT * batch.mask_BT).sum(1)[order]
    chosen_B, rejected_B = reference_B.chunk(2)
    outputs = SimpleNamespace(
        log_probs=now_BT[order] * mask_BT,
        entropy=torch.zeros_like(batch.now_BT),
        mean_logits=torch.zeros_like(batch.now_BT),
        is_top1=mask_BT.bool(),
    )
    stub = SimpleNamespace(
        accelerator=accelerator(),
        model=SimpleNamespace(training=True),
        aux_loss_enabled=False,
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        loss_types=[loss_type],
        loss_weights=[1.0],
        beta=settings.get("beta", 0.1),
        label_smoothing=settings.get("label_smoothing", 0.0),
        use_weighting=False,
        _total_train_tokens=0,
        _tp_size=1,
        _metrics=defaultdict(lambda: defaultdict(list)),
    )
    inputs = {
        "input_ids": torch.zeros((len(batch.lengths), mask_BT.shape[1] + 1), dtype=torch.int64),
        "attention_mask": torch.ones((len(batch.lengths), mask_BT.shape[1] + 1), dtype=torch.int64),
        "completion_mask": torch.nn.functional.pad(mask_BT, (1, 0)),  # one prompt token before it
        "ref_chosen_logps": chosen_B,
        "ref_rejected_logps": rejected_B,
    }
    loss: Any = DPOTrainer._compute_loss(stub, lambda **_: outputs, inputs, False)  # pyright: ignore[reportArgumentType]
    (slopes_BT,) = torch.autograd.grad(loss, now_BT)
    return float(loss.detach()), slopes_BT


@pytest.mark.parametrize("beta", [0.1, 0.5])
@pytest.mark.parametrize(
    ("name", "loss_type", "smoothing"),
    [
        ("dpo", "sigmoid", {}),
        ("dpo_ipo", "ipo", {}),
        ("dpo_hinge", "hinge", {}),
        ("dpo_robust", "robust", {"label_smoothing": 0.1}),
        ("dpo_sigmoid_norm", "sigmoid_norm", {}),
    ],
)
def test_dpo_family_is_trls(name: str, loss_type: str, smoothing: dict[str, float], beta: float) -> None:
    batch = Batch(LENGTHS)
    assert_same(batch.ours(name, beta=beta, **smoothing), trl_dpo(batch, loss_type, beta=beta, **smoothing))


def test_label_smoothing_does_nothing_to_trls_sigmoid() -> None:
    """D = 3, beta 0.1: TRL says 0.554355 at any smoothing; ours at 0.2 is 0.8 * 0.554355 + 0.2 * 0.854355."""
    batch = Batch([1, 1])
    batch.now_BT[:] = torch.tensor([[-10.0], [-15.0]])
    batch.reference_BT[:] = torch.tensor([[-12.0], [-14.0]])
    assert trl_dpo(batch, "sigmoid", label_smoothing=0.2)[0] == pytest.approx(0.554355, abs=1e-6)
    assert batch.ours("dpo", label_smoothing=0.2)[0] == pytest.approx(0.614355, abs=1e-6)


def test_added_likelihood_weighs_pairs_alike_here_and_tokens_in_trl() -> None:
    """Chosen responses of 1 token at NLL 2 and 3 tokens at NLL 1. Ours: mean over pairs of each one's mean, 1.5; TRL's
    "sft": token mean of the micro-batch, (2 + 3) / 4 = 1.25. At equal lengths they agree."""
    batch = Batch([1, 2, 3, 2])
    batch.now_BT[0], batch.now_BT[2] = -2.0, -1.0
    plain, added = batch.ours("dpo")[0], batch.ours("dpo", nll_weight=1.0)[0]
    assert added - plain == pytest.approx(1.5, abs=1e-5)
    assert trl_dpo(batch, "sft")[0] == pytest.approx(1.25, abs=1e-5)
    equal = Batch([3, 2, 3, 4])
    plain, added = equal.ours("dpo"), equal.ours("dpo", nll_weight=1.0)
    assert_same((added[0] - plain[0], added[1] - plain[1]), trl_dpo(equal, "sft"))


# ORPO


def trl_odds(c_P: Tensor, r_P: Tensor) -> Tensor:
    """lambda log sigmoid(log odds), [P], lambda 0.1."""
    stub = SimpleNamespace(beta=0.1, accelerator=accelerator())
    return ORPOTrainer.odds_ratio_loss(stub, c_P, r_P)[0]  # pyright: ignore[reportArgumentType]


def test_orpo_odds_are_trls() -> None:
    batch = Batch(LENGTHS)
    means = [row[:n].mean() for row, n in zip(batch.now_BT, LENGTHS, strict=True)]
    c_P, r_P = torch.stack(means[::2]), torch.stack(means[1::2])
    assert batch.ours("orpo")[0] == pytest.approx(float((-c_P - trl_odds(c_P, r_P)).mean()), abs=1e-6)


def test_orpo_near_certainty_trl_has_no_slope() -> None:
    """Mean log-prob -1e-8: TRL's branch makes the slope NaN, at 0 the value is infinite. Ours is clamped at -1e-6."""
    c_P = torch.tensor([-1e-8], requires_grad=True)
    (slope,) = torch.autograd.grad(trl_odds(c_P, torch.tensor([-1.0])).sum(), c_P)
    assert torch.isnan(slope).all()
    assert not torch.isfinite(trl_odds(torch.tensor([-1.0]), torch.tensor([0.0]))).all()
    batch = Batch([1, 1])
    for c, r in ((-1e-8, -1.0), (-1.0, 0.0)):
        batch.now_BT[:] = torch.tensor([[c], [r]])
        value, slopes = batch.ours("orpo")
        assert math.isfinite(value) and torch.isfinite(slopes).all()
    leaf = torch.tensor([-1e-8], requires_grad=True)
    (slope,) = torch.autograd.grad(log1mexp(leaf).sum(), leaf)
    assert float(slope) == pytest.approx(-1e8, rel=1e-5)


def test_orpo_likelihood_is_of_the_response_here_and_of_the_prompt_too_in_trl() -> None:
    """TRL's concatenated_forward on logits: prompt of 2 learnt tokens at NLL ln 2 each and a response of 2 at NLL ln 4:
    (2 ln 2 + 2 ln 4) / 4 = 1.5 ln 2. Ours: ln 4 = 2 ln 2, the response's mean."""
    ids = torch.tensor([[1, 1, 1, 1, 1]])
    logits = torch.full((2, 5, 4), -30.0)
    logits[:, :2, :2] = 0.0  # two tokens alike: NLL ln 2
    logits[:, 2:, :] = 0.0  # four alike: ln 4
    labels = torch.tensor([[-100, -100, -100, 1, 1]])
    stub = SimpleNamespace(
        is_encoder_decoder=False,
        aux_loss_enabled=False,
        padding_value=0,
        accelerator=accelerator(),
        concatenated_inputs=lambda *_, **__: {
            "concatenated_input_ids": ids.repeat(2, 1),
            "concatenated_attention_mask": torch.ones(2, 5, dtype=torch.int64),
            "concatenated_labels": labels.repeat(2, 1),
        },
        get_batch_logps=ORPOTrainer.get_batch_logps,
    )
    forward: Any = ORPOTrainer.concatenated_forward
    found = forward(stub, lambda *_, **__: SimpleNamespace(logits=logits), {"chosen_labels": labels})
    assert float(found[0]) == pytest.approx(-math.log(4), rel=1e-6)  # the mean log-prob that goes into the odds
    assert float(found[4]) == pytest.approx(1.5 * math.log(2), rel=1e-6)
    batch = Batch([2, 2])
    batch.now_BT[:] = -math.log(4)
    assert batch.ours("orpo", orpo_lambda=0.0)[0] == pytest.approx(2 * math.log(2), rel=1e-6)


# Fine-tuning


def test_cross_entropy_is_the_loss_trl_trains() -> None:
    """TRL's SFT "nll" is transformers' causal loss with num_items_in_batch = trained tokens of the step."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 6, 11, generator=generator)
    labels = torch.randint(0, 11, (2, 6), generator=generator)
    labels[0, :3], labels[1, :1] = -100, -100
    trained = labels[:, 1:] != -100
    theirs = ForCausalLMLoss(logits, labels, 11, num_items_in_batch=trained.sum())
    logprobs = torch.log_softmax(logits[:, :-1], -1).gather(2, labels[:, 1:, None].clamp(min=0))[..., 0]
    fields = TokenFields(torch.ones(int(trained.sum())), torch.arange(2)[:, None].expand(2, 5)[trained], 2)
    value, _ = run_loss("cross_entropy", logprobs[trained], fields)
    assert value / step_denominator("tokens", trained.sum(1).tolist()) == pytest.approx(float(theirs), rel=1e-6)


# Advantages (TRL has them inline, made of torch.nanmean and its nanstd)

REWARDS = np.array([[1.0, 0.0, 0.0, 0.0], [0.3, np.nan, 0.9, 0.1], [2.0, np.nan, np.nan, np.nan], [0.5] * 4])


@pytest.mark.parametrize("std", ["sample", "batch", "none"])
def test_group_advantages_are_trls(std: str) -> None:
    rewards = torch.from_numpy(REWARDS)
    centred = rewards - rewards.nanmean(1, keepdim=True)
    spread = {"sample": nanstd(rewards, dim=1)[:, None] + 1e-4, "batch": nanstd(rewards) + 1e-4, "none": 1.0}[std]
    expected = torch.nan_to_num(centred / spread, nan=0.0)
    found = group_advantages(REWARDS, std=std)  # pyright: ignore[reportArgumentType]
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-6, atol=1e-7)


def test_rloo_advantages_are_trls() -> None:
    rewards = torch.from_numpy(REWARDS)
    scorable = (~rewards.isnan()).sum(1, keepdim=True)
    baselines = (rewards.nansum(1, keepdim=True) - rewards) / (scorable - 1)
    expected = torch.nan_to_num(rewards - baselines, nan=0.0)
    np.testing.assert_allclose(rloo_advantages(REWARDS), expected.numpy(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("cache", [0, 4, 10])
def test_overlong_penalty_is_trls(cache: int) -> None:
    punish = get_soft_overlong_punishment(max_completion_len=10, soft_punish_cache=cache)
    lengths = list(range(14))
    expected = punish([[0] * n for n in lengths])
    np.testing.assert_allclose(overlong_penalty(lengths, max_tokens=10, cache_tokens=cache), expected, atol=1e-12)
