"""Which function answers which operation: the operations that this gateway implements."""

from __future__ import annotations

from trainer.gateway import idempotency, standard
from trainer.gateway.gateway import Call
from trainer.gateway.job_families import FAMILIES
from trainer.gateway.resources import (
    accounts,
    api_keys,
    audit_logs,
    auth,
    checkpoints,
    datasets,
    evaluation_jobs,
    evaluations,
    evaluators,
    evaluators_preview,
    job_verbs,
    jobs,
    model_verbs,
    models,
    operations,
    quotas,
    reports,
    secrets,
    training_sessions,
    training_shapes,
    users,
)
from trainer.gateway.resources import supervised_fine_tuning_jobs as sft
from trainer.gateway.standard import Handler


def _of_jobs(collection: str) -> dict[str, Handler]:
    """The methods that all kinds of jobs have."""
    one = FAMILIES[collection].singular
    name = one[0].upper() + one[1:]
    return {
        f"Gateway_List{name}s": standard.list_all(jobs.family(collection)),
        f"Gateway_Create{name}": jobs.create(collection),
        f"Gateway_Get{name}": jobs.get(collection),
        f"Gateway_Delete{name}": jobs.delete(collection),
    }


def _of_long_jobs(collection: str) -> dict[str, Handler]:
    """Those of jobs that can be stopped and taken up again besides."""
    one = FAMILIES[collection].singular
    name = one[0].upper() + one[1:]
    return {
        **_of_jobs(collection),
        f"Gateway_Cancel{name}": jobs.cancel(collection),
        f"Gateway_Resume{name}": jobs.resume(collection),
    }


OPERATIONS: dict[str, Handler] = {
    "Gateway_ListAccounts": accounts.list_all,
    "Gateway_GetAccount": accounts.get,
    "Gateway_ListDatasets": standard.list_all(datasets.FAMILY),
    "Gateway_CreateDataset": datasets.create,
    "Gateway_GetDataset": standard.get(datasets.FAMILY),
    "Gateway_UpdateDataset": standard.patch(datasets.FAMILY),
    "Gateway_DeleteDataset": standard.delete(datasets.FAMILY),
    "Gateway_GetDatasetUploadEndpoint": datasets.get_upload_endpoint,
    "Gateway_ValidateDatasetUpload": datasets.validate_upload,
    "Gateway_UploadDatasetFile": datasets.upload,
    "Gateway_SplitDataset": datasets.split,
    "Gateway_GetDatasetDownloadEndpoint": datasets.get_download_endpoint,
    "Gateway_ListModels": models.list_models,
    "Gateway_CreateModel": models.create,
    "Gateway_GetModel": models.get,
    "Gateway_UpdateModel": standard.patch(models.FAMILY),
    "Gateway_DeleteModel": standard.delete(models.FAMILY),
    "Gateway_GetModelUploadEndpoint": models.get_upload_endpoint,
    "Gateway_ValidateModelUpload": models.validate_upload,
    "Gateway_ImportModel": model_verbs.import_model,
    "Gateway_PrepareModel": model_verbs.prepare,
    "Gateway_CreateModelVersion": model_verbs.create_version,
    "Gateway_GetModelVersionCount": model_verbs.count_versions,
    "Gateway_ValidateModelConfig": model_verbs.validate_config,
    "Gateway_GetModelDownloadEndpoint": models.get_download_endpoint,
    **_of_long_jobs("supervisedFineTuningJobs"),
    "Gateway_CreateSupervisedFineTuningJob": jobs.create("supervisedFineTuningJobs", prices=sft.cost),
    "Gateway_EstimateSupervisedFineTuningJobCost": sft.estimate_cost,
    **_of_long_jobs("dpoJobs"),
    "Gateway_GetDpoJobMetricsFileEndpoint": jobs.metrics_endpoint("dpoJobs"),
    **_of_long_jobs("reinforcementFineTuningJobs"),
    "Gateway_UpdateReinforcementFineTuningJob": jobs.patch("reinforcementFineTuningJobs"),
    "Gateway_GetReinforcementFineTuningJobMetricsFileEndpoint": jobs.metrics_endpoint("reinforcementFineTuningJobs"),
    "Gateway_DebugReinforcementFineTuningJob": job_verbs.debug,
    **_of_long_jobs("rlorTrainerJobs"),
    "Gateway_ListRlorTrainerJobCheckpoints": jobs.list_checkpoints("rlorTrainerJobs"),
    "Gateway_GetRlorTrainerJobPublicLogs": job_verbs.public_logs,
    **_of_jobs("trainingSessionJobs"),
    "Gateway_CreateTrainingSession": training_sessions.create,
    "Gateway_GetTrainingSession": training_sessions.get,
    "Gateway_ListTrainingSessions": training_sessions.list_sessions,
    **_of_jobs("evaluationJobs"),
    "Gateway_CreateEvaluationJob": evaluation_jobs.create,
    "Gateway_GetEvaluationJobExecutionLogEndpoint": evaluation_jobs.execution_log,
    "Trainer_CancelEvaluationJob": jobs.cancel("evaluationJobs"),
    "Trainer_ResumeEvaluationJob": jobs.resume("evaluationJobs"),
    **_of_jobs("batchInferenceJobs"),
    "Gateway_ListTrainingShapes": training_shapes.list_shapes,
    "Gateway_CreateTrainingShape": training_shapes.create,
    "Gateway_GetTrainingShape": training_shapes.get,
    "Gateway_UpdateTrainingShape": training_shapes.update,
    "Gateway_DeleteTrainingShape": training_shapes.delete,
    "Gateway_ListTrainingShapeVersions": training_shapes.list_versions,
    "Gateway_GetTrainingShapeVersion": training_shapes.get_version,
    "Gateway_UpdateTrainingShapeVersion": training_shapes.update_version,
    "Gateway_ListEvaluators": standard.list_all(evaluators.FAMILY),
    "Gateway_CreateEvaluator": evaluators.create,
    "Gateway_CreateEvaluatorV2": evaluators.create,
    "Gateway_GetEvaluator": standard.get(evaluators.FAMILY),
    "Gateway_UpdateEvaluator": evaluators.update,
    "Gateway_DeleteEvaluator": evaluators.delete,
    "Gateway_GetEvaluatorUploadEndpoint": evaluators.get_upload_endpoint,
    "Gateway_ValidateEvaluatorUpload": evaluators.validate_upload,
    "Gateway_GetEvaluatorSourceCodeEndpoint": evaluators.source_code,
    "Gateway_GetEvaluatorBuildLogEndpoint": evaluators.build_log,
    "Gateway_ListEvaluatorVersions": evaluators.list_versions,
    "Gateway_GetEvaluatorVersion": evaluators.get_version,
    "Gateway_DeleteEvaluatorVersion": evaluators.delete_version,
    "Gateway_AliasEvaluatorVersion": evaluators.alias,
    "Gateway_RollbackEvaluator": evaluators.rollback,
    "Gateway_PreviewEvaluator": evaluators_preview.preview,
    "Gateway_ListEvaluations": standard.list_all(evaluations.FAMILY),
    "Gateway_CreateEvaluation": evaluations.create,
    "Gateway_GetEvaluation": standard.get(evaluations.FAMILY),
    "Gateway_DeleteEvaluation": standard.delete(evaluations.FAMILY),
    "Gateway_PreviewEvaluation": evaluations.preview,
    "Gateway_ValidateAssertions": evaluations.validate,
    "Gateway_TestEvaluation": evaluations.test,
    "Gateway_ListSecrets": secrets.list_all,
    "Gateway_CreateSecret": secrets.create,
    "Gateway_GetSecret": standard.get(secrets.FAMILY),
    "Gateway_UpdateSecret": secrets.update,
    "Gateway_DeleteSecret": standard.delete(secrets.FAMILY),
    "Gateway_ListUsers": standard.list_all(users.FAMILY),
    "Gateway_CreateUser": users.create,
    "Gateway_GetUser": standard.get(users.FAMILY),
    "Gateway_UpdateUser": users.update,
    "Gateway_ListApiKeys": api_keys.list_all,
    "Gateway_CreateApiKey": api_keys.create,
    "Gateway_GetApiKey": api_keys.get,
    "Trainer_GetApiKey": api_keys.get,
    "Gateway_DeleteApiKey": api_keys.delete,
    "Gateway_ListQuotas": quotas.list_all,
    "Gateway_GetQuota": quotas.get,
    "Gateway_UpdateQuota": quotas.update,
    "Gateway_ListAuditLogs": audit_logs.list_all,
    "Gateway_RefreshSessionToken": auth.refresh,
    "Gateway_PromoteCheckpoint": checkpoints.promote,
    "Trainer_PromoteJobCheckpoint": checkpoints.promote_of_job("supervisedFineTuningJobs"),
    "Trainer_ListJobCheckpoints": jobs.list_checkpoints("supervisedFineTuningJobs"),
    "Trainer_ReportJob": reports.report("supervisedFineTuningJobs"),
    "Trainer_PromoteDpoJobCheckpoint": checkpoints.promote_of_job("dpoJobs"),
    "Trainer_ListDpoJobCheckpoints": jobs.list_checkpoints("dpoJobs"),
    "Trainer_ReportDpoJob": reports.report("dpoJobs"),
    "Trainer_ListOperations": operations.list_all,
    "Trainer_GetOperation": operations.get,
    "Trainer_DeleteOperation": operations.delete,
    "Trainer_CancelOperation": operations.cancel,
}
# Those that only write records, and at once: done in one transaction with their line in the audit log.
QUICK = frozenset({
    "Gateway_CreateDataset", "Gateway_UpdateDataset", "Gateway_CreateModel", "Gateway_UpdateModel",
    "Gateway_CreateModelVersion", "Gateway_CreateSupervisedFineTuningJob", "Gateway_CreateDpoJob",
    "Gateway_CreateReinforcementFineTuningJob", "Gateway_UpdateReinforcementFineTuningJob",
    "Gateway_CreateRlorTrainerJob", "Gateway_CreateTrainingSessionJob", "Gateway_CreateTrainingSession",
    "Gateway_CreateBatchInferenceJob", "Gateway_CreateTrainingShape", "Gateway_UpdateTrainingShape",
    "Gateway_UpdateTrainingShapeVersion", "Gateway_CreateEvaluation", "Gateway_CreateSecret", "Gateway_UpdateSecret",
    "Gateway_CreateUser", "Gateway_UpdateUser", "Gateway_CreateApiKey", "Gateway_DeleteApiKey", "Gateway_UpdateQuota",
})  # fmt: skip


def is_quick(call: Call) -> bool:
    """True for a call that is done in one short transaction."""
    return call.operation.id in QUICK and not idempotency.is_long(call)
