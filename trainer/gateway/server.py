"""The embedded gateway over HTTP: a Starlette app that routes by the contract, and the process that serves it.

`create_app` works on a state folder and serves any number of processes at once; `serve` adds what only one may do for a
folder: listen, and run jobs. Single-user: it listens on loopback only, asks for no key, and refuses requests that a web
page of another origin has sent.
"""

from __future__ import annotations

import fcntl
import ipaddress
import json
import logging
import os
import re
import secrets
import signal
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import trainer
from trainer.gateway import uploads
from trainer.gateway.contract import Match, Operation
from trainer.gateway.errors import GatewayError, invalid, not_found
from trainer.gateway.found import SERVER_FILE, running_server
from trainer.gateway.gateway import Call, Gateway, GatewayOptions, Upload
from trainer.gateway.resources import accounts, models
from trainer.gateway.resources.table import OPERATIONS

JSON_LIMIT = 16 << 20
MULTIPART_LIMIT = 151 << 20  # 150 MB of file, and the form around it
_LOOPBACK_NAMES = frozenset({"localhost", "embedded"})  # the second: a client inside this process
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})")
_log = logging.getLogger("trainer.gateway")


class Background(Protocol):
    """Something that works while the server is up: the scheduler."""

    def start(self) -> None:
        """Begin, in a thread of its own."""
        ...

    def stop(self) -> None:
        """End; returns when it has."""
        ...


def create_app(
    folder: Path,
    *,
    gateway: Gateway | None = None,
    base_url: str | None = None,
    background: Background | None = None,
    on_start: Callable[[], None] | None = None,
    on_stop: Callable[[], None] | None = None,
) -> Starlette:
    """The app on state folder `folder` (or on `gateway`). Its `state.gateway` is the gateway; close that when done.

    base_url: what signed URLs begin with; None = the request's own scheme and host. background: runs while it is up.
    """
    here = gateway or Gateway(folder)
    accounts.ensure(here)
    models.ensure_tiny(here)

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        if background is not None:
            background.start()
        if on_start is not None:
            on_start()
        try:
            yield
        finally:
            if on_stop is not None:
                on_stop()
            if background is not None:
                await run_in_threadpool(background.stop)

    endpoints = _Endpoints(here, base_url)
    app = Starlette(
        routes=[
            Route("/healthz", endpoints.healthz),
            Route("/verifyApiKey", endpoints.verify_api_key),
            Route("/files/{path:path}", endpoints.get_file, methods=["GET"]),
            Route("/files/{path:path}", endpoints.put_file, methods=["PUT"]),
            Route("/{path:path}", endpoints.operation, methods=["GET", "POST", "PUT", "PATCH", "DELETE"]),
        ],
        lifespan=lifespan,
    )
    app.add_middleware(_Edge)
    app.state.gateway = here
    return app


def serve(
    folder: Path,
    host: str = "127.0.0.1",
    port: int = 0,
    *,
    background: Callable[[Gateway], Background] | None = None,
    on_ready: Callable[[str], None] | None = None,
    options: GatewayOptions | None = None,
) -> None:
    """Serve `folder` until SIGINT or SIGTERM; `background(gateway)` makes the scheduler, `on_ready(url)` is told.

    Port 0 takes a free one. While up, `server.json` in the folder names url and pid. Raises GatewayError for a host
    that is not loopback, a port in use, or a folder that another server serves.
    """
    _must_be_loopback(host)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _only_server(folder), _listening(host, port) as listener:
        gateway = Gateway(folder, options=options)
        shown = f"[{host}]" if ":" in host else host
        url = f"http://{shown}:{listener.getsockname()[1]}"

        def ready() -> None:
            _write_server_file(folder, url)
            if on_ready is not None:
                on_ready(url)

        app = create_app(
            folder, gateway=gateway, background=background(gateway) if background else None, on_start=ready,
            on_stop=lambda: (folder / SERVER_FILE).unlink(missing_ok=True),
        )  # fmt: skip
        config = uvicorn.Config(app, log_level="warning", access_log=False, lifespan="on", timeout_graceful_shutdown=5)
        try:
            with _quiet_end():
                uvicorn.Server(config).run(sockets=[listener])
        finally:
            (folder / SERVER_FILE).unlink(missing_ok=True)
            gateway.close()


class _Endpoints:
    """The app's endpoints on one gateway."""

    def __init__(self, gateway: Gateway, base_url: str | None) -> None:
        self._gateway = gateway
        self._base_url = base_url

    async def healthz(self, _request: Request) -> Response:
        return JSONResponse({"status": "ok", "version": trainer.__version__, "pid": os.getpid()})

    async def verify_api_key(self, _request: Request) -> Response:
        return JSONResponse({}, headers={"x-fireworks-account-id": "local"})

    async def operation(self, request: Request) -> Response:
        """Any path of the contract."""
        path = request.scope.get("raw_path", request.url.path.encode()).decode("ascii", "replace")
        match = self._gateway.contract.match(request.method, path)
        handler = OPERATIONS.get(match.operation.id)
        if handler is None:
            raise GatewayError(
                "UNIMPLEMENTED", f"{match.operation.id} is in the contract, but this gateway does not implement it",
                metadata={"operation": match.operation.id},
            )  # fmt: skip
        call = await self._call(request, match)
        try:
            answer = await run_in_threadpool(handler, call)
        finally:
            if call.upload is not None:
                call.upload.stream.close()
        if match.operation.response is not None:
            answer = self._gateway.contract.emit(match.operation.response, answer)
        return JSONResponse(answer)

    async def get_file(self, request: Request) -> Response:
        """A file, to the holder of a signed URL."""
        files = self._gateway.files
        files.verify("GET", request.url.path, request.query_params)
        _, filename, place = files.located(request.path_params["path"])
        if not place.is_file():
            raise not_found(request.url.path)
        return FileResponse(place, filename=filename.rsplit("/", 1)[-1], media_type="application/octet-stream")

    async def put_file(self, request: Request) -> Response:
        """Take a file from the holder of a signed URL; exactly as long as was declared.

        With a Content-Digest it may come in pieces: `Content-Range: bytes */SIZE` asks what is here (200: all of it;
        308: as far as `Range` says), and `bytes N-.../SIZE` goes on from there.
        """
        gateway = self._gateway
        size = gateway.files.verify("PUT", request.url.path, request.query_params)
        resource, filename, _ = gateway.files.located(request.path_params["path"])
        digest, wanted = request.headers.get("content-digest", ""), request.headers.get("content-range", "")
        done = {"content-digest": digest} if digest else {}
        if digest and await run_in_threadpool(uploads.has, gateway, resource, filename, size=size, digest=digest):
            return Response(status_code=200, headers=done)
        uploads.must_be_uploading(gateway.store.get(resource))
        if wanted.startswith("bytes */"):
            held = gateway.files.held(resource, filename, digest)
            return Response(status_code=308, headers={"range": f"bytes=0-{held - 1}"} if held else {})
        _check_range(request.headers.get("x-goog-content-length-range"), size)
        start = _first_byte(wanted, size, digest=digest)
        with gateway.files.incoming(resource, filename, size=size, digest=digest, start=start) as incoming:
            async for chunk in request.stream():
                await run_in_threadpool(incoming.write, chunk)
            await run_in_threadpool(uploads.place, gateway, resource, filename, incoming=incoming)
        return Response(status_code=200, headers=done)

    async def _call(self, request: Request, match: Match) -> Call:
        contract, operation = self._gateway.contract, match.operation
        query = contract.query(operation, request.query_params.multi_items())
        body: dict[str, Any] = {}
        unknown: list[str] = []
        upload = None
        if operation.body_type == "multipart/form-data":
            upload = await _multipart(request)
        elif operation.body is not None:
            read = contract.read(
                operation.body, await _json_body(request, operation), partial=request.method == "PATCH"
            )
            body, unknown = read.value, read.unknown
            body.pop("name", None)
        return Call(
            gateway=self._gateway, operation=operation, params=match.params, query=query.value, body=body,
            base_url=self._base_url or f"{request.url.scheme}://{request.url.netloc}", unknown=unknown + query.unknown,
            upload=upload,
        )  # fmt: skip


class _Edge:
    """The outermost layer: who may ask, how much, and what an answer always carries."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        request_id = request.headers.get("x-request-id", "")[:64] or secrets.token_hex(8)
        started = False

        async def sending(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message["headers"] = [
                    *message.get("headers", []),
                    (b"x-request-id", request_id.encode("latin-1", "replace")),
                    (b"x-gateway-trainer", trainer.__version__.encode()),
                ]
            await send(message)

        try:
            _check_origin(request.headers)
            await self._app(scope, _limited(request, receive), sending)
        except GatewayError as error:
            await _answer_error(error, scope, receive, sending, started=started)
        except ClientDisconnect:
            _log.info("%s %s: the client went away (request %s)", request.method, request.url.path, request_id)
        except Exception:  # noqa: BLE001  (the edge of the process: logged, and answered without the traceback)
            _log.exception("%s %s failed (request %s)", request.method, request.url.path, request_id)
            error = GatewayError(
                "INTERNAL", f"an unexpected error; the gateway's log has it under request {request_id}",
                metadata={"request": request_id},
            )  # fmt: skip
            await _answer_error(error, scope, receive, sending, started=started)


async def _answer_error(error: GatewayError, scope: Scope, receive: Receive, send: Send, *, started: bool) -> None:
    if started:  # too late for a status: cutting the connection tells the client
        raise error
    await JSONResponse(error.body(), error.http_status, headers=error.headers())(scope, receive, send)


def _limited(request: Request, receive: Receive) -> Callable[[], Awaitable[Message]]:
    """`receive`, refusing bodies that are too long; files by signed URL have a limit of their own."""
    if request.url.path.startswith("/files/"):
        return receive
    multipart = request.headers.get("content-type", "").startswith("multipart/")
    limit = MULTIPART_LIMIT if multipart else JSON_LIMIT
    way_out = "larger files go through :getUploadEndpoint" if multipart else "send files as uploads, not as JSON"
    too_long = GatewayError(
        "INVALID_ARGUMENT", f"the body is longer than {limit} bytes; {way_out}", reason="BODY_TOO_LONG", http_status=413
    )
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit:
        raise too_long
    received = 0

    async def receiving() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > limit:
            raise too_long
        return message

    return receiving


async def _json_body(request: Request, operation: Operation) -> Any:
    content = await request.body()
    if not content:
        if operation.body_required and request.method == "POST" and _needs_fields(operation):
            raise invalid("the request has no body; this operation needs a JSON object")
        return {}
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise invalid(f"the body is not JSON: {error}") from error


def _needs_fields(operation: Operation) -> bool:
    return bool(operation.body) and ":" not in operation.path.rsplit("/", 1)[-1]


async def _multipart(request: Request) -> Upload:
    try:
        form = await request.form(max_files=1)
    except MultiPartException as error:
        raise invalid(f"the body is not a multipart form: {error.message}") from error
    sent = form.get("file")
    if not isinstance(sent, UploadFile) or not sent.filename:
        await form.close()
        raise invalid("file: the multipart form has no field 'file' with a file in it", field="file")
    return Upload(Path(sent.filename).name, sent.file)


def _check_range(header: str | None, size: int | None) -> None:
    """The client's own statement of size, where it makes one, must allow the size that was signed."""
    if header is None or size is None:
        return
    low, _, high = header.partition(",")
    if not (low.strip().isdigit() and high.strip().isdigit() and int(low) <= size <= int(high)):
        raise invalid(f"X-Goog-Content-Length-Range: got {header!r}; {size} bytes were declared for this URL")


def _first_byte(content_range: str, size: int | None, *, digest: str) -> int:
    """Where in the file the body begins, by its Content-Range `bytes N-M/SIZE`."""
    if not content_range:
        return 0
    found = _CONTENT_RANGE.fullmatch(content_range)
    if found is None or int(found[3]) != size or int(found[2]) + 1 != size or not digest:
        raise invalid(
            f"Content-Range: got {content_range[:80]!r}; a file goes on as 'bytes N-{(size or 1) - 1}/{size}', "
            "with its Content-Digest"
        )
    return int(found[1])


def _check_origin(headers: Mapping[str, str]) -> None:
    """A page of another site may not drive this gateway through the user's browser."""
    host = urlsplit(f"//{headers.get('host', '')}").hostname or ""
    origin = headers.get("origin")
    for what, name in (("Host", host), ("Origin", urlsplit(origin).hostname or "" if origin else "localhost")):
        if not is_loopback(name):
            raise GatewayError(
                "PERMISSION_DENIED",
                f"{what} {name!r}: this gateway serves its own machine only; reach it as localhost or 127.0.0.1",
                reason="NOT_LOOPBACK",
            )


def is_loopback(host: str) -> bool:
    """True when `host` can only mean this machine."""
    if host in _LOOPBACK_NAMES:
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _must_be_loopback(host: str) -> None:
    if not is_loopback(host):
        raise GatewayError(
            "INVALID_ARGUMENT",
            f"host {host!r}: this gateway has no users and keys yet, so it listens on this machine only; "
            "use 127.0.0.1, ::1 or localhost (and ssh -L to reach it from another machine)",
            reason="NOT_LOOPBACK",
        )


@contextmanager
def _only_server(folder: Path) -> Iterator[None]:
    with (folder / "server.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            url = running_server(folder)
            raise GatewayError(
                "FAILED_PRECONDITION",
                f"{folder} is already served{f' at {url}' if url else ''}; "
                "use that one, stop it, or set another TRAINER_HOME",
                reason="ALREADY_SERVED",
            ) from error
        yield


@contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            raise GatewayError(
                "FAILED_PRECONDITION", f"{host}:{port} cannot be listened on ({error.strerror}); choose another port"
            ) from error
        listener.listen(128)
        yield listener


@contextmanager
def _quiet_end() -> Iterator[None]:
    """uvicorn stops gracefully at a signal and then raises it again; having stopped, there is nothing left to do."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _write_server_file(folder: Path, url: str) -> None:
    temporary = folder / f"{SERVER_FILE}.tmp"
    temporary.write_text(json.dumps({"url": url, "pid": os.getpid()}) + "\n", encoding="utf-8")
    temporary.replace(folder / SERVER_FILE)
