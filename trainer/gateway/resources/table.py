"""Which function answers which operation: the operations that this gateway implements."""

from __future__ import annotations

from trainer.gateway import standard
from trainer.gateway.resources import accounts, checkpoints, datasets, models, reports
from trainer.gateway.resources import supervised_fine_tuning_jobs as sft
from trainer.gateway.standard import Handler

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
    "Gateway_GetDatasetDownloadEndpoint": datasets.get_download_endpoint,
    "Gateway_ListModels": standard.list_all(models.FAMILY),
    "Gateway_CreateModel": models.create,
    "Gateway_GetModel": standard.get(models.FAMILY),
    "Gateway_UpdateModel": standard.patch(models.FAMILY),
    "Gateway_DeleteModel": standard.delete(models.FAMILY),
    "Gateway_GetModelUploadEndpoint": models.get_upload_endpoint,
    "Gateway_ValidateModelUpload": models.validate_upload,
    "Gateway_GetModelDownloadEndpoint": models.get_download_endpoint,
    "Gateway_ListSupervisedFineTuningJobs": standard.list_all(sft.FAMILY),
    "Gateway_CreateSupervisedFineTuningJob": sft.create,
    "Gateway_GetSupervisedFineTuningJob": standard.get(sft.FAMILY),
    "Gateway_DeleteSupervisedFineTuningJob": sft.delete,
    "Gateway_CancelSupervisedFineTuningJob": sft.cancel,
    "Gateway_ResumeSupervisedFineTuningJob": sft.resume,
    "Gateway_EstimateSupervisedFineTuningJobCost": sft.estimate_cost,
    "Gateway_PromoteCheckpoint": checkpoints.promote,
    "Trainer_PromoteJobCheckpoint": checkpoints.promote_of_job,
    "Trainer_ListJobCheckpoints": sft.list_checkpoints,
    "Trainer_ReportJob": reports.report,
}
