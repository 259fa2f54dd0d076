"""What becomes of each operation: standard, behaviour, partial (with what is missing), or refused (with the reason).

What is implemented says `resources/table.py`; here are only the words for what is not whole. A standard method is one
that `standard.py` answers; behaviour is a family's own code.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from trainer.gateway.contract import Operation, load
from trainer.gateway.resources.table import OPERATIONS

STATUSES = ("standard", "behaviour", "partial", "refused")

_BUCKETS = "awsS3Config and azureBlobStorageConfig by keys, not by roles or federated identities"
# Operation -> what is missing.
PARTIAL: dict[str, str] = {
    "Gateway_CreateDataset": "externalUrl with gs:// only for objects that anybody may read",
    "Gateway_ImportModel": "awsS3Source by keys and azureBlobSource by SAS, not by roles or federated identities",
    "Gateway_PrepareModel": "precisions FP16 and BF16 only",
    "Gateway_CreateSupervisedFineTuningJob": f"mtp*, isTurbo and nodes above 1 are refused; {_BUCKETS}",
    "Gateway_CreateDpoJob": f"methods DPO and ORPO only; {_BUCKETS}",
    "Gateway_CreateReinforcementFineTuningJob": "refused at create until there is a worker",
    "Gateway_CreateRlorTrainerJob": "refused at create until there is a worker",
    "Gateway_CreateTrainingSessionJob": "refused at create until there is a worker",
    "Gateway_CreateTrainingSession": "refused at create until there is a worker",
    "Gateway_CreateEvaluationJob": "awsS3Config by keys, not by roles",
    "Gateway_CreateBatchInferenceJob": "refused at create until there is a worker",
    "Gateway_GetApiKey": "keyId in the query, or at the end of the path: the contract's own path has no place for it",
}
# Collection (or path) of what is not implemented -> why.
_SERVING = "serving of models is not here yet"
_HOSTED = "there is no hosting, billing or cluster behind this gateway"
REFUSED: dict[str, str] = {
    "deployments": _SERVING,
    "deployedModels": _SERVING,
    "deploymentShapes": _SERVING,
    "routers": _SERVING,
    "trails": _SERVING,
    "genericDeployments": _SERVING,
    "genericDeploymentTypes": _SERVING,
    "responses": _SERVING,
    "completions": _SERVING,
    "chat": _SERVING,
    "messages": _SERVING,
    "serverlessRateLimits": _SERVING,
    "serverlessTokenUsage": _SERVING,
    "accountUsageFilterOptions": _HOSTED,
    "billing": _HOSTED,
    "billingUsage": _HOSTED,
    "clusters": _HOSTED,
    "creditCodes": _HOSTED,
    "creditRedemptions": _HOSTED,
    "developerPasses": _HOSTED,
    "identityProviders": _HOSTED,
    "policySettings": _HOSTED,
    "pricingPlans": _HOSTED,
    "rlorTrainerJobs": "there is no worker for its steps yet",
    "trainingSessionJobs": "there is no worker for its steps yet",
    "models": _SERVING,  # :deploy of a version
}
_BEGIN, _END = "<!-- coverage: begin -->", "<!-- coverage: end -->"


@dataclass(frozen=True)
class Row:
    """One operation: its family, status, and the words for what is not whole."""

    operation: Operation
    family: str
    status: str
    note: str


def rows() -> list[Row]:
    """Every operation of the contract and of its extensions, by family."""
    found = [_row(operation) for operation in load().operations.values()]
    return sorted(found, key=lambda row: (row.family.lower(), row.operation.path, row.operation.method))


def why_refused(operation: Operation) -> str:
    """Why the operation is not implemented, in words; "" for one that is."""
    return "" if operation.id in OPERATIONS else REFUSED.get(_family(operation.path), "")


def totals(found: Iterable[Row]) -> dict[str, int]:
    """How many there are of each status."""
    counts = Counter(row.status for row in found)
    return {status: counts[status] for status in STATUSES}


def markdown() -> str:
    """The README's table: a line for each family, with what is partial or refused in it."""
    families: dict[str, list[Row]] = {}
    for row in rows():
        families.setdefault(row.family, []).append(row)
    lines = [
        _BEGIN,
        "| family | standard | behaviour | partial | refused | why |",
        "| --- | ---: | ---: | ---: | ---: | --- |",
    ]
    for family, inside in families.items():
        counts = totals(inside)
        notes = "; ".join(dict.fromkeys(row.note for row in inside if row.note))
        lines.append(f"| {family} | {' | '.join(str(counts[status] or '') for status in STATUSES)} | {notes} |")
    whole = totals(row for inside in families.values() for row in inside)
    lines.append(f"| **all {sum(whole.values())}** | {' | '.join(str(whole[status]) for status in STATUSES)} | |")
    return "\n".join([*lines, _END, ""])


def in_readme(text: str) -> str:
    """The table that a README holds, with its markers; "" where it has none."""
    found = re.search(f"{re.escape(_BEGIN)}.*?{re.escape(_END)}\n", text, re.DOTALL)
    return found[0] if found else ""


def _row(operation: Operation) -> Row:
    family = _family(operation.path)
    handler = OPERATIONS.get(operation.id)
    if handler is None:
        return Row(operation, family, "refused", REFUSED.get(family, ""))
    if operation.id in PARTIAL:
        return Row(operation, family, "partial", PARTIAL[operation.id])
    is_standard = getattr(handler, "__module__", "") == "trainer.gateway.standard"
    return Row(operation, family, "standard" if is_standard else "behaviour", "")


def _family(path: str) -> str:
    """The collection that a path belongs to: the first below the account."""
    parts = [part.partition(":")[0] for part in path.split("/")[2:]]
    return parts[2] if parts[0] == "accounts" and len(parts) > 2 else parts[0]
