"""Runs `python -m trainer` as a person would: a real process, its own home folder, one thread."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# A job of a few seconds on the model and rows that ship.
SHORT = [
    "data=quickstart",
    "data.max_rows=64",
    "job.batch_size_samples=16",
    "train.sample_rows=1",
    "train.sample_max_tokens=8",
]


def trainer(
    *words: str, home: Path, env: dict[str, str] | None = None, stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run one command to its end and return what it printed and its exit status."""
    environment = {
        **os.environ,
        "TRAINER_HOME": str(home),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        **(env or {}),
    }
    return subprocess.run(
        [sys.executable, "-m", "trainer", *words], cwd=ROOT, env=environment, input=stdin, capture_output=True,
        text=True, timeout=900, check=False,
    )  # fmt: skip


def only_run(home: Path) -> Path:
    """The folder of the only run in `home`."""
    (found,) = (path.parent for path in home.glob("*/run.json"))
    return found
