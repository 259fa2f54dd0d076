"""Local runs whose rows are at a URL: fetched with the user's own credentials, kept by digest, or refused."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bucket_kit import has_moto, lock_s3, s3_client, s3_server
from trainer.commands.places import Places
from trainer.compose import ConfigError, compose
from trainer.errors import UsageError

ROWS = b'{"text": "x"}\n'


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if not has_moto():
        pytest.skip("moto and s3fs are not installed")
    with s3_server() as environment:
        s3_client(environment).create_bucket(Bucket="mine")
        keys = lock_s3(environment)
        s3_client(environment, keys).put_object(Bucket="mine", Key="some/rows.jsonl", Body=ROWS)
        for name, value in (environment | {name.upper(): value for name, value in keys.items()}).items():
            monkeypatch.setenv(name, value)
        yield


@pytest.mark.usefixtures("s3")
def test_rows_in_a_bucket_are_fetched_with_the_user_s_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    composed = compose(["model=tiny", "data.train=s3://mine/some/rows.jsonl"])
    places = Places(lambda: None, cache=tmp_path)
    found = places.inputs(composed).train
    assert (found.name, found.sha256) == ("s3://mine/some/rows.jsonl", hashlib.sha256(ROWS).hexdigest())
    path = Path(found.path)
    assert (path.read_bytes(), path.name) == (ROWS, "rows.jsonl")
    with pytest.raises(UsageError, match=r"data\.train: s3://mine/none\.jsonl not found"):
        places.rows("s3://mine/none.jsonl", what="data.train")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x" * 40)
    with pytest.raises(UsageError, match=r"may not do that; your environment's credentials are used \(AWS_"):
        places.rows("s3://mine/some/rows.jsonl", what="data.train")
    assert [one.name for one in (tmp_path / "fetched").iterdir()] == [found.sha256[:16]]


@pytest.mark.parametrize(("url", "says"), [
    ("https://example.org/rows.jsonl?signature=hunter2", "download the file and name that"),
    ("https://u:hunter2@example.org/rows.jsonl", "download the file and name that"),
    ("http://127.0.0.1/rows.jsonl", "is not a public address"), ("ftp://example.org/rows.jsonl", "expected s3://bucket"),
    ("s3://B/rows.jsonl", "expected s3://bucket"), ("gs://B/rows.jsonl", "expected gs://bucket"),
])  # fmt: skip
def test_urls_that_are_refused(url: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        Places(lambda: None, cache=tmp_path).rows(url, what="job.dataset")
    assert "hunter2" not in str(caught.value)
    assert not [one for one in tmp_path.rglob("*") if one.is_file()]


@pytest.mark.parametrize("name", ["aws_s3_config", "azure_blob_storage_config"])
def test_a_gateway_s_secrets_are_not_a_local_run_s(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"job\.{name}: names a secret of a gateway"):
        compose(["data=quickstart", f"+job.{name}.credentials_secret=accounts/local/secrets/s"])
