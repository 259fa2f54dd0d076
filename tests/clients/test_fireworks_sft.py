"""The published `fireworks-ai` package, unmodified, fine-tunes a model on our gateway with the real worker."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.clients

SCRIPT = Path(__file__).with_name("fireworks_sft_script.py")


@pytest.mark.parametrize("version", ["1.2.28"])
def test_a_job_from_file_to_model(
    version: str, client_python: Callable[[str], Path], client_environment: dict[str, str], tmp_path: Path
) -> None:
    rows = tmp_path / "rows.jsonl"
    turns = [("user", "What is {} plus one?"), ("assistant", "{} and one")]
    with rows.open("w") as stream:
        for number in range(8):
            messages = [{"role": role, "content": text.format(number)} for role, text in turns]
            stream.write(json.dumps({"messages": messages}) + "\n")
    command = [client_python(f"fireworks-ai=={version}"), SCRIPT, "accounts/local/models/tiny", rows]
    done = subprocess.run(
        command, env=client_environment, cwd=tmp_path, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["uploaded"]["bytes"] == rows.stat().st_size
    assert seen["dataset"] == {"state": "READY", "format": "CHAT", "example_count": "8"}
    assert seen["absent_before"]
    assert seen["states"][-1] == "JOB_STATE_COMPLETED", seen["message"]
    assert seen["percent"] == 100
    assert seen["listed"]
    assert (seen["model"]["state"], seen["model"]["kind"]) == ("READY", "HF_PEFT_ADDON")
    assert seen["model"]["peft"]["baseModel"] == "accounts/local/models/tiny"
    assert seen["model"]["peft"]["r"] == 4
