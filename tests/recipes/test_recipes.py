"""Every recipe runs as a program."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
REAL = ROOT.parent / "shared" / "data"


def recipe(name: str, *words: str, home: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "TRAINER_HOME": str(home), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, str(ROOT / "recipes" / name), *words], cwd=home, env=environment, capture_output=True,
        text=True, timeout=1800, check=False,
    )  # fmt: skip


def test_101_learns_to_sort(tmp_path):
    done = recipe("101_first_sft.py", home=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "before: 0% right" in done.stdout
    (after,) = (line for line in done.stdout.splitlines() if line.startswith("after:"))
    assert int(after.split()[1].rstrip("%")) >= 95


def test_102_on_rows_of_that_shape(tmp_path):
    random.seed(0)
    rows = []
    for _ in range(64):
        a, b = random.randint(2, 9), random.randint(2, 9)
        rows.append({"question": f"Ann has {a} hens and buys {b} more. How many?", "answer": f"{a}+{b}\n#### {a + b}"})
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = recipe("102_gsm8k_sft.py", str(path), "job.batch_size=512", home=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "64 rows," in done.stdout and "held-out loss:" in done.stdout


@pytest.mark.slow
@pytest.mark.skipif(not (REAL / "gsm8k" / "train.jsonl").exists(), reason="needs ../shared/data/gsm8k")
def test_102_on_the_real_rows(tmp_path):
    done = recipe("102_gsm8k_sft.py", str(REAL / "gsm8k" / "train.jsonl"), home=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "600 rows, 128,065 of 212,093 tokens trained" in done.stdout


def test_201_prefers_as_wanted_and_stays_right(tmp_path):
    done = recipe("201_dpo.py", home=tmp_path)
    assert done.returncode == 0, done.stderr
    shares = {
        line.split(":")[0]: [float(word.rstrip("%,")) for word in line.split() if "%" in word]
        for line in done.stdout.splitlines()
        if line.startswith(("before:", "after:", "plain:"))
    }
    assert 40 < shares["before"][0] < 60 and shares["after"][0] > 95 and shares["plain"][0] > 95
    assert shares["after"][1] > shares["before"][1] - 5


def test_202_prefers_as_chosen_and_stays_right(tmp_path):
    done = recipe("202_orpo.py", "gateway=off", home=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "constants {'orpo_lambda': 1.0}, pairs of the whole optimizer step" in done.stdout
