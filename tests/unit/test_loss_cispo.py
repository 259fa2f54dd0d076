"""CISPO: the weight is clipped, the gradient never dropped."""

from __future__ import annotations

import math

import pytest

from tests.loss_kit import run_rows
from trainer.losses.table import find_loss

RATIOS = [0.5, 1.5, 4.0]


@pytest.mark.parametrize(
    ("config", "weights"),
    [({}, [0.8, 1.28, 1.28]), ({"clip_low_threshold": 0.0, "clip_high_threshold": 5.0}, [0.5, 1.5, 4.0])],
)
def test_golden_weights(config: dict[str, float], weights: list[float]) -> None:
    # Slope -clip(r) A with A = -2; value -clip(r) A p.
    for ratio, weight in zip(RATIOS, weights, strict=True):
        p = math.log(ratio) - 2
        value, slopes = run_rows("cispo", [[p]], old=[[-2.0]], advantages=[[-2.0]], **config)
        assert slopes == pytest.approx([2 * weight], rel=1e-5)
        assert value == pytest.approx(2 * weight * p, rel=1e-5)


def test_trls_default_cap_is_refused() -> None:
    with pytest.raises(ValueError, match=r"cispo\.clip_high_threshold is 0\.2, wanted 1 to"):
        find_loss("cispo", {"clip_high_threshold": 0.2})
