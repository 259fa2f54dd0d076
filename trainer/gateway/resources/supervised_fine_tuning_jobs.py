"""supervisedFineTuningJobs: jobs like all others (`resources.jobs`), and the only ones that are priced beforehand."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from trainer.gateway import base_models, job_families
from trainer.gateway.dataset_rows import BYTES_PER_TOKEN
from trainer.gateway.errors import not_found, precondition
from trainer.gateway.gateway import Call, Gateway, full_name
from trainer.gateway.resources import jobs
from trainer.jobs import DEFAULT_EPOCHS, JOB_KINDS
from trainer.prices import read_prices

KIND = JOB_KINDS["sft"]
_NANOS = 1_000_000_000


def estimate_cost(call: Call) -> dict[str, Any]:
    """POST :estimateCost of a job that is not created."""
    parent = call.parent()
    kind = job_families.FAMILIES[KIND.collection]
    return {"estimatedCost": cost(call.gateway, jobs.read(call.gateway, kind, call.body, parent=parent))}


def cost(gateway: Gateway, request: jobs.Request) -> dict[str, Any]:
    """Tokens x epochs x price: counted tokens where there are any, else four bytes each; prices of `trainer.prices`."""
    body = request.body
    name = full_name(body["dataset"], collection="datasets", what="dataset")
    found = gateway.store.find(name)
    if found is None:
        raise not_found(name)
    if "dataset" in request.elsewhere:
        raise precondition(
            f"dataset: what {name} costs is known once its rows have been read, and they lie at its externalUrl",
            name=name,
        )
    size = sum(entry["size"] for entry in found.private.get("files", {}).values())
    tokens = int(found.body.get("estimatedTokenCount") or size // BYTES_PER_TOKEN)
    prices = read_prices()
    price = gateway.options.price_per_token or Decimal(str(prices.per_million(_parameters(gateway, body)))) / 1_000_000
    nanos = int(tokens * (body.get("epochs") or DEFAULT_EPOCHS) * price * _NANOS)
    return {"currencyCode": prices.currency, "units": str(nanos // _NANOS), "nanos": nanos % _NANOS}


def _parameters(gateway: Gateway, body: dict[str, Any]) -> int | None:
    """Of the base model, None where its record does not say."""
    name = str(body.get("baseModel") or body.get("warmStartFrom"))
    found = base_models.body_of(gateway, name, parent=name.rpartition("/models/")[0]) or {}
    count = (found.get("baseModelDetails") or {}).get("parameterCount")
    return int(count) if count else None
