"""Data sets whose rows lie elsewhere, at `externalUrl`: https, http, or an object in a bucket.

Such a data set stays UPLOADING, and a job reads it where it lies (`external_inputs`), with the credentials that the job
names. Where none are needed it can also be validated like any other: its rows are fetched once and kept here, and it is
READY. Both go through the same door as every URL that a user gives (`fetching`).
"""

from __future__ import annotations

from trainer.gateway import uploads
from trainer.gateway.buckets import AZURE, S3, locate, scheme_of
from trainer.gateway.errors import GatewayError, invalid
from trainer.gateway.fetching import Fetcher, Rules, web_url
from trainer.gateway.gateway import Gateway
from trainer.gateway.store import Resource

LARGEST = 16 << 30  # bytes
SECONDS = 1800.0
_CHUNK = 1 << 20
NAME = "external.jsonl"
_FIELD = "dataset.externalUrl"
# The field of a job that names what opens such a URL.
CONFIGS = {S3: "awsS3Config", AZURE: "azureBlobStorageConfig"}


def check(gateway: Gateway, url: str, *, what: str = _FIELD) -> None:
    """Raises INVALID_ARGUMENT, naming the field `what`, for a URL that is not asked."""
    try:
        _check(gateway, web_url(url))
    except GatewayError as error:
        raise GatewayError(error.code, f"{what}: {error.message}", metadata={"field": what}) from error


def _check(gateway: Gateway, url: str) -> None:
    if scheme_of(url) and "?" not in url:
        key = locate(url).key
        if not key or key.endswith("/"):
            raise invalid(f"got {url[:80]!r}; expected the URL of one object, not of a folder")
    elif url.startswith(("https://", "http://")):  # a signed one too, also of a bucket
        Fetcher(Rules.of_gateway(gateway.folder)).check(url)
    else:
        raise invalid(f"got {url[:80]!r}; expected https://, s3://, az:// or gs:// and what is there, JSON lines")


def lie_elsewhere(data_set: Resource) -> bool:
    """True where the rows are those at the externalUrl: nothing else was uploaded."""
    return bool(data_set.body.get("externalUrl")) and set(data_set.private.get("declared", {})) <= {NAME}


def fetch(gateway: Gateway, resource: Resource) -> Resource:
    """Bring the rows here, as the one file of the data set."""
    uploads.must_be_uploading(resource)
    url, scratch = resource.body["externalUrl"], gateway.files.scratch()
    try:
        Fetcher(Rules.of_gateway(gateway.folder)).download(url, scratch, largest=LARGEST, seconds=SECONDS)
        with gateway.files.incoming(resource.name, NAME, size=None) as incoming, scratch.open("rb") as stream:
            while chunk := stream.read(_CHUNK):
                incoming.write(chunk)
            return uploads.place(gateway, resource.name, NAME, incoming=incoming, declare_too=True)
    except GatewayError as error:
        if (scheme := scheme_of(url)) and error.code in ("PERMISSION_DENIED", "FAILED_PRECONDITION"):
            raise GatewayError(
                error.code, f"{error.message}; where credentials are needed, leave the data set as it is, and name "
                f"them in the {CONFIGS[scheme]} of the jobs that read it",
            ) from error  # fmt: skip
        raise
    finally:
        scratch.unlink(missing_ok=True)
