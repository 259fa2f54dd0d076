"""The embedded gateway over HTTP: a Starlette app that routes by the contract, and the process that serves it.

`create_app` works on a state folder and serves any number of processes at once; `serve` adds what only one may do for a
folder: listen, and run jobs. On loopback it is single-user and asks for no key; beyond loopback everybody shows one.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
import secrets
import signal
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import anyio
import anyio.to_thread
import uvicorn
from sqlalchemy.exc import SQLAlchemyError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

import trainer
from trainer.gateway import audit, coverage, idempotency, limits, unhonoured, unknown
from trainer.gateway import principal as roles
from trainer.gateway.access import Access, Keys, Open, check_names, is_loopback
from trainer.gateway.connections import Connection
from trainer.gateway.contract import Match, Operation
from trainer.gateway.edge import Edge, not_routed, note
from trainer.gateway.errors import GatewayError, disk_full, invalid, not_found
from trainer.gateway.file_routes import FileRoutes
from trainer.gateway.found import SERVER_FILE, SERVER_LOCK, running_server
from trainer.gateway.gateway import Call, Gateway, GatewayOptions, Upload
from trainer.gateway.keys import Verifier, any_key
from trainer.gateway.listing import masked
from trainer.gateway.metrics import CONTENT_TYPE, Metrics
from trainer.gateway.principal import PUBLIC_ACCOUNT, Principal
from trainer.gateway.resources import accounts, models
from trainer.gateway.resources.table import OPERATIONS, is_quick
from trainer.gateway.standard import Handler, answer_mask
from trainer.gateway.uploads import finish_removals

_LONG_THREADS = 16  # for verbs, some of which read whole files: they may not take the threads of the others
_CHANGE_THREADS = 40  # for what writes, and may have to wait for other writers: reads do not wait behind it
_BACKLOG = 1024
# Of all creates, those whose body has the id of what is made; elsewhere a body's name is only an echo of the path.
_NAMED_BY_BODY = frozenset({"Gateway_CreateSecret"})
_PARAM = re.compile(r"{(\w+)}")
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
    access: Access | None = None,
) -> Starlette:
    """The app on state folder `folder` (or on `gateway`). Its `state.gateway` is the gateway; close that when done.

    base_url: what signed URLs begin with; None = the request's own scheme and host. background: runs while it is up.
    access: who may ask; None = this machine, without keys.
    """
    here, allowed, metrics = gateway or Gateway(folder), access or Open(in_process=True), Metrics()
    accounts.ensure(here)
    models.ensure_tiny(here)
    finish_removals(here)

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        here.builds.take_up()
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

    endpoints, files = _Endpoints(here, base_url, allowed, metrics), FileRoutes(here, base_url)
    app = Starlette(
        routes=[
            Route("/healthz", endpoints.healthz),
            Route("/readyz", endpoints.readyz),
            Route("/metrics", endpoints.metrics),
            Route("/verifyApiKey", endpoints.verify_api_key),
            Route("/files/{path:path}", files.get, methods=["GET"]),
            Route("/files/{path:path}", files.put, methods=["PUT"]),
            Route("/files/{path:path}", files.post, methods=["POST"]),
            Route("/{path:path}", endpoints.operation, methods=["GET", "POST", "PUT", "PATCH", "DELETE"]),
        ],
        lifespan=lifespan,
        exception_handlers={HTTPException: not_routed},
    )
    app.add_middleware(Edge, access=allowed, metrics=metrics)
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
    base_url: str | None = None,
    keys: bool = False,
) -> None:
    """Serve `folder` until SIGINT or SIGTERM; `background(gateway)` makes the scheduler, `on_ready(url)` is told.

    Port 0 takes a free one. While up, `server.json` in the folder names url and pid. keys: ask for keys on loopback
    too; elsewhere they always are. Raises GatewayError for a host beyond loopback while there is no key, a port in use,
    or a folder that another server serves.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _only_server(folder), _opened(folder, options) as gateway:
        _must_have_keys(gateway, host)
        with _listening(host, port) as listener:
            shown = f"[{host}]" if ":" in host else host
            url = f"http://{shown}:{listener.getsockname()[1]}"
            owner_key = f"fw_owner_{secrets.token_urlsafe(32)}"
            access = Keys(Verifier(gateway.store), owner_key) if keys or not is_loopback(host) else Open()

            def ready() -> None:
                _write_server_file(folder, url, owner_key if access.needs_keys else "")
                if on_ready is not None:
                    on_ready(url)

            app = create_app(
                folder, gateway=gateway, base_url=base_url, background=background(gateway) if background else None,
                on_start=ready, on_stop=lambda: (folder / SERVER_FILE).unlink(missing_ok=True), access=access,
            )  # fmt: skip
            try:
                with _quiet_end():
                    uvicorn.Server(_config(app)).run(sockets=[listener])
            finally:
                (folder / SERVER_FILE).unlink(missing_ok=True)


@contextmanager
def _opened(folder: Path, options: GatewayOptions | None) -> Iterator[Gateway]:
    gateway = Gateway(folder, options=options)
    try:
        idempotency.sweep(gateway.store)
        audit.sweep(gateway.store)
        yield gateway
    finally:
        gateway.close()


def _config(app: Starlette) -> uvicorn.Config:
    return uvicorn.Config(
        app, http=Connection, ws="none", lifespan="on", log_level="warning", access_log=False, server_header=False,
        h11_max_incomplete_event_size=limits.HEAD_BYTES, timeout_graceful_shutdown=5,
    )  # fmt: skip


class _Endpoints:
    """The app's endpoints on one gateway."""

    def __init__(self, gateway: Gateway, base_url: str | None, access: Access, metrics: Metrics) -> None:
        self._gateway, self._base_url, self._access, self._metrics = gateway, base_url, access, metrics
        self._long = anyio.CapacityLimiter(_LONG_THREADS)
        self._changes = anyio.CapacityLimiter(_CHANGE_THREADS)

    async def healthz(self, request: Request) -> Response:
        note(request).operation = "healthz"
        return JSONResponse({"status": "ok", "version": trainer.__version__, "pid": os.getpid()})

    async def readyz(self, request: Request) -> Response:
        """200 when records and files can be reached, else 503 with what cannot."""
        note(request).operation = "readyz"
        trouble = await run_in_threadpool(_trouble, self._gateway)
        if trouble:
            raise GatewayError("UNAVAILABLE", f"not ready: {trouble}", reason="NOT_READY")
        return JSONResponse({"status": "ready"})

    async def metrics(self, request: Request) -> Response:
        """Prometheus' text; with keys, to admins only."""
        note(request).operation = "metrics"
        principal = await self._principal(request)
        if principal.role != "admin":
            raise GatewayError("PERMISSION_DENIED", "metrics are for admins", reason="ROLE_NOT_ALLOWED")
        text = await run_in_threadpool(self._metrics.text, self._gateway.store)
        return Response(text, headers={"content-type": CONTENT_TYPE})

    async def verify_api_key(self, request: Request) -> Response:
        note(request).operation = "verifyApiKey"
        principal = await self._principal(request)
        return JSONResponse({}, headers={"x-fireworks-account-id": principal.account.removeprefix("accounts/")})

    async def operation(self, request: Request) -> Response:
        """Any path of the contract."""
        principal = await self._principal(request)
        path = (request.scope.get("raw_path") or request.url.path.encode()).decode("ascii", "replace")
        method = "GET" if request.method == "HEAD" else request.method  # the connection leaves the body out
        match = self._gateway.contract.match(method, path)
        note(request).operation = match.operation.id
        self._check_account(principal, match)
        try:
            roles.check(principal, match.operation, match.params)
        except GatewayError as error:
            if roles.changes(match.operation):  # what was tried is in the log too
                await run_in_threadpool(
                    audit.record, self._gateway.store, principal, match.operation, params=match.params, body={},
                    resource=_resource(match.operation, match.params), origin=_origin(request), error=error,
                )  # fmt: skip
            raise
        handler = OPERATIONS.get(match.operation.id)
        if handler is None:
            raise GatewayError(
                "UNIMPLEMENTED", f"{match.operation.id} is in the contract, but this gateway does not implement it: "
                f"{coverage.why_refused(match.operation)}", metadata={"operation": match.operation.id},
            )  # fmt: skip
        call = await self._call(request, match, principal)
        wanted = idempotency.wish(match.operation, call.query, request.headers)
        limiter = self._changes if roles.changes(match.operation) else None
        limiter = self._long if ":" in match.operation.path else limiter
        try:
            content, headers = await anyio.to_thread.run_sync(
                self._answered, call, handler, wanted, _origin(request), limiter=limiter
            )
        finally:
            if call.upload is not None:
                call.upload.stream.close()
        return Response(content, media_type="application/json", headers=headers)

    async def _principal(self, request: Request) -> Principal:
        if self._access.needs_keys:  # asks the store
            found = await run_in_threadpool(self._access.principal, request.headers)
        else:
            found = self._access.principal(request.headers)
        here = note(request)
        here.account, here.key_id = found.account, found.key_id
        return found

    def _check_account(self, principal: Principal, match: Match) -> None:
        """The account in the path must be the caller's; another is not to be found."""
        account = match.params.get("account_id")
        if account is not None:
            name = f"accounts/{account}"
            public = match.operation.method == "GET" and name in (PUBLIC_ACCOUNT, "accounts/-")
            if name != principal.account and not public:
                raise not_found(name, f"your account is {principal.account}")

    def _answered(
        self, call: Call, handler: Handler, wanted: idempotency.Wish | None, origin: audit.Origin
    ) -> tuple[bytes, dict[str, str]]:
        """The answer's JSON, and its headers; a change is in the audit log before it is answered."""
        replayed, changes = False, roles.changes(call.operation)
        with roles.acting(call.principal):
            self._check_owner(call)
            try:
                with self._gateway.store.transaction() if changes and is_quick(call) else nullcontext():
                    if wanted is None:
                        answer = self._encoded(call, handler)
                    else:
                        answer, replayed = idempotency.answered(call, wanted, lambda call: self._encoded(call, handler))
                    if changes and not replayed:
                        self._record(call, answer, None, origin=origin)
            except Exception as found:
                error = found if isinstance(found, GatewayError) else disk_full(found)
                error = error or GatewayError("INTERNAL", "an unexpected error")
                if changes:
                    self._record(call, None, error, origin=origin)
                raise
            found = unknown.paths(call)
            if changes and not replayed:
                unknown.note(call, _concerned(call, answer), found)
        headers = unknown.header(found) | ({"idempotent-replayed": "true"} if replayed else {})
        return json.dumps(answer, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode(), headers

    def _encoded(self, call: Call, handler: Handler) -> Any:
        mask = answer_mask(call)
        answer, response = handler(call), call.operation.response
        if mask:
            answer = masked(answer, mask)
        return answer if response is None else self._gateway.contract.emit(response, answer)

    def _check_owner(self, call: Call) -> None:
        """A contributor changes what is their own; `roles.check` has seen to keys, which are their user's."""
        operation = call.operation
        if call.principal.role != "contributor" or idempotency.is_create(operation) or "/apiKeys" in operation.path:
            return
        found = self._gateway.store.find("/".join(_resource(operation, call.params).split("/")[:4]))
        if found is not None:
            roles.check_owner(call.principal, call.operation, found.private.get("owner"))

    def _record(self, call: Call, answer: Any, error: GatewayError | None, *, origin: audit.Origin) -> None:
        audit.record(
            self._gateway.store, call.principal, call.operation, params=call.params, body=call.body,
            resource=_concerned(call, answer), origin=origin, error=error,
        )  # fmt: skip

    async def _call(self, request: Request, match: Match, principal: Principal) -> Call:
        contract, operation = self._gateway.contract, match.operation
        query = contract.query(operation, request.query_params.multi_items())
        body: dict[str, Any] = {}
        strange: list[str] = []
        upload = None
        if operation.body_type == "multipart/form-data":
            upload = await _multipart(request)
        elif operation.body is not None:
            read = contract.read(
                operation.body, await _json_body(request, operation), partial=request.method == "PATCH"
            )
            body, strange = read.value, read.unknown
            if not self._gateway.contract.schema(operation.body).get("properties"):  # a verb that takes nothing
                strange = list(body)
            if operation.id not in _NAMED_BY_BODY:
                body.pop("name", None)
        if self._access.needs_keys and not operation.id.startswith("Trainer_Report"):  # a report's names are not ours
            check_names(principal, body)
            check_names(principal, query.value)
        unhonoured.check(principal, operation, query.value, body)
        return Call(
            gateway=self._gateway, operation=operation, params=match.params, query=unknown.Query(query.value),
            body=body, base_url=self._base_url or f"{request.url.scheme}://{request.url.netloc}",
            unknown=[*strange, *(f"?{name}" for name in query.unknown)], upload=upload, principal=principal,
        )  # fmt: skip


async def _json_body(request: Request, operation: Operation) -> Any:
    sent = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if sent.startswith("multipart/"):
        raise limits.refused(f"Content-Type {sent[:40]!r}: {operation.id} takes application/json", 415, "NOT_JSON")
    content = await request.body()
    if content:
        return limits.read_json(content)
    if operation.body_required and request.method == "POST" and _needs_fields(operation):
        raise invalid("the request has no body; this operation needs a JSON object")
    return {}


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


def _origin(request: Request) -> audit.Origin:
    client = request.client.host if request.client else ""
    return audit.Origin(note(request).request_id, request.headers.get("user-agent", ""), client)


def _resource(operation: Operation, params: Mapping[str, str]) -> str:
    """The name that a request speaks of, however its path was spelled."""
    head, colon, verb = operation.path.rpartition(":")
    path = head if colon and "/" not in verb else operation.path
    return _PARAM.sub(lambda match: params[match[1]], path).removeprefix("/v1/")


def _concerned(call: Call, answer: Any) -> str:
    """The name that was created, or that the path speaks of."""
    made = answer.get("name") if isinstance(answer, dict) and idempotency.is_create(call.operation) else None
    return made if isinstance(made, str) else _resource(call.operation, call.params)


def _trouble(gateway: Gateway) -> str:
    """What stands in the way of answering; "" when nothing does."""
    try:
        gateway.store.find("accounts/local")
    except (GatewayError, SQLAlchemyError) as error:
        _log.warning("not ready: %s", error)
        return "the records cannot be read"
    return "" if os.access(gateway.folder, os.W_OK) else "the state folder cannot be written"


def _must_have_keys(gateway: Gateway, host: str) -> None:
    if not is_loopback(host) and not any_key(gateway.store):
        raise GatewayError(
            "FAILED_PRECONDITION",
            f"host {host!r}: without a key this gateway listens on this machine only (127.0.0.1, ::1 or localhost); "
            "make one first: python -m trainer gateway keys create --account ACCOUNT --role admin",
            reason="NO_KEYS",
        )


@contextmanager
def _only_server(folder: Path) -> Iterator[None]:
    with (folder / SERVER_LOCK).open("w") as lock:
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
    # With the protocol named, asyncio turns off the delay of small packets, which costs 40 ms an answer.
    with socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except (OSError, OverflowError) as error:
            why = getattr(error, "strerror", None) or "ports are 0 to 65535"
            raise GatewayError(
                "FAILED_PRECONDITION", f"{host}:{port} cannot be listened on ({why}); choose another port"
            ) from error
        listener.listen(_BACKLOG)
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


def _write_server_file(folder: Path, url: str, key: str) -> None:
    """Tell the owner's other processes where the server is and, where it asks for keys, the key of this start."""
    temporary = folder / f"{SERVER_FILE}.tmp"
    temporary.unlink(missing_ok=True)
    found = {"url": url, "pid": os.getpid()} | ({"key": key} if key else {})
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as stream:
        stream.write(json.dumps(found) + "\n")
    temporary.replace(folder / SERVER_FILE)
