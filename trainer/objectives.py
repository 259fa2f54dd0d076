"""The expanded objective of a job, as `run.json` stores it and its loop trains by it: every constant named."""

from __future__ import annotations

from typing import Any

from trainer.jobs import (
    DEFAULT_DPO_BETA,
    DEFAULT_ORPO_LAMBDA,
    DpoConfig,
    DpoJob,
    Job,
    LossConfig,
    LossMethod,
    OrpoConfig,
)
from trainer.loss_specs import described

OBJECTIVES: dict[str, dict[str, Any]] = {
    "sft": {
        "name": "cross_entropy",
        "equation": "L = -sum_t w_t log p(y_t | y_<t) / N",
        "weights": "1 for trained tokens (assistant turns with their stop token), 0 elsewhere",
        "aggregation": "sum over all tokens of the optimizer step",
        "denominator": "N = trained tokens of the whole optimizer step, over all its batches",
        "label_smoothing": 0.0,
        "z_loss": 0.0,
    },
}


def objective_of(
    job: Job, *, loss: str = "dpo", label_smoothing: float | None = None, nll_weight: float = 0.0
) -> dict[str, Any]:
    """The objective of `job`; the rest are the settings of `train.dpo`, which only method DPO has a use for.

    Raises `ValueError` for settings that mean nothing for the job's method, or are out of range for the loss.
    """
    dpo = isinstance(job, DpoJob) and job.method is LossMethod.DPO
    if not dpo and (loss != "dpo" or label_smoothing is not None or nll_weight):
        what = "ORPO has its likelihood term built in" if isinstance(job, DpoJob) else "this job is no preference job"
        raise ValueError(f"train.dpo: its settings are for method DPO, and {what}; leave them as they are")
    if not isinstance(job, DpoJob):
        return OBJECTIVES["sft"]
    given = job.loss_config or LossConfig()
    if dpo:
        beta = (given.dpo or DpoConfig()).beta
        constants = {"beta": DEFAULT_DPO_BETA if beta is None else beta, "nll_weight": nll_weight}
        if label_smoothing is not None:
            constants["label_smoothing"] = label_smoothing
        reference = (
            "the policy as training starts from it: the base with the adapter off, the adapter of a warm start, or the "
            "untrained weights; computed once, with dropout off, and kept on disk"
        )
    else:
        loss = "orpo"
        weight = (given.orpo or OrpoConfig()).lambda_
        constants = {"orpo_lambda": DEFAULT_ORPO_LAMBDA if weight is None else weight}
        reference = "none"
    try:
        expanded = described(loss, constants)
    except ValueError as error:
        raise ValueError(f"job.loss_config and train.dpo: {error}") from error
    return {
        **expanded,
        "method": str(job.method),
        "weights": "1 for the response's tokens with their stop token, 0 elsewhere",
        "aggregation": "sum over the pairs of the optimizer step",
        "denominator": "pairs of the whole optimizer step, over all its batches",
        "reference": reference,
    }
