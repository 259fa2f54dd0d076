"""Uploads and downloads through signed URLs, once for data sets and models.

A resource in state UPLOADING has `private.declared` (file name -> bytes) and `private.files` (file name -> bytes and
sha256 of what has come). READY means that the two agree and that the family's own check has passed; after that no file
changes. Files that are declared anew must be sent anew, or be shown by their digest to be those that came before
(`private.had`).
"""

from __future__ import annotations

import logging
import secrets
from pathlib import Path
from typing import Any

from trainer.gateway.errors import GatewayError, invalid, precondition
from trainer.gateway.files import Incoming, content_digest, safe_name
from trainer.gateway.gateway import Call, Gateway
from trainer.gateway.store import Resource, Transaction, body_value

UPLOADING, READY = "UPLOADING", "READY"
_REMOVALS = "removals"  # records that say whose files are to go
_MOST_FILES = 5000  # in one request: each file's arrival writes the record that has them all
_log = logging.getLogger("trainer.gateway")


def declare(call: Call, resource: Resource) -> dict[str, str]:
    """Note the sizes that the body's filenameToSize declares; returns a signed URL for each file.

    It is for a PUT, or with enableResumableUpload for the POST that begins a session of PUTs (see `file_routes.py`).
    """
    sizes = {safe_name(name): int(size) for name, size in call.body["filenameToSize"].items()}
    if not 1 <= len(sizes) <= _MOST_FILES:
        raise invalid(f"filenameToSize: {len(sizes)} files; name 1 to {_MOST_FILES}", field="filenameToSize")
    negative = [name for name, size in sizes.items() if size < 0]
    if negative:
        raise invalid(f"filenameToSize[{negative[0]!r}]: a size in bytes is not negative", field="filenameToSize")
    with call.gateway.store.transaction() as transaction:
        found = transaction.get(resource.name)
        must_be_uploading(found)
        declared = {**found.private.get("declared", {}), **sizes}
        came = found.private.get("files", {})
        files = {name: entry for name, entry in came.items() if name not in sizes}
        had = {**found.private.get("had", {}), **{name: entry for name, entry in came.items() if name in sizes}}
        transaction.save(found.changed(private={"declared": declared, "files": files, "had": had}))
    files_store, method = call.gateway.files, "POST" if call.body.get("enableResumableUpload") else "PUT"
    return {
        name: files_store.url(method, resource.name, name, base_url=call.base_url, size=size)
        for name, size in sizes.items()
    }


def place(
    gateway: Gateway, name: str, filename: str, *, incoming: Incoming, declare_too: bool = False, session: str = ""
) -> Resource:
    """Put what has come in its place as `filename` of resource `name`, and note it: both, while it is UPLOADING."""
    incoming.finish()
    with gateway.store.transaction() as transaction:
        found = transaction.get(name)
        if declare_too:
            must_be_uploading(found)
        else:
            must_be_awaited(found, filename, incoming.size)
        entry = {"size": incoming.size, "sha256": incoming.sha256, **({"session": session} if session else {})}
        files = {**found.private.get("files", {}), filename: entry}
        declared = {**found.private.get("declared", {}), **({filename: incoming.size} if declare_too else {})}
        incoming.place()
        return transaction.save(found.changed(private={"files": files, "declared": declared}))


def insert_ready(gateway: Gateway, new: Resource, filename: str, *, incoming: Incoming) -> Resource:
    """Add the READY record `new` with its one file, which has been checked: both or, whenever this process ends,
    neither. Raises ALREADY_EXISTS."""
    incoming.finish()
    entry = {"size": incoming.size, "sha256": incoming.sha256}
    private = {"files": {filename: entry}, "declared": {filename: incoming.size}}
    with gateway.store.transaction() as transaction:
        _note(transaction, new.name)
    try:
        with gateway.store.transaction() as transaction:
            made = transaction.insert(new.changed({"state": READY}, private))
            incoming.place()
            _done_with(transaction, new.name)
            return made
    except BaseException:
        remove(gateway, new.name)
        raise


def condemn(transaction: Transaction, name: str) -> None:
    """Delete the record `name` and those below it, and note that its files are to go: `remove` does that, or, where
    this process ends before, `finish_removals` of the next."""
    transaction.delete(name)
    _note(transaction, name)


def _note(transaction: Transaction, name: str) -> None:
    bare = secrets.token_hex(8)
    transaction.insert(
        Resource(name=f"{_REMOVALS}/{bare}", collection=_REMOVALS, parent="", id=bare, body={"resource": name})
    )


def remove(gateway: Gateway, name: str) -> None:
    """Delete the files of a record that is gone; those of a new one of that name stay.

    Where that cannot be done now, the note stays, and `finish_removals` tries again: the record is deleted either way.
    """
    try:
        _remove(gateway, name)
    except (GatewayError, OSError) as error:
        _log.warning("%s is deleted, and its files cannot be now; they will be later: %s", name, error)


def finish_removals(gateway: Gateway) -> None:
    """Delete the files of records whose deletion a process could not, or did not live to, finish."""
    for name in sorted({note.body["resource"] for note in gateway.store.every(_REMOVALS)}):
        remove(gateway, name)


def _remove(gateway: Gateway, name: str) -> None:
    more = True
    while more:
        with gateway.store.transaction() as transaction:  # no file takes its place meanwhile; others come in between
            found = transaction.find(name)
            if found is not None and found.body.get("state") == UPLOADING:
                return  # what it is about to have, nobody knows; the note stays until it is READY
            more = found is None and gateway.files.take_away(name)
            if found is not None and found.body.get("state") == READY and not found.private.get("prepared"):
                for left in set(gateway.files.names(name)) - set(found.private.get("files", {})):
                    gateway.files.discard(name, left)
            if not more:
                _done_with(transaction, name)
    gateway.files.sweep()


def _done_with(transaction: Transaction, name: str) -> None:
    for note in transaction.every(_REMOVALS, body_value(["resource"]).as_string() == name):
        transaction.delete(note.name)


def has(gateway: Gateway, name: str, filename: str, *, size: int | None, digest: str) -> bool:
    """True when the file has come whole, with that digest: it counts as sent then, whoever has sent it, and when."""
    place = gateway.files.path(name, filename)  # outside the transaction: it may have to be fetched
    with gateway.store.transaction() as transaction:
        found = transaction.get(name)
        files = found.private.get("files", {})
        entry = files.get(filename) or found.private.get("had", {}).get(filename)
        if not entry or content_digest(entry["sha256"]) != digest or size not in (None, entry["size"]):
            return False
        if not place.is_file() or place.stat().st_size != entry["size"]:
            return False
        if filename not in files:
            must_be_uploading(found)
            transaction.save(found.changed(private={"files": {**files, filename: entry}}))
        return True


def ended(gateway: Gateway, name: str, filename: str, session: str) -> bool:
    """True when the session has brought the file whole."""
    entry = gateway.store.get(name).private.get("files", {}).get(filename, {})
    return bool(session) and entry.get("session") == session


def complete(gateway: Gateway, resource: Resource) -> dict[str, Path]:
    """The declared files, all there (name -> place). Raises FAILED_PRECONDITION naming what is missing."""
    declared, files = resource.private.get("declared", {}), resource.private.get("files", {})
    if not declared:
        raise precondition(
            f"{resource.name}: no files were uploaded; ask :getUploadEndpoint for URLs and PUT them", name=resource.name
        )
    places = {name: gateway.files.path(resource.name, name) for name in sorted(declared)}
    missing = [
        name
        for name, size in declared.items()
        if name not in files or not places[name].is_file() or places[name].stat().st_size != int(size)
    ]
    if missing:
        raise precondition(
            f"{resource.name}: {', '.join(sorted(missing)[:5])} of {len(declared)} declared files "
            "did not arrive whole; PUT them to the URLs of :getUploadEndpoint",
            name=resource.name, missing=",".join(sorted(missing)[:20]),
        )  # fmt: skip
    return places


def finish(gateway: Gateway, checked: Resource, body: dict[str, Any]) -> Resource:
    """READY, with `body` merged in. Raises ABORTED when the files changed while they were checked."""
    with gateway.store.transaction() as transaction:
        return transaction.save(checked.changed({**body, "state": READY}))


def download_urls(call: Call, resource: Resource) -> dict[str, Any]:
    """Signed GET URLs for the files of a READY resource."""
    if resource.body.get("state") != READY:
        raise precondition(f"{resource.name}: not READY, its files cannot be downloaded yet", name=resource.name)
    store = call.gateway.files
    names = resource.private.get("files", {})
    return {"filenameToSignedUrls": {n: store.url("GET", resource.name, n, base_url=call.base_url) for n in names}}


def must_be_awaited(resource: Resource, filename: str, size: int | None) -> None:
    """Raises FAILED_PRECONDITION when the file is final, or is not declared with that size (any more)."""
    must_be_uploading(resource)
    declared = resource.private.get("declared", {}).get(filename)
    if declared is None or int(declared) != size:
        raise precondition(
            f"{resource.name}: {filename} is not awaited with {size} bytes; ask :getUploadEndpoint for a new URL",
            name=resource.name,
        )


def must_be_uploading(resource: Resource) -> None:
    """Raises FAILED_PRECONDITION when the resource's files are final."""
    if resource.body.get("state") != UPLOADING:
        raise precondition(
            f"{resource.name} is {resource.body.get('state')}: its files are final; "
            "create another one, or delete this one first",
            name=resource.name,
        )
