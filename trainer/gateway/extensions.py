"""Operations that the contract does not have: what a trainer on this machine needs and the clients' older variants.

Written as OpenAPI paths, like `contract.json`, so that they are routed, validated and answered by the same code.
"""

from __future__ import annotations

from typing import Any

_LIST = {"pageSize": "integer", "pageToken": "string", "filter": "string", "orderBy": "string", "readMask": "string"}


def _ref(schema: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{schema}"}


def _operation(
    operation_id: str, *, body: str | None = None, response: str | None = None, query: dict[str, str] | None = None
) -> dict[str, Any]:
    answer = _ref(response) if response else {"type": "object", "properties": {}}
    operation: dict[str, Any] = {
        "operationId": operation_id,
        "parameters": [{"name": name, "in": "query", "schema": {"type": kind}} for name, kind in (query or {}).items()],
        "responses": {"200": {"content": {"application/json": {"schema": answer}}}},
    }
    if body:
        operation["requestBody"] = {"content": {"application/json": {"schema": _ref(body)}}, "required": True}
    return operation


def _trained(collection: str, param: str, *, word: str, schema: str) -> dict[str, dict[str, Any]]:
    """What a collection of training jobs has besides: reports, checkpoints and their promotion."""
    job = f"/v1/accounts/{{account_id}}/{collection}/{{{param}}}"
    return {
        f"{job}:report": {"post": _operation(f"Trainer_Report{word}", body=schema, response="trainerReported")},
        f"{job}/checkpoints": {
            "get": _operation(
                f"Trainer_List{word}Checkpoints", response="trainerListJobCheckpointsResponse", query=_LIST
            )
        },
        f"{job}/checkpoints/{{checkpoint_id}}:promote": {
            "post": _operation(
                f"Trainer_Promote{word}Checkpoint",
                body="trainerPromoteBody",
                response="gatewayPromoteCheckpointResponse",
            )
        },
    }


def _evaluated() -> dict[str, dict[str, Any]]:
    """What other long jobs have and evaluation jobs lack in the contract."""
    job = "/v1/accounts/{account_id}/evaluationJobs/{evaluation_job_id}"
    return {
        f"{job}:cancel": {"post": _operation("Trainer_CancelEvaluationJob")},
        f"{job}:resume": {"post": _operation("Trainer_ResumeEvaluationJob", response="gatewayEvaluationJob")},
    }


def _report(schema: str) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {"job": _ref(schema), "events": {"type": "array", "items": _ref("trainerEvent")}},
    }


_OPERATION = "/v1/accounts/{account_id}/operations/{operation_id}"

PATHS: dict[str, dict[str, Any]] = {
    **_trained("supervisedFineTuningJobs", "supervised_fine_tuning_job_id", word="Job", schema="trainerReportBody"),
    **_trained("dpoJobs", "dpo_job_id", word="DpoJob", schema="trainerReportDpoBody"),
    **_evaluated(),
    "/v1/accounts/{account_id}/operations": {
        "get": _operation("Trainer_ListOperations", response="trainerListOperationsResponse", query=_LIST)
    },
    _OPERATION: {
        "get": _operation("Trainer_GetOperation", response="googlelongrunningOperation"),
        "delete": _operation("Trainer_DeleteOperation"),
    },
    f"{_OPERATION}:cancel": {"post": _operation("Trainer_CancelOperation")},
    # The contract's own path for it has no place for the key's id.
    "/v1/accounts/{account_id}/users/{user_id}/apiKeys/{key_id}": {
        "get": _operation("Trainer_GetApiKey", response="gatewayApiKey")
    },
}

# Schema of the contract -> fields that it has here besides, or reads in another way.
FIELDS: dict[str, dict[str, dict[str, Any]]] = {
    "gatewayEvaluationJob": {
        "model": {"type": "string", "description": "Answers the rows that have no answer."},
        "inferenceParameters": _ref("gatewayReinforcementFineTuningJobInferenceParameters"),
        "maxInvalidFraction": {"type": "number", "format": "double", "description": "Rows without a usable score."},
        "rewardWeights": {"type": "array", "items": {"type": "string"}, "description": "name=weight, of metrics."},
        "evaluatorVersion": {"type": "string", "readOnly": True, "description": "The revision that scores."},
    },
    # With its name, which is read-only elsewhere: here it says which evaluator is meant.
    "GatewayPreviewEvaluatorBody": {"evaluator": {"type": "object"}},
}

SCHEMAS: dict[str, dict[str, Any]] = {
    "trainerEvent": {
        "type": "object",
        "required": ["seq", "kind", "body"],
        "properties": {
            "seq": {"type": "integer", "minimum": 1},
            "time": {"type": "string"},
            "kind": {"type": "string", "enum": ["state", "progress", "metrics", "checkpoint", "model", "log"]},
            "body": {"type": "object"},
        },
    },
    "trainerReportBody": _report("gatewaySupervisedFineTuningJob"),
    "trainerReportDpoBody": _report("gatewayDpoJob"),
    "trainerReported": {"type": "object", "properties": {"ackedSeq": {"type": "integer"}}},
    "trainerJobCheckpoint": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "readOnly": True},
            "createTime": {"type": "string", "format": "date-time", "readOnly": True},
            "updateTime": {"type": "string", "format": "date-time", "readOnly": True},
            "checkpointType": _ref("gatewayCheckpointType"),
            "checkpointTypes": {"type": "array", "items": _ref("gatewayCheckpointType")},
            "promotable": {"type": "boolean"},
            "step": {"type": "integer", "format": "int32"},
        },
    },
    "trainerListJobCheckpointsResponse": {
        "type": "object",
        "properties": {
            "checkpoints": {"type": "array", "items": _ref("trainerJobCheckpoint")},
            "nextPageToken": {"type": "string"},
            "totalSize": {"type": "integer", "format": "int32"},
        },
    },
    "trainerListOperationsResponse": {
        "type": "object",
        "properties": {
            "operations": {"type": "array", "items": _ref("googlelongrunningOperation")},
            "nextPageToken": {"type": "string"},
            "totalSize": {"type": "integer", "format": "int32"},
        },
    },
    # The contract's body with all but the output model optional: the job in the path says the rest.
    "trainerPromoteBody": {
        "type": "object",
        "required": ["outputModel"],
        "properties": {
            "outputModel": {"type": "string"},
            "trainerJobId": {"type": "string"},
            "baseModel": {"type": "string"},
        },
    },
}
