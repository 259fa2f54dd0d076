"""The same DPO or ORPO job on TRL's trainer: same pairs, order and start; each step's loss agrees."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[2] / "scripts" / "bench_dpo.py"


@pytest.mark.slow
@pytest.mark.parametrize("rank", ["8", "0"])
def test_fifty_steps_have_trls_losses_to_1e_4(rank: str) -> None:
    done = subprocess.run(
        [sys.executable, str(BENCH), "--parity", "50", "--rank", rank],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=1800, check=False,
    )  # fmt: skip
    assert done.returncode == 0 and "50 steps" in done.stdout, done.stdout + done.stderr
    print(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("rank", ["8", "0"])
def test_fifty_steps_of_orpo_have_trls_losses_to_1e_4(rank: str) -> None:
    """On pairs where both definitions are one: prompts of one token, chosen answers of one length."""
    done = subprocess.run(
        [sys.executable, str(BENCH.with_name("prove_orpo.py")), "--steps", "50", "--rank", rank],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=1800, check=False,
    )  # fmt: skip
    assert done.returncode == 0 and "50 steps" in done.stdout, done.stdout + done.stderr
    print(done.stdout)
