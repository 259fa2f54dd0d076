"""Object stores by URL: `s3://bucket/prefix` (any S3-compatible one) and `az://container@account/prefix` (Azure Blob).

The only home of fsspec. Whose credentials are used is said at the door: the gateway's own bucket is opened with the
environment's (AWS_*, AZURE_STORAGE_*), a user's URL with that user's secret (`bucket_credentials`) or with none, never
with the gateway's. Where a store is, is the operator's to say: AWS_ENDPOINT_URL_S3 and TRAINER_GATEWAY_AZURE_ENDPOINT
(such as `http://127.0.0.1:10000/{account}`) send users' URLs to a store that is not the cloud's.
"""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from trainer.gateway.errors import GatewayError, invalid, not_found

S3, AZURE = "s3", "az"
_AZURE_SCHEMES = frozenset({"az", "abfs", "abfss", "azure"})
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_ADDRESS = re.compile(r"[0-9.]+")  # no bucket's name, says AWS
_CONTAINER = re.compile(r"[a-z0-9](?:-?[a-z0-9]){2,62}")
ACCOUNT = re.compile(r"[a-z0-9]{3,24}")
SUFFIXES = ("core.windows.net", "core.chinacloudapi.cn", "core.usgovcloudapi.net")  # of Azure's clouds
AZURE_ENDPOINT_VARIABLE = "TRAINER_GATEWAY_AZURE_ENDPOINT"
_AWS_KEYS = {"aws_access_key_id": "key", "aws_secret_access_key": "secret", "aws_session_token": "token",
             "endpoint_url": "endpoint_url"}  # fmt: skip
_CONNECT_SECONDS, _READ_SECONDS = 10, 60
_BLOCK = 8 << 20


@dataclass(frozen=True)
class Location:
    """Where a URL points: scheme `s3` or `az`, the bucket or container, the key or prefix; Azure's account, cloud."""

    scheme: str
    bucket: str
    key: str
    account: str = ""
    suffix: str = ""


@dataclass(frozen=True)
class Entry:
    """An object: its key below the bucket's prefix, bytes, and when it was written (seconds since 1970)."""

    key: str
    size: int
    written: float


def scheme_of(url: str) -> str:
    """Whose credentials open `url`: `s3`, `az` (also by Azure's https:// names), or "" where it is no bucket's."""
    try:
        parts = urlsplit(url)
    except ValueError:  # brackets that are no address
        return ""
    if parts.scheme == S3:
        return S3
    return AZURE if parts.scheme in _AZURE_SCHEMES or _azure_host(parts.netloc, parts.scheme) else ""


def locate(url: str) -> Location:
    """What `url` names. Raises INVALID_ARGUMENT for one that names no bucket in a way that is known."""
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise invalid(f"{_shown(url)}: is not a URL") from error
    key, netloc = parts.path.lstrip("/"), parts.netloc
    if known := _azure_host(netloc, parts.scheme):  # https://account.blob.core.windows.net/container/key
        container, _, key = unquote(key).partition("/")
        netloc, scheme = f"{container}@{known[0]}.blob.{known[1]}", AZURE
    else:
        scheme = parts.scheme
    if parts.query or parts.fragment or any(part in (".", "..") for part in key.split("/")) or "\\" in url:
        raise invalid(f"{_shown(url)}: a bucket's URL has no '..', query or fragment; write the key as it is")
    if scheme == S3 and _BUCKET.fullmatch(netloc) and not _ADDRESS.fullmatch(netloc):
        return Location(S3, netloc, key)
    if scheme in _AZURE_SCHEMES:
        container, _, host = netloc.partition("@")
        account, _, rest = host.partition(".")
        suffix = next((end for end in SUFFIXES if rest in (f"blob.{end}", f"dfs.{end}")), "")
        if _CONTAINER.fullmatch(container) and (suffix or not rest) and (not host or ACCOUNT.fullmatch(account)):
            return Location(AZURE, container, key, account, suffix)
    raise invalid(
        f"{_shown(url)}: expected s3://bucket/key or az://container@account/key (also abfs://, with the account's full "
        f"host name, and https://account.blob.{SUFFIXES[0]}/container/key)"
    )


def _azure_host(netloc: str, scheme: str) -> tuple[str, str] | None:
    """(account, cloud) of the host name of a storage account, where it is one that is asked by https."""
    account, _, rest = netloc.partition(".")
    ends = [end for end in SUFFIXES if rest == f"blob.{end}"]
    return (account, ends[0]) if scheme == "https" and ends and ACCOUNT.fullmatch(account) else None


def _shown(url: str) -> str:
    return repr(url.partition("?")[0][:120])  # a query may be a signature


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
        with _named(self._shown_at(key)):
            if self.location.scheme == S3:
                self._fs.put_file(str(path), self._at(key))
                return
            with path.open("rb") as source, self._fs.open(self._at(key), "wb", block_size=_BLOCK) as target:
                while chunk := source.read(_BLOCK):  # put_file tries for ever where the container is not there
                    target.write(chunk)

    def get(self, key: str, path: Path, *, largest: int | None = None, ends: float | None = None) -> None:
        """Bring the object `key` to the new file `path`.

        ends: when it must have come, by `time.monotonic`; looked at between blocks, each of which has its own limit.
        Raises NOT_FOUND, INVALID_ARGUMENT beyond `largest` bytes, DEADLINE_EXCEEDED.
        """
        with _named(self._shown_at(key)), self._fs.open(self._at(key), "rb", cache_type="readahead") as source:
            if source.details.get("type", "file") != "file":
                raise not_found(self._shown_at(key), "there is a folder of that name, and one object is wanted")
            size = int(source.size)
            if largest is not None and size > largest:
                raise invalid(f"{self._shown_at(key)} has {size} bytes; at most {largest} are taken")
            with path.open("xb") as target:
                while chunk := source.read(_BLOCK):
                    target.write(chunk)
                    if ends is not None and time.monotonic() > ends:
                        raise GatewayError("DEADLINE_EXCEEDED", f"{self._shown_at(key)}: took too long")
                target.flush()
                os.fsync(target.fileno())
        if path.stat().st_size != size:
            raise GatewayError("DATA_LOSS", f"{self._shown_at(key)}: {path.stat().st_size} of {size} bytes came")

    def entry(self, key: str) -> Entry | None:
        """The object `key`, if there is one."""
        with _named(self._shown_at(key)):
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

    def _shown_at(self, key: str) -> str:
        return f"{self.shown}/{key}" if key else self.shown

    def _at(self, key: str) -> str:
        return f"{self._root}/{key}" if key else self._root


def own(url: str) -> Bucket:
    """The gateway's own bucket, with the environment's credentials."""
    return Bucket(locate(url), {})


def open_bucket(url: str, credentials: Mapping[str, str] | None = None) -> Bucket:
    """The objects at a user's `url`, with that user's credentials (`bucket_credentials`), or as anybody may read them.

    Raises INVALID_ARGUMENT for credentials of another storage account than the URL's.
    """
    location, given = locate(url), dict(credentials or {})
    if location.scheme == AZURE:
        return Bucket(location, {"connection_string": _azure_connection(location, given, shown=_shown(url))})
    if not given:
        return Bucket(location, {"anon": True})
    options: dict[str, Any] = {_AWS_KEYS[name]: given[name] for name in _AWS_KEYS if name in given}
    if "endpoint_url" in given:  # few stores besides Amazon's answer to a host name for each bucket
        options["config_kwargs"] = {"s3": {"addressing_style": "path"}}
    if "region" in given:
        options["client_kwargs"] = {"region_name": given["region"]}
    return Bucket(location, options)


def _azure_connection(location: Location, given: Mapping[str, str], *, shown: str) -> str:
    """Everything said in one string: whatever it left open would be filled in from the gateway's own environment."""
    account = location.account or given.get("account_name", "")
    if not account:
        raise invalid(f"{shown}: name the storage account too: az://container@account/key")
    if given.get("account_name", account) != account:
        raise invalid(f"{shown}: is of the account {account}, the credentials are of {given['account_name']}")
    suffix = location.suffix or given.get("endpoint_suffix") or SUFFIXES[0]
    endpoint = os.environ.get(AZURE_ENDPOINT_VARIABLE) or f"https://{{account}}.blob.{suffix}"
    words = [f"BlobEndpoint={endpoint.replace('{account}', account)}"]
    if "account_key" in given:
        words += [f"AccountName={account}", f"AccountKey={given['account_key']}"]
    elif "sas_token" in given:
        words.append(f"SharedAccessSignature={given['sas_token']}")
    return ";".join(words)


def _file_system(location: Location, options: Mapping[str, Any]) -> Any:
    # fsspec and the clouds' clients take a second to import, and few gateways have a bucket.
    try:
        if location.scheme == S3:
            from s3fs import S3FileSystem  # noqa: PLC0415

            limits = {
                "connect_timeout": _CONNECT_SECONDS, "read_timeout": _READ_SECONDS, "retries": {"max_attempts": 3},
            }  # fmt: skip
            whole = {**options, "config_kwargs": {**limits, **options.get("config_kwargs", {})}}
            return S3FileSystem(**whole, skip_instance_cache=True, use_listings_cache=False)
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
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            raise  # of this machine
        code = str(getattr(error, "status_code", None) or getattr(error, "error_code", None) or "")
        kind = type(error).__name__
        if getattr(error, "errno", None) == errno.EINVAL:  # s3fs for an answer of 400, as to a token that has expired
            raise GatewayError(
                "PERMISSION_DENIED",
                f"{what}: the store refuses such a request; are the credentials whole, and not over?",
            ) from error
        if code in ("401", "403") or kind in ("ClientAuthenticationError", "NoCredentialsError"):
            raise GatewayError("PERMISSION_DENIED", f"{what}: these credentials are not taken ({kind})") from error
        raise GatewayError("UNAVAILABLE", f"{what}: the object store could not be asked ({kind}); ask again") from error
