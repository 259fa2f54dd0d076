"""The SFT job: closed, refuses with reasons, speaks the wire's camelCase, keeps its secret."""

import pytest
from pydantic import ValidationError

from trainer.jobs import DpoJob, JobState, LossMethod, SupervisedFineTuningJob, resource_id
from trainer.runs import Hyperparameters, LoraSettings

BASE = {"dataset": "rows.jsonl", "base_model": "accounts/local/models/tiny"}


def test_snake_and_camel_are_the_same_job():
    snake = SupervisedFineTuningJob.model_validate({**BASE, "learning_rate": 0.5, "lora_rank": 4})
    camel = SupervisedFineTuningJob.model_validate(
        {"dataset": "rows.jsonl", "baseModel": BASE["base_model"], "learningRate": 0.5, "loraRank": 4}
    )
    assert snake == camel
    assert snake.wire() == {
        "dataset": "rows.jsonl", "baseModel": BASE["base_model"], "learningRate": 0.5, "loraRank": 4
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"epoch": 1}, "Extra inputs are not permitted"),
        ({"warm_start_from": "accounts/a/models/b"}, "exclude each other: a warm start already names its base"),
        ({"base_model": None}, "name the model to fine-tune"),
        ({"base_model": None, "warm_start_from": "x", "lora_rank": 8}, "a warm start keeps the adapter's own rank"),
        ({"early_stop": True}, "needs held-out rows"),
        ({"evaluation_dataset": "e", "eval_auto_carveout": True}, "not both"),
        ({"nodes": 2}, "one job trains on one machine"),
        ({"is_turbo": True}, "turbo is a speed tier"),
        ({"mtp_enabled": True}, "multi-token prediction is not supported"),
        ({"mtp_num_draft_tokens": 1}, "multi-token prediction is not supported"),
        ({"mtp_freeze_base_model": True}, "multi-token prediction is not supported"),
        ({"aws_s3_config": {"iam_role_arn": "arn"}}, "name it in credentials_secret"),
        ({"aws_s3_config": {}}, "names no credentials"),
        ({"azure_blob_storage_config": {"tenant_id": "t"}}, "name it in credentials_secret"),
        ({"output_model": "Not_An_Id"}, "not a resource id"),
        ({"epochs": -1}, "greater than or equal to 0"),
        ({"learning_rate": float("nan")}, "finite"),
        ({"dataset": ""}, "at least 1 character"),
    ],
)
def test_what_cannot_be_honoured_is_refused_with_its_reason(change, says):
    with pytest.raises(ValidationError, match=says):
        SupervisedFineTuningJob.model_validate({**BASE, **change})


def test_the_wandb_key_stays_in():
    job = SupervisedFineTuningJob.model_validate({**BASE, "wandb_config": {"enabled": True, "api_key": "topsecret"}})
    assert "topsecret" not in repr(job) + str(job.wire()) + job.model_dump_json()
    assert job.wire()["wandbConfig"] == {"enabled": True}


def test_defaults_are_filled_in_once():
    hyper = Hyperparameters.of(SupervisedFineTuningJob.model_validate(BASE), LoraSettings())
    assert hyper.model_dump() == {
        "epochs": 1, "learning_rate": 1e-4, "warmup_steps": 0, "weight_decay": 0.01, "lora_rank": 8,
        "lora_alpha": 16.0, "batch_tokens": 32768, "batch_rows": 0, "accumulation": 1, "max_context": 8192,
    }  # fmt: skip
    zeros = {"epochs": 0, "batch_size": 0, "max_context_length": 0, "gradient_accumulation_steps": 0}
    assert Hyperparameters.of(SupervisedFineTuningJob.model_validate({**BASE, **zeros}), LoraSettings()) == hyper


def test_rank_0_is_all_parameters_and_a_warm_start_keeps_its_own():
    full = Hyperparameters.of(SupervisedFineTuningJob.model_validate({**BASE, "lora_rank": 0}), LoraSettings())
    assert (full.lora_rank, full.lora_alpha) == (0, None)
    warm = SupervisedFineTuningJob.model_validate({"dataset": "d", "warm_start_from": "m"})
    assert Hyperparameters.of(warm, LoraSettings()).lora_rank is None


@pytest.mark.parametrize(("value", "want"), [("a-1", "a-1"), ("accounts/x/models/m", "m"), ("a" * 63, "a" * 63)])
def test_resource_ids(value, want):
    assert resource_id(value, collection="models", what="output_model") == want


@pytest.mark.parametrize("value", ["", "-a", "A", "a_b", "a" * 64, "accounts/x/datasets/d", "accounts/x/models/"])
def test_bad_resource_ids_are_named(value):
    with pytest.raises(ValueError, match="output_model"):
        resource_id(value, collection="models", what="output_model")


def test_states_that_end():
    ends = {state.removeprefix("JOB_STATE_") for state in JobState if state.terminal}
    assert ends == {"COMPLETED", "FAILED", "CANCELLED", "EARLY_STOPPED", "EXPIRED", "DELETED"}


PAIRS = {"dataset": "d", "trainingConfig": {"baseModel": "m"}}


def pair_job(loss=None, **training) -> DpoJob:
    wire = {"dataset": "d", "trainingConfig": {"baseModel": "m", **training}}
    return DpoJob.model_validate(wire | ({"lossConfig": loss} if loss is not None else {}))


def test_an_unspecified_method_is_dpo():
    assert DpoJob.model_validate(PAIRS).method is LossMethod.DPO
    assert pair_job({"method": "METHOD_UNSPECIFIED"}).method is LossMethod.DPO
    assert pair_job({"method": "ORPO", "orpo": {"lambda": 0.5}}).method is LossMethod.ORPO


def test_a_dpo_job_is_on_the_wire_as_it_came():
    wire = {
        "dataset": "d", "displayName": "n",
        "trainingConfig": {
            "baseModel": "m", "outputModel": "o", "epochs": 2, "learningRate": 0.5, "loraRank": 4, "loraAlpha": 16,
            "loraDropout": 0.1, "loraTargetModules": ["q_proj"], "batchSizeSamples": 8,
        },
        "lossConfig": {"method": "DPO", "dpo": {"beta": 0.2, "refCacheBatchSize": 4, "refCacheConcurrency": 2}},
        "wandbConfig": {"enabled": True},
    }  # fmt: skip
    assert DpoJob.model_validate(wire).wire() == wire
    orpo = {**PAIRS, "lossConfig": {"method": "ORPO", "orpo": {"lambda": 0.5}}}
    assert DpoJob.model_validate(orpo).wire() == orpo
    assert DpoJob.model_validate({**PAIRS, "loss_config": {"method": "ORPO", "orpo": {"lambda_": 0.5}}}).wire() == orpo


@pytest.mark.parametrize(
    ("loss", "training", "says"),
    [
        ({"method": "GRPO"}, {}, "loss_config.method: GRPO learns from rewards"),
        ({"method": "DAPO"}, {}, "reinforcementFineTuningJobs"),
        ({"method": "GSPO_TOKEN"}, {}, "use DPO or ORPO here"),
        ({"klBeta": 0.1}, {}, "loss_config.kl_beta: DPO has no KL term"),
        ({"method": "ORPO", "klBeta": 0.0}, {}, "loss_config.kl_beta: ORPO has no KL term"),
        ({"method": "ORPO", "dpo": {"beta": 0.1}}, {}, "loss_config.dpo.beta: means nothing for ORPO"),
        ({"method": "ORPO", "dpo": {"refCacheBatchSize": 1}}, {}, "loss_config.dpo.ref_cache_batch_size: means noth"),
        ({"orpo": {"lambda": 0.1}}, {}, "loss_config.orpo.lambda: means nothing for DPO"),
        ({"dpo": {"beta": 0}}, {}, "greater than 0"),
        (None, {"trainerShardingScheme": {"tensorParallelism": 2}}, "tensor_parallelism: 2 spreads"),
        (None, {"trainerShardingScheme": {"sequenceParallelism": True}}, "sequence_parallelism: True spreads"),
        (None, {"loraRank": 0, "loraAlpha": 8}, "lora_alpha: with lora_rank=0 all parameters are trained"),
        (None, {"baseModel": None, "warmStartFrom": "a", "loraDropout": 0.1}, "lora_dropout: a warm start keeps"),
        (None, {"baseModel": None, "warmStartFrom": "a", "loraRank": 2}, "lora_rank: a warm start keeps"),
        (None, {"warmStartFrom": "a"}, "exclude each other"),
        (None, {"baseModel": None}, "base_model: name the model"),
        (None, {"outputModel": "Not An Id"}, "output_model"),
    ],
)
def test_what_a_dpo_job_cannot_be(loss, training, says):
    with pytest.raises(ValidationError, match=says):
        pair_job(loss, **training)


@pytest.mark.parametrize("scheme", [{}, {"tensorParallelism": 1, "pipelineParallelism": 0}])
def test_one_process_is_no_sharding(scheme):
    assert pair_job(None, trainerShardingScheme=scheme).settings.base_model == "m"


def test_the_numbers_a_dpo_job_trains_by():
    hyper = Hyperparameters.of(DpoJob.model_validate(PAIRS), LoraSettings())
    assert (hyper.learning_rate, hyper.epochs, hyper.lora_rank, hyper.lora_alpha) == (1e-5, 1, 8, 16.0)
    assert Hyperparameters.of(pair_job(None, loraAlpha=4), LoraSettings()).lora_alpha == 4
    adapter = LoraSettings().asked_by(pair_job(None, loraDropout=0.1, loraTargetModules=["q_proj"]))
    assert (adapter.dropout, adapter.targets) == (0.1, ["q_proj"])
    with pytest.raises(ValueError, match=r"model\.lora\.dropout: 0\.2, and the job's lora_dropout is 0\.1"):
        LoraSettings(dropout=0.2).asked_by(pair_job(None, loraDropout=0.1))
