"""Routing and validation by the contract document."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.gateway.contract import load
from trainer.gateway.errors import GatewayError

JOB = "gatewaySupervisedFineTuningJob"


def test_every_operation_is_routed_to_itself() -> None:
    contract = load()
    assert len(contract.operations) >= 206
    for operation in contract.operations.values():
        params = {name: "some-id" for name in _names(operation.path)}
        path = contract.url(operation.id, params)
        match = contract.match(operation.method, path)
        assert match.operation.id == operation.id, path
        assert match.params == params


def _names(path: str) -> list[str]:
    return [part.split("}")[0] for part in path.split("{")[1:]]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/v1/nothing", 404), ("PUT", "/v1/accounts", 405), ("GET", "/v1/accounts/a/datasets/x:fly", 404)],
)
def test_what_is_not_in_the_contract(method: str, path: str, status: int) -> None:
    with pytest.raises(GatewayError) as caught:
        load().match(method, path)
    assert caught.value.http_status == status


@pytest.mark.parametrize(
    ("body", "where"),
    [
        ({"dataset": "d", "epochs": "three"}, "epochs"),
        ({"dataset": "d", "epochs": 1.5}, "epochs"),
        ({"dataset": "d", "epochs": 2**31}, "epochs"),
        ({"dataset": "d", "earlyStop": 1}, "earlyStop"),
        ({"dataset": "d", "learningRate": "1e-4"}, "learningRate"),
        ({"dataset": "d", "learningRate": float("inf")}, "learningRate"),
        ({"dataset": 3}, "dataset"),
        ({"dataset": "d", "purpose": "PURPOSE_X"}, "purpose"),
        ({"dataset": "d", "wandbConfig": {"enabled": "yes"}}, "wandbConfig.enabled"),
        ({"dataset": "d", "wandbConfig": []}, "wandbConfig"),
        ({}, "dataset"),
        ([], "body"),
    ],
)
def test_a_bad_body_is_refused_by_its_fields_path(body: object, where: str) -> None:
    with pytest.raises(GatewayError, match=f"INVALID_ARGUMENT: {where}: ") as caught:
        load().read(JOB, body)
    assert caught.value.details[0]["metadata"] == {"field": where}


def test_a_secret_of_the_wrong_kind_is_not_repeated() -> None:
    with pytest.raises(GatewayError) as caught:
        load().read(JOB, {"dataset": "d", "wandbConfig": {"apiKey": 12345678}})
    assert "12345678" not in str(caught.value)


def test_snake_case_read_only_null_and_unknown() -> None:
    body = {"data_set": 1, "dataset": "d", "learning_rate": 1e-4, "state": "JOB_STATE_RUNNING", "epochs": None,
            "wandb_config": {"run_id": "r", "mode": "x"}}  # fmt: skip
    read = load().read(JOB, body)
    expected = {"data_set": 1, "dataset": "d", "learningRate": 1e-4, "wandbConfig": {"runId": "r", "mode": "x"}}
    assert read.value == expected
    assert read.unknown == ["data_set", "wandbConfig.mode"]
    assert load().known(JOB, read.value) == {"dataset": "d", "learningRate": 1e-4, "wandbConfig": {"runId": "r"}}


def test_int64_is_taken_as_string_or_number_and_given_as_string() -> None:
    for value in (3, "3", 3.0):
        assert load().read("gatewayDataset", {"exampleCount": value}).value == {"exampleCount": "3"}
    assert load().emit("gatewayDataset", {"exampleCount": 3}) == {"exampleCount": "3"}
    with pytest.raises(GatewayError, match="exampleCount"):
        load().read("gatewayDataset", {"exampleCount": 2**63})


def test_query_parameters_are_typed() -> None:
    operation = load().operations["Gateway_ListDatasets"]
    read = load().query(operation, [("page_size", "5"), ("readMask", "name"), ("other", "x")])
    assert read.value == {"pageSize": 5, "readMask": "name", "other": "x"}
    assert read.unknown == ["other"]
    with pytest.raises(GatewayError, match="pageSize"):
        load().query(operation, [("pageSize", "many")])


_FIELDS = ["dataset", "epochs", "wandbConfig", "apiKey", "userUploaded", "format", "state", "x", "exampleCount"]
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(_FIELDS), inner, max_size=4),
    max_leaves=12,
)


@given(value=json_values, schema=st.sampled_from([JOB, "gatewayDataset", "GatewayCreateModelBody"]))
def test_reading_refuses_or_gives_what_reads_the_same_again(value: object, schema: str) -> None:
    try:
        read = load().read(schema, value).value
    except GatewayError as error:
        assert error.code == "INVALID_ARGUMENT"
        return
    assert json.dumps(load().read(schema, read).value) == json.dumps(read)
