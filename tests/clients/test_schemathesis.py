"""schemathesis against the contract: no crash whatever is asked, and every good answer is what the contract says."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.clients.conftest import ROOT
from trainer.gateway.resources.table import OPERATIONS

pytestmark = [pytest.mark.clients, pytest.mark.slow]

HOOKS = Path(__file__).with_name("schemathesis_hooks.py")
SECONDS = 60


def contract_of_what_is_here(path: Path) -> Path:
    """The contract, with the operations that this gateway implements; its account is the one there is."""
    document = json.loads((ROOT / "trainer/gateway/contract.json").read_bytes())
    paths = {}
    for template, item in document["paths"].items():
        here = {
            method: operation for method, operation in item.items()
            if isinstance(operation, dict) and operation.get("operationId") in OPERATIONS
        }  # fmt: skip
        for operation in here.values():
            for parameter in operation.get("parameters", []):
                if parameter["name"] == "account_id":
                    parameter["schema"] = {"type": "string", "enum": ["local"]}
        if here:
            paths[template] = here
    path.write_text(json.dumps({**document, "paths": paths}))
    return path


def test_the_contract(
    gateway: str, client_python: Callable[[str], Path], client_environment: dict[str, str], tmp_path: Path
) -> None:
    program = client_python("schemathesis==4.32.5").with_name("st")
    command = [
        program, "run", contract_of_what_is_here(tmp_path / "contract.json"), "--url", gateway, "--seed", "1",
        "--checks", "answers_in_the_gateways_language,response_schema_conformance,content_type_conformance",
        "--phases", "examples,coverage,fuzzing", "--max-examples", "8", "--max-time", str(SECONDS), "--no-shrink",
        "--continue-on-failure", "--warnings", "off", "--suppress-health-check", "all", "--no-color",
        "-H", "Authorization: Bearer fw_any", "--request-timeout", "60",
    ]  # fmt: skip
    environment = {**client_environment, "SCHEMATHESIS_HOOKS": str(HOOKS)}
    done = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=20 * SECONDS, check=False
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-20_000:]
