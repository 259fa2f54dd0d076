"""The gateway inside this process, as a transport of the client: the same app, the same HTTP, and no socket."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import httpx

from trainer.gateway.server import create_app


class _AsyncBody(httpx.AsyncByteStream):
    """A request's body, read as the in-process app asks for it."""

    def __init__(self, body: Iterable[bytes]) -> None:
        self._body = body

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self._body:
            yield chunk


class InProcess(httpx.BaseTransport):
    """The app of a state folder as a transport: one event loop in a thread of its own runs the requests."""

    def __init__(self, folder: Path) -> None:
        self._app = create_app(folder)
        self._asgi = httpx.ASGITransport(app=self._app, raise_app_exceptions=False)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="embedded gateway", daemon=True)
        self._thread.start()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        return asyncio.run_coroutine_threadsafe(self._handle(request), self._loop).result()

    async def _handle(self, request: httpx.Request) -> httpx.Response:
        if isinstance(request.stream, httpx.SyncByteStream):
            request.stream = _AsyncBody(request.stream)
        answer = await self._asgi.handle_async_request(request)
        content = b"".join([part async for part in answer.aiter_raw()])
        return httpx.Response(answer.status_code, headers=answer.headers, content=content)

    def close(self) -> None:
        if not self._thread.is_alive():
            return
        asyncio.run_coroutine_threadsafe(self._loop.shutdown_default_executor(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._app.state.gateway.close()
