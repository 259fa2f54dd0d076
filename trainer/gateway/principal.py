"""Who asks: an account, a user of it, and the user's role. The rules of the roles are here, and nowhere else.

A handler's names are read within the asker's account: `current()` is set for the time of a request, so that no family
can look into another account by a name in a body.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from trainer.gateway.contract import Operation
from trainer.gateway.errors import GatewayError
from trainer.gateway.permission_presets import PRESETS

LOCAL_ACCOUNT = "accounts/local"
PUBLIC_ACCOUNT = "accounts/fireworks"  # base models and training shapes that every account may read
ROLES = ("admin", "user", "contributor", "inference-user")
CUSTOM = "custom"  # the fifth: a permission preset says what it may

_ADMIN_ONLY = frozenset({
    "Gateway_CreateUser", "Gateway_UpdateUser", "Gateway_ListAuditLogs", "Gateway_UpdateQuota",
    "Gateway_UpdatePolicySettings", "Gateway_CreateIdentityProvider", "Gateway_UpdateIdentityProvider",
    "Gateway_DeleteIdentityProvider",
})  # fmt: skip
_INFERENCE_PATHS = ("/v1/responses", "/v1/completions", "/v1/chat/completions", "/v1/messages")
# POSTs that change nothing.
_READS = frozenset({
    "Gateway_EstimateSupervisedFineTuningJobCost", "Gateway_ValidateModelConfig", "Gateway_ValidateAssertions",
    "Gateway_RefreshSessionToken",
})  # fmt: skip


@dataclass(frozen=True)
class Principal:
    """account: full name, accounts/{id}. user: id. key_id: of the API key that was shown, "" without one.

    preset: of a user of role `custom`, the name of the permission preset; "" permits nothing.
    """

    account: str
    user: str
    role: str
    email: str = ""
    key_id: str = ""
    preset: str = ""


OWNER = Principal(LOCAL_ACCOUNT, "local", "admin", email="local@localhost")
_current: ContextVar[Principal | None] = ContextVar("principal", default=None)


def current() -> Principal | None:
    """Who asks, in the request that is being answered; None outside of requests."""
    return _current.get()


@contextmanager
def acting(principal: Principal) -> Iterator[None]:
    """Answer on behalf of `principal` in this block."""
    token = _current.set(principal)
    try:
        yield
    finally:
        _current.reset(token)


def changes(operation: Operation) -> bool:
    """True when the operation may change something."""
    return operation.method != "GET" and operation.id not in _READS and not inference(operation)


def inference(operation: Operation) -> bool:
    """True for what asks a model."""
    return operation.path.startswith(_INFERENCE_PATHS)


def check(principal: Principal, operation: Operation, params: Mapping[str, str]) -> None:
    """Raise PERMISSION_DENIED when the role may not do the operation at all."""
    if principal.role == CUSTOM:
        if operation.id not in PRESETS.get(principal.preset, ()):
            raise _denied(principal, operation, f"the permission preset {principal.preset!r} does not permit it")
        return
    if principal.role == "admin" or inference(operation):
        return
    if "/apiKeys" in operation.path and params.get("user_id") != principal.user:
        raise _denied(principal, operation, "only an admin handles other users' keys")
    if operation.id in _ADMIN_ONLY:
        raise _denied(principal, operation, "it takes the role admin")
    if principal.role == "inference-user" and changes(operation) and "/apiKeys" not in operation.path:
        raise _denied(principal, operation, "the role inference-user reads, and asks models")


def check_owner(principal: Principal, operation: Operation, owner: str | None) -> None:
    """Raise PERMISSION_DENIED when a contributor changes what another user owns."""
    if principal.role == "contributor" and changes(operation) and owner != principal.user:
        raise _denied(principal, operation, "a contributor changes only what is their own")


def _denied(principal: Principal, operation: Operation, why: str) -> GatewayError:
    return GatewayError(
        "PERMISSION_DENIED",
        f"{operation.id} is not for {principal.user} ({principal.role}): {why}",
        reason="ROLE_NOT_ALLOWED",
        metadata={"operation": operation.id, "role": principal.role},
    )
