"""Parameters of the contract that mean nothing here: a request that gives one is refused, and told why.

Whatever a handler does not read would be accepted and ignored. So a parameter is read, or stands in this table.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trainer.gateway.contract import Operation
from trainer.gateway.errors import GatewayError, invalid
from trainer.gateway.principal import Principal

# Operation -> parameter (of the query, or a field of the body) -> why it cannot be honoured.
UNHONOURED: dict[str, dict[str, str]] = {
    "Gateway_PromoteCheckpoint": {"hotLoadDeploymentId": "there are no deployments here; trainerJobId says enough"},
    "Gateway_ValidateModelUpload": {
        "trustRemoteCode": "code that comes with a model is never run",
        "skipHfConfigValidation": "the configuration is always checked",
    },
}
# Operation -> field of the body that may only name the caller's account.
_OWN_ACCOUNT = {"Gateway_SplitDataset": "parent"}


def check(principal: Principal, operation: Operation, query: Mapping[str, Any], body: Mapping[str, Any]) -> None:
    """Raises UNIMPLEMENTED for what is in the table and given, INVALID_ARGUMENT for another account than one's own."""
    for name, why in UNHONOURED.get(operation.id, {}).items():
        if query.get(name) or body.get(name):
            raise GatewayError("UNIMPLEMENTED", f"{name}: {why}; leave it out", metadata={"field": name})
    field = _OWN_ACCOUNT.get(operation.id, "")
    given = body.get(field) or principal.account
    if given not in (principal.account, principal.account.removeprefix("accounts/")):
        raise invalid(f"{field}: got {str(given)[:80]!r}; your account is {principal.account}", field=field)
