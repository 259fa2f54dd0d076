"""auth:refresh. Keys do not expire by sessions here, so no refresh token is ever given out, and none is taken."""

from __future__ import annotations

from typing import Any

from trainer.gateway.errors import GatewayError
from trainer.gateway.gateway import Call


def refresh(_call: Call) -> dict[str, Any]:
    """POST /v1/auth/refresh. Raises UNAUTHENTICATED: the token cannot be one of this gateway's."""
    raise GatewayError(
        "UNAUTHENTICATED",
        "refreshToken: not a token of this gateway, which gives out API keys and no sessions; a key lasts until it "
        "expires or is revoked, so go on with yours",
        reason="NO_SESSIONS",
    )
