"""The published `fireworks-ai` package, both of its clients, over every family that this gateway serves."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.clients.conftest import ROOT

pytestmark = pytest.mark.clients

SCRIPT = Path(__file__).with_name("fireworks_families_script.py")


@pytest.mark.parametrize("client", ["sync", "async"])
def test_every_family(
    client: str, client_python: Callable[[str], Path], client_environment: dict[str, str], tmp_path: Path
) -> None:
    python = client_python("fireworks-ai==1.2.28")
    command = [python, SCRIPT, client, ROOT / "trainer/models/tiny"]
    answer = subprocess.run(
        command, env=client_environment, cwd=tmp_path, capture_output=True, text=True, timeout=900, check=False
    )
    assert answer.returncode == 0, answer.stderr
    seen = json.loads(answer.stdout.splitlines()[-1])
    assert seen["accounts"] == {
        "accounts": ["accounts/local"], "account": "local@localhost", "user": "accounts/local/users/ann",
        "role": "contributor", "users": 2, "key_given": True, "key_hidden": True, "keys_left": 0,
    }  # fmt: skip
    assert seen["secrets"] == {"name": "accounts/local/secrets/my-token", "hidden": True, "gone": 404}
    assert seen["datasets"] == {
        "states": ["READY", "READY"], "counts": ["4", "4"], "format": "CHAT",
        "derived": "accounts/local/datasets/chats", "lineage": ["chats/my rows (1).jsonl", "copy/copy.jsonl"],
        "renamed": "mine", "listed": 2,
    }  # fmt: skip
    assert seen["models"] == {
        "warnings": [], "state": "READY", "tunable": True, "public": "https://huggingface.co/Qwen/Qwen3-0.6B",
        "files": True, "gone": 404,
    }  # fmt: skip
    assert seen["evaluators"] == {
        "state": "BUILD_FAILED", "renamed": "y", "source": "abc", "log": 200, "listed": 1,
    }  # fmt: skip
    assert seen["jobs"] == {
        "name": "accounts/local/dpoJobs/pref", "dataset": "accounts/local/datasets/pairs", "stopping": True,
        "wrong_rows": 400, "refused": {"rft": 501, "rlor": 501, "batch": 501}, "posted": "JOB_STATE_COMPLETED",
        "lists": {"dpo": 1, "rft": [], "rlor": [], "batch": [], "evaluation": 1}, "log": None,
    }  # fmt: skip
