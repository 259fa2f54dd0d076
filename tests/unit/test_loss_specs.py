"""The described losses: the same names as the functions, no torch, constants, denominators, records."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import pytest

from trainer.loss_specs import LOSS_SPECS, described, filled, step_denominator
from trainer.losses.table import LOSSES


def test_described_and_computed_are_the_same_losses() -> None:
    assert list(LOSS_SPECS) == list(LOSSES)


@pytest.mark.parametrize("module", ["trainer.loss_specs", "trainer.advantages"])
def test_needs_no_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", LOSS_SPECS)
def test_defaults_are_in_range_and_records_are_json(name: str) -> None:
    record = json.loads(json.dumps(described(name, {}), allow_nan=False))
    assert record["constants"] == filled(name, {}) and record["denominator"] == LOSS_SPECS[name].denominator
    assert all(math.isfinite(value) for value in record["constants"].values())
    assert set(record["meanings"]) == set(record["constants"])


def test_given_constants_are_recorded() -> None:
    constants = described("grpo", {"kl_k3": 0.04})["constants"]
    assert constants["kl_k3"] == 0.04 and constants["clip_high_threshold"] == 1.2
    with pytest.raises(ValueError, match="'grop' is not one of"):
        described("grop", {})


def test_denominators_of_a_step() -> None:
    trained = [2, 8, 0, 2]
    assert step_denominator("tokens", trained) == 12
    assert step_denominator("sequences", trained) == 4  # one that is masked throughout still is a sequence
    assert step_denominator("pairs", trained) == 2
    assert step_denominator("sequence_tokens", trained, max_tokens=10) == 40


@pytest.mark.parametrize(("kind", "trained"), [("tokens", [0, 0]), ("sequences", []), ("sequence_tokens", [3])])
def test_nothing_to_divide_by_is_refused(kind: str, trained: list[int]) -> None:
    with pytest.raises(ValueError, match="give nothing to divide by"):
        step_denominator(kind, trained)  # pyright: ignore[reportArgumentType]
