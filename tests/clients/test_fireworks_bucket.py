"""The published `fireworks-ai`, unmodified, trains on rows in the user's own bucket, opened by a secret."""

import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.bucket_kit import has_moto, lock_s3, s3_client, s3_server

pytestmark = pytest.mark.clients

SCRIPT = Path(__file__).with_name("fireworks_bucket_script.py")
ROWS = [
    {"messages": [{"role": "user", "content": f"sort {n}31"}, {"role": "assistant", "content": f"13{n}"}]}
    for n in range(4, 10)
]


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """What opens the bucket `mine`. The gateway, started after this, is told where the store is and given no keys."""
    if not has_moto():
        pytest.skip("moto and s3fs are not installed")
    with s3_server() as environment:
        s3_client(environment).create_bucket(Bucket="mine")
        found = lock_s3(environment)
        content = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
        s3_client(environment, found).put_object(Bucket="mine", Key="rows/train.jsonl", Body=content)
        for name in ("AWS_ENDPOINT_URL_S3", "AWS_DEFAULT_REGION"):
            monkeypatch.setenv(name, environment[name])
        yield found


def content_of(path: Path) -> bytes:
    """What is in a file of a gateway that is running: it may be gone by now."""
    with suppress(FileNotFoundError):
        return path.read_bytes() if path.is_file() else b""
    return b""


@pytest.mark.parametrize("version", ["1.2.28"])
def test_rows_in_the_user_s_bucket(
    version: str, keys: dict[str, str], client_python: Callable[[str], Path], request: pytest.FixtureRequest,
    tmp_path: Path,
) -> None:  # fmt: skip
    environment = request.getfixturevalue("client_environment")
    command = [
        client_python(f"fireworks-ai=={version}"),
        SCRIPT,
        "accounts/local/models/tiny",
        "s3://mine/rows/train.jsonl",
    ]
    done = subprocess.run(
        command, env=environment, cwd=tmp_path, input=json.dumps(keys), capture_output=True, text=True, timeout=900,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    assert (seen["state"], seen["model"]) == ("JOB_STATE_COMPLETED", "READY"), seen["message"]
    config = {name.replace("credentialsSecret", "credentials_secret"): value for name, value in seen["config"].items()}
    assert config == {"credentials_secret": "accounts/local/secrets/aws-keys"}
    run = tmp_path / "home/theirs"
    lineage = json.loads((run / "lineage.json").read_text())["data"][0]
    spec = json.loads((run / "run.json").read_text())
    assert lineage["files"][0]["sha256"] == spec["inputs"]["train"]["sha256"]
    assert json.loads((run / "ledger.json").read_text())["totals"]["rows"]["used"] == len(ROWS)
    secret, written = keys["aws_secret_access_key"].encode(), list((tmp_path / "home").rglob("*"))
    assert not [path for path in written if secret in content_of(path)]
