"""How much a request may be: length, time, nesting, keys; and that it is what it says it is.

What is too much is refused as early as it is known (by the declared length, before a byte of the body is read), and the
connection is closed, so that the rest is never read.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import Message, Receive

from trainer.gateway.errors import GatewayError, invalid

HEAD_BYTES = 64 << 10  # of a request's line and headers
JSON_LIMIT = 16 << 20
MULTIPART_LIMIT = 151 << 20  # 150 MB of file, and the form around it
DEEPEST = 64  # objects and arrays inside one another
MOST_KEYS = 200_000
LONGEST_QUERY = 32 << 10
_BODY_SECONDS = 60.0  # for the whole of a JSON body
_IDLE_SECONDS = 60.0  # between two pieces of a file
_KEYS = re.compile(rb'"\s*:')
_LONGEST_INTEGER = 1000  # digits; beyond 4300 Python itself refuses
_HOST = re.compile(r"(?:[A-Za-z0-9._-]*|\[[0-9A-Fa-f:.]+\])(?::[0-9]{0,5})?")


def check_framing(headers: Headers, query: bytes) -> None:
    """Refuse what two servers in a row may read in two ways, and bodies that are packed. Raises INVALID_ARGUMENT."""
    if sum(len(name) + len(value) + 4 for name, value in headers.raw) > HEAD_BYTES:
        raise refused(f"the headers are longer than {HEAD_BYTES} bytes", 431, "HEADERS_TOO_LONG")
    if not _HOST.fullmatch(headers.get("host", "")):
        raise refused(f"Host {headers['host'][:80]!r}: expected a host name, and perhaps a port", 400, "HOST_INVALID")
    if "content-length" in headers and "transfer-encoding" in headers:
        raise refused("Content-Length and Transfer-Encoding exclude each other", 400, "AMBIGUOUS_LENGTH")
    if len(headers.getlist("content-length")) > 1 or len(headers.getlist("transfer-encoding")) > 1:
        raise refused("a length is given twice", 400, "AMBIGUOUS_LENGTH")
    packed = headers.get("content-encoding", "identity").lower()
    if packed != "identity":
        raise refused(f"Content-Encoding {packed[:40]!r}: send the body as it is", 415, "PACKED_BODY")
    if len(query) > LONGEST_QUERY:
        raise refused(f"the query is longer than {LONGEST_QUERY} bytes", 414, "QUERY_TOO_LONG")


def limited(request: Request, receive: Receive, *, seconds: float = _BODY_SECONDS) -> Callable[[], Awaitable[Message]]:
    """`receive`, refusing bodies that are too long or too slow; files have a limit on silence instead.

    Raises INVALID_ARGUMENT with HTTP 413, and DEADLINE_EXCEEDED with HTTP 408.
    """
    is_file = request.scope["path"].startswith("/files/")
    multipart = request.headers.get("content-type", "").startswith("multipart/")
    limit = math.inf if is_file else MULTIPART_LIMIT if multipart else JSON_LIMIT
    way_out = "larger files go through :getUploadEndpoint" if multipart else "send files as uploads, not as JSON"
    declared = request.headers.get("content-length", "")

    def too_long() -> GatewayError:
        return refused(f"the body is longer than {limit} bytes; {way_out}", 413, "BODY_TOO_LONG")

    if declared.isdigit() and int(declared) > limit:
        raise too_long()
    received, until = 0, None

    async def receiving() -> Message:
        nonlocal received, until
        now = asyncio.get_running_loop().time()
        until = now + _IDLE_SECONDS if is_file or multipart else until or now + seconds
        try:
            async with asyncio.timeout_at(until):
                message = await receive()
        except TimeoutError as error:
            raise refused("the body did not come in time", 408, "BODY_TOO_SLOW", code="DEADLINE_EXCEEDED") from error
        received += len(message.get("body", b""))
        if received > limit:
            raise too_long()
        return message

    return receiving


def read_json(content: bytes) -> Any:
    """The JSON of a body, in UTF-8. Raises INVALID_ARGUMENT for what is none, too deep, or has too many keys or one
    twice."""
    if len(content) > MOST_KEYS and sum(1 for _ in _KEYS.finditer(content)) > MOST_KEYS:
        raise invalid(f"the body has more than {MOST_KEYS} keys; send it in parts")
    try:
        value = _DECODER.decode(content.decode("utf-8-sig"))
    except RecursionError as error:
        raise _too_deep() from error
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise invalid(f"the body is not JSON: byte {error.start}, {byte:#04x}, is not UTF-8") from error
    except ValueError as error:
        raise invalid(f"the body is not JSON: {str(error)[:200]}") from error
    _check(value)
    return value


def refused(message: str, status: int, reason: str, *, code: str = "INVALID_ARGUMENT") -> GatewayError:
    """A refusal after which the connection is closed, because what follows on it cannot be told or is not wanted."""
    return GatewayError(code, message, reason=reason, http_status=status, close=True)


def _check(value: Any) -> None:
    """Level by level, so that no depth can exhaust the stack."""
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > DEEPEST:
            raise _too_deep()
        following: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                following += item.keys()
                following += item.values()
            elif isinstance(item, list):
                following += item
            elif isinstance(item, str) and not item.isascii() and not _is_unicode(item):
                raise invalid("the body has half of a surrogate pair; strings are Unicode")
            elif isinstance(item, float) and not math.isfinite(item):
                raise invalid("the body has a number beyond the range of a double")
        level = following


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _too_deep() -> GatewayError:
    return invalid(f"the body is nested more than {DEEPEST} deep")


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _integer(text: str) -> int:
    if len(text) > _LONGEST_INTEGER:
        raise ValueError(f"a number of {len(text)} digits; at most {_LONGEST_INTEGER} are read")
    return int(text)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object, in which no key stands twice: readers would differ in which of the two they take."""
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"the key {twice[:80]!r} stands twice in one object; give it once")
    return found


_DECODER = json.JSONDecoder(parse_constant=_no_constant, parse_int=_integer, object_pairs_hook=_once)
