"""What models have beside the methods of all: imports, other precisions, versions, checks of configurations.

An import brings files from the hub page that the model's `huggingFaceUrl` names, or from the bucket in the request, and
then does what an upload's validation does. It is a long-running operation; the model is READY when that is done.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from trainer.gateway import buckets, hub, uploads, weights
from trainer.gateway.bucket_credentials import credentials_of, sas_token
from trainer.gateway.errors import GatewayError, invalid, precondition
from trainer.gateway.gateway import Call, Gateway, checked_id, full_name
from trainer.gateway.model_checks import check_config
from trainer.gateway.operations import Running
from trainer.gateway.resources import models
from trainer.gateway.resources.secrets import value_of
from trainer.gateway.store import Resource, resources

_MODEL_TYPE = "type.googleapis.com/gateway.Model"
_METADATA_TYPE = "type.googleapis.com/gateway.ImportModelMetadata"
_LARGEST_FILE, _MOST_FILES = 1 << 40, 1000
_VERSIONS = "modelVersions"
_UNCONVERTED = "PRECISION_UNSPECIFIED"


def import_model(call: Call) -> dict[str, Any]:
    """POST :import: an operation that ends with the READY model."""
    resource = models.FAMILY.load(call)
    uploads.must_be_uploading(resource)
    source = _source(call, resource)
    metadata = {"@type": _METADATA_TYPE, "model": resource.name, "source": source["shown"], "statusMessage": "begun"}
    return call.gateway.operations.start(
        call, metadata, lambda running: _imported(call, resource.name, source, running), exclusive=resource.name
    )


def prepare(call: Call) -> dict[str, Any]:
    """POST :prepare: the weights in another precision, kept beside the model's own."""
    resource, wanted = models.FAMILY.load(call), call.body.get("precision", _UNCONVERTED)
    if resource.body.get("state") != uploads.READY:
        raise precondition(f"{resource.name}: not READY; finish its upload first", name=resource.name)
    from trainer.gateway import precision  # noqa: PLC0415  (numpy, only where it is needed)

    if wanted not in precision.DTYPES:
        raise GatewayError(
            "UNIMPLEMENTED" if wanted != _UNCONVERTED else "INVALID_ARGUMENT",
            f"precision: got {wanted}; this gateway converts to {' and '.join(precision.DTYPES)}",
            metadata={"field": "precision"},
        )
    if resource.body.get("kind") != "HF_BASE_MODEL":
        raise precondition(f"{resource.name}: of kind {resource.body.get('kind')}; only base models are converted")
    if wanted in resource.private.get("prepared", {}):
        return {}
    folder = call.gateway.files.folder(resource.name)
    target = prepared_name(resource.name, wanted)
    made: list[str] = []
    with tempfile.TemporaryDirectory(dir=call.gateway.folder) as temporary:
        for filename in sorted(resource.private.get("files", {})):
            place = folder / filename
            if filename.endswith(".safetensors"):
                place = Path(temporary) / Path(filename).name
                precision.convert(folder / filename, place, precision=wanted)
            elif filename == "config.json":
                place = _config_of(folder / filename, Path(temporary), wanted)
            call.gateway.files.adopt(target, filename, place, link=place.parent == Path(temporary))
            made.append(filename)
    with call.gateway.store.transaction() as transaction:
        found = transaction.get(resource.name)
        transaction.save(found.changed(private={"prepared": {**found.private.get("prepared", {}), wanted: made}}))
    return {}


def prepared_name(model: str, wanted: str) -> str:
    """Where the files of a model in another precision lie."""
    return f"{model}/precisions/{wanted.lower()}"


def create_version(call: Call) -> dict[str, Any]:
    """POST of a version: the model as it is now, which its further changes leave alone."""
    resource = models.FAMILY.load(call)
    with call.gateway.store.transaction() as transaction:
        number = len(transaction.every(_VERSIONS, resources.c.parent == resource.name)) + 1
        given = call.query.get("versionId")
        bare = checked_id(given, what="versionId") if given else f"v{number}"
        snapshot = models.present(call, resource)
        new = Resource(
            name=f"{resource.name}/versions/{bare}", collection=_VERSIONS, parent=resource.name, id=bare,
            body={"snapshot": snapshot},
        )  # fmt: skip
        made = transaction.insert(new)
    return {"name": made.name, "createTime": made.create_time, "snapshot": snapshot}


def count_versions(call: Call) -> dict[str, Any]:
    """GET versions:count."""
    resource = models.FAMILY.load(call)
    return {"count": len(call.gateway.store.every(_VERSIONS, resources.c.parent == resource.name))}


def validate_config(call: Call) -> dict[str, Any]:
    """POST /v1/validateModelConfig. Raises INVALID_ARGUMENT naming what is wrong."""
    check_config(_document(call, "configJson"), _document(call, "tokenizerConfigJson"))
    return {}


def _document(call: Call, field: str) -> dict[str, Any]:
    text = call.body.get(field, "")
    if not text and field != "configJson":
        return {}
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise invalid(f"{field}: not JSON ({type(error).__name__})", field=field) from error
    if not isinstance(found, dict):
        raise invalid(f"{field}: got {type(found).__name__}; expected a JSON object", field=field)
    return found


def _source(call: Call, resource: Resource) -> dict[str, Any]:
    """Where to import from: `shown` may be told to anybody."""
    s3, azure = call.body.get("awsS3Source"), call.body.get("azureBlobSource")
    if s3 and azure:
        raise invalid("awsS3Source and azureBlobSource exclude each other; give one")
    if s3:
        return _of_s3(s3)
    if azure:
        return _of_azure(call, azure)
    url = resource.body.get("huggingFaceUrl", "")
    if not url:
        raise invalid(
            "awsS3Source: give it, or azureBlobSource, or create the model with the huggingFaceUrl to import from",
            field="awsS3Source",
        )
    hub.locate(url)
    token = call.gateway.store.find(f"{resource.parent}/secrets/hf-token")
    return {
        "shown": url, "hub": url,
        "token": value_of(call.gateway, token.name, parent=resource.parent) if token is not None else None,
    }  # fmt: skip


def _of_s3(given: dict[str, Any]) -> dict[str, Any]:
    if given.get("roleArn"):
        raise GatewayError("UNIMPLEMENTED", "awsS3Source.roleArn: roles are not assumed here; give an access key")
    url = f"s3://{given['s3Bucket']}/{given.get('s3Path', '').strip('/')}"
    buckets.locate(url)
    keys = {"aws_access_key_id": given.get("accessKeyId", ""), "aws_secret_access_key": given.get("accessSecret", "")}
    if any(keys.values()) and not all(keys.values()):
        raise invalid("awsS3Source: accessKeyId and accessSecret belong together; give both", field="awsS3Source")
    credentials = (
        credentials_of(json.dumps(keys).encode(), buckets.S3, what="awsS3Source") if all(keys.values()) else None
    )
    return {"shown": url, "bucket": url, "credentials": credentials}


def _of_azure(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    if given.get("clientId") or given.get("tenantId"):
        raise GatewayError("UNIMPLEMENTED", "azureBlobSource.clientId: identities are not federated here; give a SAS")
    url = f"az://{given['container']}@{given['storageAccount']}/{given.get('path', '').strip('/')}"
    buckets.locate(url)
    if not (given_name := given.get("sasTokenSecret", "")):
        return {"shown": url, "bucket": url, "credentials": None}
    what = "azureBlobSource.sasTokenSecret"
    name = full_name(given_name, collection="secrets", what=what, account=call.parent())
    credentials = sas_token(value_of(call.gateway, name, parent=call.parent()), what=f"{what}: {name}")
    return {"shown": url, "bucket": url, "credentials": credentials}


def _imported(call: Call, name: str, source: dict[str, Any], running: Running) -> dict[str, Any]:
    gateway = call.gateway
    with tempfile.TemporaryDirectory(dir=gateway.folder) as temporary:
        folder = Path(temporary)

        def tell(done: int, count: int) -> None:
            running.tell(statusMessage=f"{done} of {count} files")

        if "hub" in source:
            hub.fetch(source["hub"], folder, token=source["token"], tell=tell)
            shutil.rmtree(folder / ".cache", ignore_errors=True)
        else:
            _from_bucket(source, folder, running)
        _adopt(gateway, name, folder, imported_from=source["shown"])
    return {"@type": _MODEL_TYPE, **models.present(call, gateway.store.get(name))}


def _from_bucket(source: dict[str, Any], folder: Path, running: Running) -> None:
    bucket = buckets.open_bucket(source["bucket"], source["credentials"])
    entries = [one for one in bucket.entries() if Path(one.key).suffix.lower() not in weights.PICKLES]
    if not entries:
        raise precondition(f"{source['shown']}: holds no files that can be taken (pickled weights are not)")
    if len(entries) > _MOST_FILES:
        raise precondition(f"{source['shown']}: holds {len(entries)} files; at most {_MOST_FILES} are taken")
    for done, entry in enumerate(entries):
        running.tell(statusMessage=f"{done} of {len(entries)} files")
        place = folder / entry.key
        if not place.resolve().is_relative_to(folder.resolve()):
            raise invalid(f"{source['shown']}: a key leads out of the folder")
        place.parent.mkdir(parents=True, exist_ok=True)
        bucket.get(entry.key, place, largest=_LARGEST_FILE)


def _adopt(gateway: Gateway, name: str, folder: Path, *, imported_from: str) -> None:
    """Make the files of `folder` those of the model, and check them as an upload's."""
    places = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
    resource = gateway.store.get(name)
    weights.check_model(places, kind=resource.body["kind"])
    taken = {
        filename: {"sha256": gateway.files.adopt(name, filename, path), "size": path.stat().st_size}
        for filename, path in places.items()
    }
    with gateway.store.transaction() as transaction:
        found = transaction.get(name)
        uploads.must_be_uploading(found)
        sizes = {filename: entry["size"] for filename, entry in taken.items()}
        recorded = transaction.save(found.changed({"importedFrom": imported_from}, {"files": taken, "declared": sizes}))
    models.finish(gateway, recorded, uploads.complete(gateway, recorded))


def _config_of(path: Path, folder: Path, wanted: str) -> Path:
    """A copy of config.json that says which precision the weights are in."""
    config = json.loads(path.read_bytes())
    dtype = {"FP16": "float16", "BF16": "bfloat16"}[wanted]
    config |= {key: dtype for key in ("torch_dtype", "dtype") if key in config} or {"torch_dtype": dtype}
    place = folder / "config.json"
    place.write_text(json.dumps(config, indent=2), encoding="utf-8")
    return place
