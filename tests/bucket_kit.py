"""Real object stores for tests: moto's S3 server, and azurite where it is installed, each a process on loopback."""

from __future__ import annotations

import importlib.util
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx

from tests.reserved_port import reserved_port

AZURE_ACCOUNT = "devstoreaccount1"
AZURE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="  # azurite's own
_PATIENCE = 120.0  # seconds for a server to come up on a busy machine


def has_moto() -> bool:
    """True where the S3 server and its client are installed."""
    return all(importlib.util.find_spec(name) for name in ("moto", "s3fs"))


def sas(key: str = AZURE_KEY) -> str:
    """A token that reads and lists the container `mine`."""
    from azure.storage.blob import ContainerSasPermissions, generate_container_sas

    return generate_container_sas(
        AZURE_ACCOUNT, "mine", account_key=key, permission=ContainerSasPermissions(read=True, list=True),
        expiry=datetime.now(UTC) + timedelta(hours=1),
    )  # fmt: skip


def azurite() -> str | None:
    """The program `azurite-blob`: AZURITE_BLOB, or on the path."""
    found = os.environ.get("AZURITE_BLOB") or shutil.which("azurite-blob")
    return found if importlib.util.find_spec("adlfs") else None


@contextmanager
def s3_server() -> Iterator[dict[str, str]]:
    """An S3 server; gives the environment that reaches it."""
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p"]
    with reserved_port() as port, _process([*command, str(port)], port):
        yield {
            "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{port}",
        }  # fmt: skip


@contextmanager
def azure_server(program: str) -> Iterator[dict[str, str]]:
    """An Azure Blob server; gives the environment that reaches it."""
    words = ["--inMemoryPersistence", "--skipApiVersionCheck", "--disableTelemetry", "--silent"]
    with reserved_port() as port, _process([program, *words, "--blobPort", str(port)], port):
        yield {
            "AZURE_STORAGE_CONNECTION_STRING": "DefaultEndpointsProtocol=http;AccountName=devstoreaccount1;"
            f"AccountKey={AZURE_KEY};BlobEndpoint=http://127.0.0.1:{port}/devstoreaccount1;"
        }


def lock_s3(environment: dict[str, str]) -> dict[str, str]:
    """Make the S3 server ask for keys from now on; gives a user's that may read everything, as a secret has them."""
    session = _session(environment)
    iam = session.create_client("iam", endpoint_url=environment["AWS_ENDPOINT_URL_S3"], region_name="us-east-1")
    iam.create_user(UserName="reader")
    made = iam.create_access_key(UserName="reader")["AccessKey"]
    allowed = {"Effect": "Allow", "Action": ["s3:*"], "Resource": "*"}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [allowed]})
    iam.put_user_policy(UserName="reader", PolicyName="reads", PolicyDocument=policy)
    httpx.post(f"{environment['AWS_ENDPOINT_URL_S3']}/moto-api/reset-auth", content="0").raise_for_status()
    return {"aws_access_key_id": made["AccessKeyId"], "aws_secret_access_key": made["SecretAccessKey"]}


def s3_client(environment: dict[str, str], keys: dict[str, str] | None = None) -> Any:
    """Amazon's own client for the server, with `keys` or the environment's."""
    return _session(environment, keys).create_client("s3", endpoint_url=environment["AWS_ENDPOINT_URL_S3"])


def _session(environment: dict[str, str], keys: dict[str, str] | None = None) -> Any:
    from botocore.session import Session

    given = {name.lower(): value for name, value in environment.items()} | (keys or {})
    session = Session()
    session.set_credentials(given["aws_access_key_id"], given["aws_secret_access_key"])
    session.set_config_variable("region", environment["AWS_DEFAULT_REGION"])
    return session


def new_bucket() -> str:
    """Make an S3 bucket with the environment's credentials; returns its URL."""
    from s3fs import S3FileSystem

    name = f"b{secrets.token_hex(6)}"
    S3FileSystem(skip_instance_cache=True).call_s3("create_bucket", Bucket=name)
    return f"s3://{name}/some/prefix"


def new_container() -> str:
    """Make an Azure container with the environment's credentials; returns its URL."""
    from adlfs import AzureBlobFileSystem

    name = f"c{secrets.token_hex(6)}"
    AzureBlobFileSystem(skip_instance_cache=True).mkdir(name)
    return f"az://{name}/some/prefix"


@contextmanager
def _process(command: list[str], port: int) -> Iterator[None]:
    null = subprocess.DEVNULL
    with subprocess.Popen(command, stdin=null, stdout=null, stderr=null) as process:
        try:
            end = time.monotonic() + _PATIENCE
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port), 1).close()
                    break
                except OSError:
                    if time.monotonic() > end or process.poll() is not None:
                        raise
                    time.sleep(0.05)
            yield
        finally:
            process.kill()
