"""Files over HTTP, for the holders of signed URLs: GET, PUT whole or in pieces, and POST, which begins a session.

Pieces go by Content-Range: `bytes N-M/SIZE` brings bytes, `bytes */SIZE` asks how many are here (308 and `Range`, or
200 when it is whole). They belong together by the digest that the sender says beforehand (`Content-Digest`, RFC 9530),
or by a session, as `enableResumableUpload` has it: POST with `x-goog-resumable: start`; the `Location` takes them.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, Response

from trainer.gateway import uploads
from trainer.gateway.errors import invalid, not_found
from trainer.gateway.gateway import Gateway

_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)", re.ASCII)
_LENGTHS = re.compile(r"\s*(\d{1,18})\s*,\s*(\d{1,18})\s*", re.ASCII)
_SHA256 = re.compile(r"(?:^|,)\s*(sha-256=:[A-Za-z0-9+/]{43}=:)\s*(?:,|$)")


@dataclass(frozen=True)
class _Piece:
    """Bytes `start` to before `end` of a file of `size` bytes; the last one where `end` is `size`."""

    start: int
    end: int | None
    size: int | None

    @property
    def last(self) -> bool:
        return self.end == self.size


class FileRoutes:
    """The endpoints for signed URLs on one gateway. base_url: what URLs begin with; None = as the request has it."""

    def __init__(self, gateway: Gateway, base_url: str | None = None) -> None:
        self._gateway, self._base_url = gateway, base_url

    async def get(self, request: Request) -> Response:
        """The file."""
        files = self._gateway.files
        files.verify("GET", request.scope["path"], request.query_params)
        _, filename, place = await run_in_threadpool(files.located, request.path_params["path"])
        if not place.is_file():
            raise not_found(request.scope["path"])
        return FileResponse(place, filename=filename.rsplit("/", 1)[-1], media_type="application/octet-stream")

    async def post(self, request: Request) -> Response:
        """Begin a session: 201, and in `Location` the URL that takes the file, in pieces or whole."""
        files = self._gateway.files
        size = files.verify("POST", request.scope["path"], request.query_params)
        if request.headers.get("x-goog-resumable") != "start":
            raise invalid("x-goog-resumable: expected 'start' with a POST to this URL, which begins an upload")
        resource, filename = files.named(request.path_params["path"])
        found = await run_in_threadpool(self._gateway.store.get, resource)
        uploads.must_be_awaited(found, filename, size)
        base_url = self._base_url or f"{request.url.scheme}://{request.url.netloc}"
        location = files.url("PUT", resource, filename, base_url=base_url, size=size, session=secrets.token_hex(16))
        return Response(status_code=201, headers={"location": location})

    async def put(self, request: Request) -> Response:
        """Take the file, or a piece of it; exactly as many bytes as were declared."""
        gateway = self._gateway
        size = gateway.files.verify("PUT", request.scope["path"], request.query_params)
        resource, filename = gateway.files.named(request.path_params["path"])
        session, digest = request.query_params.get("session", ""), _digest(request.headers.get("content-digest"))
        done = Response(status_code=200, headers={"content-digest": digest} if digest else {})
        if session and await run_in_threadpool(uploads.ended, gateway, resource, filename, session):
            return done
        if digest and await run_in_threadpool(uploads.has, gateway, resource, filename, size=size, digest=digest):
            return done
        found = await run_in_threadpool(gateway.store.get, resource)
        uploads.must_be_awaited(found, filename, size)
        kept = f"{session} {found.create_time}" if session else ""  # not what another resource of that name had
        wanted, together = request.headers.get("content-range", ""), kept or digest
        if wanted in ("bytes */*", f"bytes */{size}"):
            held = gateway.files.held(resource, filename, together)
            return _here(held if size is None else min(held, max(size - 1, 0)))  # the last byte is what finishes it
        _check_range(request.headers.get("x-goog-content-length-range"), size)
        piece = _piece(wanted, size, together=together)
        with gateway.files.incoming(
            resource, filename, size=size, digest=digest, start=piece.start, session=kept
        ) as incoming:
            async for chunk in request.stream():
                if piece.end is not None and incoming.size + len(chunk) > piece.end:
                    raise invalid(f"Content-Range: {wanted} was said, and more than that came; nothing beyond is kept")
                await run_in_threadpool(incoming.write, chunk)
            if piece.end is not None and incoming.size != piece.end:
                raise invalid(f"Content-Range: {wanted} was said, {incoming.size - piece.start} bytes came")
            if not piece.last:
                return _here(incoming.size)
            await run_in_threadpool(uploads.place, gateway, resource, filename, incoming=incoming, session=session)
        return done


def _here(held: int) -> Response:
    return Response(status_code=308, headers={"range": f"bytes=0-{held - 1}"} if held else {})


def _check_range(header: str | None, size: int | None) -> None:
    """The client's own statement of size, where it makes one, must allow the size that was signed."""
    if header is None or size is None:
        return
    found = _LENGTHS.fullmatch(header)
    if found is None or not int(found[1]) <= size <= int(found[2]):
        raise invalid(f"X-Goog-Content-Length-Range: got {header[:80]!r}; {size} bytes were declared for this URL")


def _digest(header: str | None) -> str:
    """The SHA-256 that the sender says, as `content_digest` writes it; "" where none is said."""
    if header is None:
        return ""
    found = _SHA256.search(header)
    if found is None:
        raise invalid(f"Content-Digest: got {header[:80]!r}; expected sha-256=:BASE64: (RFC 9530), or leave it out")
    return found[1]


def _piece(content_range: str, size: int | None, *, together: str) -> _Piece:
    """What the body is of the file, by its Content-Range; all of it where there is none."""
    if not content_range:
        return _Piece(0, None, None)
    found = _CONTENT_RANGE.fullmatch(content_range)
    if found is not None and size is not None and together:
        start, end = int(found[1]), int(found[2]) + 1
        if start < end <= size and found[3] in ("*", str(size)):
            return _Piece(start, end, size)
    raise invalid(
        f"Content-Range: got {content_range[:80]!r}; a file goes on as 'bytes N-{(size or 1) - 1}/{size}' or in "
        "smaller pieces, with its Content-Digest or in a session"
    )
