"""The expanded objective of each kind of job, as `run.json` stores it: every constant named."""

from __future__ import annotations

from typing import Any

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
