"""datasets: rows to train on. Created UPLOADING; READY once every file has come and every row has been read."""

from __future__ import annotations

import time
from typing import Any

from trainer.gateway import dataset_rows, file_names, job_families, uploads
from trainer.gateway.errors import GatewayError, invalid, precondition
from trainer.gateway.gateway import Call
from trainer.gateway.resources import derived_datasets, external_rows
from trainer.gateway.standard import Family, new_resource
from trainer.gateway.store import Resource

_KINDS = ("userUploaded", "evaluationResult", "transformed", "splitted", "evalProtocol")


def _may_delete(call: Call, resource: Resource) -> None:
    with call.gateway.store.transaction() as transaction:
        jobs = job_families.using(transaction, resource.name)
    if jobs:
        raise precondition(f"{resource.name} is used by {jobs[0]}, which has not ended; cancel or delete that first")


def _check_patch(call: Call) -> None:
    if url := call.body.get("externalUrl"):
        external_rows.check(call.gateway, url, what="externalUrl")


def _may_change(old: Resource, new: Resource) -> None:
    """What a create refuses is refused here too, and rows that are here do not come from elsewhere later."""
    if new.body.get("externalUrl") != old.body.get("externalUrl"):
        uploads.must_be_uploading(old)
    _check_kinds(new.body, "")


FAMILY = Family(
    collection="datasets",
    schema="gatewayDataset",
    param="dataset_id",
    may_delete=_may_delete,
    check_patch=_check_patch,
    may_change=_may_change,
    immutable=frozenset({"exampleCount", "format"}),
)


def create(call: Call) -> dict[str, Any]:
    """POST {"dataset": {...}, "datasetId": "..."}."""
    body = call.body
    if url := body["dataset"].get("externalUrl"):
        external_rows.check(call.gateway, url)
    _check_kinds(body["dataset"], "dataset.")
    if body.get("filter") and not body.get("sourceDatasetId"):
        raise invalid("filter: filters the rows of sourceDatasetId, which is missing", field="filter")
    wanted = _new_body(body["dataset"])
    new = new_resource(FAMILY, call, given_id=body["datasetId"], what="datasetId", body=wanted)
    new = new.changed({"createdBy": call.principal.email or call.gateway.options.email})
    if body.get("sourceDatasetId"):
        return derived_datasets.transform(call, new).shown()
    with call.gateway.store.transaction() as transaction:
        return transaction.insert(new).shown()


def split(call: Call) -> dict[str, Any]:
    """POST :splitDataset."""
    return derived_datasets.split(call, FAMILY.load(call))


def get_upload_endpoint(call: Call) -> dict[str, Any]:
    """Signed PUT URLs for the declared files."""
    return {"filenameToSignedUrls": file_names.declared(call, FAMILY.load(call))}


def validate_upload(call: Call) -> dict[str, Any]:
    """Read every row; READY when all is well. Repeating it on a READY data set does nothing.

    Rows at an externalUrl are fetched first, unless files have been declared.
    """
    resource = FAMILY.load(call)
    if resource.body.get("state") == uploads.READY:
        return {}
    if not resource.body.get("externalUrl") or resource.private.get("declared"):
        _check(call, resource)
        return {}
    resource = external_rows.fetch(call.gateway, resource)
    try:
        _check(call, resource)
    except GatewayError:
        _forget(call, resource.name, external_rows.NAME)
        raise
    return {}


def upload(call: Call) -> dict[str, Any]:
    """Multipart upload of one file (below 150 MB), checked at once."""
    resource, sent = FAMILY.load(call), call.upload
    if sent is None:
        raise invalid("file: the multipart form has no field 'file' with a file in it", field="file")
    uploads.must_be_uploading(resource)
    filename = file_names.kept(sent.filename)
    files = call.gateway.files
    with files.incoming(resource.name, filename, size=None) as incoming:
        while chunk := sent.stream.read(1 << 20):
            incoming.write(chunk)
        recorded = uploads.place(call.gateway, resource.name, filename, incoming=incoming, declare_too=True)
    try:
        _check(call, recorded)
    except GatewayError:
        _forget(call, resource.name, filename)
        raise
    return {
        "id": resource.id, "object": "file", "bytes": incoming.size, "created_at": int(time.time()),
        "filename": sent.filename, "purpose": "fine-tune",
    }  # fmt: skip


def get_download_endpoint(call: Call) -> dict[str, Any]:
    """Signed GET URLs for the files; with downloadLineage for those of all that the data set came from too."""
    resource = FAMILY.load(call)
    found = (derived_datasets.lineage if call.query.get("downloadLineage") else uploads.download_urls)(call, resource)
    return {"filenameToSignedUrls": file_names.given(found["filenameToSignedUrls"])}


def _check_kinds(given: dict[str, Any], where: str) -> None:
    """A data set comes from one source. Raises INVALID_ARGUMENT."""
    kinds = [kind for kind in _KINDS if given.get(kind) is not None]
    if len(kinds) > 1:
        raise invalid(
            f"{where}{kinds[1]}: excludes {where}{kinds[0]}; give one of {', '.join(_KINDS)}",
            field=f"{where}{kinds[1]}",
        )


def _new_body(given: dict[str, Any]) -> dict[str, Any]:
    if not any(given.get(kind) is not None for kind in _KINDS):
        given = {"userUploaded": {}, **given}
    return {
        "format": "FORMAT_UNSPECIFIED",
        **given,
        "state": uploads.UPLOADING,
        "status": {"code": "OK", "message": ""},
    }


def _check(call: Call, resource: Resource) -> None:
    places = uploads.complete(call.gateway, resource)
    declared = resource.body.get("format")
    rows = dataset_rows.check(places.values(), declared=None if declared == "FORMAT_UNSPECIFIED" else declared)
    uploads.finish(call.gateway, resource.changed(private={"rows": rows.format}), rows.body())


def _forget(call: Call, name: str, filename: str) -> None:
    """A refused file is as if it had never come, so that a mended one can follow under any name."""
    with call.gateway.store.transaction() as transaction:
        found = transaction.find(name)
        if found is None:  # deleted meanwhile: nothing to keep
            call.gateway.files.remove(name)
            return
        if found.body.get("state") != uploads.UPLOADING:  # another upload won: its files stand
            return
        declared, files = dict(found.private.get("declared", {})), dict(found.private.get("files", {}))
        declared.pop(filename, None)
        files.pop(filename, None)
        transaction.save(found.changed(private={"declared": declared, "files": files}))
        call.gateway.files.discard(name, filename)
