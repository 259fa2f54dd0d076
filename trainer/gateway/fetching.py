"""URLs that users give (external data, imported models, webhooks), asked without becoming the users' way inside.

A host is resolved once; every address it has must be a public one, and the address that was checked is the one that is
connected to, so that a name cannot mean something else a moment later. A redirect is a new URL and goes through the
same door. No proxy, cookie, or credential of this machine is used. Private hosts are asked only where the operator has
named them in TRAINER_GATEWAY_ALLOWED_HOSTS (`host` or `host:port`, with commas); those of a cloud's metadata never are,
and neither is the gateway itself, not even for a URL that it has signed: what it has is named by its resource name.
"""

from __future__ import annotations

import hashlib
import ipaddress
import os
import re
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, urljoin, urlsplit

import httpx

from trainer.gateway import buckets
from trainer.gateway.bounded import BoundedTransport
from trainer.gateway.errors import GatewayError, invalid
from trainer.gateway.found import running_server

ALLOWED_VARIABLE = "TRAINER_GATEWAY_ALLOWED_HOSTS"
_PORTS = frozenset({80, 443, 8080, 8443})
_REDIRECTS = 5
_LONGEST_URL = 4096
_CONNECT_SECONDS, _READ_SECONDS = 10.0, 30.0
_GOOGLE = "https://storage.googleapis.com/"
_HOST = re.compile(r"(?=.{1,253}\.?$)[a-z0-9_](?:[a-z0-9_-]{0,62}(?:\.[a-z0-9_-]{1,63})*)\.?")
_NO_HOST = frozenset({socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)})
_NUMERIC = re.compile(r"(?:0x[0-9a-f]*|[0-9]+)")  # as the last part of a name: an address in an odd spelling
_PLAIN = re.compile(r"[!-\[\]-~]+")  # printable ASCII without space and backslash
# Not public, beyond what ipaddress knows in every Python that is supported.
_REFUSED = tuple(
    ipaddress.ip_network(text)
    for text in ("0.0.0.0/8", "100.64.0.0/10", "168.63.129.16/32", "192.0.0.0/24", "192.88.99.0/24", "198.18.0.0/15",
                 "240.0.0.0/4", "::/8", "64:ff9b:1::/48", "100::/64", "2001::/23", "2001:db8::/32", "3fff::/20",
                 "5f00::/16", "fc00::/7", "fe80::/9", "ff00::/8")
)  # fmt: skip
_NAT64, _METADATA = ipaddress.ip_network("64:ff9b::/96"), ("169.254.0.0/16", "168.63.129.16/32", "fd00:ec2::/32",
                                                           "100.100.100.200/32", "fe80::/10")  # fmt: skip
_NEVER = tuple(ipaddress.ip_network(text) for text in _METADATA)

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolver = Callable[[str, int], Sequence[str]]


def resolve(host: str, port: int) -> list[str]:
    """The addresses of `host`, as this machine's resolver has them."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


@dataclass(frozen=True)
class Fetched:
    """What came: bytes, their sha256 in hex, and where from after redirects."""

    size: int
    sha256: str
    url: str


@dataclass(frozen=True)
class Rules:
    """What may be asked. allowed: private hosts that the operator names. refused: (address, port) of the gateway.

    An address of 0.0.0.0 or :: stands for every address of this machine.
    """

    schemes: frozenset[str] = frozenset({"https", "http"})
    allowed: frozenset[str] = field(default_factory=lambda: allowed_hosts(os.environ))
    refused: frozenset[tuple[str, int]] = frozenset()

    @classmethod
    def of_gateway(cls, folder: Path) -> Rules:
        """The rules of the gateway with that state folder."""
        url = running_server(folder)
        parts = urlsplit(url or "")
        if not parts.hostname or parts.port is None:
            return cls()
        try:
            addresses = resolve(parts.hostname, parts.port)
        except OSError:  # a name that does not resolve leads nobody here
            return cls()
        return cls(refused=frozenset((address, parts.port) for address in addresses))


def allowed_hosts(environment: Mapping[str, str]) -> frozenset[str]:
    """The hosts of TRAINER_GATEWAY_ALLOWED_HOSTS."""
    return frozenset(host.strip().lower() for host in environment.get(ALLOWED_VARIABLE, "").split(",") if host.strip())


@dataclass(frozen=True)
class _Target:
    """A URL that passed, and the address to connect to."""

    url: str
    scheme: str
    host: str
    port: int
    address: Address

    def pinned(self) -> str:
        """The URL with the address in the name's place."""
        split = urlsplit(self.url)
        shown = f"[{self.address}]" if self.address.version == 6 else str(self.address)
        return split._replace(netloc=f"{shown}:{self.port}", fragment="").geturl()

    def host_header(self) -> str:
        """The name that the server is asked for."""
        usual = self.port == (443 if self.scheme == "https" else 80)
        shown = f"[{self.host}]" if ":" in self.host else self.host
        return shown if usual else f"{shown}:{self.port}"


class Fetcher:
    """Asks users' URLs by `rules`. resolver and transport are the outside world."""

    def __init__(
        self, rules: Rules | None = None, *, resolver: Resolver = resolve, transport: httpx.BaseTransport | None = None
    ) -> None:
        self._rules, self._resolver = rules or Rules(), resolver
        self._transport = transport

    def download(
        self, url: str, target: Path, *, largest: int, seconds: float, credentials: Mapping[str, str] | None = None
    ) -> Fetched:
        """Bring `url` (https, http, s3, az or a public gs) to the new file `target`; at most `largest` bytes.

        seconds: for all of it. credentials: for buckets (`bucket_credentials`). Raises INVALID_ARGUMENT for a URL that
        may not be asked or what is too large, DEADLINE_EXCEEDED, UNAVAILABLE; then there is no file.
        """
        try:
            url = web_url(_checked(url))
            if credentials or urlsplit(url).scheme not in ("http", "https"):
                ends = time.monotonic() + seconds
                return _from_bucket(url, target, largest=largest, credentials=credentials, ends=ends)
            with self._asked("GET", url, seconds=seconds) as (response, final, ends):
                return _taken(response, final, target, largest=largest, ends=ends)
        except BaseException:
            target.unlink(missing_ok=True)
            raise

    def post(self, url: str, content: bytes, *, headers: Mapping[str, str], seconds: float) -> int:
        """Send a webhook; returns the answer's status. A redirect is not followed: its status is the answer."""
        with self._asked("POST", url, seconds=seconds, content=content, headers=headers) as (response, _final, _ends):
            return response.status_code

    def check(self, url: str) -> None:
        """Raise INVALID_ARGUMENT if `url` may not be asked now; the answer is looked at again when it is asked."""
        self._target(url)

    @contextmanager
    def _asked(
        self, method: str, url: str, *, seconds: float, content: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> Iterator[tuple[httpx.Response, str, float]]:
        ends = time.monotonic() + seconds
        transport = self._transport or BoundedTransport(ends)
        limits = httpx.Timeout(min(seconds, _READ_SECONDS), connect=min(seconds, _CONNECT_SECONDS))
        with httpx.Client(transport=transport, trust_env=False, follow_redirects=False, timeout=limits) as client:
            for _ in range(_REDIRECTS + 1):
                target = self._target(url)
                client.cookies.clear()
                request = client.build_request(
                    method, target.pinned(), content=content or None,
                    headers={**(headers or {}), "host": target.host_header(), "accept-encoding": "identity"},
                    extensions={"sni_hostname": target.host},
                )  # fmt: skip
                response = _send(client, request, url=url, ends=ends)
                try:
                    if method == "POST" or not response.has_redirect_location:
                        yield response, url, ends
                        return
                    url = _joined(url, response.headers["location"])
                finally:
                    response.close()
        raise invalid(f"{shown(url)}: more than {_REDIRECTS} redirects")

    def _target(self, url: str) -> _Target:
        split = urlsplit(_checked(url))
        if split.scheme not in self._rules.schemes:
            raise invalid(f"{shown(url)}: expected {' or '.join(sorted(self._rules.schemes))}")
        host, port = _host_and_port(url)
        named = bool({host.rstrip("."), f"{host.rstrip('.')}:{port}"} & self._rules.allowed)
        if port not in _PORTS and not named:
            raise invalid(f"{shown(url)}: port {port} is not asked; those are {', '.join(map(str, sorted(_PORTS)))}")
        addresses = self._addresses(host, port, url)
        for address in addresses:
            if self._is_gateway(address, port):
                raise invalid(f"{shown(url)}: is this gateway itself; name what it has by its resource name")
            if not may_connect(address, named=named):
                raise invalid(
                    f"{shown(url)}: its host is not a public address, so this gateway does not ask it; "
                    f"the operator can name it in {ALLOWED_VARIABLE}"
                )
        return _Target(url, split.scheme, host, port, addresses[0])

    def _is_gateway(self, address: Address, port: int) -> bool:
        own = (ipaddress.ip_address(listens) for listens, number in self._rules.refused if number == port)
        return any(_reaches(_meant(address), listens) for listens in own)

    def _addresses(self, host: str, port: int, url: str) -> list[Address]:
        try:
            return [ipaddress.ip_address(host)]
        except ValueError:
            pass
        if _NUMERIC.fullmatch(host.rstrip(".").rsplit(".", 1)[-1]):
            raise invalid(f"{shown(url)}: write an address as four decimal numbers")
        try:
            found = [ipaddress.ip_address(text.partition("%")[0]) for text in self._resolver(host, port)]
        except (OSError, UnicodeError) as error:
            if isinstance(error, UnicodeError) or error.errno in _NO_HOST:
                raise invalid(f"{shown(url)}: there is no host of that name") from error
            raise GatewayError("UNAVAILABLE", f"{shown(url)}: its host cannot be resolved now; ask again") from error
        if not found:
            raise invalid(f"{shown(url)}: its host has no address")
        return found


def may_connect(address: Address, *, named: bool = False) -> bool:
    """True for a public address, or one that the operator has `named`; never for a cloud's metadata."""
    meant = _meant(address)
    if any(meant in network for network in _NEVER if network.version == meant.version):
        return False
    if named:
        return True
    refused = any(meant in network for network in _REFUSED if network.version == meant.version)
    return meant.is_global and not meant.is_multicast and not refused


def web_url(url: str) -> str:
    """`url`, with the https:// name of a public object in Google's store in place of its gs:// one."""
    if not url.startswith("gs://"):
        return url
    bucket, _, key = url.removeprefix("gs://").partition("/")
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]", bucket) or not key:
        raise invalid(f"{shown(url)}: expected gs://bucket/object")
    return f"{_GOOGLE}{bucket}/{quote(key)}"


def _reaches(address: Address, listens: Address) -> bool:
    """True where who connects to `address` is answered by who listens at `listens`, or may be."""
    if listens.is_unspecified:
        return _is_here(address)
    inside = [one.is_loopback or one.is_unspecified for one in (address, listens)]
    return address == listens or all(inside)


def _is_here(address: Address) -> bool:
    """True where `address` is one of this machine's."""
    if address.is_loopback or address.is_unspecified:
        return True
    try:
        with socket.socket(socket.AF_INET6 if address.version == 6 else socket.AF_INET) as one:
            one.bind((str(address), 0))
    except OSError:  # it belongs to another machine
        return False
    return True


def _meant(address: Address) -> Address:
    """The IPv4 address that an IPv6 one stands for, where it does."""
    if not isinstance(address, ipaddress.IPv6Address):
        return address
    inner = address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else None)
    if inner is None and (address in _NAT64 or (int(address) >> 32 == 0 and int(address) > 0xFFFF)):
        inner = ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
    return inner or address


def _checked(url: str) -> str:
    """`url` if it is one that every program reads alike. Raises INVALID_ARGUMENT."""
    if not _PLAIN.fullmatch(url) or len(url) > _LONGEST_URL:
        raise invalid(f"{shown(url)}: expected a URL of printable ASCII, at most {_LONGEST_URL} characters")
    try:
        split = urlsplit(url)
    except ValueError as error:
        raise invalid(f"{shown(url)}: is not a URL") from error
    if "@" in split.netloc and split.scheme in ("http", "https"):
        raise invalid(f"{shown(url)}: a URL here has no user and password in it")
    return url


def _joined(url: str, location: str) -> str:
    try:
        return urljoin(url, location)
    except ValueError as error:
        raise invalid(f"{shown(url)}: redirects to what is not a URL") from error


def _host_and_port(url: str) -> tuple[str, int]:
    split = urlsplit(url)
    try:
        host, port = split.hostname or "", split.port
    except ValueError as error:
        raise invalid(f"{shown(url)}: its port is not a number") from error
    if ":" in host:
        try:
            host = str(ipaddress.IPv6Address(host))
        except ValueError as error:
            raise invalid(f"{shown(url)}: its host is not an IPv6 address") from error
        if "%" in host:
            raise invalid(f"{shown(url)}: an address with a zone is not asked")
    elif not _HOST.fullmatch(host):
        raise invalid(f"{shown(url)}: its host is not a name; expected letters, digits, '-' and dots")
    return host, port if port is not None else (443 if split.scheme == "https" else 80)


def _send(client: httpx.Client, request: httpx.Request, *, url: str, ends: float) -> httpx.Response:
    if time.monotonic() > ends:
        raise _late(url)
    try:
        return client.send(request, stream=True)
    except httpx.TimeoutException as error:
        raise _late(url) from error
    except httpx.HTTPError as error:
        raise GatewayError("UNAVAILABLE", f"{shown(url)}: {type(error).__name__}; ask again") from error


def _taken(response: httpx.Response, url: str, target: Path, *, largest: int, ends: float) -> Fetched:
    if response.status_code != 200:
        raise GatewayError(
            "UNAVAILABLE" if response.status_code >= 500 else "FAILED_PRECONDITION",
            f"{shown(url)}: answered {response.status_code}",
        )
    if response.headers.get("content-encoding", "identity") != "identity":
        raise invalid(f"{shown(url)}: came compressed by the server, which was asked not to")
    declared = response.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > largest:
        raise invalid(f"{shown(url)}: has {declared} bytes; at most {largest} are taken")
    digest, size = hashlib.sha256(), 0
    try:
        with target.open("xb") as stream:
            for chunk in response.iter_raw():
                size += len(chunk)
                if size > largest:
                    raise invalid(f"{shown(url)}: has more than {largest} bytes, which is the most that is taken")
                if time.monotonic() > ends:
                    raise _late(url)
                digest.update(chunk)
                stream.write(chunk)
            stream.flush()
            os.fsync(stream.fileno())
    except httpx.TimeoutException as error:
        raise _late(url) from error
    except httpx.HTTPError as error:
        raise GatewayError("UNAVAILABLE", f"{shown(url)}: broke off after {size} bytes; ask again") from error
    return Fetched(size, digest.hexdigest(), url)


def _from_bucket(
    url: str, target: Path, *, largest: int, credentials: Mapping[str, str] | None, ends: float
) -> Fetched:
    location = buckets.locate(url)
    if not location.key or location.key.endswith("/"):
        raise invalid(f"{shown(url)}: names no object")
    bucket = buckets.open_bucket(url, credentials)
    bucket.get("", target, largest=largest, ends=ends)
    with target.open("rb") as stream:
        return Fetched(target.stat().st_size, hashlib.file_digest(stream, "sha256").hexdigest(), url)


def _late(url: str) -> GatewayError:
    return GatewayError("DEADLINE_EXCEEDED", f"{shown(url)}: took too long")


def shown(url: str) -> str:
    """The URL for messages: without its query, which may be a signature, and without user and password."""
    text = re.sub(r"//[^/?#]*@", "//", url)
    return repr(text.partition("?")[0].partition("#")[0][:120])
