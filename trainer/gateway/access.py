"""Who may ask: on loopback whoever can reach it, as the account `local`; elsewhere the holders of keys.

Without keys a web page of another site could drive the gateway through the user's browser, so requests must name this
machine as Host and Origin. With keys no browser adds the key by itself; a page may only speak to the host it came from.
"""

from __future__ import annotations

import hmac
import ipaddress
import json
from collections.abc import Mapping
from typing import Any, Protocol
from urllib.parse import urlsplit

from trainer.gateway.errors import GatewayError
from trainer.gateway.keys import Verifier, unauthenticated
from trainer.gateway.principal import OWNER, PUBLIC_ACCOUNT, Principal

IN_PROCESS = "embedded"  # the host that a client inside this process asks


class Access(Protocol):
    """How a server tells who asks."""

    needs_keys: bool

    def check_origin(self, headers: Mapping[str, str]) -> None:
        """Raise PERMISSION_DENIED for a request that a page of another site has sent."""
        ...

    def principal(self, headers: Mapping[str, str]) -> Principal:
        """Who asks. Raises UNAUTHENTICATED."""
        ...


class Open:
    """Single-user: every request is the owner's, whatever key it shows; only this machine can ask."""

    needs_keys = False

    def __init__(self, *, in_process: bool = False) -> None:
        self._own = frozenset({IN_PROCESS}) if in_process else frozenset[str]()  # of a server, a name in some network

    def check_origin(self, headers: Mapping[str, str]) -> None:
        origin = headers.get("origin")
        for what, name in (("Host", _host(headers)), ("Origin", _hostname(origin) if origin else "localhost")):
            if not is_loopback(name) and name not in self._own:
                raise GatewayError(
                    "PERMISSION_DENIED",
                    f"{what} {name!r}: this gateway serves its own machine only; reach it as localhost or 127.0.0.1",
                    reason="NOT_LOOPBACK",
                )

    def principal(self, headers: Mapping[str, str]) -> Principal:
        return OWNER


class Keys:
    """Every request shows a key; `owner_key` is that of this start, for the owner of the state folder."""

    needs_keys = True

    def __init__(self, verifier: Verifier, owner_key: str) -> None:
        self._verifier, self._owner_key = verifier, owner_key.encode()

    def check_origin(self, headers: Mapping[str, str]) -> None:
        origin = headers.get("origin")
        if origin and _netloc(origin) != headers.get("host", "").lower():
            raise GatewayError(
                "PERMISSION_DENIED", f"Origin {origin[:80]!r}: pages of other sites may not use this gateway",
                reason="FOREIGN_ORIGIN",
            )  # fmt: skip

    def principal(self, headers: Mapping[str, str]) -> Principal:
        key = shown_key(headers)
        if not key:
            raise unauthenticated("no API key")
        if hmac.compare_digest(key.encode("utf-8", "surrogateescape"), self._owner_key):
            return OWNER
        return self._verifier.verify(key)


def shown_key(headers: Mapping[str, str]) -> str:
    """The key of a request: a bearer's, or X-Api-Key; "" without one."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    bearer = token.strip() if scheme.lower() == "bearer" else ""
    return bearer or headers.get("x-api-key", "").strip()


def check_names(principal: Principal, body: Any) -> None:
    """No value of a body may be the name of another account's resource. Raises NOT_FOUND, as if it were not there."""
    stack = [("", body)]
    while stack:
        where, value = stack.pop()
        if isinstance(value, dict):
            stack += [(f"{where}.{key}" if where else key, item) for key, item in value.items()]
        elif isinstance(value, list):
            stack += [(where, item) for item in value]
        elif isinstance(value, str) and value.startswith("accounts/") and value.count("/") >= 3:
            account = "/".join(value.split("/", 2)[:2])
            if account not in (principal.account, PUBLIC_ACCOUNT):
                raise GatewayError(
                    "NOT_FOUND", f"{where[:200]}: {json.dumps(value[:200])} not found",
                    metadata={"field": where[:200], "name": value[:200]},
                )  # fmt: skip


def is_loopback(host: str) -> bool:
    """True when `host` can only mean this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _netloc(url: str) -> str:
    try:
        return urlsplit(url).netloc.lower()
    except ValueError:  # as below
        return ""


def _host(headers: Mapping[str, str]) -> str:
    return _hostname(f"//{headers.get('host', '')}")


def _hostname(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:  # brackets that hold no address
        return ""
