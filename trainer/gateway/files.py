"""The gateway's files: a folder, written atomically, reached by signed URLs.

Files of a resource lie in `files/<resource name>/`. A signed URL carries size and expiry and an HMAC over method,
path, size and expiry, keyed by a file that only the owner can read: whoever holds the URL may do that one thing,
without a key. Finished files are never changed in place, so they may be hard-linked. A file whose sender says its
digest beforehand can come in pieces: what has come is kept for a day, under a name made of that digest.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO
from urllib.parse import quote, urlencode

from trainer.gateway.errors import GatewayError, invalid, not_found

URL_SECONDS = 3600
_KEPT_SECONDS = 86_400  # for what has come of files that nobody has finished
_CHUNK = 1 << 20
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._@+=-]{0,127}")
_PARTS = 4  # depth of a file's name below its resource
_RESOURCE_PARTS = 8


class Incoming:
    """Writes a file's bytes, counting and digesting them."""

    def __init__(
        self, stream: IO[bytes], filename: str, expected: int | None, *, partial: Path, target: Path, digest: str = ""
    ) -> None:
        self._stream, self._filename, self._expected = stream, filename, expected
        self._partial, self._target, self._wanted = partial, target, digest
        self._digest = hashlib.sha256()
        while chunk := stream.read(_CHUNK):  # what came earlier
            self._digest.update(chunk)
        self.size = stream.tell()

    @property
    def sha256(self) -> str:
        """Of the bytes so far, in hex."""
        return self._digest.hexdigest()

    def write(self, chunk: bytes) -> None:
        """Add `chunk`. Raises INVALID_ARGUMENT when that is more than was declared, ABORTED for a second writer."""
        if self._wanted and os.fstat(self._stream.fileno()).st_size != self.size:
            raise GatewayError("ABORTED", f"{self._filename}: another request is sending it too")
        self.size += len(chunk)
        if self._expected is not None and self.size > self._expected:
            raise self._wrong_size("more than that came")
        self._digest.update(chunk)
        self._stream.write(chunk)
        self._stream.flush()

    def finish(self) -> None:
        """Check size and digest and force the bytes to disk. Raises DATA_LOSS for bytes that are not the sender's."""
        if self._expected is not None and self.size != self._expected:
            raise self._wrong_size(f"{self.size} came")
        if self._wanted not in ("", content_digest(self.sha256)):
            self._partial.unlink(missing_ok=True)
            raise GatewayError(
                "DATA_LOSS", f"{self._filename}: what came has {content_digest(self.sha256)}, not {self._wanted}; "
                "send it again from its beginning",
            )  # fmt: skip
        os.fsync(self._stream.fileno())

    def place(self) -> None:
        """Put the finished file where it belongs, in place of one of that name."""
        _place(self._partial, self._target)

    def _wrong_size(self, what: str) -> GatewayError:
        return invalid(
            f"{self._filename}: {self._expected} bytes were declared, {what}; ask for a new upload URL",
            field=self._filename,
        )


class FileStore:
    """The files of one state folder."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "files"
        self._partial = folder / "partial"
        self.root.mkdir(parents=True, exist_ok=True)
        self._partial.mkdir(parents=True, exist_ok=True)
        self._sweep()
        self._key = _signing_key(folder)

    def folder(self, resource: str) -> Path:
        """The folder of the resource's files (perhaps absent)."""
        return self.root / safe_name(resource, levels=_RESOURCE_PARTS)

    def path(self, resource: str, filename: str) -> Path:
        """Where the file `filename` of `resource` lies (perhaps absent). Raises INVALID_ARGUMENT for a bad name."""
        return self.folder(resource) / safe_name(filename)

    def names(self, resource: str) -> list[str]:
        """The resource's files, sorted."""
        folder = self.folder(resource)
        return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())

    @contextmanager
    def incoming(
        self, resource: str, filename: str, *, size: int | None, digest: str = "", start: int = 0
    ) -> Iterator[Incoming]:
        """A file being received; it takes its place when the block calls `place()`, and else has never been.

        size: exactly so many bytes are taken, where that is given. digest: what it will have when it is whole; then
        what came before `start` is gone on from, and what has come when the block ends early is kept.
        Raises ABORTED where less than `start` bytes are kept.
        """
        target = self.path(resource, filename)
        partial = self._partial_of(resource, filename, digest) if digest else self._partial / secrets.token_hex(16)
        try:
            with partial.open("r+b" if partial.exists() else "w+b") as stream:
                if os.fstat(stream.fileno()).st_size < start:
                    raise GatewayError("ABORTED", f"{filename}: less than {start} bytes have come so far; ask how many")
                stream.truncate(start)
                yield Incoming(stream, filename, size, partial=partial, target=target, digest=digest)
        finally:
            if not digest:
                partial.unlink(missing_ok=True)

    def held(self, resource: str, filename: str, digest: str) -> int:
        """How many bytes have come of the unfinished file that will have `digest`."""
        partial = self._partial_of(resource, filename, digest)
        return partial.stat().st_size if partial.exists() else 0

    def _partial_of(self, resource: str, filename: str, digest: str) -> Path:
        name = hashlib.sha256(f"{resource}\0{filename}\0{digest}".encode("utf-8", "replace")).hexdigest()
        return self._partial / f"part-{name}"

    def _sweep(self) -> None:
        """Remove what unfinished uploads, and processes that were killed, have left."""
        oldest = time.time() - _KEPT_SECONDS
        for path in self._partial.iterdir():
            try:
                if path.stat().st_mtime < oldest:
                    path.unlink()
            except FileNotFoundError:  # finished, or swept by another process
                continue

    def adopt(self, resource: str, filename: str, source: Path, *, link: bool = True) -> str:
        """Take a copy (a hard link where `link` and the file system allow) of `source`; returns its sha256."""
        source, target = source.resolve(strict=True), self.path(resource, filename)
        partial = self._partial / secrets.token_hex(16)
        try:
            if not (link and _linked(source, partial)):
                shutil.copyfile(source, partial)
                with partial.open("rb") as stream:
                    os.fsync(stream.fileno())
            digest = sha256(partial)
            _place(partial, target)
        finally:
            partial.unlink(missing_ok=True)
        return digest

    def remove(self, resource: str) -> None:
        """Delete the resource's files."""
        shutil.rmtree(self.folder(resource), ignore_errors=True)

    def url(self, method: str, resource: str, filename: str, *, base_url: str, size: int | None = None) -> str:
        """A URL that lets its holder `method` (GET or PUT) this file until it expires."""
        path = f"/files/{safe_name(resource, levels=_RESOURCE_PARTS)}/{safe_name(filename)}"
        expires = int(time.time()) + URL_SECONDS
        sized = "" if size is None else str(size)
        query = {"expires": expires, "size": sized, "signature": self._sign(method, path, sized, str(expires))}
        return f"{base_url.rstrip('/')}{quote(path)}?{urlencode(query)}"

    def verify(self, method: str, path: str, query: Mapping[str, str]) -> int | None:
        """The size that a signed URL declares. Raises PERMISSION_DENIED when it is altered or expired."""
        size, expires = query.get("size", ""), query.get("expires", "")
        signature = self._sign(method, path, size, expires)
        if not hmac.compare_digest(signature.encode(), query.get("signature", "").encode("utf-8", "replace")):
            raise GatewayError(
                "PERMISSION_DENIED", "the URL's signature does not match it; ask the gateway for a new one",
                reason="SIGNATURE_INVALID",
            )  # fmt: skip
        if int(expires) < time.time():
            raise GatewayError(
                "PERMISSION_DENIED", f"the URL expired (they last {URL_SECONDS} s); ask the gateway for a new one",
                reason="SIGNATURE_EXPIRED",
            )  # fmt: skip
        return int(size) if size else None

    def located(self, path: str) -> tuple[str, str, Path]:
        """Resource, file name and place of the URL path `accounts/<a>/<collection>/<id>/<file name>`."""
        parts = path.split("/")
        resource, filename = "/".join(parts[:4]), "/".join(parts[4:])
        if len(parts) < 5:
            raise not_found(f"files/{path}")
        return resource, filename, self.path(resource, filename)

    def _sign(self, method: str, path: str, size: str, expires: str) -> str:
        text = "\n".join((method, path, size, expires))
        return hmac.new(self._key, text.encode("utf-8", "replace"), hashlib.sha256).hexdigest()


def safe_name(name: str, *, levels: int = _PARTS) -> str:
    """`name` if each of its parts is a plain file name. Raises INVALID_ARGUMENT (traversal, hidden files, ...)."""
    parts = name.split("/")
    if len(parts) > levels or not all(_PART.fullmatch(part) for part in parts):
        raise invalid(
            f"file name {name[:120]!r}: use letters, digits and ._-@+= (at most {levels} levels, "
            "each beginning with a letter, digit or _)",
            field="filename",
        )
    return name


def sha256(path: Path) -> str:
    """The sha256 of a file's bytes, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def content_digest(sha256_hex: str) -> str:
    """A sha256 as the header `Content-Digest` has it (RFC 9530)."""
    return f"sha-256=:{base64.b64encode(bytes.fromhex(sha256_hex)).decode()}:"


def _linked(source: Path, target: Path) -> bool:
    try:
        target.hardlink_to(source)
    except OSError:  # another file system, or one without links: the caller copies
        return False
    return True


def _place(partial: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    partial.replace(target)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _signing_key(folder: Path) -> bytes:
    """The folder's key, made once; a second process that starts at the same time gets the same one."""
    path = folder / "signing.key"
    if not path.exists():
        temporary = folder / f"signing.key.{secrets.token_hex(8)}"
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(secrets.token_bytes(32))
            stream.flush()
            os.fsync(stream.fileno())
        try:
            path.hardlink_to(temporary)
        except FileExistsError:  # the other process was first: its key is the key
            pass
        finally:
            temporary.unlink()
    return path.read_bytes()
