"""trainingShapes: what a trainer is launched with, in versions that never change.

A shape's own record is its newest version; a patch makes another, and only `validated` and `public` of a version can be
set. Names below `accounts/fireworks/` need not be made: there is a shape for each, with the limits of this machine. Its
name tells the rest: the base model is the one whose id is in it (else the tiny one), `lora`, `reference` and `forward`
choose the mode. Such a shape has one version; it is validated where the model can be trained here.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import trainer
from trainer.gateway import base_models, tunability
from trainer.gateway.errors import invalid, not_found, precondition
from trainer.gateway.gateway import Call, full_name
from trainer.gateway.resources import in_memory
from trainer.gateway.standard import Family, changes, list_all, new_resource, shown
from trainer.gateway.store import Resource, Transaction, resources

FAMILY = Family(collection="trainingShapes", schema="gatewayTrainingShape", param="training_shape_id")
_VERSION = re.compile(r"v([1-9]\d{0,8})")
_FIRST = "v1"
_OUTPUT = ("name", "createTime", "updateTime", "modelType", "parameterCount")


def _versions(collection: str) -> Family:
    return Family(collection=collection, schema="gatewayTrainingShapeVersion", param="version_id")


# The answer's key is the collection's name, which in a path is `versions` for several kinds of resource.
VERSIONS = _versions("trainingShapeVersions")


def create(call: Call) -> dict[str, Any]:
    """POST of a shape: its first version comes with it, not validated."""
    given = call.query.get("trainingShapeId")
    body = _checked(call, call.body)
    new = new_resource(FAMILY, call, given_id=given, what="trainingShapeId", body=body)
    with call.gateway.store.transaction() as transaction:
        made = transaction.insert(new)
        _add_version(transaction, made, 1)
    return made.shown()


def get(call: Call) -> dict[str, Any]:
    """GET of a shape, stored or synthesised."""
    return shown(call, FAMILY.schema, _load(call))


def list_shapes(call: Call) -> dict[str, Any]:
    """GET of an account's shapes; the public account has those of the models that are known by name."""
    if base_models.readable(_wild(call)) == base_models.ACCOUNT:
        shapes = [_synthesised(call, f"{base_models.ACCOUNT}/trainingShapes/{model}") for model in base_models.known()]
        return in_memory.page(
            shapes, call, schema=FAMILY.schema, key=lambda shape: shape["name"], name=FAMILY.collection
        )
    return list_all(FAMILY)(call)


def update(call: Call) -> dict[str, Any]:
    """PATCH of a shape: a new version."""
    with call.gateway.store.transaction() as transaction:
        old = transaction.get(FAMILY.name(call))
        kept = {key: value for key, value in old.body.items() if key not in _OUTPUT} | changes(FAMILY, call, old)
        body = _checked(call, {key: value for key, value in kept.items() if value is not None})
        new = transaction.save(replace(old, body=body))
        if body != old.body:
            number = max(int(version.id[1:]) for version in _own_versions(transaction, old.name)) + 1
            _add_version(transaction, new, number)
    return new.shown()


def delete(call: Call) -> dict[str, Any]:
    """DELETE of a shape and its versions."""
    with call.gateway.store.transaction() as transaction:
        found = transaction.get(FAMILY.name(call))
        transaction.delete(found.name)
    return {}


def list_versions(call: Call) -> dict[str, Any]:
    """GET of a shape's versions, newest last; `accounts/-/trainingShapes/-` has those of all shapes."""
    account, shape = call.params["account_id"], call.params["training_shape_id"]
    if shape == "-":
        return _all_versions(call)
    if f"accounts/{account}" == base_models.ACCOUNT:
        return _synthetic_page(call, [_version(_load(call))])
    call.gateway.store.get(FAMILY.name(call))
    return list_all(VERSIONS, parent=FAMILY.name)(call)


def get_version(call: Call) -> dict[str, Any]:
    """GET of one version; `latest` and `latestValidated` stand for whichever that is."""
    name, wanted = _name(call), call.params["version_id"]
    if name.startswith(f"{base_models.ACCOUNT}/"):
        version = _version(_load(call))
        if wanted not in (_FIRST, "latest") and not (wanted == "latestValidated" and version["validated"]):
            raise not_found(f"{name}/versions/{wanted}", f"it has {_FIRST}")
        return shown(call, VERSIONS.schema, version)
    return shown(call, VERSIONS.schema, _own_version(call, name, wanted).shown())


def update_version(call: Call) -> dict[str, Any]:
    """PATCH of a version's `validated` and `public`; the newest validated one becomes the latest validated."""
    name = FAMILY.name(call)
    with call.gateway.store.transaction() as transaction:
        found = _own_version(call, name, call.params["version_id"])
        transaction.save(found.changed(changes(VERSIONS, call, found)))
        versions = _own_versions(transaction, name)
        validated = [version for version in versions if version.body.get("validated")]
        for version in versions:
            is_latest = bool(validated) and version.name == validated[-1].name
            if bool(version.body.get("latestValidated")) != is_latest:
                transaction.save(version.changed({"latestValidated": is_latest}))
        return transaction.get(found.name).shown()


def _name(call: Call) -> str:
    return f"{base_models.readable(call)}/{FAMILY.collection}/{call.params[FAMILY.param]}"


def _wild(call: Call) -> Call:
    return replace(call, wildcards=True)


def _load(call: Call) -> dict[str, Any]:
    name = _name(call)
    if name.startswith(f"{base_models.ACCOUNT}/"):
        return _synthesised(call, name)
    return call.gateway.store.get(name).shown()


def _checked(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    if not given.get("baseModel"):
        raise invalid("baseModel: required, and missing", field="baseModel")
    name = full_name(given["baseModel"], collection="models", what="baseModel")
    base = base_models.body_of(call.gateway, name, parent=call.parent())
    if base is None:
        raise not_found(name, base_models.known_here(call.gateway, parent=call.parent()))
    for field, longest in (("displayName", 63), ("description", 999)):
        if len(given.get(field, "")) > longest:
            raise invalid(f"{field}: longer than {longest} characters", field=field)
    return {**given, "baseModel": name, **_of_model(base)}


def _of_model(base: dict[str, Any]) -> dict[str, Any]:
    details = base.get("baseModelDetails") or {}
    return {key: details[key] for key in ("modelType", "parameterCount") if details.get(key)}


def _add_version(transaction: Transaction, shape: Resource, number: int) -> None:
    body = {"snapshot": shape.shown(), "validated": False, "public": False, "latestValidated": False}
    transaction.insert(
        Resource(
            name=f"{shape.name}/versions/v{number}", collection=VERSIONS.collection, parent=shape.name,
            id=f"v{number}", body=body,
        )
    )  # fmt: skip


def _own_versions(transaction: Transaction, shape: str) -> list[Resource]:
    found = transaction.every(VERSIONS.collection, resources.c.parent == shape)
    return sorted(found, key=lambda version: int(version.id[1:]))


def _own_version(call: Call, shape: str, wanted: str) -> Resource:
    store = call.gateway.store
    store.get(shape)
    if wanted not in ("latest", "latestValidated"):
        return store.get(f"{shape}/versions/{wanted}")
    with store.transaction() as transaction:
        versions = _own_versions(transaction, shape)
    if wanted == "latestValidated":
        versions = [version for version in versions if version.body.get("latestValidated")]
    if not versions:
        raise precondition(f"{shape}: no version of it is validated; PATCH one with validated=true", name=shape)
    return versions[-1]


def _synthesised(call: Call, name: str) -> dict[str, Any]:
    """The shape that the public name `name` stands for on this machine."""
    shape_id = name.rsplit("/", 1)[-1]
    base_name, base = _base_of(call, shape_id)
    machine = tunability.here()
    size = tunability.parameters_of(base) or 0
    full = machine.fits(size, full=True) and "lora" not in shape_id
    mode = "POLICY_TRAINER" if full else "LORA_TRAINER"
    if re.search(r"forward|reference", shape_id):
        mode = "FORWARD_ONLY"
    longest = tunability.context(base, full=mode == "POLICY_TRAINER")
    made = base.get("createTime") or _since(call)
    return {
        "name": name, "displayName": shape_id[:63], "createTime": made, "updateTime": made,
        "description": f"The limits of this machine ({machine.device}) for {base_name}.", "baseModel": base_name,
        "trainerImageTag": f"trainer-{trainer.__version__}", "trainerMode": mode, "nodeCount": 1,
        "trainerShardingScheme": {"tensorParallelism": 1, "pipelineParallelism": 1}, **_of_model(base),
        "acceleratorType": machine.accelerator, "acceleratorCount": min(machine.count, 1),
        "baseModelWeightPrecision": "BFLOAT16" if machine.device == "cuda" else "WEIGHT_PRECISION_UNSPECIFIED",
        "maxSupportedContextLength": longest,
    }  # fmt: skip


def _base_of(call: Call, shape_id: str) -> tuple[str, dict[str, Any]]:
    """The model whose id is in the shape's: the longest such, the caller's own before the public ones."""
    own = call.gateway.store.every("models", resources.c.parent.in_((call.account, base_models.ACCOUNT)))
    fit = [model for model in own if model.id in shape_id and model.body.get("kind") == "HF_BASE_MODEL"]
    fit = fit or [model for model in own if model.id == "tiny"]
    if not fit:
        raise not_found(
            f"{base_models.ACCOUNT}/trainingShapes/{shape_id}", "name a shape with the id of a base model in its name"
        )
    best = max(fit, key=lambda model: (len(model.id), model.parent == call.account))
    return best.name, {**best.body, "createTime": best.create_time}


def _since(call: Call) -> str:
    return call.gateway.store.get(call.account).create_time


def _version(shape: dict[str, Any]) -> dict[str, Any]:
    able = shape["maxSupportedContextLength"] > 0
    return {
        "name": f"{shape['name']}/versions/{_FIRST}", "createTime": shape["createTime"], "snapshot": shape,
        "validated": able, "public": True, "latestValidated": able, "updateTime": shape["updateTime"],
    }  # fmt: skip


def _all_versions(call: Call) -> dict[str, Any]:
    """Every version that the caller may read: the account's own, and one for each public model."""
    found: list[dict[str, Any]] = []
    account = call.params["account_id"]
    if account in ("-", base_models.ACCOUNT.removeprefix("accounts/")):
        names = (f"{base_models.ACCOUNT}/trainingShapes/{model}" for model in base_models.known())
        found += [_version(_synthesised(call, name)) for name in names]
    if f"accounts/{account}" != base_models.ACCOUNT:
        parent = f"{_wild(call).parent()}/"
        mine = (resources.c.parent > parent, resources.c.parent < f"{parent[:-1]}0")  # what follows "/"
        found += [one.shown() for one in call.gateway.store.every(VERSIONS.collection, *mine)]
    return _synthetic_page(call, found)


def _synthetic_page(call: Call, versions: list[dict[str, Any]]) -> dict[str, Any]:
    """A page of versions that are not records."""
    return in_memory.page(
        versions, call, schema=VERSIONS.schema, key=lambda version: version["name"], name=VERSIONS.collection
    )
