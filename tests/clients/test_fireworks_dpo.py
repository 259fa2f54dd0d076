"""The published `fireworks-ai`, unmodified, trains a preference job on our gateway and downloads its metrics."""

import json
import math
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.clients

SCRIPT = Path(__file__).with_name("fireworks_dpo_script.py")


def pair(number: int) -> dict[str, object]:
    prompt = {"messages": [{"role": "user", "content": f"sort {number}31"}]}
    preferred, other = ([{"role": "assistant", "content": f"13{number}{mark}"}] for mark in "!.")
    return {"input": prompt, "preferred_output": preferred, "non_preferred_output": other}


@pytest.mark.parametrize("version", ["1.2.28"])
def test_a_preference_job_from_pairs_to_its_metrics_file(
    version: str, client_python: Callable[[str], Path], client_environment: dict[str, str], tmp_path: Path
) -> None:
    """8 pairs, 4 a step, 2 epochs: 4 steps. The first loss is ln 2, because the policy still is its reference."""
    rows = tmp_path / "pairs.jsonl"
    rows.write_text("".join(json.dumps(pair(number)) + "\n" for number in range(2, 10)))
    command = [client_python(f"fireworks-ai=={version}"), SCRIPT, "accounts/local/models/tiny", rows]
    done = subprocess.run(
        command, env=client_environment, cwd=tmp_path, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["states"][-1] == "JOB_STATE_COMPLETED", seen["message"]
    assert seen["listed"] == ["accounts/local/dpoJobs/prefer"]
    assert (seen["model"]["state"], seen["model"]["kind"]) == ("READY", "HF_PEFT_ADDON")
    assert seen["model"]["job"] == "accounts/local/dpoJobs/prefer"
    steps = {line["step"]: line for line in seen["metrics"] if "loss" in line}
    assert sorted(steps) == [1, 2, 3, 4]
    assert steps[1]["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert steps[4]["loss"] < steps[1]["loss"]
    assert all({"margin", "accuracy"} <= set(line) for line in steps.values())
