"""The hand-written job models against the contract: every writable field is there, or is listed with its reason."""

import pytest

from trainer import jobs
from trainer.gateway.contract import load

MODELS = {
    "gatewaySupervisedFineTuningJob": jobs.SupervisedFineTuningJob,
    "gatewayDpoJob": jobs.DpoJob,
    "gatewayBaseTrainingConfig": jobs.TrainingConfig,
    "gatewayTrainerShardingScheme": jobs.TrainerShardingScheme,
    "gatewayReinforcementLearningLossConfig": jobs.LossConfig,
    "gatewayDpoConfig": jobs.DpoConfig,
    "gatewayOrpoConfig": jobs.OrpoConfig,
    "gatewayWandbConfig": jobs.WandbConfig,
    "gatewayAwsS3Config": jobs.AwsS3Config,
    "gatewayAzureBlobStorageConfig": jobs.AzureBlobStorageConfig,
}


def writable(schema: str) -> set[str]:
    properties = load().schema(schema)["properties"]
    return {name for name, item in properties.items() if not load().schema(item).get("readOnly")}


@pytest.mark.parametrize("schema", MODELS)
def test_every_writable_field_is_in_the_model_or_has_a_reason(schema: str) -> None:
    fields = {field.alias for field in MODELS[schema].model_fields.values()}
    assert fields | set(jobs.NOT_EXPOSED.get(schema, {})) == writable(schema)
    assert not fields & set(jobs.NOT_EXPOSED.get(schema, {}))


@pytest.mark.parametrize(
    ("enum", "schema"),
    [
        (jobs.JobState, "gatewayJobState"),
        (jobs.Purpose, "gatewayPurpose"),
        (jobs.LossMethod, "ReinforcementLearningLossConfigMethod"),
    ],
)
def test_enums_are_the_contracts(enum: type, schema: str) -> None:
    assert {str(member) for member in enum} == set(load().schema(schema)["enum"])


@pytest.mark.parametrize("schema", ["gatewaySupervisedFineTuningJob", "gatewayDpoJob"])
def test_required_fields_are_required(schema: str) -> None:
    required = {f.alias for f in MODELS[schema].model_fields.values() if f.is_required()}
    assert required == set(load().schema(schema)["required"])


def test_every_kind_names_a_collection_and_a_schema_of_the_contract() -> None:
    for kind in jobs.JOB_KINDS.values():
        assert kind.schema in load().schemas
        assert any(operation.path.endswith(f"/{kind.collection}") for operation in load().operations.values())
