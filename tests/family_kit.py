"""What the tests of the gateway's families share: a request, and its answer held against the contract."""

from __future__ import annotations

from typing import Any

from tests.gateway_kit import raw
from trainer.gateway.client import GatewayClient
from trainer.gateway.contract import load


def ask(client: GatewayClient, method: str, url: str, body: Any = None, **kwargs: Any) -> dict[str, Any]:
    """The JSON of a good answer, checked by the contract."""
    answer = raw(client, method, url, json=body, **kwargs)
    assert answer.status_code == 200, answer.text
    operation = load().match(method, url.partition("?")[0]).operation
    assert load().check_answer(operation.response or {}, answer.json()) == []
    return answer.json()


def refused(client: GatewayClient, method: str, url: str, body: Any = None, **kwargs: Any) -> tuple[int, str]:
    """HTTP status and message of a refusal."""
    answer = raw(client, method, url, json=body, **kwargs)
    assert answer.status_code >= 400, answer.text
    assert answer.json()["details"][0]["@type"].endswith("google.rpc.ErrorInfo")
    return answer.status_code, answer.json()["message"]
