"""Data sets whose rows lie elsewhere: `externalUrl` is fetched once, when the data set is validated, and kept here.

The URL may be https, http, or an object in a bucket that anybody may read; it goes through the same door as every URL
that a user gives (`trainer.gateway.fetching`).
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from trainer.gateway import uploads
from trainer.gateway.buckets import locate
from trainer.gateway.errors import invalid
from trainer.gateway.fetching import Fetcher
from trainer.gateway.gateway import Gateway
from trainer.gateway.store import Resource

_LARGEST = 16 << 30  # bytes
_SECONDS = 1800.0
NAME = "external.jsonl"
_CHUNK = 1 << 20


def check(url: str) -> None:
    """Raises INVALID_ARGUMENT for a URL that is not asked."""
    if url.startswith(("https://", "http://")):
        Fetcher().check(url)
    elif url.startswith(("s3://", "az://", "abfs://", "abfss://", "azure://")):
        locate(url)
    else:
        raise invalid(
            f"dataset.externalUrl: got {url[:80]!r}; expected https://, s3:// or az:// and what is there, JSON lines",
            field="dataset.externalUrl",
        )


def fetch(gateway: Gateway, resource: Resource) -> Resource:
    """Bring the rows here, as the one file of the data set."""
    uploads.must_be_uploading(resource)
    with tempfile.TemporaryDirectory(dir=gateway.folder) as folder:
        target = Path(folder) / NAME
        Fetcher().download(resource.body["externalUrl"], target, largest=_LARGEST, seconds=_SECONDS)
        with gateway.files.incoming(resource.name, NAME, size=None) as incoming, target.open("rb") as stream:
            while chunk := stream.read(_CHUNK):
                incoming.write(chunk)
            return uploads.place(gateway, resource.name, NAME, incoming=incoming, declare_too=True)
