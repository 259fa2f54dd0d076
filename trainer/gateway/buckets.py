"""Object stores by URL: `s3://bucket/prefix` (any S3-compatible one) and `az://container@account/prefix` (Azure Blob).

The only home of fsspec. Whose credentials are used is said at the door: the gateway's own bucket is opened with the
environment's (AWS_*, AZURE_STORAGE_*), a user's URL with that user's secret or with none, never with the gateway's. A
user's secret may not send the gateway to an address of the user's choice either: custom endpoints are the operator's.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from trainer.gateway.errors import GatewayError, invalid, not_found

S3, AZURE = "s3", "az"
_AZURE_SCHEMES = frozenset({"az", "abfs", "abfss", "azure"})
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_ADDRESS = re.compile(r"[0-9.]+")  # no bucket's name, says AWS
_CONTAINER = re.compile(r"[a-z0-9](?:-?[a-z0-9]){2,62}")
_ACCOUNT = re.compile(r"[a-z0-9]{3,24}")
_SUFFIXES = ("core.windows.net", "core.chinacloudapi.cn", "core.usgovcloudapi.net")  # of Azure's clouds
_AWS_KEYS = {"aws_access_key_id": "key", "aws_secret_access_key": "secret", "aws_session_token": "token"}
_AZURE_KEYS = frozenset({"connection_string", "sas_token", "account_key"})
_CONNECT_SECONDS, _READ_SECONDS = 10, 60
_BLOCK = 8 << 20


@dataclass(frozen=True)
class Location:
    """Where a URL points: scheme `s3` or `az`, the bucket or container, the key or prefix, and Azure's account."""

    scheme: str
    bucket: str
    key: str
    account: str = ""


@dataclass(frozen=True)
class Entry:
    """An object: its key below the bucket's prefix, bytes, and when it was written (seconds since 1970)."""

    key: str
    size: int
    written: float


def locate(url: str) -> Location:
    """What `url` names. Raises INVALID_ARGUMENT for one that names no bucket in a way that is known."""
    parts = urlsplit(url)
    key = parts.path.lstrip("/")
    if parts.query or parts.fragment or any(part in (".", "..") for part in key.split("/")) or "\\" in url:
        raise invalid(f"{url[:120]!r}: a bucket's URL has no '..', query or fragment; write the key as it is")
    if parts.scheme == S3 and _BUCKET.fullmatch(parts.netloc) and not _ADDRESS.fullmatch(parts.netloc):
        return Location(S3, parts.netloc, key)
    if parts.scheme in _AZURE_SCHEMES:
        container, _, host = parts.netloc.partition("@")
        account = host.partition(".")[0]
        known = not host or any(host == f"{account}.{kind}.{end}" for kind in ("blob", "dfs") for end in _SUFFIXES)
        if _CONTAINER.fullmatch(container) and (known or host == account) and (not host or _ACCOUNT.fullmatch(account)):
            return Location(AZURE, container, key, account)
    raise invalid(
        f"{url[:120]!r}: expected s3://bucket/key or az://container@account/key (also abfs://, and with the account's "
        "full host name)"
    )


class Bucket:
    """The objects below one prefix of one bucket."""

    def __init__(self, location: Location, options: Mapping[str, Any]) -> None:
        self.location = location
        self.shown = f"{location.scheme}://{location.bucket}/{location.key}".rstrip("/")
        with _named(self.shown):
            self._fs = _file_system(location, options)
        self._root = f"{location.bucket}/{location.key}".rstrip("/")

    def put(self, path: Path, key: str) -> None:
        """Store the file at `path` as `key`, wholly or not at all."""
        with _named(f"{self.shown}/{key}"):
            if self.location.scheme == S3:
                self._fs.put_file(str(path), self._at(key))
                return
            with path.open("rb") as source, self._fs.open(self._at(key), "wb", block_size=_BLOCK) as target:
                while chunk := source.read(_BLOCK):  # put_file tries for ever where the container is not there
                    target.write(chunk)

    def get(self, key: str, path: Path, *, largest: int | None = None) -> None:
        """Bring the object `key` to the new file `path`. Raises NOT_FOUND, INVALID_ARGUMENT beyond `largest` bytes."""
        with _named(f"{self.shown}/{key}"), self._fs.open(self._at(key), "rb", cache_type="readahead") as source:
            size = int(source.size)
            if largest is not None and size > largest:
                raise invalid(f"{self.shown}/{key} has {size} bytes; at most {largest} are taken")
            with path.open("xb") as target:
                while chunk := source.read(_BLOCK):
                    target.write(chunk)
                target.flush()
                os.fsync(target.fileno())
        if path.stat().st_size != size:
            raise GatewayError("DATA_LOSS", f"{self.shown}/{key}: {path.stat().st_size} of {size} bytes came")

    def entry(self, key: str) -> Entry | None:
        """The object `key`, if there is one."""
        with _named(f"{self.shown}/{key}"):
            try:
                info = self._fs.info(self._at(key), refresh=True)
            except FileNotFoundError:
                return None
        return Entry(key, int(info["size"]), _seconds(info)) if info["type"] == "file" else None

    def entries(self, prefix: str = "") -> list[Entry]:
        """The objects below `prefix/`, sorted by key."""
        with _named(f"{self.shown}/{prefix}"):
            found = self._fs.find(self._at(prefix), withdirs=False, detail=True, refresh=True) or {}
        cut, below = len(self._root) + 1, f"{self._at(prefix)}/"
        listed = found.items() if isinstance(found, dict) else ()  # adlfs gives an empty list where it finds nothing
        return sorted(
            (Entry(name[cut:], int(info["size"]), _seconds(info)) for name, info in listed if name.startswith(below)),
            key=lambda entry: entry.key,
        )

    def remove(self, keys: list[str]) -> None:
        """Delete the objects; those that are not there are no error."""
        with _named(self.shown):
            for key in keys:
                try:
                    self._fs.rm_file(self._at(key))
                except FileNotFoundError:
                    continue

    def _at(self, key: str) -> str:
        return f"{self._root}/{key}" if key else self._root


def own(url: str) -> Bucket:
    """The gateway's own bucket, with the environment's credentials."""
    return Bucket(locate(url), {})


def open_bucket(url: str, credentials: Mapping[str, str] | None = None) -> Bucket:
    """The objects at a user's `url`, with that user's credentials (`credentials_of`), or as anybody may read them."""
    location = locate(url)
    if location.scheme == S3:
        given = {_AWS_KEYS[name]: value for name, value in (credentials or {}).items()}
        return Bucket(location, given or {"anon": True})
    options = dict(credentials or {"anon": True})
    if "connection_string" not in options:
        if not location.account:
            raise invalid(f"{url[:120]!r}: name the storage account too: az://container@account/key")
        options["account_name"] = location.account
    return Bucket(location, options)


def credentials_of(value: bytes, scheme: str, *, what: str) -> dict[str, str]:
    """A secret's value as credentials of `scheme`, as the contract has them; `what` names the secret in errors.

    S3: {"aws_access_key_id", "aws_secret_access_key"[, "aws_session_token"]}. Azure: one of {"connection_string"},
    {"sas_token"}, {"account_key"}. Raises INVALID_ARGUMENT, without the value.
    """
    try:
        found = json.loads(value)
    except ValueError:
        found = None
    wanted = set(_AWS_KEYS) if scheme == S3 else _AZURE_KEYS
    if not isinstance(found, dict) or not found or not all(isinstance(text, str) and text for text in found.values()):
        raise invalid(f"{what}: its value is not a JSON object of strings with {', '.join(sorted(wanted))}")
    if set(found) - wanted:
        raise invalid(f"{what}: has keys that are not credentials; expected {', '.join(sorted(wanted))}")
    if scheme == S3 and not {"aws_access_key_id", "aws_secret_access_key"} <= set(found):
        raise invalid(f"{what}: aws_access_key_id and aws_secret_access_key are needed, both")
    if scheme != S3 and len(found) != 1:
        raise invalid(f"{what}: exactly one of {', '.join(sorted(wanted))} is needed")
    if "connection_string" in found:
        _check_connection(found["connection_string"], what)
    return dict(found)


def _check_connection(text: str, what: str) -> None:
    """A user's connection string names an account and what opens it, and no address of the user's choice."""
    split = [part.partition("=") for part in text.split(";") if part]
    parts = {name: value for name, _, value in split}
    allowed = {"DefaultEndpointsProtocol", "AccountName", "AccountKey", "SharedAccessSignature", "EndpointSuffix"}
    if set(parts) - allowed:
        raise invalid(f"{what}: the connection string may have {', '.join(sorted(allowed))} only (no endpoints)")
    if not _ACCOUNT.fullmatch(parts.get("AccountName", "")):
        raise invalid(f"{what}: the connection string's AccountName is not one of Azure's")
    if parts.get("EndpointSuffix", _SUFFIXES[0]) not in _SUFFIXES or parts.get("DefaultEndpointsProtocol") == "http":
        raise invalid(f"{what}: the connection string goes by https to one of {', '.join(_SUFFIXES)}")


def _file_system(location: Location, options: Mapping[str, Any]) -> Any:
    # fsspec and the clouds' clients take a second to import, and few gateways have a bucket.
    try:
        if location.scheme == S3:
            from s3fs import S3FileSystem  # noqa: PLC0415

            limits = {
                "connect_timeout": _CONNECT_SECONDS, "read_timeout": _READ_SECONDS, "retries": {"max_attempts": 3},
            }  # fmt: skip
            return S3FileSystem(**options, config_kwargs=limits, skip_instance_cache=True, use_listings_cache=False)
        from adlfs import AzureBlobFileSystem  # noqa: PLC0415

        named = {"account_name": location.account} if location.account and "connection_string" not in options else {}
        return AzureBlobFileSystem(
            **{**named, **options}, connection_timeout=_CONNECT_SECONDS, read_timeout=_READ_SECONDS,
            assume_container_exists=True, skip_instance_cache=True, use_listings_cache=False,
        )  # fmt: skip
    except ImportError as error:
        extra = "s3" if location.scheme == S3 else "azure"
        raise GatewayError(
            "FAILED_PRECONDITION", f"{location.scheme}:// needs more packages: pip install 'gateway-trainer[{extra}]'"
        ) from error


def _seconds(info: Mapping[str, Any]) -> float:
    written = info.get("LastModified") or info.get("last_modified")
    return written.timestamp() if written is not None else 0.0


@contextmanager
def _named(what: str) -> Iterator[None]:
    """Gives failures the object's name and the gateway's codes; what the cloud's client says may quote credentials."""
    try:
        yield
    except GatewayError:
        raise
    except FileNotFoundError as error:
        raise not_found(what, "is it there, and may these credentials see it?") from error
    except PermissionError as error:
        raise GatewayError("PERMISSION_DENIED", f"{what}: these credentials may not do that") from error
    except Exception as error:  # each cloud's client has errors of its own, without a common ancestor
        code = str(getattr(error, "status_code", None) or getattr(error, "error_code", None) or "")
        kind = type(error).__name__
        if code in ("401", "403") or kind in ("ClientAuthenticationError", "NoCredentialsError"):
            raise GatewayError("PERMISSION_DENIED", f"{what}: these credentials are not taken ({kind})") from error
        raise GatewayError("UNAVAILABLE", f"{what}: the object store could not be asked ({kind}); ask again") from error
