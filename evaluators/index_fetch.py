"""HTTP for a build, made by the host: GET from the configured package index and from where its pages point, bounded.

The one decision: an address is looked up once, checked, and that very address is connected to, so that no name can lead
elsewhere between check and use. https goes to any host of a public address (and of a private one where the index itself
is at one); http, loopback and link-local only to a configured source itself. Redirects are followed under these rules.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import ipaddress
import socket
import ssl
import sys
import time
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from urllib.parse import SplitResult, quote, unquote, urljoin, urlsplit

from evaluators.address_nature import nature
from evaluators.package_sources import Sources, without_credentials

ANY = "*/*"
_CONNECT_SECONDS = 15.0
_READ_SECONDS = 30.0
_REDIRECTS = 5
_TRIES = 3
_PAUSE_SECONDS = 0.2
_PART = 60 << 10
_PORTS = {"https": 443, "http": 80}
_MOVED = (301, 302, 303, 307, 308)
_ABSENT = (404, 410)
_BUSY = (429, 500, 502, 503, 504)


class FetchRefused(ValueError):
    """A URL is not one that a build may go to; the message says why."""


class FetchFailed(OSError):
    """It could not be had; the message says why."""


class Absent(FetchFailed):
    """The index answers that there is no such thing."""


@dataclass(frozen=True)
class Fetched:
    """One answer. url: after redirects. length: in bytes as it will come, None = not told. parts: at most once."""

    url: str
    kind: str
    length: int | None
    parts: Iterator[bytes]


class Fetcher:
    """GET for one build; not thread-safe. check: called now and then, raises to give up."""

    def __init__(self, sources: Sources, *, check: Callable[[], None] = lambda: None) -> None:
        self._sources, self._check = sources, check
        every = [urlsplit(one) for one in (*sources.indexes, *sources.links)]
        self._origins = {_origin(one): one for one in every if one.scheme in _PORTS}
        self._hosts = {one.hostname for one in self._origins.values()}
        self._files = any(one.scheme == "file" for one in every)
        self._kept: dict[tuple[str, str, int], http.client.HTTPConnection] = {}
        self._private: bool | None = None

    def get(self, url: str, *, most: int, accept: str = ANY) -> Fetched:
        """Begin to fetch `url`, of at most `most` bytes. Raises `FetchRefused`, `FetchFailed`, `Absent`."""
        for _ in range(_REDIRECTS + 1):
            if _split(url).scheme == "file":
                return self._local(url, most)
            response = self._asked(url, accept)
            if response.status not in _MOVED:
                return self._taken(url, response, most)
            response.read(_PART)
            self._drop(url)
            # A credential stays with the source it belongs to, also where a redirect repeats it.
            url = _joined(url, response.headers.get("Location") or "/")
            if _split(url).scheme == "file":
                raise FetchRefused(f"a redirect to {url[:200]}: only a folder of this machine may lead to its files")
        raise FetchFailed(f"{without_credentials(url)}: more than {_REDIRECTS} redirects")

    def close(self) -> None:
        """End every connection."""
        for connection in self._kept.values():
            connection.close()
        self._kept.clear()

    def check_url(self, url: str) -> None:
        """Raise `FetchRefused` for a URL that is not to be asked, as far as its text tells."""
        parts, shown = _split(url), without_credentials(url)
        if parts.scheme == "file" and self._files and not parts.hostname:
            return
        if parts.scheme not in _PORTS or not parts.hostname:
            raise FetchRefused(f"{shown[:200]}: only https is taken, and http where the index itself is there")
        origin = _origin(parts)
        if origin in self._origins:
            return
        if parts.scheme == "http":
            raise FetchRefused(f"{shown[:200]}: http without TLS is taken from the configured index alone")
        if origin[2] != _PORTS["https"] and parts.hostname not in self._hosts:
            raise FetchRefused(f"{shown[:200]}: port {origin[2]} of a host that is not the index")

    def _local(self, url: str, most: int) -> Fetched:
        self.check_url(url)
        path = Path(unquote(urlsplit(url).path))
        if path.is_dir():
            path = path / "index.html"
        try:
            if not path.is_file():
                raise Absent(f"{path} is not there")
            size = path.stat().st_size
            if size > most:
                raise FetchFailed(f"{path} is larger than {most:,} bytes")
            return Fetched(path.as_uri(), "text/html", size, _parts_of(path))
        except PermissionError as error:
            raise FetchFailed(str(error)) from None

    def _asked(self, url: str, accept: str) -> http.client.HTTPResponse:
        """The response's head; asked again, on a fresh connection, where the server fails or is busy."""
        self.check_url(url)
        shown, problem, pause = without_credentials(url), "", _PAUSE_SECONDS
        for _ in range(_TRIES):
            self._check()
            fresh = _origin(urlsplit(url)) not in self._kept
            try:
                response = self._once(url, accept)
                if response.status not in _BUSY:
                    return response
                problem = f"HTTP {response.status}"
            except ssl.SSLCertVerificationError as error:
                raise FetchFailed(f"{shown[:200]}: its certificate is not accepted: {error.verify_message}") from None
            except (OSError, http.client.HTTPException) as error:
                problem = f"{type(error).__name__}: {error}"
            self._drop(url)
            if fresh:  # else the server had only closed a connection that was kept
                time.sleep(pause)
                pause *= 2
        raise FetchFailed(f"{shown[:200]} cannot be reached: {problem[:200]}")

    def _once(self, url: str, accept: str) -> http.client.HTTPResponse:
        parts = urlsplit(url)
        origin = _origin(parts)
        connection = self._kept.get(origin) or self._connection(parts)
        self._kept[origin] = connection
        target = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._")
        target += f"?{quote(parts.query, safe='/%:@!$&()*+,;=~-._?')}" if parts.query else ""
        headers = {"Accept": accept, "User-Agent": "gateway-trainer"}
        headers["Accept-Encoding"] = "identity" if accept == ANY else "gzip"  # pages shrink, packages do not
        source, proxy = self._origins.get(origin), self._proxy(parts) if parts.scheme == "http" else None
        if source is not None and source.username:
            headers["Authorization"] = _basic(source)
        if proxy:
            target = f"http://{parts.netloc.rpartition('@')[2]}{target}"
            headers |= {"Proxy-Authorization": _basic(urlsplit(proxy))} if urlsplit(proxy).username else {}
        connection.request("GET", target, headers=headers)
        return connection.getresponse()

    def _taken(self, url: str, response: http.client.HTTPResponse, most: int) -> Fetched:
        shown = without_credentials(url)[:200]
        if response.status != 200:
            self._drop(url)
            if response.status in _ABSENT:
                raise Absent(f"{shown}: HTTP {response.status}")
            why = ": it asks for credentials" if response.status in (401, 403) else ""
            raise FetchFailed(f"{shown}: HTTP {response.status}{why}")
        packed = response.headers.get("Content-Encoding", "").lower() == "gzip"
        told = response.headers.get("Content-Length", "")
        length = int(told) if told.isdigit() and not packed else None
        if (length or 0) > most:
            self._drop(url)
            raise FetchFailed(f"{shown} is larger than {most:,} bytes")
        kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        return Fetched(url, kind, length, self._read(url, response, most, packed))

    def _read(self, url: str, response: http.client.HTTPResponse, most: int, packed: bool) -> Iterator[bytes]:
        unpack = zlib.decompressobj(wbits=31) if packed else None
        total, finished = 0, False
        try:
            while part := response.read(_PART):
                self._check()
                for piece in _unpacked(unpack, part) if unpack else (part,):
                    total += len(piece)
                    if total > most:
                        raise FetchFailed(f"{without_credentials(url)[:200]} is larger than {most:,} bytes")
                    yield piece
            finished = True
        except (OSError, http.client.HTTPException, zlib.error) as error:
            if isinstance(error, FetchFailed):
                raise
            raise FetchFailed(f"{without_credentials(url)[:200]} broke off: {error}") from None
        finally:
            if not finished or response.will_close:
                self._drop(url)

    def _drop(self, url: str) -> None:
        connection = self._kept.pop(_origin(urlsplit(url)), None)
        if connection is not None:
            connection.close()

    def _connection(self, parts: SplitResult) -> _Connection:
        scheme, host, port = _origin(parts)
        context = self._context(host) if scheme == "https" else None
        proxy = self._proxy(parts)
        if proxy:
            return _through(urlsplit(proxy if "://" in proxy else f"http://{proxy}"), (host, port), context)
        return _Connection(host, port, self._addresses(host, port), context)

    def _proxy(self, parts: SplitResult) -> str | None:
        host = parts.hostname or ""
        if self._sources.proxy:
            return self._sources.proxy
        return None if urllib.request.proxy_bypass(host) else urllib.request.getproxies().get(parts.scheme)

    def _addresses(self, host: str, port: int) -> list[str]:
        """Where to connect to; every address of the name has to be allowed."""
        found = _resolved(host, port)
        if host in self._hosts:
            return found
        if self._private is None:  # is one of the sources itself at a private address?
            every = [_resolved(*_origin(one)[1:]) for one in self._origins.values()]
            self._private = any(nature(address) == "private" for one in every for address in one)
        allowed = {"public", "private"} if self._private else {"public"}
        for address in found:
            if nature(address) not in allowed:
                raise FetchRefused(f"{host} is at {address}, which is {nature(address)}: a build may not go there")
        return found

    def _context(self, host: str) -> ssl.SSLContext:
        if host in {one.rpartition(":")[0] or one for one in self._sources.trusted} | self._sources.trusted:
            context = ssl.create_default_context()
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        else:
            context = _verifying(self._sources.cert)
        if self._sources.client_cert:
            context.load_cert_chain(self._sources.client_cert)
        return context


class _Connection(http.client.HTTPConnection):
    """To one of the given addresses, with TLS for the name where there is a context."""

    def __init__(self, host: str, port: int, addresses: list[str], context: ssl.SSLContext | None) -> None:
        super().__init__(host, port, timeout=_READ_SECONDS)
        self._addresses, self._context = addresses, context
        self._far = (host, port)
        self.name, self.tunnelled = host, False
        if context is not None:
            self.default_port = _PORTS["https"]

    def connect(self) -> None:
        """As the base class does, but to an address that has been checked."""
        problem: OSError | None = None
        for address in self._addresses:
            try:
                self.sock = socket.create_connection((address, self._far[1]), _CONNECT_SECONDS)
                break
            except OSError as error:
                problem = error
        else:
            raise problem or OSError(f"{self._far[0]} has no address")
        self.sock.settimeout(_READ_SECONDS)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.tunnelled:
            self._tunnel()  # type: ignore[attr-defined]
        if self._context is not None:
            self.sock = self._context.wrap_socket(self.sock, server_hostname=self.name)


def _through(proxy: SplitResult, target: tuple[str, int], context: ssl.SSLContext | None) -> _Connection:
    """By the operator's proxy, which then looks names up itself: addresses cannot be checked here."""
    with contextlib.suppress(ValueError):
        kind = nature(str(ipaddress.ip_address(target[0])))
        if context is not None and kind in ("loopback", "link-local"):
            raise FetchRefused(f"{target[0]} is {kind}: a build may not go there")
    host, port = proxy.hostname or "", proxy.port or 80
    connection = _Connection(host, port, _resolved(host, port), context)
    if context is not None:
        headers = {"Proxy-Authorization": _basic(proxy)} if proxy.username else {}
        connection.set_tunnel(*target, headers=headers)
        connection.name, connection.tunnelled = target[0], True
    return connection


def _basic(parts: SplitResult) -> str:
    both = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
    return "Basic " + base64.b64encode(both.encode()).decode()


def _split(url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError as error:
        raise FetchRefused(f"{url[:200]!r} is no URL: {error}") from None


def _joined(url: str, target: str) -> str:
    """Where a redirect leads, without a credential that stands in it."""
    try:
        return without_credentials(urljoin(url, target))
    except ValueError as error:
        raise FetchRefused(f"a redirect to {target[:200]!r}, which is no URL: {error}") from None


def _origin(parts: SplitResult) -> tuple[str, str, int]:
    try:
        port = parts.port
    except ValueError:
        raise FetchRefused(f"{parts.netloc.rpartition('@')[2][:200]!r} has no valid port") from None
    return parts.scheme, parts.hostname or "", port or _PORTS.get(parts.scheme, 0)


def _resolved(host: str, port: int) -> list[str]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise FetchFailed(f"{host[:200]} has no address: {error}") from None
    return list(dict.fromkeys(str(one[4][0]) for one in found))


@lru_cache(maxsize=4)
def _verifying(cert: str | None) -> ssl.SSLContext:
    """The operator's certificates alone where they are named, else the system's and those that pip brings."""
    if cert:
        folder = Path(cert).is_dir()
        return ssl.create_default_context(cafile=None if folder else cert, capath=cert if folder else None)
    context = ssl.create_default_context()
    bundles = (Path(folder, "pip/_vendor/certifi/cacert.pem") for folder in sys.path)
    if bundle := next(filter(Path.is_file, bundles), None):
        context.load_verify_locations(str(bundle))
    return context


def _unpacked(unpack: zlib._Decompress, part: bytes) -> Iterator[bytes]:  # type: ignore[name-defined]
    """In pieces of a bounded size, however well it was packed."""
    while part:
        yield unpack.decompress(part, _PART)
        part = unpack.unconsumed_tail


def _parts_of(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while part := file.read(_PART):
            yield part
