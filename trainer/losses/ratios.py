"""Ratios of probabilities in log space, clamped before `exp`, and the metrics every policy loss tells about them.

N positions, M positions or datums, nats.
"""

from __future__ import annotations

import torch
from torch import Tensor

# e^20 = 4.9e8: products with advantages and KL terms stay finite in fp32. Beyond it a ratio is a constant: its value
# counts, its gradient is 0, so one position cannot wreck a step. Below -20 (2e-9) the gradient was nothing anyway.
MAX_LOG_RATIO = 20.0


def ratio_of(log_ratio_M: Tensor) -> Tensor:
    """exp of a log-ratio clamped to +-MAX_LOG_RATIO; the gradient is the ratio itself inside, 0 beyond."""
    return log_ratio_M.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


def ratio_metrics(ratio_M: Tensor) -> dict[str, Tensor]:
    """Count, sum and range of the ratios; no range where there are none."""
    ratio_M = ratio_M.detach()
    found = {"ratios:sum": torch.ones_like(ratio_M).sum(), "ratio:sum": ratio_M.sum()}
    if ratio_M.shape[0]:
        found |= {"ratio:min": ratio_M.min(), "ratio:max": ratio_M.max()}
    return found
