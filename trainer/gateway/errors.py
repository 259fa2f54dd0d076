"""Errors as the gateway's wire has them: `google.rpc.Status` with an `ErrorInfo`, and the HTTP status of its code.

One exception serves both sides: the server raises and encodes it, the client decodes and raises it again, so a caller
of an in-process gateway and a caller over HTTP see the same thing.
"""

from __future__ import annotations

import errno
import json
import math
from collections.abc import Mapping
from typing import Any

DOMAIN = "gateway.trainer"
_ERROR_INFO = "type.googleapis.com/google.rpc.ErrorInfo"

# google.rpc code name -> (number, HTTP status)
CODES: dict[str, tuple[int, int]] = {
    "CANCELLED": (1, 499),
    "UNKNOWN": (2, 500),
    "INVALID_ARGUMENT": (3, 400),
    "DEADLINE_EXCEEDED": (4, 504),
    "NOT_FOUND": (5, 404),
    "ALREADY_EXISTS": (6, 409),
    "PERMISSION_DENIED": (7, 403),
    "RESOURCE_EXHAUSTED": (8, 429),
    "FAILED_PRECONDITION": (9, 400),
    "ABORTED": (10, 409),
    "OUT_OF_RANGE": (11, 400),
    "UNIMPLEMENTED": (12, 501),
    "INTERNAL": (13, 500),
    "UNAVAILABLE": (14, 503),
    "DATA_LOSS": (15, 500),
    "UNAUTHENTICATED": (16, 401),
}
_NAMES = {number: name for name, (number, _) in CODES.items()}
_OF_STATUS = {400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED", 404: "NOT_FOUND",
              409: "ABORTED", 413: "INVALID_ARGUMENT", 429: "RESOURCE_EXHAUSTED", 501: "UNIMPLEMENTED",
              503: "UNAVAILABLE", 504: "DEADLINE_EXCEEDED"}  # fmt: skip
_PASSING = frozenset({401, 403, 408, 429})
_AGAIN = frozenset({"ABORTED", "DATA_LOSS"})  # the moment's, or the way's, below 500
_SAME_AGAIN = frozenset({409, 501})  # the published clients ask these again by themselves, which changes nothing
RETRY_AFTER_SECONDS = 2  # sent with 429 and 503


class GatewayError(Exception):
    """A request was not done: `code` is a google.rpc code name, `message` is for people, `details` for programs.

    retry_after: seconds that the gateway wants to be left alone. described: False for an answer that does not speak the
    gateway's language, as one of a proxy in front of it. attempts: how often the client had asked. close: the server
    ends the connection after the answer.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        reason: str | None = None,
        metadata: Mapping[str, str] | None = None,
        details: list[dict[str, Any]] | None = None,
        http_status: int | None = None,
        retry: bool | None = None,
        retry_after: float = 0.0,
        described: bool = True,
        close: bool = False,
    ) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.http_status = http_status or CODES[code][1]
        self.details = details if details is not None else [_error_info(reason or code, metadata or {})]
        self.retry = retry
        self.retry_after = retry_after
        self.described = described
        self.close = close
        self.attempts = 1

    def __reduce__(self) -> Any:
        return (_rebuild, (self.code, self.message, self.details, self.http_status, self.retry))

    @property
    def permanent(self) -> bool:
        """True when asking again cannot help: the request itself is at fault, not the moment, the key or the way."""
        if not self.described and self.http_status != 413:
            return False
        return self.http_status < 500 and self.http_status not in _PASSING and self.code not in _AGAIN

    def body(self) -> dict[str, Any]:
        """The answer's JSON."""
        return {"code": CODES[self.code][0], "message": self.message, "details": self.details}

    def headers(self) -> dict[str, str]:
        """Headers that tell the published clients whether, and when, to ask again."""
        close = {"connection": "close"} if self.close else {}
        if self.http_status in (429, 503):
            return {**close, "retry-after": str(math.ceil(self.retry_after) or RETRY_AFTER_SECONDS)}
        if self.close:
            return close
        if self.http_status == 401:
            return {"www-authenticate": "Bearer"}
        if self.http_status == 405 and self.details and "allow" in self.details[0].get("metadata", {}):
            return {"allow": self.details[0]["metadata"]["allow"]}
        return {"x-should-retry": "true" if self.retry else "false"} if self.http_status in _SAME_AGAIN else {}


def decode(status: int, content: bytes) -> GatewayError:
    """The error that an answer of HTTP `status` with body `content` stands for."""
    try:
        body = json.loads(content)
    except ValueError:
        body = None
    if not isinstance(body, dict) or not isinstance(body.get("message"), str):
        text = content[:300].decode("utf-8", "replace")
        code = _OF_STATUS.get(status, "UNKNOWN")
        return GatewayError(
            code, f"HTTP {status} without a google.rpc.Status: {text!r}", http_status=status, described=False
        )
    code = _NAMES.get(body.get("code", 0)) or _OF_STATUS.get(status, "UNKNOWN")
    details = body.get("details")
    return GatewayError(code, body["message"], details=details if isinstance(details, list) else [], http_status=status)


def disk_full(error: BaseException) -> GatewayError | None:
    """RESOURCE_EXHAUSTED where `error` says that nothing more can be written; None for any other."""
    if not isinstance(error, OSError) or error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return None
    return GatewayError("RESOURCE_EXHAUSTED", "the gateway's disk is full; free space on it, then ask again")


def invalid(message: str, *, field: str | None = None) -> GatewayError:
    """INVALID_ARGUMENT, naming the `field` for programs too."""
    return GatewayError("INVALID_ARGUMENT", message, metadata={"field": field} if field else {})


def precondition(message: str, **metadata: str) -> GatewayError:
    """FAILED_PRECONDITION: the thing is not in a state in which this can be done."""
    return GatewayError("FAILED_PRECONDITION", message, metadata=metadata)


def not_found(name: str, way_out: str = "") -> GatewayError:
    """NOT_FOUND for the resource `name`."""
    return GatewayError("NOT_FOUND", f"{name} not found{'; ' + way_out if way_out else ''}", metadata={"name": name})


def is_missing(error: GatewayError, name: str) -> bool:
    """True where `error` says that the resource `name` itself is not there."""
    return error.code == "NOT_FOUND" and any(
        one.get("metadata") == {"name": name} for one in error.details if isinstance(one, dict)
    )


def _error_info(reason: str, metadata: Mapping[str, str]) -> dict[str, Any]:
    return {"@type": _ERROR_INFO, "reason": reason, "domain": DOMAIN, "metadata": dict(metadata)}


def _rebuild(code: str, message: str, details: list[dict[str, Any]], status: int, retry: bool | None) -> GatewayError:
    return GatewayError(code, message, details=details, http_status=status, retry=retry)
