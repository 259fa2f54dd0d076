"""The outermost layer of the server: what every request must be, and what every answer carries.

Ids for requests, limits, errors as google.rpc.Status, and one line of log and one count for each request. Queries are
never logged: a signed URL is a credential.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import trainer
from trainer.gateway import limits
from trainer.gateway.access import Access
from trainer.gateway.errors import GatewayError, disk_full
from trainer.gateway.metrics import Metrics

_NOTE = "trainer.note"
_STOPPING = "graceful shutdown"  # uvicorn's words when it ends what is still open
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,64}")
_log = logging.getLogger("trainer.gateway")
_access = logging.getLogger("trainer.gateway.access")


@dataclass
class Note:
    """What is known of a request while it is answered."""

    request_id: str
    operation: str = "-"
    account: str = ""
    key_id: str = ""
    status: int = 0


def note(request: Request) -> Note:
    """The note of the request, for its endpoint to fill in."""
    return request.scope[_NOTE]


class Edge:
    """The middleware."""

    def __init__(self, app: ASGIApp, access: Access, metrics: Metrics) -> None:
        self._app, self._access, self._metrics = app, access, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        here = Note(given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8))
        if scope["path"].startswith("/files/"):
            here.operation = "files"
        scope[_NOTE] = here
        began = time.perf_counter()
        self._metrics.in_flight += 1
        try:
            await self._answer(scope, receive, _marking(send, here), headers)
        finally:
            self._metrics.in_flight -= 1
            seconds = time.perf_counter() - began
            self._metrics.observe(here.operation, _known(scope["method"]), here.status, seconds)
            _tell(scope, here, seconds)

    async def _answer(self, scope: Scope, receive: Receive, send: Send, headers: Headers) -> None:
        request = Request(scope)
        here: Note = scope[_NOTE]
        try:
            if scope["http_version"] not in ("1.0", "1.1"):
                what = f"HTTP/{scope['http_version']}: this server speaks HTTP/1.1"
                raise limits.refused(what, 505, "HTTP_VERSION")
            limits.check_framing(headers, scope["query_string"])
            self._access.check_origin(headers)
            await self._app(scope, limits.limited(request, receive), send)
        except GatewayError as error:
            await _send_error(error, scope, receive, send)
        except asyncio.CancelledError as cancelled:
            if _STOPPING not in str(cancelled):
                raise
            error = GatewayError("UNAVAILABLE", "the gateway is stopping; ask again", reason="STOPPING", close=True)
            if not here.status:
                await _send_error(error, scope, receive, send)
        except ClientDisconnect:
            here.status = here.status or 499
            _log.info("%s %r: the client went away (request %s)", scope["method"], scope["path"], here.request_id)
        except Exception as found:  # noqa: BLE001  (the edge of the process: logged, and answered without traceback)
            if (error := disk_full(found)) is None:
                _log.exception("%s %r failed (request %s)", scope["method"], scope["path"], here.request_id)
                error = GatewayError(
                    "INTERNAL", f"an unexpected error; the gateway's log has it under request {here.request_id}",
                    metadata={"request": here.request_id},
                )  # fmt: skip
            else:
                _log.warning("%s %r: %s (request %s)", scope["method"], scope["path"], found, here.request_id)
            await _send_error(error, scope, receive, send)


async def not_routed(request: Request, error: Exception) -> JSONResponse:
    """Starlette's own refusals, as google.rpc.Status."""
    status = error.status_code if isinstance(error, HTTPException) else 500
    code = "UNIMPLEMENTED" if status == 405 else "NOT_FOUND" if status == 404 else "INVALID_ARGUMENT"
    refusal = GatewayError(code, f"{request.method} is not possible on {request.url.path}", http_status=status)
    return JSONResponse(refusal.body(), status, headers={**refusal.headers(), **dict(_headers(error))})


def _headers(error: Exception) -> dict[str, str]:
    return dict(getattr(error, "headers", None) or {})


def _marking(send: Send, here: Note) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            here.status = message["status"]
            message["headers"] = [
                *message.get("headers", []),
                (b"x-request-id", here.request_id.encode("latin-1")),
                (b"x-gateway-trainer", trainer.__version__.encode()),
                (b"x-content-type-options", b"nosniff"),
            ]
        await send(message)

    return sending


async def _send_error(error: GatewayError, scope: Scope, receive: Receive, send: Send) -> None:
    if scope[_NOTE].status:  # too late for another: cutting the connection tells the client
        raise error
    await JSONResponse(error.body(), error.http_status, headers=error.headers())(scope, receive, send)


def _known(method: str) -> str:
    """The method as a metric's label: what clients invent is not one."""
    return method if method in ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS") else "OTHER"


def _tell(scope: Scope, here: Note, seconds: float) -> None:
    if not _access.isEnabledFor(logging.INFO):
        return
    fields = {
        "request": here.request_id, "method": scope["method"], "path": scope["path"], "operation": here.operation,
        "status": here.status, "ms": round(seconds * 1000, 2), "account": here.account, "key": here.key_id,
        "client": (scope.get("client") or ("",))[0],
    }  # fmt: skip
    _access.info("%s %r %s", scope["method"], scope["path"], here.status, extra={"fields": fields})
