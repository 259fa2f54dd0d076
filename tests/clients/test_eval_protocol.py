"""The published `eval-protocol` uploads a test; it is built, previewed and run as a job, and scores the same."""

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.build_kit import configured, package_index
from tests.clients.conftest import ROOT
from tests.evaluating_kit import LENGTH, REWARD, TEST, answered, built, log_of, packed, project, snippet, uploaded
from tests.family_kit import ask
from tests.gateway_kit import A, raw, wait_for, write_rows
from trainer.gateway.client import GatewayClient

pytestmark = pytest.mark.clients

CLIENT = "eval-protocol==0.3.33"
REAL = "eval-protocol==0.3.33\npytest\npytest-asyncio\n"  # as in test_evaluator_real_package.py, which builds the same
ROWS = answered("4", "it is 4", "5", "four", "44")


@pytest.fixture(autouse=True)
def environments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Environments of evaluators are kept between runs: the real package is large."""
    monkeypatch.setenv("TRAINER_EVALUATOR_ENVIRONMENTS", str(ROOT / ".venv-clients/evaluator-environments"))


@pytest.fixture
def empty_index(client_python: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Builds of the gateway that is started after this ask an index on this machine, which has no package."""
    client_python(CLIENT)  # from where packages are
    with package_index() as index:
        configured(monkeypatch, index_url=index.url)
        yield


@pytest.fixture
def client(gateway: str) -> Iterator[GatewayClient]:
    with GatewayClient(gateway) as found:
        yield found


@pytest.fixture
def upload(
    client_python: Callable[[str], Path], client_environment: dict[str, str], tmp_path: Path
) -> Callable[..., str]:
    """upload(requirements, "--force") -> what `eval-protocol upload` of a project with one test printed."""
    folder = tmp_path / "my-project"
    folder.mkdir()
    (folder / "test_x.py").write_text(TEST)
    write_rows(folder / "rows.jsonl", ROWS)
    command = client_python(CLIENT).parent / "eval-protocol"
    more = {"FIREWORKS_API_BASE": client_environment["FIREWORKS_BASE_URL"], "LITELLM_LOCAL_MODEL_COST_MAP": "True"}

    def run(requirements: str, *options: str) -> str:
        (folder / "requirements.txt").write_text(requirements)
        answer = subprocess.run(
            [command, "upload", "--entry", "test_x.py::test_truth", "--yes", *options], cwd=folder,
            env={**client_environment, **more}, capture_output=True, text=True, timeout=600, check=False,
        )  # fmt: skip
        assert answer.returncode == 0, answer.stdout + answer.stderr
        return answer.stdout

    return run


def job(client: GatewayClient, evaluator: str) -> list[dict[str, Any]]:
    """The rows of an evaluation job."""
    body = {"evaluator": evaluator, "inputDataset": "in", "outputDataset": f"{evaluator}-out"}
    ask(client, "POST", f"{A}/evaluationJobs", {"evaluationJob": body, "evaluationJobId": evaluator})

    def ended() -> dict[str, Any] | None:
        found = ask(client, "GET", f"{A}/evaluationJobs/{evaluator}")
        return found if found["state"] in ("JOB_STATE_COMPLETED", "JOB_STATE_FAILED", "JOB_STATE_PAUSED") else None

    found = wait_for(ended, f"the job of {evaluator}", 600)
    assert found["state"] == "JOB_STATE_COMPLETED", found["status"]
    (url,) = ask(client, "GET", f"{A}/datasets/{evaluator}-out:getDownloadEndpoint")["filenameToSignedUrls"].values()
    return [json.loads(line) for line in raw(client, "GET", url).text.splitlines()]


def preview(client: GatewayClient, evaluator: str) -> list[dict[str, Any]]:
    sample = {"evaluator": {"name": evaluator}, "sampleData": [json.dumps(row) for row in ROWS]}
    return ask(client, "POST", f"{A}/evaluators:previewEvaluator", sample, timeout=600)["results"]


@pytest.mark.usefixtures("empty_index")
def test_an_upload_is_built_or_says_why_not(client: GatewayClient, upload: Callable[..., str]) -> None:
    upload("# nothing beside the standard library\n")
    found = built(client, "test-x-test-truth")
    assert (found["state"], found["entryPoint"]) == ("ACTIVE", "test_x.py::test_truth"), found["status"]
    secrets = ask(client, "GET", f"{A}/secrets")["secrets"]
    assert [one["keyName"] for one in secrets] == ["FIREWORKS_API_KEY"]
    upload("no-package-has-this-name-of-ours==1.0\n", "--force")
    found = built(client, "test-x-test-truth")
    assert (found["state"], found["status"]["code"]) == ("BUILD_FAILED", "INVALID_ARGUMENT")
    assert "no-package-has-this-name-of-ours" in found["status"]["message"]
    assert "\n" not in found["status"]["message"]
    assert "no-package-has-this-name-of-ours==1.0" in log_of(client, "test-x-test-truth")


@pytest.mark.slow
def test_every_kind_scores_alike_in_previews_and_jobs(
    client: GatewayClient, upload: Callable[..., str], tmp_path: Path
) -> None:
    client.upload_dataset(write_rows(tmp_path / "in.jsonl", ROWS), "in")
    upload(REAL)
    snippet(client, LENGTH)
    project(client, packed({"reward.py": REWARD}), "reward.py::contains_truth", "reward")
    assert built(client, "test-x-test-truth", timeout=1200)["state"] == "ACTIVE"
    shown = {name: preview(client, name) for name in ("snip", "reward", "test-x-test-truth")}
    for name, results in shown.items():
        assert [one["score"] for one in results] == [1.0, 1.0, 0.0, 0.0, 1.0], (name, results)
        assert [one["perMetricEvals"]["short"]["score"] for one in results] == [1.0, 0.0, 1.0, 1.0, 1.0]
        rows = job(client, name)
        assert [one["evals"]["score"] for one in rows] == [one["score"] for one in results]
        assert [one["eval_details"]["metrics"] for one in rows] == [one["perMetricEvals"] for one in results]


def test_an_upload_may_be_replaced_by_another(client: GatewayClient, upload: Callable[..., str]) -> None:
    upload("")
    assert built(client, "test-x-test-truth")["state"] == "ACTIVE"
    ask(client, "PATCH", f"{A}/evaluators/test-x-test-truth?prepareCodeUpload=true", {})
    assert uploaded(client, packed({"test_x.py": TEST}), "test-x-test-truth")["state"] == "ACTIVE"
    assert ask(client, "GET", f"{A}/evaluators/test-x-test-truth/versions")["totalSize"] == 2
