"""What a user of role `custom` may do: the operations of their permission preset, and nothing else.

Fireworks documents one preset, `pilot`, the capabilities of its agent (fine-tuning/agent/introduction, "Security"):
reads of what a fine-tuning task needs, and what makes something new; no Delete, no Cancel, nothing that changes or ends
what is there. Its full list is not public, so each group below has the operations that are named there and their like.
firectl's examples call the same thing `agent`. A user's record keeps the preset's name only.
"""

from __future__ import annotations

_AGENT = frozenset({
    # account, usage and quotas
    "Gateway_ListAccounts", "Gateway_GetAccount", "Gateway_GetAccountUsage", "Gateway_GetQuota", "Gateway_ListQuotas",
    # models
    "Gateway_ListModels", "Gateway_GetModel", "Gateway_CreateModel", "Gateway_CreateModelVersion",
    "Gateway_GetModelVersionCount", "Gateway_GetModelUploadEndpoint", "Gateway_ValidateModelUpload",
    "Gateway_GetModelDownloadEndpoint", "Gateway_PrepareModel", "Gateway_ValidateModelConfig",
    # deployments
    "Gateway_ListDeployments", "Gateway_GetDeployment", "Gateway_CreateDeployment", "Gateway_GetDeploymentMetrics",
    "Gateway_DeployModelVersion", "Gateway_ListDeploymentShapes", "Gateway_GetDeploymentShape",
    "Gateway_ListDeploymentShapeVersions", "Gateway_GetDeploymentShapeVersion",
    # data sets
    "Gateway_ListDatasets", "Gateway_GetDataset", "Gateway_CreateDataset", "Gateway_GetDatasetUploadEndpoint",
    "Gateway_UploadDatasetFile", "Gateway_ValidateDatasetUpload", "Gateway_SplitDataset",
    "Gateway_GetDatasetDownloadEndpoint",
    # evaluators and evaluations
    "Gateway_ListEvaluators", "Gateway_GetEvaluator", "Gateway_CreateEvaluator", "Gateway_CreateEvaluatorV2",
    "Gateway_ListEvaluatorVersions", "Gateway_GetEvaluatorVersion", "Gateway_GetEvaluatorUploadEndpoint",
    "Gateway_ValidateEvaluatorUpload", "Gateway_GetEvaluatorBuildLogEndpoint", "Gateway_GetEvaluatorSourceCodeEndpoint",
    "Gateway_PreviewEvaluator", "Gateway_ListEvaluations", "Gateway_GetEvaluation", "Gateway_CreateEvaluation",
    "Gateway_PreviewEvaluation", "Gateway_ValidateAssertions", "Gateway_TestEvaluation", "Gateway_ListEvaluationJobs",
    "Gateway_GetEvaluationJob", "Gateway_CreateEvaluationJob", "Gateway_GetEvaluationJobExecutionLogEndpoint",
    # fine-tuning jobs
    "Gateway_ListSupervisedFineTuningJobs", "Gateway_GetSupervisedFineTuningJob",
    "Gateway_CreateSupervisedFineTuningJob", "Gateway_EstimateSupervisedFineTuningJobCost",
    "Trainer_ListJobCheckpoints", "Gateway_ListDpoJobs", "Gateway_GetDpoJob", "Gateway_CreateDpoJob",
    "Gateway_GetDpoJobMetricsFileEndpoint", "Trainer_ListDpoJobCheckpoints", "Gateway_ListReinforcementFineTuningJobs",
    "Gateway_GetReinforcementFineTuningJob", "Gateway_CreateReinforcementFineTuningJob",
    "Gateway_GetReinforcementFineTuningJobMetricsFileEndpoint", "Gateway_ListRlorTrainerJobs",
    "Gateway_GetRlorTrainerJob", "Gateway_CreateRlorTrainerJob", "Gateway_ListRlorTrainerJobCheckpoints",
    "Gateway_GetRlorTrainerJobPublicLogs",
    # training shapes
    "Gateway_ListTrainingShapes", "Gateway_GetTrainingShape", "Gateway_ListTrainingShapeVersions",
    "Gateway_GetTrainingShapeVersion",
    # batch inference
    "Gateway_ListBatchInferenceJobs", "Gateway_GetBatchInferenceJob", "Gateway_CreateBatchInferenceJob",
    # how far long work has come
    "Trainer_ListOperations", "Trainer_GetOperation",
})  # fmt: skip

# Preset -> ids of the operations that it permits.
PRESETS: dict[str, frozenset[str]] = {"agent": _AGENT, "pilot": _AGENT}
