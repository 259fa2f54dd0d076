"""Models imported from buckets: real S3 and Azure servers that ask for keys, and give nothing without them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.bucket_kit import (
    AZURE_ACCOUNT,
    azure_server,
    azurite,
    has_moto,
    lock_s3,
    s3_client,
    s3_server,
    sas,
)
from tests.family_kit import ask, refused
from tests.gateway_kit import A, opened, raw, wait_for, write_base_model
from trainer.gateway.client import GatewayClient

OK, INVALID_ARGUMENT, NOT_FOUND, PERMISSION_DENIED, FAILED_PRECONDITION = 0, 3, 5, 7, 9


@pytest.fixture
def client(tmp_path: Path) -> Iterator[GatewayClient]:
    with opened(tmp_path / "gateway") as found:
        yield found[0]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Objects of a bucket: a model below a prefix, with a pickle beside it, and a prefix with nothing but a pickle."""
    folder = write_base_model(tmp_path_factory.mktemp("model"))
    found = {f"some/model/{path.name}": path.read_bytes() for path in folder.iterdir()}
    return {**found, "some/model/pytorch_model.bin": b"pickled", "pickles/model.pt": b"pickled", "some/models/x": b""}


@pytest.fixture(scope="module")
def s3(files: dict[str, bytes]) -> Iterator[dict[str, str]]:
    if not has_moto():
        pytest.skip("moto and s3fs are not installed")
    with s3_server() as environment:
        s3_client(environment).create_bucket(Bucket="mine")
        keys = lock_s3(environment)
        for key, content in files.items():
            s3_client(environment, keys).put_object(Bucket="mine", Key=key, Body=content)
        yield environment | {name.upper(): value for name, value in keys.items()}


@pytest.fixture(scope="module")
def blobs(files: dict[str, bytes]) -> Iterator[dict[str, str]]:
    program = azurite()
    if program is None:
        pytest.skip("azurite-blob (npm install azurite; AZURITE_BLOB) and adlfs are not both here")
    with azure_server(program) as environment:
        from azure.storage.blob import BlobServiceClient

        string = environment["AZURE_STORAGE_CONNECTION_STRING"]
        with BlobServiceClient.from_connection_string(string) as service, service.create_container("mine") as container:
            for key, content in files.items():
                container.upload_blob(key, content)
        endpoint = string.partition("BlobEndpoint=")[2].rstrip(";").replace(AZURE_ACCOUNT, "{account}")
        yield {**environment, "TRAINER_GATEWAY_AZURE_ENDPOINT": endpoint}


def imported(client: GatewayClient, name: str, source: dict[str, Any]) -> tuple[int, str]:
    """The code and message in which an import ends."""
    ask(client, "POST", f"{A}/models", {"modelId": name, "model": {"kind": "HF_BASE_MODEL"}})
    operation = ask(client, "POST", f"{A}/models/{name}:import", source)

    def done() -> dict[str, Any] | None:
        found = raw(client, "GET", f"/v1/{operation['name']}").json()
        return found if found.get("done") else None

    found = wait_for(done, f"the import of {name}")
    error = found.get("error", {"code": OK, "message": ""})
    assert ask(client, "GET", f"{A}/models/{name}")["state"] == ("READY" if error["code"] == OK else "UPLOADING")
    return error["code"], json.dumps(found)


def test_from_s3(client: GatewayClient, s3: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in s3.items():  # the gateway's own keys would open the bucket: the import's count
        monkeypatch.setenv(name, value)
    keys = {"accessKeyId": s3["AWS_ACCESS_KEY_ID"], "accessSecret": s3["AWS_SECRET_ACCESS_KEY"]}
    place = {"s3Bucket": "mine", "s3Path": "/some/model/"}
    for name, source, code in (
        ("good", {**place, **keys}, OK),
        ("false", {**place, **keys, "accessSecret": "x" * 40}, PERMISSION_DENIED),
        ("bucket", {**place, **keys, "s3Bucket": "no-bucket"}, NOT_FOUND),
        ("empty", {**place, **keys, "s3Path": "nowhere"}, FAILED_PRECONDITION),
        ("pickles", {**place, **keys, "s3Path": "pickles"}, FAILED_PRECONDITION),
        ("all", {**place, **keys, "s3Path": "some"}, INVALID_ARGUMENT),  # no config.json there
    ):  # fmt: skip
        found = imported(client, name, {"awsS3Source": source})
        assert found[0] == code, found
        assert keys["accessSecret"] not in found[1]
    model = ask(client, "GET", f"{A}/models/good")
    assert (model["importedFrom"], model["contextLength"]) == ("s3://mine/some/model", 512)
    assert sorted(model["baseModelDetails"]["huggingfaceFiles"]) == ["config.json", "model.safetensors"]
    for source, words in (
        ({**place, "accessKeyId": "AKIA"}, "accessKeyId and accessSecret belong together"),
        ({**place, "roleArn": "arn:x"}, "awsS3Source.roleArn"), ({"s3Bucket": "127.0.0.1"}, "expected s3://bucket"),
        ({**place, **keys, "accessSecret": "a\nb"}, "aws_secret_access_key is not printable ASCII"),
    ):  # fmt: skip
        assert words in refused(client, "POST", f"{A}/models/false:import", {"awsS3Source": source})[1]


@pytest.mark.slow
def test_from_azure(client: GatewayClient, blobs: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in blobs.items():
        monkeypatch.setenv(name, value)
    for name, value in (("good", sas()), ("false", sas("aGVsbG8=")), ("text", "a;BlobEndpoint=http://169.254.169.254")):
        ask(client, "POST", f"{A}/secrets", {"name": name, "keyName": "SAS", "value": value})
    place = {"storageAccount": AZURE_ACCOUNT, "container": "mine", "path": "some/model"}
    for name, source, code in (
        ("good", {**place, "sasTokenSecret": "accounts/local/secrets/good"}, OK),
        ("anonymous", place, PERMISSION_DENIED),
        ("false", {**place, "sasTokenSecret": "false"}, PERMISSION_DENIED),
        ("empty", {**place, "path": "nowhere", "sasTokenSecret": "good"}, FAILED_PRECONDITION),
    ):  # fmt: skip
        found = imported(client, name, {"azureBlobSource": source})
        assert found[0] == code, found
        assert "sig=" not in found[1]
    assert ask(client, "GET", f"{A}/models/good")["importedFrom"] == f"az://mine@{AZURE_ACCOUNT}/some/model"
    for source, status, words in (
        ({**place, "sasTokenSecret": "absent"}, 404, "accounts/local/secrets/absent"),
        ({**place, "sasTokenSecret": "accounts/other/secrets/good"}, 404, "sasTokenSecret"),
        ({**place, "sasTokenSecret": "text"}, 400, "is not a SAS token"),
        ({**place, "clientId": "x", "tenantId": "y"}, 501, "azureBlobSource.clientId"),
    ):
        found = refused(client, "POST", f"{A}/models/false:import", {"azureBlobSource": source})
        assert (found[0], words in found[1]) == (status, True), found
