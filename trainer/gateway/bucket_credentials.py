"""What a user's secret says about how a bucket is opened: it opens a store, and never chooses where the gateway goes.

Its value is the contract's JSON, read word by word, since each word becomes part of a request. A few keys are this
gateway's own: `aws_session_token` and `region`, and `endpoint_url` for the stores that speak S3 and are not Amazon's.
An endpoint is asked only where the operator has named its host in TRAINER_GATEWAY_ALLOWED_HOSTS.
"""

from __future__ import annotations

import json
import os
import re
from urllib.parse import urlsplit

from trainer.gateway.buckets import ACCOUNT, S3, SUFFIXES
from trainer.gateway.errors import GatewayError, invalid
from trainer.gateway.fetching import ALLOWED_VARIABLE, Fetcher, allowed_hosts

_KEYS = ("aws_access_key_id", "aws_secret_access_key")
_AWS = frozenset({*_KEYS, "aws_session_token", "region", "endpoint_url"})
_AZURE = frozenset({"connection_string", "sas_token", "account_key"})
_WORD = re.compile(r"[!-~]{1,8192}")  # printable ASCII
_REGION = re.compile(r"[a-z0-9-]{2,32}")
_SAS = re.compile(r"[!-:<-~]{1,8192}")  # without ';', which ends a word of a connection string
_BASE64 = re.compile(r"[A-Za-z0-9+/]{1,512}={0,2}")
_PARTS = frozenset({"DefaultEndpointsProtocol", "AccountName", "AccountKey", "SharedAccessSignature", "EndpointSuffix"})


def credentials_of(value: bytes, scheme: str, *, what: str) -> dict[str, str]:
    """A secret's value as credentials for `buckets.open_bucket`; `what` names the secret in errors.

    S3: {"aws_access_key_id", "aws_secret_access_key"[, "aws_session_token", "region", "endpoint_url"]}. Azure: one of
    {"connection_string"}, {"sas_token"}, {"account_key"}. Raises INVALID_ARGUMENT, without the value.
    """
    try:
        found = json.loads(value)
    except (ValueError, RecursionError):
        found = None
    wanted = _AWS if scheme == S3 else _AZURE
    if not isinstance(found, dict) or not found or not all(isinstance(text, str) and text for text in found.values()):
        raise invalid(f"{what}: its value is not a JSON object of strings with {', '.join(sorted(wanted))}")
    if set(found) - wanted:
        raise invalid(f"{what}: has keys that are not credentials; expected {', '.join(sorted(wanted))}")
    return _of_s3(found, what) if scheme == S3 else _of_azure(found, what)


def sas_token(text: str, *, what: str) -> dict[str, str]:
    """A bare SAS token as credentials. Raises INVALID_ARGUMENT for what is none."""
    token = text.strip().removeprefix("?")
    if not _SAS.fullmatch(token):
        raise invalid(f"{what}: is not a SAS token, which is printable ASCII without ';'")
    return {"sas_token": token}


def _of_s3(found: dict[str, str], what: str) -> dict[str, str]:
    if not set(_KEYS) <= set(found):
        raise invalid(f"{what}: aws_access_key_id and aws_secret_access_key are needed, both")
    for name, text in found.items():
        if not _WORD.fullmatch(text):
            raise invalid(f"{what}: {name} is not printable ASCII")
    if "region" in found and not _REGION.fullmatch(found["region"]):
        raise invalid(f"{what}: region is no region's name, such as eu-central-1")
    if "endpoint_url" in found:
        _check_endpoint(found["endpoint_url"], what)
    return dict(found)


def _check_endpoint(url: str, what: str) -> None:
    """The operator has named the host: its name cannot mean something else a moment later against their will."""
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").rstrip("."), parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        host, port, parts = "", 0, urlsplit("")
    plain = parts.scheme in ("https", "http") and parts.path in ("", "/") and not (parts.query or parts.fragment)
    if not host or not plain or "@" in parts.netloc:
        raise invalid(f"{what}: endpoint_url is not of the form https://host or https://host:port")
    if not {host, f"{host}:{port}"} & allowed_hosts(os.environ):
        raise invalid(
            f"{what}: endpoint_url is a host that this gateway does not ask; the operator can name it in "
            f"{ALLOWED_VARIABLE}"
        )
    try:
        Fetcher().check(url)
    except GatewayError as error:
        raise invalid(f"{what}: endpoint_url: {error.message}") from error


def _of_azure(found: dict[str, str], what: str) -> dict[str, str]:
    if len(found) != 1:
        raise invalid(f"{what}: exactly one of {', '.join(sorted(_AZURE))} is needed")
    if "sas_token" in found:
        return sas_token(found["sas_token"], what=f"{what}: sas_token")
    if "account_key" in found:
        return {"account_key": _account_key(found["account_key"], what)}
    return _of_connection(found["connection_string"], what)


def _of_connection(text: str, what: str) -> dict[str, str]:
    """A connection string's account and what opens it. It may have no endpoints."""
    split = [part.partition("=") for part in text.split(";") if part]
    parts = {name: value for name, _, value in split}
    if set(parts) - _PARTS or len(parts) != len(split):
        raise invalid(
            f"{what}: the connection string may have {', '.join(sorted(_PARTS))} only, each once (no endpoints)"
        )
    if not ACCOUNT.fullmatch(parts.get("AccountName", "")):
        raise invalid(f"{what}: the connection string's AccountName is not one of Azure's")
    suffix = parts.get("EndpointSuffix", SUFFIXES[0])
    if suffix not in SUFFIXES or parts.get("DefaultEndpointsProtocol", "https") != "https":
        raise invalid(f"{what}: the connection string goes by https to one of {', '.join(SUFFIXES)}")
    known = {"account_name": parts["AccountName"], "endpoint_suffix": suffix}
    if "AccountKey" in parts:
        return {**known, "account_key": _account_key(parts["AccountKey"], what)}
    if "SharedAccessSignature" in parts:
        return {**known, **sas_token(parts["SharedAccessSignature"], what=f"{what}: SharedAccessSignature")}
    raise invalid(f"{what}: the connection string has neither AccountKey nor SharedAccessSignature")


def _account_key(text: str, what: str) -> str:
    if not _BASE64.fullmatch(text):
        raise invalid(f"{what}: the account key is not base64")
    return text
