"""The gateway's files in a bucket; the state folder then has copies of those that were asked for.

A file is an object named by its digest and size, `<resource>/<file name>/<sha256>-<size>`, and a small one, `=`, that
says which of them is the file. The first may come at leisure, the second makes it so: readers see the old file or the
new one. What the bucket gives is checked against the digest, and a copy is used as long as `=` says the same.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from pathlib import Path

from trainer.gateway.buckets import Bucket
from trainer.gateway.errors import GatewayError

_IS = "="  # never the beginning of a file's name
_TRIES = 5


class BucketFiles:
    """The files of one gateway in `bucket`; `folder` has the notes on local copies, `partial` what is half here."""

    def __init__(self, bucket: Bucket, *, notes: Path, partial: Path) -> None:
        self._bucket, self._notes, self._partial = bucket, notes, partial
        notes.mkdir(parents=True, exist_ok=True)

    def put(self, path: Path, resource: str, filename: str, sha256: str) -> None:
        """Bring the bytes at `path` up; nobody sees them yet."""
        self._bucket.put(path, f"{resource}/{filename}/{sha256}-{path.stat().st_size}")

    def name(self, place: Path, resource: str, filename: str, sha256: str) -> None:
        """Make the bytes that were put, of which `place` is the copy here, the file."""
        stored = f"{sha256}-{place.stat().st_size}"
        temporary = self._partial / secrets.token_hex(16)
        temporary.write_text(stored, encoding="ascii")
        try:
            self._bucket.put(temporary, f"{resource}/{filename}/{_IS}")
        finally:
            temporary.unlink()
        self._note(place, stored)
        kept = {f"{resource}/{filename}/{last}" for last in (_IS, stored)}
        self._bucket.remove([key for key in self._keys(resource, filename) if key not in kept])

    def fetch(self, place: Path, resource: str, filename: str) -> None:
        """Have the file at `place`, if there is one, and no copy of one that is gone.

        Raises DATA_LOSS where the bucket has not what it says.
        """
        missing: GatewayError | None = None
        for _ in range(_TRIES):
            stored = self._stored(resource, filename)
            if stored is None:
                self._forget(place)
                return
            if self._noted(place) == stored:
                return
            try:
                self._bring(place, resource, filename, stored)
                return
            except GatewayError as error:
                if error.code != "NOT_FOUND":
                    raise
                missing = error  # another has just taken its place, or it is being deleted: `=` says anew
        raise GatewayError(
            "DATA_LOSS", f"{resource}/{filename}: {self._bucket.shown} names it, and has not its bytes"
        ) from missing

    def _bring(self, place: Path, resource: str, filename: str, stored: str) -> None:
        temporary = self._partial / secrets.token_hex(16)
        try:
            self._bucket.get(f"{resource}/{filename}/{stored}", temporary)
            with temporary.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
            if f"{digest}-{temporary.stat().st_size}" != stored:
                raise GatewayError("DATA_LOSS", f"{resource}/{filename}: {self._bucket.shown} has other bytes for it")
            place.parent.mkdir(parents=True, exist_ok=True)
            temporary.replace(place)
        finally:
            temporary.unlink(missing_ok=True)
        self._note(place, stored)

    def names(self, resource: str) -> list[str]:
        """The names of the resource's files."""
        keys = [entry.key for entry in self._bucket.entries(resource)]
        cut = len(resource) + 1
        return sorted(key[cut : -len(_IS) - 1] for key in keys if key.endswith(f"/{_IS}"))

    def remove(self, resource: str, filename: str | None = None, *, most: int | None = None) -> bool:
        """Delete one of the resource's files, or all; at `most` so many objects, and True where there are more."""
        keys = sorted(self._keys(resource, filename), key=lambda key: not key.endswith(f"/{_IS}"))
        self._bucket.remove(keys[:most])  # first what says that it is
        return most is not None and len(keys) > most

    def _keys(self, resource: str, filename: str | None) -> list[str]:
        entries = self._bucket.entries(f"{resource}/{filename}" if filename else resource)
        depth = f"{resource}/{filename}/".count("/") if filename else None
        return [entry.key for entry in entries if depth is None or entry.key.count("/") == depth]

    def _stored(self, resource: str, filename: str) -> str | None:
        temporary = self._partial / secrets.token_hex(16)
        try:
            self._bucket.get(f"{resource}/{filename}/{_IS}", temporary, largest=200)
            return temporary.read_text(encoding="ascii")
        except GatewayError as error:
            if error.code != "NOT_FOUND":
                raise
            return None
        finally:
            temporary.unlink(missing_ok=True)

    def _forget(self, place: Path) -> None:
        """Remove the copy of a file that was deleted elsewhere; what was never in the bucket stays."""
        if self._noted(place) is not None:
            place.unlink(missing_ok=True)
            self._note_of(place).unlink(missing_ok=True)

    def _note(self, place: Path, stored: str) -> None:
        status = place.stat()
        text = json.dumps([stored, status.st_size, status.st_mtime_ns])
        path = self._note_of(place)
        temporary = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
        temporary.write_text(text, encoding="ascii")
        temporary.replace(path)

    def _noted(self, place: Path) -> str | None:
        try:
            stored, size, time = json.loads(self._note_of(place).read_text(encoding="ascii"))
            status = place.stat()
        except FileNotFoundError:
            return None
        return stored if (size, time) == (status.st_size, status.st_mtime_ns) else None

    def _note_of(self, place: Path) -> Path:
        return self._notes / hashlib.sha256(str(place.absolute()).encode()).hexdigest()
