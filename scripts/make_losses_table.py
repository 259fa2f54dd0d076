"""Measures every loss against its definition, against autograd through `cross_entropy`, and against TRL, and writes
the table of docs/losses.md: `python scripts/make_losses_table.py`, with `--check` only compares the file's rows.

The figures are the largest differences over the seeds and settings that the tests use; the tests hold the bounds
(tests/conformance/test_losses.py, tests/unit/test_losses_trl.py), this page says by how much they are kept. Rows in
which we or TRL fail are printed as they are.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.conformance import test_losses as definitions  # noqa: E402
from tests.loss_kit import run_loss  # noqa: E402
from tests.unit import test_losses_trl as trl  # noqa: E402
from trainer.loss_specs import LOSS_SPECS  # noqa: E402
from trainer.losses.cross_entropy import cross_entropy  # noqa: E402
from trainer.losses.table import LOSSES  # noqa: E402

PAGE = ROOT / "docs" / "losses.md"
BEGIN, END = "<!-- begin: scripts/make_losses_table.py -->", "<!-- end -->"
_SETTINGS = ("defaults", "all on")
_SEEDS = range(5)


def against_definition(name: str) -> tuple[float, float]:
    """Largest relative difference of the value and absolute difference of the slopes from fp64 plain loops."""
    value_gap = slope_gap = 0.0
    for seed in _SEEDS:
        for kind in _SETTINGS:
            case, config = definitions.make_case(seed), definitions.config_of(name, kind)
            value, slopes = run_loss(name, case.logprobs_N, case.fields, **config)
            expected, expected_slopes = definitions.by_definition(name, case, config)
            value_gap = max(value_gap, abs(value - expected) / max(1.0, abs(expected)))
            slope_gap = max(slope_gap, float((slopes.double() - expected_slopes).abs().max()))
    return value_gap, slope_gap


def as_custom(name: str) -> float:
    """Largest difference of the logits' gradient when `cross_entropy` with weights -dL/dlogp stands in for the loss."""
    worst = 0.0
    for seed in _SEEDS:
        for kind in _SETTINGS:
            case, config = definitions.make_case(seed), definitions.config_of(name, kind)
            generator = torch.Generator().manual_seed(seed)
            count = len(case.logprobs_N)
            logits_NV = torch.randn(count, 7, generator=generator, requires_grad=True)
            targets_N = torch.randint(0, 7, (count,), generator=generator)
            logprobs_N = torch.log_softmax(logits_NV, -1).gather(1, targets_N[:, None])[:, 0]
            total, _ = LOSSES[name].function(logprobs_N, case.fields, config)
            (built_in,) = torch.autograd.grad(total, logits_NV, retain_graph=True)
            _, slopes = run_loss(name, logprobs_N, case.fields, **config)
            stand_in, _ = cross_entropy(logprobs_N, replace(case.fields, weights_N=-slopes), {})
            (other,) = torch.autograd.grad(stand_in, logits_NV)
            worst = max(worst, float((other - built_in).abs().max()))
    return worst


def far_away(name: str) -> str:
    """Whether value and slopes are finite at log-ratios of +-50."""
    for gap in (-50.0, 50.0):
        case = definitions.make_case()
        fields = replace(case.fields, logprobs_N=case.logprobs_N + gap, reference_N=case.logprobs_N - gap)
        value, slopes = run_loss(name, case.logprobs_N, fields)
        if not (torch.isfinite(torch.tensor(value)) and bool(torch.isfinite(slopes).all())):
            return "**no**"
    return "yes"


Oracle = Callable[[trl.Batch], tuple[float, torch.Tensor]]
_CLIPS = trl.CLIPS
ORACLES: dict[str, tuple[str, dict[str, float], Oracle]] = {
    "grpo": ("GRPOTrainer, loss_type grpo", _CLIPS, lambda b: trl.trl_grpo(b, "grpo", epsilon=(0.2, 0.28))),
    "dapo": ("GRPOTrainer, loss_type dapo", _CLIPS, lambda b: trl.trl_grpo(b, "dapo", epsilon=(0.2, 0.28))),
    "dr_grpo": ("GRPOTrainer, loss_type dr_grpo", _CLIPS, lambda b: trl.trl_grpo(b, "dr_grpo", epsilon=(0.2, 0.28))),
    "gspo": (
        "GRPOTrainer, sequence level, loss_type grpo", {},
        lambda b: trl.trl_grpo(b, "grpo", level="sequence", epsilon=(3e-4, 4e-4)),
    ),
    "gspo_token": (
        "the same (constant advantage)", {},
        lambda b: trl.trl_grpo(b, "grpo", level="sequence", epsilon=(3e-4, 4e-4)),
    ),
    "cispo": (
        "GRPOTrainer, loss_type cispo, cap 5", {"clip_low_threshold": 0.0, "clip_high_threshold": 5.0},
        lambda b: trl.trl_grpo(b, "cispo", epsilon=(0.2, 5.0)),
    ),
    "rloo": ("RLOOTrainer", {}, trl.trl_rloo),
    "dpo": ("DPOTrainer, sigmoid", {"beta": 0.1}, lambda b: trl.trl_dpo(b, "sigmoid")),
    "dpo_ipo": ("DPOTrainer, ipo", {"beta": 0.1}, lambda b: trl.trl_dpo(b, "ipo")),
    "dpo_hinge": ("DPOTrainer, hinge", {"beta": 0.1}, lambda b: trl.trl_dpo(b, "hinge")),
    "dpo_robust": (
        "DPOTrainer, robust", {"beta": 0.1, "label_smoothing": 0.1},
        lambda b: trl.trl_dpo(b, "robust", label_smoothing=0.1),
    ),
    "dpo_sigmoid_norm": ("DPOTrainer, sigmoid_norm", {"beta": 0.1}, lambda b: trl.trl_dpo(b, "sigmoid_norm")),
}  # fmt: skip
NO_ORACLE = {
    "cross_entropy": "SFTTrainer's nll: equal (test_losses_trl)",
    "orpo": "its odds term: equal; its NLL also counts the prompt (differs on purpose)",
    "importance_sampling": "TRL has none (Tinker's and Fireworks' service losses)",
    "ppo": "TRL 1.16 has no PPO trainer; equal to dapo without KL",
    "dro": "TRL has none",
    "reinforce": "TRL has none",
}


def against_trl(name: str) -> tuple[str, str]:
    """With what of TRL it is compared, and the largest relative difference of value and slopes."""
    if name in NO_ORACLE:
        return NO_ORACLE[name], "-"
    label, config, oracle = ORACLES[name]
    worst = 0.0
    for seed in _SEEDS:
        batch = trl.Batch(trl.LENGTHS, seed=seed)
        ours, theirs = batch.ours(name, **config), oracle(batch)
        worst = max(worst, abs(ours[0] - theirs[0]) / max(1.0, abs(theirs[0])))
        worst = max(worst, float((ours[1] - theirs[1]).abs().max() / theirs[1].abs().max()))
    return label, f"{worst:.0e}"


def table() -> str:
    """The page's table, in markdown."""
    lines = [
        "| loss | paper | value, slopes: off the definition by | as a custom loss, off by | finite at +-50 nats "
        "| compared with TRL 1.16's | off by |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, spec in LOSS_SPECS.items():
        value, slopes = against_definition(name)
        label, gap = against_trl(name)
        lines.append(
            f"| `{name}` | {spec.paper} | {value:.0e}, {slopes:.0e} | {as_custom(name):.0e} | {far_away(name)} "
            f"| {label} | {gap} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="The conformance table of docs/losses.md.")
    parser.add_argument("--check", action="store_true", help="only see that the page has a row for every loss")
    options = parser.parse_args()
    page = PAGE.read_text(encoding="utf-8")
    before, after = page[: page.index(BEGIN) + len(BEGIN)], page[page.index(END) :]
    if options.check:
        missing = [name for name in LOSS_SPECS if f"| `{name}` |" not in page]
        raise SystemExit(f"docs/losses.md lacks {missing}; run this program without --check" if missing else 0)
    PAGE.write_text(f"{before}\n{table()}\n{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
