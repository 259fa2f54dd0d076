"""Data sets made of others: filtered copies, chunks, and the chain that leads back to what was uploaded.

A filter is the gateway's own (AIP-160), on the fields of each row. What is derived is a data set like any other, whole
and READY, that says what it came from; the source may be deleted afterwards.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from trainer.gateway import dataset_rows, uploads
from trainer.gateway.errors import GatewayError, invalid, precondition
from trainer.gateway.filter_json import meets
from trainer.gateway.filters import parse
from trainer.gateway.gateway import Call, checked_id, full_name
from trainer.gateway.store import Resource

_SMALLEST_CHUNK, _MOST_CHUNKS = 200, 1000
_LONGEST_CHAIN = 100


def transform(call: Call, new: Resource) -> Resource:
    """`new`, filled with the rows of the body's sourceDatasetId that meet its filter."""
    source, text = _source(call, call.body["sourceDatasetId"]), call.body.get("filter", "")
    tree = parse(text)
    body = {
        "transformed": {
            "sourceDatasetId": source.name, "filter": text,
            "originalFormat": source.body.get("format", "FORMAT_UNSPECIFIED"),
        },
        "userUploaded": None, "splitted": None,
    }  # fmt: skip
    rows = (row for row in _rows(call, source) if tree is None or meets(row, tree))
    return _filled(call, new.changed(body), rows, empty=f"filter: no row of {source.name} meets {text!r}")


def split(call: Call, source: Resource) -> dict[str, Any]:
    """POST :splitDataset: data sets `<id>-chunk-<n>` of `chunkSize` rows, the last of what is left."""
    _must_be_ready(source)
    size = call.body.get("chunkSize", 0)
    if size < _SMALLEST_CHUNK:
        raise invalid(f"chunkSize: got {size}; expected {_SMALLEST_CHUNK} rows or more", field="chunkSize")
    total = int(source.body["exampleCount"])
    count = -(-total // size)
    if count > _MOST_CHUNKS:
        raise invalid(
            f"chunkSize: {total} rows make {count} chunks of {size}; at most {_MOST_CHUNKS} are made, so take larger "
            "ones",
            field="chunkSize",
        )
    ids = [checked_id(f"{source.id}-chunk-{number}", what="chunk id") for number in range(count)]
    names = [f"{source.parent}/datasets/{one}" for one in ids]
    there = [call.gateway.store.find(name) for name in names]
    sizes = [min(size, total - start) for start in range(0, total, size)]
    made = [one is not None and _is_chunk(one, source, rows) for one, rows in zip(there, sizes, strict=True)]
    if all(made) or any(one is not None and not ours for one, ours in zip(there, made, strict=True)):
        raise _taken(next(name for name, one in zip(names, there, strict=True) if one is not None))
    rows = _rows(call, source)
    for name, bare, ready in zip(names, ids, made, strict=True):
        if ready:  # by a request that its process did not live to finish: this one goes on with it
            for _ in _first(rows, size):
                pass
            continue
        body = {
            "displayName": bare, "splitted": {"sourceDatasetId": source.name}, "state": uploads.UPLOADING,
            "status": {"code": "OK", "message": ""}, "createdBy": call.principal.email,
        }  # fmt: skip
        private = {"owner": call.principal.user}
        new = Resource(name=name, collection="datasets", parent=source.parent, id=bare, body=body, private=private)
        _filled(call, new, _first(rows, size), empty="no rows")
    return {"chunkDatasetNames": names, "chunksCreated": count, "totalExamples": str(total)}


def _is_chunk(found: Resource, source: Resource, rows: int) -> bool:
    """Whether it is a chunk of the source with so many rows."""
    same = (found.body.get("splitted") or {}).get("sourceDatasetId") == source.name
    return same and found.body.get("state") == uploads.READY and int(found.body["exampleCount"]) == rows


def lineage(call: Call, resource: Resource) -> dict[str, Any]:
    """Signed URLs of the data set's files and of those of all that it came from, each below its id."""
    found: dict[str, str] = {}
    seen: set[str] = set()
    waiting = [resource]
    while waiting and len(seen) < _LONGEST_CHAIN:
        one = waiting.pop()
        if one.name in seen or one.body.get("state") != uploads.READY:
            continue
        seen.add(one.name)
        urls = uploads.download_urls(call, one)["filenameToSignedUrls"]
        found |= {f"{one.id}/{filename}": url for filename, url in urls.items()}
        waiting += [parent for name in _parents(call, one) if (parent := call.gateway.store.find(name)) is not None]
    return {"filenameToSignedUrls": found}


def _parents(call: Call, dataset: Resource) -> Iterator[str]:
    """Names of what the data set was made of, within its account."""
    for kind in ("transformed", "splitted"):
        if given := (dataset.body.get(kind) or {}).get("sourceDatasetId"):
            yield f"{dataset.parent}/datasets/{given.rsplit('/', 1)[-1]}"
    if job_id := (dataset.body.get("evaluationResult") or {}).get("evaluationJobId"):
        job = call.gateway.store.find(f"{dataset.parent}/evaluationJobs/{job_id.rsplit('/', 1)[-1]}")
        given = job.body.get("inputDataset", "") if job is not None else ""
        if given.startswith(f"{dataset.parent}/"):
            yield given


def _source(call: Call, value: str) -> Resource:
    name = full_name(value, collection="datasets", what="sourceDatasetId")
    if not name.startswith(f"{call.parent()}/"):
        raise invalid(f"sourceDatasetId: {name} is not a data set of yours", field="sourceDatasetId")
    source = call.gateway.store.get(name, "sourceDatasetId must name a data set that is here")
    _must_be_ready(source)
    return source


def _must_be_ready(source: Resource) -> None:
    if source.body.get("state") != uploads.READY:
        raise precondition(f"{source.name}: not READY; finish its upload first", name=source.name)


def _rows(call: Call, source: Resource) -> Iterator[dict[str, Any]]:
    for filename in sorted(source.private.get("files", {})):
        for _, row in dataset_rows.read(call.gateway.files.path(source.name, filename)):
            yield row


def _first(rows: Iterator[dict[str, Any]], count: int) -> Iterator[dict[str, Any]]:
    for _, row in zip(range(count), rows, strict=False):
        yield row


def _filled(call: Call, new: Resource, rows: Iterable[dict[str, Any]], *, empty: str) -> Resource:
    """The record `new`, inserted READY with one file of `rows`; until it is whole it has never been."""
    gateway, filename = call.gateway, f"{new.id}.jsonl"
    if gateway.store.find(new.name) is not None:
        raise _taken(new.name)
    with gateway.files.incoming(new.name, filename, size=None) as incoming:
        for row in rows:
            incoming.write(json.dumps(row, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n")
        if not incoming.size:
            raise invalid(empty, field="filter")
        found = dataset_rows.check([incoming.path], declared=None)
        whole = new.changed(found.body(), {"rows": found.format})
        return uploads.insert_ready(gateway, whole, filename, incoming=incoming)


def _taken(name: str) -> GatewayError:
    return GatewayError(
        "ALREADY_EXISTS", f"{name} already exists; delete it first", metadata={"name": name}, retry=False
    )
