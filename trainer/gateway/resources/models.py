"""models: base models and adapters. READY once every file has come, and none is pickled, torn or missing.

Adapters get their `peftDetails`, base models their `baseModelDetails`, from the files where the client left them out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trainer.gateway import base_models, job_families, model_checks, tunability, uploads, weights
from trainer.gateway.errors import GatewayError, invalid, precondition
from trainer.gateway.gateway import ACCOUNT, Call, Gateway
from trainer.gateway.standard import Family, list_all, new_resource
from trainer.gateway.store import Resource
from trainer.runs import shipped

TINY = f"{ACCOUNT}/models/tiny"
_OK = {"code": "OK", "message": ""}


def _may_delete(call: Call, resource: Resource) -> None:
    with call.gateway.store.transaction() as transaction:
        jobs = job_families.using(transaction, resource.name)
    if jobs:
        raise precondition(f"{resource.name} is used by {jobs[0]}, which has not ended; cancel or delete that first")
    if resource.name == TINY:
        raise precondition(f"{TINY} ships with the trainer and comes back at every start; it cannot be deleted")


def present(call: Call, model: Resource) -> dict[str, Any]:
    """The model as an answer shows it: what this machine can train of it is found anew each time."""
    base = None
    if name := (model.body.get("peftDetails") or {}).get("baseModel"):
        base = base_models.body_of(call.gateway, name, parent=model.parent)
    return {**model.shown(), **tunability.flags(model.body, base)}


FAMILY = Family(
    collection="models",
    schema="gatewayModel",
    param="model_id",
    present=present,
    may_delete=_may_delete,
    immutable=frozenset({"kind", "peftDetails", "baseModelDetails"}),
)


def get(call: Call) -> dict[str, Any]:
    """GET of a model of the caller's, or of one that is known by name."""
    name = f"{base_models.readable(call)}/models/{call.params['model_id']}"
    return FAMILY.answer(call, call.gateway.store.get(name, base_models.way_out(name)))


list_models = list_all(FAMILY, parent=base_models.readable)


def create(call: Call) -> dict[str, Any]:
    """POST {"modelId": "...", "model": {...}}."""
    if call.body.get("cluster"):
        raise GatewayError("UNIMPLEMENTED", "cluster: models live in this gateway's folder; leave it out")
    given = call.body.get("model", {})
    kind = given.get("kind", "KIND_UNSPECIFIED")
    kind = "HF_PEFT_ADDON" if kind == "KIND_UNSPECIFIED" else kind
    if kind != "HF_BASE_MODEL" and given.get("baseModelDetails"):
        raise invalid(
            f"model.baseModelDetails: only for kind HF_BASE_MODEL, this is {kind}", field="model.baseModelDetails"
        )
    body = {**given, "kind": kind, "state": uploads.UPLOADING, "status": _OK}
    new = new_resource(FAMILY, call, given_id=call.body["modelId"], what="modelId", body=body)
    with call.gateway.store.transaction() as transaction:
        return present(call, transaction.insert(new))


def get_upload_endpoint(call: Call) -> dict[str, Any]:
    """Signed PUT URLs for the declared files."""
    for name in call.body["filenameToSize"]:
        if Path(name).suffix.lower() in weights.PICKLES:
            raise invalid(f"{name}: pickled weights can run code when they are loaded; save them as .safetensors")
    return {"filenameToSignedUrls": uploads.declare(call, FAMILY.load(call))}


def validate_upload(call: Call) -> dict[str, Any]:
    """Check the files; READY when all is well. Repeating it on a READY model does nothing.

    configOnly checks the configuration and leaves the state as it is.
    """
    resource = FAMILY.load(call)
    if resource.body.get("state") == uploads.READY:
        return {"warnings": []}
    if call.query.get("configOnly"):
        return _check_config(call, resource)
    places = uploads.complete(call.gateway, resource)
    finish(call.gateway, resource, places)
    return {"warnings": [*model_checks_of(call.gateway, resource, places), *_warnings(places)]}


def get_download_endpoint(call: Call) -> dict[str, Any]:
    """Signed GET URLs for the files."""
    return uploads.download_urls(call, FAMILY.load(call))


def register(
    gateway: Gateway, name: str, folder: Path, *, body: dict[str, Any], job: str = "", link: bool = True
) -> Resource:
    """Make the files of `folder` (hard-linked where possible) the READY model `name`, as `job`'s result.

    A model of the same job is replaced. Raises ALREADY_EXISTS for another's, INVALID_ARGUMENT for unfit files.
    """
    files = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
    files = {file: path for file, path in files.items() if not any(part.startswith(".") for part in Path(file).parts)}
    weights.check_model(files, kind=body["kind"])
    with gateway.store.transaction() as transaction:
        if (old := transaction.find(name)) is not None:
            if not job or old.body.get("fineTuningJob") != job:
                raise GatewayError(
                    "ALREADY_EXISTS", f"{name} already exists; choose another outputModel, or delete it first",
                    metadata={"name": name}, retry=False,
                )  # fmt: skip
            transaction.delete(name)
        new = transaction.insert(
            Resource(
                name=name, collection="models", parent=name.rpartition("/models/")[0], id=name.rsplit("/", 1)[-1],
                body={**body, **({"fineTuningJob": job} if job else {}), "state": uploads.UPLOADING, "status": _OK},
            )
        )  # fmt: skip
    gateway.files.remove(name)
    taken = {
        file: {"sha256": gateway.files.adopt(name, file, path, link=link), "size": path.stat().st_size}
        for file, path in files.items()
    }
    sizes = {file: entry["size"] for file, entry in taken.items()}
    with gateway.store.transaction() as transaction:
        recorded = transaction.save(new.changed(private={"files": taken, "declared": sizes}))
        return finish(gateway, recorded, uploads.complete(gateway, recorded))


def ensure_tiny(gateway: Gateway) -> None:
    """Register the base models that are known by name, and the tiny one that ships with the package, where it ships."""
    base_models.ensure(gateway)
    try:
        folder = shipped("models/tiny")
    except FileNotFoundError:  # an installation without it: the gateway works, one base model poorer
        return
    stamp = {path.name: [path.stat().st_size, path.stat().st_mtime_ns] for path in folder.iterdir() if path.is_file()}
    if not any(name.endswith(".safetensors") for name in stamp):
        return
    with gateway.store.transaction() as transaction:
        old = transaction.find(TINY)
        if old is not None and old.private.get("shipped") == stamp:
            return
        if old is not None:
            transaction.delete(TINY)
        body = {
            "displayName": "tiny", "kind": "HF_BASE_MODEL", "supportsLora": True,
            "description": "A very small base model that ships with trainer, for trying things on a CPU.",
        }  # fmt: skip
        registered = register(gateway, TINY, folder, body=body, link=False)
        transaction.save(registered.changed(private={"shipped": stamp}))


def model_checks_of(gateway: Gateway, resource: Resource, places: dict[str, Path]) -> list[str]:
    """Check that the files fit together; returns warnings. Raises INVALID_ARGUMENT naming the tensor."""
    kind = resource.body["kind"]
    weights.check_model(places, kind=kind)
    if kind not in weights.ADDON_KINDS:
        return model_checks.check_base(places)
    given = (resource.body.get("peftDetails") or {}).get("baseModel", "")
    name = given or str(weights.read_json(places, "adapter_config.json").get("base_model_name_or_path"))
    base = gateway.store.find(name) if name.startswith(f"{resource.parent}/models/") else None
    here = base is not None and base.body.get("state") == uploads.READY
    return model_checks.check_adapter(places, uploads.complete(gateway, base) if base is not None and here else None)


def finish(gateway: Gateway, resource: Resource, places: dict[str, Path]) -> Resource:
    """READY, with what the files tell. Raises INVALID_ARGUMENT for files that do not fit together."""
    kind = resource.body["kind"]
    model_checks_of(gateway, resource, places)
    found: dict[str, Any] = {}
    if kind in weights.ADDON_KINDS:
        given = resource.body.get("peftDetails", {})
        base = given.get("baseModel") or str(
            weights.read_json(places, "adapter_config.json").get("base_model_name_or_path")
        )
        found["peftDetails"] = {**weights.peft_details(places, base_model=base), **given}
    else:
        found["baseModelDetails"] = {**weights.base_model_details(places), **resource.body.get("baseModelDetails", {})}
        found["contextLength"] = resource.body.get("contextLength") or weights.context_length(places)
    return uploads.finish(gateway, resource, found)


def _check_config(call: Call, resource: Resource) -> dict[str, Any]:
    config = "adapter_config.json" if resource.body["kind"] in weights.ADDON_KINDS else "config.json"
    path = call.gateway.files.path(resource.name, config)
    if config not in resource.private.get("files", {}):
        raise precondition(f"{resource.name}: {config} has not been uploaded", name=resource.name)
    weights.read_json({config: path}, config)
    return {"warnings": []}


def _warnings(places: dict[str, Path]) -> list[str]:
    return [f"{name}: Python files are kept and never run here" for name in places if name.endswith(".py")]
