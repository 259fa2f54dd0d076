"""Loaded by schemathesis (`test_schemathesis.py`): what an answer of the gateway may be.

A refusal is a google.rpc.Status with an ErrorInfo; 501 is one for what is not implemented, and no other 5xx is allowed.
"""

import schemathesis

_UNIMPLEMENTED = 12
_DETAIL = "type.googleapis.com/google.rpc.ErrorInfo"


@schemathesis.check
def answers_in_the_gateways_language(_context, response, _case) -> None:
    """No crash, and refusals that programs can read."""
    if response.status_code == 200:
        return
    body = response.json()
    assert {"code", "message", "details"} <= body.keys(), body
    assert body["details"][0]["@type"] == _DETAIL, body
    if response.status_code >= 500:
        assert (response.status_code, body["code"]) == (501, _UNIMPLEMENTED), body
