"""Base models that are known by name: `accounts/fireworks/models/<id>` stands for a model of the public hub.

The names are data (`base_models.json`: name -> hub id, context, size). Such a model is READY without a file here: a
worker gives the hub id to `from_pretrained`, which fetches the weights when they are first used. A name that is not in
the list is NOT_FOUND; upload such a model, or import it, under a name of your own.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from trainer.gateway.gateway import Call, Gateway
from trainer.gateway.principal import PUBLIC_ACCOUNT
from trainer.gateway.store import Resource, resources

ACCOUNT = PUBLIC_ACCOUNT
_PREFIX = f"{ACCOUNT}/models/"


@dataclass(frozen=True)
class BaseModel:
    """A line of the list."""

    hub: str
    modelType: str
    contextLength: int
    parameterCount: int
    moe: bool


@cache
def known() -> dict[str, BaseModel]:
    """The list, by id."""
    entries = json.loads((Path(__file__).parent / "base_models.json").read_bytes())
    return {name: BaseModel(**entry) for name, entry in entries.items()}


def hub_id(name: str) -> str | None:
    """The hub id that the full resource `name` stands for, or None."""
    found = known().get(name.removeprefix(_PREFIX)) if name.startswith(_PREFIX) else None
    return found.hub if found else None


def ensure(gateway: Gateway) -> None:
    """Make the list's records what the list says."""
    wanted = {f"{_PREFIX}{model_id}": _body(found) for model_id, found in known().items()}
    with gateway.store.transaction() as transaction:
        here = {model.name: model for model in transaction.every("models", resources.c.parent == ACCOUNT)}
        for name in here.keys() - wanted.keys():
            transaction.delete(name)
        for name, body in sorted(wanted.items()):
            if name not in here:
                bare = name.removeprefix(_PREFIX)
                transaction.insert(Resource(name=name, collection="models", parent=ACCOUNT, id=bare, body=body))
            elif here[name].body != body:
                transaction.save(replace(here[name], body=body))


def readable(call: Call) -> str:
    """The account in the path: the caller's, or the one whose models and shapes all may read. Raises NOT_FOUND."""
    return ACCOUNT if f"accounts/{call.params['account_id']}" == ACCOUNT else call.parent()


def way_out(name: str) -> str:
    """What to do about a model that is not there."""
    return f"the list has {', '.join(sorted(known()))}" if name.startswith(_PREFIX) else ""


def body_of(gateway: Gateway, name: str, *, parent: str) -> dict[str, Any] | None:
    """What is known of the model `name`, which is `parent`'s own or of the list; None where there is none."""
    found = gateway.store.find(name) if name.startswith((f"{parent}/models/", _PREFIX)) else None
    return None if found is None else found.body


def place(gateway: Gateway, name: str) -> str:
    """What `from_pretrained` takes for the model `name`: a folder of ours, or a hub id."""
    return hub_id(name) or str(gateway.files.folder(name))


def _body(found: BaseModel) -> dict[str, Any]:
    return {
        "displayName": found.hub.rsplit("/", 1)[-1], "kind": "HF_BASE_MODEL", "state": "READY", "public": True,
        "status": {"code": "OK", "message": "its weights are fetched from the hub when a job first uses them"},
        "huggingFaceUrl": f"https://huggingface.co/{found.hub}", "contextLength": found.contextLength,
        "supportsLora": True,
        "baseModelDetails": {
            "checkpointFormat": "HUGGINGFACE", "moe": found.moe, "modelType": found.modelType,
            "parameterCount": str(found.parameterCount),
        },
    }  # fmt: skip


def known_here(gateway: Gateway, *, parent: str) -> str:
    """The way out of a model that is not here."""
    mine = gateway.store.every("models", resources.c.parent == parent, resources.c.state == "READY")
    own = [model.id for model in mine]
    return (
        f"models that are here: {', '.join(own[:10]) or 'none'}; {_PREFIX}* has {', '.join(sorted(known())[:4])}, ... "
        f"({len(known())} names); others must be uploaded (POST .../models) or imported (:import) first"
    )
