"""A backup of a live gateway, and the way back: records of one moment, the files they speak of, and the keys.

A backup is a folder, independent of where the gateway keeps things: `records.jsonl` has every row of every table,
`files/` the files, `keys/` what signs URLs and opens secrets, and `manifest.json`, written last, the sizes and sha256.
Writers go on meanwhile. When a file that a record speaks of has gone or changed before it could be copied, the records
are read again; in the last of a few such rounds writers wait. Runs lie beside the gateway and are folders of their own:
copy them as they are. Who holds a backup with its keys can read the secrets in it; it is made for its owner's eyes only
(mode 0700).
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trainer.disk import LOCAL_DISK, write_whole
from trainer.gateway import moving
from trainer.gateway.database import RESTORING, Database, unused
from trainer.gateway.errors import GatewayError
from trainer.gateway.files import FileStore, safe_name, sha256
from trainer.gateway.schema import VERSION, resources
from trainer.gateway.sealing import KEY_FILE
from trainer.gateway.store import Store, now

MANIFEST, RECORDS = "manifest.json", "records.jsonl"
_MANIFEST_SUM = "manifest.sha256"
_FORMAT = "gateway-backup-1"
_KEYS = ("signing.key", KEY_FILE)
_ROUNDS = 5


@dataclass(frozen=True)
class Summary:
    """What a backup holds: rows of each table, files, and their bytes."""

    rows: dict[str, int]
    files: int
    bytes: int


class _Changed(Exception):
    """A file that the records speak of is not there as they say."""


def backup(store: Store, files: FileStore, folder: Path, target: Path, *, keys: bool = True) -> Summary:
    """Back up the gateway of state folder `folder`, whose records and files are given, into the new folder `target`.

    keys: with the keys; without them signed URLs and sealed secrets of the backup are lost. Raises FAILED_PRECONDITION
    where `target` is there, ABORTED where the gateway's files change faster than they can be copied.
    """
    if target.exists():
        raise GatewayError("FAILED_PRECONDITION", f"{target} is there already; name a folder that is not")
    made = target.with_name(f"{target.name}.{secrets.token_hex(4)}.part")
    made.mkdir(parents=True, mode=0o700)
    try:
        extents, listed = _copied(store, files, made)
        if keys:
            _copy_keys(folder, made / "keys")
        manifest = {
            "format": _FORMAT, "schema": VERSION, "time": now(), "records": sha256(made / RECORDS), "files": listed,
            "tables": {name: asdict(extent) for name, extent in extents.items()},
            "keys": {path.name: sha256(path) for path in sorted((made / "keys").glob("*"))},
        }  # fmt: skip
        text = json.dumps(manifest, indent=1).encode()
        _write(made / MANIFEST, text)
        _write(made / _MANIFEST_SUM, hashlib.sha256(text).hexdigest().encode())
        for place, _, _ in os.walk(made):
            LOCAL_DISK.sync_folder(Path(place))
        made.rename(target)
        LOCAL_DISK.sync_folder(target.parent)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise
    return _summary(manifest)


def check(source: Path) -> Summary:
    """Compare every byte of a backup with its manifest. Raises DATA_LOSS naming what is wrong."""
    manifest = _manifest(source)
    for name, entry in manifest["files"].items():
        place = source / "files" / name
        if not place.is_file() or place.stat().st_size != entry["size"] or sha256(place) != entry["sha256"]:
            raise GatewayError("DATA_LOSS", f"{place} is not what {source / MANIFEST} says; take another backup")
    for name, digest in manifest["keys"].items():
        if not (source / "keys" / name).is_file() or sha256(source / "keys" / name) != digest:
            raise GatewayError("DATA_LOSS", f"{source / 'keys' / name} is not what {source / MANIFEST} says")
    if not (source / RECORDS).is_file() or sha256(source / RECORDS) != manifest["records"]:
        raise GatewayError("DATA_LOSS", f"{source / RECORDS} is not what {source / MANIFEST} says; take another backup")
    return _summary(manifest)


def restore(source: Path, folder: Path, *, url: str | None = None, files_url: str | None = None) -> Summary:
    """Make the gateway of a backup anew in the empty folder `folder`, its records at `url`, its files at `files_url`.

    What there is afterwards has been compared with the manifest, and until then nobody can use it. Raises
    FAILED_PRECONDITION where `folder` or the database has something, or the backup is of another version; DATA_LOSS for
    a backup that is not whole.
    """
    if folder.exists() and any(folder.iterdir()):
        raise GatewayError("FAILED_PRECONDITION", f"{folder} is not empty; restore into a new folder")
    manifest = _manifest(source)
    if manifest["schema"] != VERSION:
        raise GatewayError(
            "FAILED_PRECONDITION",
            f"{source} has tables of version {manifest['schema']}, and this program has version {VERSION}; "
            "restore with the program that made it, then start the newer one on the folder",
        )
    summary = check(source)
    was_there = folder.exists()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        with unused(folder):
            write_whole(folder / RESTORING, b"")
            _copy_keys(source / "keys", folder)
            _restore_records(source, folder, url, manifest)
            files = FileStore(folder, files_url)
            for name, entry in manifest["files"].items():
                found = files.adopt(entry["resource"], entry["name"], source / "files" / name, link=False)
                if found != entry["sha256"]:
                    raise GatewayError("DATA_LOSS", f"{name} changed while it was restored")
            (folder / RESTORING).unlink()
            LOCAL_DISK.sync_folder(folder)
    except BaseException:
        for path in sorted(folder.iterdir(), key=lambda path: path.name == RESTORING):  # that last
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        if not was_there:
            folder.rmdir()
        raise
    return summary


def _restore_records(source: Path, folder: Path, url: str | None, manifest: dict[str, Any]) -> None:
    database, extents = Database(folder, url=url, alone=True), moving.Extents()
    try:
        with database.writing() as connection:
            if not moving.empty(connection):
                raise GatewayError("FAILED_PRECONDITION", f"{database.shown} has records already; empty it first")
            moving.load(connection, _lines(source))
            for _ in extents.passing(moving.rows(connection)):
                pass
            if {name: asdict(extent) for name, extent in extents.found().items()} != manifest["tables"]:
                raise GatewayError("DATA_LOSS", "the restored rows are not those of the backup; nothing was kept")
    finally:
        database.close()


def _copied(store: Store, files: FileStore, made: Path) -> tuple[dict[str, moving.Extent], dict[str, Any]]:
    """Records and files that agree. Where writers are faster than `_ROUNDS` tries they wait for the last one, in which
    only what is new since the one before is copied."""
    had, changed = dict[str, Any](), ""
    for left in reversed(range(_ROUNDS)):
        with nullcontext() if left else store.database.writing():
            extents = _copy_records(store, made / RECORDS)
            try:
                return extents, _copy_files(files, made, had)
            except _Changed as error:
                changed = str(error)
    raise GatewayError(
        "ABORTED", f"{changed} and others change faster than they can be copied; repeat when it is quiet"
    )


def _copy_records(store: Store, path: Path) -> dict[str, moving.Extent]:
    extents = moving.Extents()
    with store.database.snapshot() as connection, path.open("wb") as stream:
        for name, row in extents.passing(moving.rows(connection)):
            stream.write(moving.line(name, row).encode() + b"\n")
        stream.flush()
        os.fsync(stream.fileno())
    return extents.found()


def _copy_files(files: FileStore, made: Path, had: dict[str, Any]) -> dict[str, Any]:
    """Copy what the records of `made` speak of; `had` are the copies of earlier rounds."""
    listed: dict[str, Any] = {}
    for table, row in _lines(made):
        if table != resources.name:
            continue
        resource, said = row["name"], row["private"].get("files") or {}
        present = files.names(resource)
        for name in sorted({*said, *present}):
            path = f"{resource}/{name}"
            if path in listed and name not in said:  # a parent's folder has its children's files too
                continue
            wanted = said.get(name, {}).get("sha256")
            entry = had.get(path)
            if entry is None or wanted is None or entry["sha256"] != wanted:
                entry = _copy(files, resource, name, made / "files" / path)
            if entry is None:  # a log that has gone since it was listed
                if wanted:
                    raise _Changed(path)
                continue
            had[path] = listed[path] = entry
            if wanted and entry["sha256"] != wanted:
                raise _Changed(path)
    for path in set(had) - set(listed):
        (made / "files" / path).unlink()
        del had[path]
    return listed


def _copy(files: FileStore, resource: str, name: str, target: Path) -> dict[str, Any] | None:
    target.parent.mkdir(parents=True, exist_ok=True)
    digest, size = hashlib.sha256(), 0
    try:
        with files.path(resource, safe_name(name)).open("rb") as source, target.open("wb") as stream:
            while chunk := source.read(1 << 20):
                digest.update(chunk)
                size += len(chunk)
                stream.write(chunk)
            stream.flush()
            os.fsync(stream.fileno())
    except FileNotFoundError:
        return None
    return {"resource": resource, "name": name, "size": size, "sha256": digest.hexdigest()}


def _lines(source: Path) -> Iterator[moving.Row]:
    with (source / RECORDS).open("rb") as stream:
        for text in stream:
            yield moving.read_line(text)


def _copy_keys(source: Path, target: Path) -> None:
    for name in _KEYS:
        if (source / name).is_file():
            target.mkdir(parents=True, exist_ok=True, mode=0o700)
            _write(target / name, (source / name).read_bytes())


def _write(path: Path, content: bytes) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def _manifest(source: Path) -> dict[str, Any]:
    try:
        text, digest = (source / MANIFEST).read_bytes(), (source / _MANIFEST_SUM).read_bytes()
    except FileNotFoundError as error:
        raise GatewayError("FAILED_PRECONDITION", f"{source} is not a whole backup: it has no {MANIFEST}") from error
    if hashlib.sha256(text).hexdigest().encode() != digest:
        raise GatewayError("DATA_LOSS", f"{source / MANIFEST} is not what {_MANIFEST_SUM} says; take another backup")
    found = json.loads(text)
    if found.get("format") != _FORMAT:
        raise GatewayError("FAILED_PRECONDITION", f"{source}: its format {found.get('format')!r} is not {_FORMAT}")
    return found


def _summary(manifest: dict[str, Any]) -> Summary:
    return Summary(
        rows={name: extent["rows"] for name, extent in manifest["tables"].items()},
        files=len(manifest["files"]),
        bytes=sum(entry["size"] for entry in manifest["files"].values()),
    )
