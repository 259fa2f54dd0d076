"""Another account's names are not found, in paths and in bodies, whatever the operation."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.gateway_kit import opened
from trainer.gateway.contract import load
from trainer.gateway.errors import GatewayError
from trainer.gateway.gateway import Call, Gateway
from trainer.gateway.principal import Principal, acting
from trainer.gateway.resources.table import OPERATIONS

OTHER = Principal("accounts/other", "eve", "admin")
WITH_ACCOUNT = sorted(name for name in OPERATIONS if "{account_id}" in load().operations[name].path)
# What names a resource in a body: all of these are read within the caller's account.
NAMED = {
    "Gateway_CreateSupervisedFineTuningJob": {"dataset": "accounts/local/datasets/rows", "baseModel": "x"},
    "Gateway_CreateDpoJob": {"dataset": "accounts/local/datasets/rows", "trainingConfig": {"baseModel": "x"}},
    "Gateway_CreateDataset": {"dataset": {}, "datasetId": "x", "sourceDatasetId": "accounts/local/datasets/rows"},
    "Gateway_CreateTrainingShape": {"baseModel": "accounts/local/models/base", "trainerImageTag": "t"},
    "Gateway_CreateEvaluationJob": {
        "evaluationJob": {
            "evaluator": "e", "inputDataset": "rows", "outputDataset": "accounts/local/datasets/rows",
        }
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with opened(tmp_path_factory.mktemp("isolation") / "gateway") as (_, found):
        yield found


def least(schema: Any) -> Any:
    """The smallest value that has every required field."""
    found = load().schema(schema)
    if "properties" in found or found.get("type") == "object":
        return {name: least(found["properties"][name]) for name in found.get("required", ())}
    return {"string": "x", "integer": 1, "number": 1.0, "boolean": True, "array": []}.get(str(found.get("type")), "x")


def call(gateway: Gateway, name: str, *, account: str, body: dict[str, Any]) -> Any:
    operation = load().operations[name]
    ids = [part.split("}")[0] for part in operation.path.split("{")[1:]]
    here = {"dataset_id": "rows", "model_id": "base", "user_id": "local"}
    params = {one: here.get(one, "x") for one in ids} | {"account_id": account}
    with acting(OTHER):
        return OPERATIONS[name](Call(gateway, operation, params, {}, body, "http://embedded", principal=OTHER))


@pytest.mark.parametrize("name", WITH_ACCOUNT)
def test_a_path_into_another_account(gateway: Gateway, name: str) -> None:
    schema = load().operations[name].body
    with pytest.raises(GatewayError) as caught:
        call(gateway, name, account="local", body=least(schema) if schema else {})
    assert caught.value.code == "NOT_FOUND", caught.value


@pytest.mark.parametrize("name", sorted(NAMED))
def test_a_name_of_another_account_in_a_body(gateway: Gateway, name: str) -> None:
    with pytest.raises(GatewayError) as caught:
        call(gateway, name, account="other", body=NAMED[name])
    assert caught.value.code == "NOT_FOUND", caught.value
    assert "accounts/local" in caught.value.message
