"""Operations that the contract does not have: what a trainer on this machine needs and the clients' older variants.

Written as OpenAPI paths, like `contract.json`, so that they are routed, validated and answered by the same code.
"""

from __future__ import annotations

from typing import Any

_JOB = "/v1/accounts/{account_id}/supervisedFineTuningJobs/{supervised_fine_tuning_job_id}"

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


PATHS: dict[str, dict[str, Any]] = {
    f"{_JOB}:report": {"post": _operation("Trainer_ReportJob", body="trainerReportBody", response="trainerReported")},
    f"{_JOB}/checkpoints": {
        "get": _operation(
            "Trainer_ListJobCheckpoints",
            response="trainerListJobCheckpointsResponse",
            query=_LIST,
        )
    },
    f"{_JOB}/checkpoints/{{checkpoint_id}}:promote": {
        "post": _operation(
            "Trainer_PromoteJobCheckpoint", body="trainerPromoteBody", response="gatewayPromoteCheckpointResponse"
        )
    },
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
    "trainerReportBody": {
        "type": "object",
        "properties": {
            "job": _ref("gatewaySupervisedFineTuningJob"),
            "events": {"type": "array", "items": _ref("trainerEvent")},
        },
    },
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
