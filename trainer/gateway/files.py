"""The gateway's files: a folder, written atomically, reached by signed URLs.

Files of a resource lie in `files/<resource name>/`. A signed URL carries size and expiry and an HMAC over method,
path, size and expiry, keyed by a file that only the owner can read: whoever holds the URL may do that one thing,
without a key. Finished files are never changed in place, so they may be hard-linked. A file whose sender says its
digest beforehand, or that has a session, can come in pieces: what has come is kept for a day, under a name made of it.
With TRAINER_GATEWAY_FILES=s3://... or az://... files are in a bucket, and the folder has copies (`bucket_files.py`).
"""

from __future__ import annotations

import base64
import fcntl
import hashlib
import hmac
import json
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING
from urllib.parse import quote, urlencode

from trainer.disk import LOCAL_DISK, write_whole
from trainer.gateway.errors import GatewayError, invalid, not_found

if TYPE_CHECKING:
    from trainer.gateway.bucket_files import BucketFiles

FILES_VARIABLE = "TRAINER_GATEWAY_FILES"
URL_SECONDS = 3600
_KEPT_SECONDS = 86_400  # for what has come of files that nobody has finished
_CHUNK = 1 << 20
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._@+=-]{0,127}")
_PARTS = 4  # depth of a file's name below its resource
_RESOURCE_PARTS = 8
_MARK = "files.json"
_GONE = "gone-"  # folders whose resource is deleted
_MOST_REMOVED = 100  # objects of a bucket at a time
_WORK_FOLDERS = "tmp????????"  # of imports and conversions, beside the files (`tempfile`)
_SWEEP_SECONDS = 3600.0


class Incoming:
    """Writes a file's bytes, counting and digesting them."""

    def __init__(
        self, stream: IO[bytes], filename: str, expected: int | None, *, partial: Path, keep: _Keep,
        digest: str = "", pieces: bool = False,
    ) -> None:  # fmt: skip
        self._stream, self._filename, self._expected = stream, filename, expected
        self._partial, self._keep, self._wanted, self._pieces = partial, keep, digest, pieces
        self._digest = hashlib.sha256()
        while chunk := stream.read(_CHUNK):  # what came earlier
            self._digest.update(chunk)
        self.size = stream.tell()

    @property
    def path(self) -> Path:
        """Where the bytes are until they take their place."""
        return self._partial

    @property
    def sha256(self) -> str:
        """Of the bytes so far, in hex."""
        return self._digest.hexdigest()

    def write(self, chunk: bytes) -> None:
        """Add `chunk`. Raises INVALID_ARGUMENT when that is more than was declared, ABORTED for a second writer."""
        if self._expected is not None and self.size + len(chunk) > self._expected:
            raise self._wrong_size("more than that came")
        with _turn(self._stream, self._filename) if self._pieces else nullcontext():
            self._must_be_alone()
            self._stream.write(chunk)
            self._stream.flush()
        self.size += len(chunk)
        self._digest.update(chunk)

    def finish(self) -> None:
        """Check size and digest and make the bytes durable. Raises DATA_LOSS for bytes that are not the sender's."""
        if self._expected is not None and self.size != self._expected:
            raise self._wrong_size(f"{self.size} came")
        if self._wanted not in ("", content_digest(self.sha256)):
            self._partial.unlink(missing_ok=True)
            raise GatewayError(
                "DATA_LOSS", f"{self._filename}: what came has {content_digest(self.sha256)}, not {self._wanted}; "
                "send it again from its beginning", http_status=400,
            )  # fmt: skip
        if self._pieces:
            fcntl.flock(self._stream, fcntl.LOCK_EX)  # until it is closed: nobody cuts what is about to be the file
            self._must_be_alone()
            _must_be_at(self._stream, self._partial, self._filename)
        os.fsync(self._stream.fileno())
        self._keep.durable(self._partial, self.sha256)

    def place(self) -> None:
        """Put the finished file where it belongs, in place of one of that name."""
        self._keep.place(self._partial, self.sha256)

    def _must_be_alone(self) -> None:
        if self._pieces and os.fstat(self._stream.fileno()).st_size != self.size:
            raise GatewayError("ABORTED", f"{self._filename}: another request is sending it too")

    def _wrong_size(self, what: str) -> GatewayError:
        return invalid(
            f"{self._filename}: {self._expected} bytes were declared, {what}; ask for a new upload URL",
            field=self._filename,
        )


@dataclass(frozen=True)
class _Keep:
    """How a finished file takes its place: first its bytes are safe, then they are the file."""

    durable: Callable[[Path, str], None]
    place: Callable[[Path, str], None]


class FileStore:
    """The files of one state folder.

    url: a bucket that has them (s3://bucket/prefix, az://container@account/prefix); None = TRAINER_GATEWAY_FILES, else
    what the folder's mark says, else the folder. clock: seconds since 1970, for the expiry of URLs. as_marked: where
    they are, whatever the environment says.
    """

    def __init__(
        self,
        folder: Path,
        url: str | None = None,
        *,
        clock: Callable[[], float] | None = None,
        as_marked: bool = False,
    ) -> None:
        self.root = folder / "files"
        self._partial = folder / "partial"
        self._clock = clock or (lambda: time.time())  # noqa: PLW0108  (looked up at each use)
        self.root.mkdir(parents=True, exist_ok=True)
        self._partial.mkdir(parents=True, exist_ok=True)
        given = None if as_marked else os.environ.get(FILES_VARIABLE)
        self._bucket = self._opened(folder, url or given or None)
        self.sweep()
        self._key = _signing_key(folder)

    @property
    def in_bucket(self) -> bool:
        """True where the folder has copies only."""
        return self._bucket is not None

    def folder(self, resource: str) -> Path:
        """The folder of the resource's files (perhaps absent), all of them here."""
        place = self._place_of(resource)
        if self._bucket is not None:
            for name in self._bucket.names(resource):
                self._bucket.fetch(place / name, resource, name)
        return place

    def path(self, resource: str, filename: str) -> Path:
        """Where the file `filename` of `resource` lies (perhaps absent). Raises INVALID_ARGUMENT for a bad name."""
        place = self._place_of(resource, filename)
        if self._bucket is not None:
            self._bucket.fetch(place, resource, filename)
        return place

    def _place_of(self, resource: str, filename: str | None = None) -> Path:
        folder = self.root / safe_name(resource, levels=_RESOURCE_PARTS)
        return folder if filename is None else folder / safe_name(filename)

    def _opened(self, folder: Path, url: str | None) -> BucketFiles | None:
        path = folder / _MARK
        marked = str(json.loads(path.read_bytes())["url"]) if path.exists() else None
        if url is None and marked is None:
            return None
        if marked is None and any(self.root.iterdir()):
            raise GatewayError(
                "FAILED_PRECONDITION", f"{self.root} has this gateway's files, but {url} is asked for; move them first "
                f"(python -m trainer gateway move --files-to {url}), or leave {FILES_VARIABLE} out",
            )  # fmt: skip
        if url is not None and marked is not None and url != marked:
            raise GatewayError(
                "FAILED_PRECONDITION",
                f"the files of {folder} are in {marked}, not in {url}; set {FILES_VARIABLE} to that",
            )
        # The clouds' clients are slow to import, and few gateways have a bucket.
        from trainer.gateway.bucket_files import BucketFiles  # noqa: PLC0415
        from trainer.gateway.buckets import own  # noqa: PLC0415

        opened = BucketFiles(own(marked or str(url)), notes=folder / "cached", partial=self._partial)
        if marked is None:
            mark(folder, str(url))
        return opened

    def scratch(self) -> Path:
        """A place, beside the files, for a file that is on its way here; what is left there is swept after a day."""
        return self._partial / secrets.token_hex(16)

    def _keep(self, resource: str, filename: str) -> _Keep:
        target = self._place_of(resource, filename)

        def durable(partial: Path, digest: str) -> None:
            if self._bucket is not None:
                self._bucket.put(partial, resource, filename, digest)

        def place(partial: Path, digest: str) -> None:
            _place(partial, target)
            if self._bucket is not None:
                self._bucket.name(target, resource, filename, digest)

        return _Keep(durable, place)

    def names(self, resource: str) -> list[str]:
        """The resource's files, sorted."""
        folder = self._place_of(resource)
        found = (Path(top) / name for top, _, names in os.walk(folder) for name in names)  # what goes meanwhile is gone
        here = {str(path.relative_to(folder)) for path in found if path.is_file()}
        return sorted(here | set(self._bucket.names(resource) if self._bucket is not None else ()))

    @contextmanager
    def incoming(
        self, resource: str, filename: str, *, size: int | None, digest: str = "", start: int = 0, session: str = ""
    ) -> Iterator[Incoming]:
        """A file being received; it takes its place when the block calls `place()`, and else has never been.

        size: exactly so many bytes are taken, where that is given. digest: what it will have when it is whole; then
        what came before `start` is gone on from, and what has come when the block ends early is kept. session: the same
        for a sender who does not know the digest. Raises ABORTED where less than `start` bytes are kept.
        """
        if time.monotonic() - self._swept > _SWEEP_SECONDS:
            self.sweep()
        keep, pieces = self._keep(resource, filename), digest or session
        partial = self._partial_of(resource, filename, pieces) if pieces else self._partial / secrets.token_hex(16)
        try:
            with _begun(partial, filename, start) as stream:
                yield Incoming(stream, filename, size, partial=partial, keep=keep, digest=digest, pieces=bool(pieces))
        finally:
            if not pieces:
                partial.unlink(missing_ok=True)

    def held(self, resource: str, filename: str, digest: str) -> int:
        """How many bytes have come of the unfinished file that will have `digest`, or of the session of that name."""
        partial = self._partial_of(resource, filename, digest)
        return partial.stat().st_size if partial.exists() else 0

    def _partial_of(self, resource: str, filename: str, digest: str) -> Path:
        name = hashlib.sha256(f"{resource}\0{filename}\0{digest}".encode("utf-8", "replace")).hexdigest()
        return self._partial / f"part-{name}"

    def sweep(self) -> None:
        """Remove what was taken away, and what unfinished uploads, and processes that were killed, have left."""
        oldest = time.time() - _KEPT_SECONDS  # the file system's clock, whatever `clock` is
        self._swept = time.monotonic()
        for path in [*self._partial.iterdir(), *self._partial.parent.glob(_WORK_FOLDERS)]:
            try:
                if _touched(path) < oldest or path.name.startswith(_GONE):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            except FileNotFoundError:  # finished, or swept by another process
                continue

    def adopt(self, resource: str, filename: str, source: Path, *, link: bool = True) -> str:
        """Take a copy (a hard link where `link` and the file system allow) of `source`; returns its sha256."""
        source, keep = source.resolve(strict=True), self._keep(resource, filename)
        partial = self._partial / secrets.token_hex(16)
        try:
            if not (link and _linked(source, partial)):
                shutil.copyfile(source, partial)
            with partial.open("rb") as stream:  # whoever wrote it need not have
                os.fsync(stream.fileno())
            digest = sha256(partial)
            keep.durable(partial, digest)
            keep.place(partial, digest)
        finally:
            partial.unlink(missing_ok=True)
        return digest

    def remove(self, resource: str) -> None:
        """Delete the resource's files."""
        if self._bucket is not None:
            self._bucket.remove(safe_name(resource, levels=_RESOURCE_PARTS))
        with suppress(FileNotFoundError):
            shutil.rmtree(self._place_of(resource))

    def take_away(self, resource: str) -> bool:
        """Take files of the resource, all that is done at once, out of sight; True where more is left. `sweep` follows.

        Quick, so that it may be done while other writers wait.
        """
        place, name = self._place_of(resource), safe_name(resource, levels=_RESOURCE_PARTS)
        if self._bucket is not None and self._bucket.remove(name, most=_MOST_REMOVED):
            return True
        with suppress(FileNotFoundError):
            place.rename(self._partial / f"{_GONE}{secrets.token_hex(16)}")
        return False

    def discard(self, resource: str, filename: str) -> None:
        """Delete one file of the resource, if it is there."""
        place = self._place_of(resource, filename)
        if self._bucket is not None:
            self._bucket.remove(resource, filename)
        place.unlink(missing_ok=True)

    def url(
        self, method: str, resource: str, filename: str, *, base_url: str, size: int | None = None, session: str = "",
    ) -> str:  # fmt: skip
        """A URL that lets its holder `method` this file until it expires: GET, PUT, or POST, which begins a session.

        session: the one that a PUT goes on with; such a URL lasts as long as what has come is kept.
        """
        path = f"/files/{safe_name(resource, levels=_RESOURCE_PARTS)}/{safe_name(filename)}"
        expires = str(int(self._clock()) + (_KEPT_SECONDS if session else URL_SECONDS))
        query = {"expires": expires, "size": "" if size is None else str(size)}
        query |= {"session": session} if session else {}
        query["signature"] = self._sign(method, path, query)
        return f"{base_url.rstrip('/')}{quote(path)}?{urlencode(query)}"

    def verify(self, method: str, path: str, query: Mapping[str, str]) -> int | None:
        """The size that a signed URL declares. Raises PERMISSION_DENIED when it is altered or expired."""
        given = query.get("signature", "").encode("utf-8", "replace")
        if not hmac.compare_digest(self._sign(method, path, query).encode(), given):
            raise GatewayError(
                "PERMISSION_DENIED", "the URL's signature does not match it; ask the gateway for a new one",
                reason="SIGNATURE_INVALID",
            )  # fmt: skip
        if int(query["expires"]) < self._clock():
            lasted = _KEPT_SECONDS if query.get("session") else URL_SECONDS
            raise GatewayError(
                "PERMISSION_DENIED", f"the URL expired (they last {lasted} s); ask the gateway for a new one",
                reason="SIGNATURE_EXPIRED",
            )  # fmt: skip
        return int(query["size"]) if query.get("size") else None

    def named(self, path: str) -> tuple[str, str]:
        """Resource and file name of the URL path `accounts/<a>/<collection>/<id>/<file name>`. Raises NOT_FOUND."""
        parts = path.split("/")
        if len(parts) < 5:
            raise not_found(f"files/{path}")
        return "/".join(parts[:4]), "/".join(parts[4:])

    def located(self, path: str) -> tuple[str, str, Path]:
        """Resource, file name and place of the URL path `accounts/<a>/<collection>/<id>/<file name>`."""
        resource, filename = self.named(path)
        return resource, filename, self.path(resource, filename)

    def _sign(self, method: str, path: str, query: Mapping[str, str]) -> str:
        session = query.get("session", "")
        parts = (method, path, query.get("size", ""), query.get("expires", ""), *((session,) if session else ()))
        return hmac.new(self._key, "\n".join(parts).encode("utf-8", "replace"), hashlib.sha256).hexdigest()


def mark(folder: Path, url: str) -> None:
    """Note that the folder's files are in the bucket at `url`, so that nobody takes the copies for them."""
    write_whole(folder / _MARK, json.dumps({"url": url}).encode() + b"\n", shared=True)


def unmark(folder: Path) -> None:
    """The folder has its files from now on."""
    (folder / _MARK).unlink(missing_ok=True)


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


@contextmanager
def _turn(stream: IO[bytes], filename: str) -> Iterator[None]:
    """Keeps other requests from the same unfinished file. Raises ABORTED while one of them finishes it."""
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise GatewayError("ABORTED", f"{filename}: another request is sending it too") from error
    try:
        yield
    finally:
        fcntl.flock(stream, fcntl.LOCK_UN)


def _must_be_at(stream: IO[bytes], partial: Path, filename: str) -> None:
    """Raises ABORTED where the open file is no longer the unfinished one."""
    if not partial.exists() or not os.path.samestat(os.fstat(stream.fileno()), partial.stat()):
        raise GatewayError("ABORTED", f"{filename}: another request has just finished it; ask again")


@contextmanager
def _begun(partial: Path, filename: str, start: int) -> Iterator[IO[bytes]]:
    """The unfinished file `partial`, cut to its first `start` bytes."""
    with os.fdopen(os.open(partial, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644), "r+b") as stream:
        with _turn(stream, filename):
            _must_be_at(stream, partial, filename)
            if os.fstat(stream.fileno()).st_size < start:
                raise GatewayError("ABORTED", f"{filename}: less than {start} bytes have come so far; ask how many")
            stream.truncate(start)
        yield stream


def content_digest(sha256_hex: str) -> str:
    """A sha256 as the header `Content-Digest` has it (RFC 9530)."""
    return f"sha-256=:{base64.b64encode(bytes.fromhex(sha256_hex)).decode()}:"


def _touched(path: Path) -> float:
    """When the file, or the newest in the folder, was last written, or linked to, in seconds since 1970."""
    found = path.lstat()
    if stat.S_ISDIR(found.st_mode):
        return max([found.st_mtime, *(_touched(one) for one in path.iterdir())])
    return max(found.st_mtime, found.st_ctime if found.st_nlink > 1 else 0.0)


def _linked(source: Path, target: Path) -> bool:
    try:
        target.hardlink_to(source)
    except OSError:  # another file system, or one without links: the caller copies
        return False
    return True


def _place(partial: Path, target: Path) -> None:
    new = [folder for folder in (target.parent, *target.parent.parents) if not folder.exists()]
    target.parent.mkdir(parents=True, exist_ok=True)
    partial.replace(target)
    for folder in (target.parent, *(folder.parent for folder in new)):
        LOCAL_DISK.sync_folder(folder)


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
